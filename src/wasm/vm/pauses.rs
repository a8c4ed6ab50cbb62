//! Streams that plugins hold back: how many there are, and what ends a pause that lasts for longer than `max_pause`.

use http::StatusCode;
use tokio::time::Instant;

use super::Direction;
use super::core::{Core, go_on};
use super::traffic::hide;
use crate::http::LocalReply;
use crate::stream::Verdict;
use crate::wasm::context::Pause;
use crate::wasm::spec::FailurePolicy;
use crate::wasm::status::wasm_stats;

impl Core {
    /// The guest holds `direction` of a stream back. `held`: nothing but the guest can let it go on, and its time counts
    /// from now; `last`: nor will the guest be asked again.
    #[cold]
    pub(super) fn pause(&mut self, id: u32, direction: Direction, held: bool, last: bool) {
        let host = self.store.data_mut();
        let for_nothing = last && host.awaits_nothing();
        let until = host
            .env
            .policy
            .max_pause
            .filter(|_| held)
            .map(|limit| Instant::now() + limit);
        let Some(context) = host.streams.get_mut(id) else {
            return;
        };
        let root = context.root;
        context.paused[direction as usize]
            .get_or_insert_with(|| Box::new(Pause::new(&self.stats, &self.counters)))
            .until = until;
        if let Some(until) = until {
            if host.pauses.is_empty() {
                host.wake();
            }
            host.pauses.push_back((until, id, direction));
        }
        if for_nothing {
            self.stats.inc(wasm_stats::PAUSED_FOR_NOTHING);
            if let Some(root) = host.root_of(root)
                && !std::mem::replace(&mut root.warned, true)
            {
                tracing::warn!(
                    target: "wasm",
                    "plugin {}: it holds a stream back while no call, timer or queue of its own is there to let it go \
                     on (said once)",
                    root.made_for.spec.name
                );
            }
        }
    }

    /// Ends the pauses whose limit is reached.
    pub(super) fn end_pauses(&mut self, now: Instant) {
        let host = self.store.data_mut();
        while let Some((until, id, direction)) = host.pauses.front().copied() {
            if until > now {
                return;
            }
            host.pauses.pop_front();
            let Some(context) = host.streams.get_mut(id) else {
                continue;
            };
            let side = direction as usize;
            if context.ended
                || context.paused[side]
                    .as_ref()
                    .is_none_or(|pause| pause.until != Some(until))
            {
                // It has gone on, was paused anew, or has ended in another way.
                continue;
            }
            context.paused[side] = None;
            self.stats.inc(wasm_stats::PAUSES_ENDED);
            self.counters.meter.overdue.add(1);
            let root = context.root;
            let root = host.roots.iter().find(|candidate| candidate.id == root);
            let open = root.is_some_and(|root| {
                matches!(root.made_for.spec.failure, FailurePolicy::Open { .. })
            });
            let network = context.network.as_ref();
            // What a connection's host has sent cannot be let go on, as in Envoy: it would be held for ever.
            let stays = network.is_some() && direction == Direction::Response;
            if open && !stays {
                hide(&mut context.visible, direction);
                go_on(context, direction);
            } else if let Some(network) = network {
                network.handle.close("wasm_max_pause");
            } else {
                context.ended = true;
                context.failed = true;
                let reply = LocalReply::new(StatusCode::GATEWAY_TIMEOUT, "", "wasm_max_pause");
                context.stream.decide(Verdict::Reply {
                    reply: Box::new(reply),
                    direct: context.replies_directly(),
                });
            }
        }
    }
}
