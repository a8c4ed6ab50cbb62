//! What guests write to the log: component `wasm`, with the plugin's name before it.

use std::time::Duration;

use tokio::time::Instant;

use super::{Guest, Outcome, Status, memory, put_u32, range};
use crate::wasm::context::Host;
use crate::wasm::meter::Quota;

/// Longest message that is logged; the rest is cut off.
pub(super) const MAX_MESSAGE: usize = 64 << 10;

/// Writes one line for the plugin of `host`, unless it has written too many in this second. Levels are Envoy's: trace 0
/// to critical 5.
pub(crate) fn write_log(host: &mut Host, level: u32, message: &str) {
    if let Some(probe) = &host.env.probe {
        probe.log(level, message);
        return;
    }
    if !is_written(level) || !admit(host) {
        return;
    }
    let prefix = host.log_prefix();
    match level {
        0 => tracing::trace!(target: "wasm", "{prefix}: {message}"),
        1 => tracing::debug!(target: "wasm", "{prefix}: {message}"),
        2 => tracing::info!(target: "wasm", "{prefix}: {message}"),
        3 => tracing::warn!(target: "wasm", "{prefix}: {message}"),
        4 => tracing::error!(target: "wasm", "{prefix}: {message}"),
        _ => tracing::error!(target: "wasm", critical = true, "{prefix}: {message}"),
    }
}

fn is_written(level: u32) -> bool {
    use tracing::Level;
    match level {
        0 => tracing::event_enabled!(target: "wasm", Level::TRACE),
        1 => tracing::event_enabled!(target: "wasm", Level::DEBUG),
        2 => tracing::event_enabled!(target: "wasm", Level::INFO),
        3 => tracing::event_enabled!(target: "wasm", Level::WARN),
        4 => tracing::event_enabled!(target: "wasm", Level::ERROR),
        _ => tracing::event_enabled!(target: "wasm", Level::ERROR, critical),
    }
}

/// True where another line may be written in this second. What was dropped in an earlier one is told.
fn admit(host: &mut Host) -> bool {
    const SECOND: Duration = Duration::from_secs(1);
    let quota = host.env.policy.quotas.log_lines_per_second;
    let now = Instant::now();
    let begin = host.log_lines.second;
    if begin.is_none_or(|begin| now - begin >= SECOND) {
        let lines = &mut host.log_lines;
        let dropped = std::mem::take(&mut lines.dropped);
        lines.second = Some(now);
        lines.written = 0;
        if dropped > 0 {
            let prefix = host.log_prefix();
            tracing::warn!(target: "wasm", "{prefix}: {dropped} lines were dropped, more than {quota} in a second");
        }
    }
    let lines = &mut host.log_lines;
    if lines.written >= quota {
        lines.dropped += 1;
        host.counters.meter.refuse(Quota::LogLines);
        return false;
    }
    lines.written += 1;
    true
}

pub(super) fn log(guest: &mut Guest<'_>, level: u32, at: u32, len: u32) -> Outcome {
    if level > 5 {
        return Err(Status::BadArgument.into());
    }
    let memory = memory(guest)?;
    let message = range(memory.data(&*guest), at, len)?;
    let message = &message[..message.len().min(MAX_MESSAGE)];
    let message = String::from_utf8_lossy(message).into_owned();
    let host = guest.data_mut();
    write_log(host, level, &message);
    if level == 5 {
        // The SDKs tell of a panic this way: it is shown with the trap.
        host.remember(&message);
    }
    Ok(())
}

/// The least level that is written; 6 where the log is off.
fn least_written() -> u32 {
    (0..6).find(|level| is_written(*level)).unwrap_or(6)
}

pub(super) fn get_level(guest: &mut Guest<'_>, out: u32) -> Outcome {
    let level = match &guest.data().env.probe {
        Some(probe) => probe.log_level(),
        None => least_written(),
    };
    put_u32(guest, out, level)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tracing::Level;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::telemetry::log::{Level as Threshold, Options, build};

    #[test]
    fn a_guest_is_told_the_level_of_the_log() {
        // As the process's own log: spans and what is neither span nor event are not for it.
        let filter = tracing_subscriber::filter::filter_fn(|metadata| {
            metadata.is_event() && *metadata.level() <= Level::INFO
        });
        let subscriber = tracing_subscriber::registry().with(filter);
        tracing::subscriber::with_default(subscriber, || {
            let written: Vec<bool> = (0..6).map(is_written).collect();
            assert_eq!(written, [false, false, true, true, true, true]);
        });
    }

    #[test]
    fn levels_are_those_of_the_log_critical_and_off_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let options = Options {
            level: Threshold::Critical,
            format: "%l %v".to_owned(),
            path: Some(path.clone()),
            ..Options::default()
        };
        let log = build(&options).expect("a file");
        tracing::subscriber::with_default(log.subscriber(&options), || {
            for (told, level) in (0..).zip(Threshold::ALL) {
                log.levels.set_all(level);
                assert_eq!(least_written(), told, "{level:?}");
            }
        });
    }
}
