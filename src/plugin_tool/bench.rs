//! `plenipo plugin bench`: many requests, one after the other, through one VM on this thread.
//!
//! Every call into the guest is timed, on the wall's clock; a reading of that clock (some 20 to 50 ns) is in each figure. A
//! request is the whole filter: the context, all callbacks, the end.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::host::{self, Ground, Host, Setup};
use super::outcome::{End, hint, nanos, time};
use super::recorder::{Calls, Recorder};
use super::run::exchange;
use super::{Verdict, bytes, json_text, printable, source};
use crate::cli::plugin::{BenchArgs, LEVELS};
use crate::wasm::BuildTimes;

/// What a proxy logs at by default: a guest that asks does less below it.
const INFO: u32 = 2;
/// Requests before the measurement.
const WARM_UP: u32 = 100;

/// What was measured.
struct Measured {
    compile: Duration,
    built: BuildTimes,
    memory: u64,
    end: End,
    /// Nanoseconds a request.
    requests: Vec<u64>,
    calls: Calls,
    took: Duration,
}

pub(super) fn run(arguments: &BenchArgs) -> anyhow::Result<(String, Verdict)> {
    debug_assert_eq!(LEVELS[INFO as usize], "info");
    let code = source::Access::of(&arguments.registry)?.resolve(&arguments.source)?;
    let setup = Setup::of(&arguments.setup, code)?;
    let (exchange, answers) = exchange(&arguments.exchange)?;
    let ground = Ground::new()?;
    let recorder = Arc::new(Recorder::new(INFO, answers).without_log());
    let measured = host::runtime()?.block_on(async {
        let host = Host::load(&ground, &setup, &recorder, None)
            .await
            .map_err(|reason| (hint(&reason, Some(&setup.code)), reason))?;
        let first = recorder.take();
        if !exchange.wait.is_zero() {
            tokio::time::sleep(exchange.wait).await;
        }
        let mut measured = Measured {
            compile: host.compile_time().unwrap_or_default(),
            built: first.built.unwrap_or_default(),
            memory: 0,
            end: End::Answered,
            requests: Vec::new(),
            calls: Calls::new(),
            took: Duration::ZERO,
        };
        for number in 0..WARM_UP.saturating_add(arguments.requests) {
            if number == WARM_UP {
                recorder.take();
                measured.took = Duration::ZERO;
                measured.requests.clear();
            }
            if measured.took >= arguments.seconds {
                // Slower than one could warm it up: then that is what was measured.
                break;
            }
            let begin = Instant::now();
            let (end, ..) = host.send(&exchange).await;
            let took = begin.elapsed();
            measured.took += took;
            measured.requests.push(nanos(took));
            measured.end = end;
            // Between requests, so that what the plugin left behind (callouts, its timer) has its turn.
            tokio::task::yield_now().await;
            if matches!(end, End::Stalled) {
                let reason = format!(
                    "the plugin holds the request, and nothing let it go within {} s (--timeout)",
                    exchange.timeout.as_secs_f64()
                );
                return Err((None, reason));
            }
            if let Some(failure) = host.failure() {
                return Err((hint(&failure, None), failure));
            }
        }
        host.settle().await;
        measured.memory = host.memory();
        let record = recorder.take();
        if let Some(cluster) = record.unanswered.first() {
            return Err((
                Some(format!("give one with --callout '{cluster}=200'")),
                format!("it calls the cluster {cluster}, for which no answer was given"),
            ));
        }
        if let Some(service) = record.grpc.first() {
            let reason = format!("it calls {service} by gRPC, which is not answered here");
            return Err((None, reason));
        }
        measured.calls = record.calls;
        Ok(measured)
    });
    Ok(match measured {
        Ok(measured) if arguments.json => (json_text(&measured.json())?, Verdict::Well),
        Ok(measured) => (measured.text(&arguments.source), Verdict::Well),
        Err((hint, failure)) => (failed(&failure, hint, arguments.json)?, Verdict::Failed),
    })
}

fn failed(failure: &str, hint: Option<String>, as_json: bool) -> anyhow::Result<String> {
    if as_json {
        return json_text(&json!({"failure": failure, "hint": hint}));
    }
    let mut out = String::from("the plugin has failed\n");
    for line in failure.lines() {
        let _ = writeln!(out, "    {}", printable(line));
    }
    if let Some(hint) = hint {
        let _ = writeln!(out, "hint: {}", printable(&hint));
    }
    Ok(out)
}

impl Measured {
    /// Requests and callbacks: name, calls, p50, p99.
    fn rows(&self) -> Vec<(&'static str, usize, u64, u64)> {
        let row = |name, times: &[u64]| {
            let mut times = times.to_vec();
            times.sort_unstable();
            (
                name,
                times.len(),
                quantile(&times, 50),
                quantile(&times, 99),
            )
        };
        std::iter::once(row("a request", &self.requests))
            .chain(self.calls.iter().map(|(name, times)| row(name, times)))
            .collect()
    }

    fn text(&self, source: &str) -> String {
        let mut out = String::new();
        let mut line = |heading: &str, value: &str| {
            let _ = writeln!(out, "{heading:<12} {value}");
        };
        let shown = |duration: Duration| time(nanos(duration));
        line("file", source);
        line("compile", &shown(self.compile));
        line(
            "instantiate",
            &shown(self.built.instantiate + self.built.start),
        );
        line("configure", &shown(self.built.configure));
        line(
            "memory",
            &format!("{} of the VM, at the end", bytes(self.memory)),
        );
        line(
            "requests",
            &format!(
                "{} in {} ms, one after the other; the last: {}",
                self.requests.len(),
                self.took.as_millis(),
                self.end.as_str()
            ),
        );
        let _ = writeln!(
            out,
            "\n{:<36} {:>9} {:>9} {:>9}",
            "nanoseconds in", "calls", "p50", "p99"
        );
        for (name, calls, p50, p99) in self.rows() {
            let _ = writeln!(out, "{name:<36} {calls:>9} {p50:>9} {p99:>9}");
        }
        out
    }

    fn json(&self) -> serde_json::Value {
        let row = |(name, calls, p50, p99): &(&str, usize, u64, u64)| {
            json!({
                "name": name, "calls": calls, "p50_nanoseconds": p50, "p99_nanoseconds": p99,
            })
        };
        let rows = self.rows();
        let (request, callbacks) = rows.split_first().map_or_else(
            || (serde_json::Value::Null, Vec::new()),
            |(first, rest)| (row(first), rest.iter().map(row).collect()),
        );
        json!({
            "compile_nanoseconds": nanos(self.compile),
            "instantiate_nanoseconds": nanos(self.built.instantiate + self.built.start),
            "configure_nanoseconds": nanos(self.built.configure),
            "memory_bytes": self.memory,
            "outcome": self.end.as_str(),
            "nanoseconds": nanos(self.took),
            "request": request,
            "callbacks": callbacks,
        })
    }
}

/// Of sorted values: what so many of a hundred do not exceed.
fn quantile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!((quantile(&hundred, 50), quantile(&hundred, 99)), (50, 99));
        assert_eq!((quantile(&[7], 50), quantile(&[7], 99)), (7, 7));
        assert_eq!(quantile(&[1, 2, 3], 50), 2);
        assert_eq!(quantile(&[], 50), 0);
    }
}
