//! Streams that a plugin holds: how many, and the end of those that it holds for longer than `max_pause`.
//!
//! A stream is held by a plugin where the plugin stopped it and nothing but the plugin can let it go on: not where a
//! `StopIteration` or a buffered part of a body waits for data that is still to come.

use std::sync::{Arc, Weak};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::context::Host;
use super::vm::{Direction, Vm};
use crate::base::task::spawn;
use crate::http::LocalReply;
use crate::stream::Verdict;

/// Says of a stream whether the plugin holds it, from now on.
#[inline]
pub(crate) fn hold(host: &mut Host, id: u32, direction: Direction, held: bool) {
    let Some(context) = host.streams.get_mut(&id) else {
        return;
    };
    let slot = &mut context.held[direction as usize];
    if held == slot.is_some() && !held {
        return;
    }
    let before = slot.is_some();
    *slot = held.then(Instant::now);
    count(host, before, held);
}

/// The stream is gone.
#[inline]
pub(crate) fn forget(host: &mut Host, held: [Option<Instant>; 2]) {
    for held in held {
        count(host, held.is_some(), false);
    }
}

fn count(host: &Host, before: bool, now: bool) {
    let gauge = &host.counters.meter.paused;
    match (before, now) {
        (false, true) => gauge.add(1),
        (true, false) => gauge.add(1u64.wrapping_neg()),
        _ => {}
    }
}

/// Ends the streams that have been held for `limit`.
pub(crate) fn end_overdue(host: &mut Host, limit: Duration) {
    let now = Instant::now();
    let overdue: Vec<u32> = host
        .streams
        .iter()
        .filter(|(_, context)| {
            let mut held = context.held.iter().flatten();
            !context.ended && held.any(|since| now - *since >= limit)
        })
        .map(|(id, _)| *id)
        .collect();
    for id in overdue {
        let Some(context) = host.streams.get_mut(&id) else {
            continue;
        };
        context.ended = true;
        let held = std::mem::take(&mut context.held);
        let direct = context.responding;
        let stream = context.stream.upgrade();
        forget(host, held);
        host.counters.meter.overdue.add(1);
        tracing::warn!(
            target: "wasm",
            "{}: a stream was held for {limit:?}, and is ended",
            host.env.log_prefix
        );
        if let Some(stream) = stream {
            let reply = LocalReply::new(StatusCode::GATEWAY_TIMEOUT, "", "wasm_max_pause");
            stream.decide(Verdict::Reply {
                reply: Box::new(reply),
                direct,
            });
        }
    }
}

/// On the VM's worker: ends what is overdue, as long as the VM lives.
pub(crate) fn watch(vm: &Arc<Vm>, limit: Duration) {
    let look = (limit / 4).clamp(Duration::from_millis(5), Duration::from_secs(1));
    let vm: Weak<Vm> = Arc::downgrade(vm);
    drop(spawn("wasm pauses", async move {
        loop {
            tokio::time::sleep(look).await;
            match vm.upgrade() {
                Some(vm) if !vm.is_dead() => vm.end_overdue(limit),
                _ => return,
            }
        }
    }));
}
