//! The task of a VM on its worker: what reaches it from outside its worker's calls, one message after the other, and its
//! timers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::core::Core;
use super::ends::LogPart;
use super::pace::Pace;
use super::{Message, Vm};
use crate::wasm::context::Root;
use crate::wasm::engine::TICK;

/// So often others have their turn before a queue's message is told: once more than there are callbacks for the end of a
/// gRPC callout, and some for those between.
const TURNS: u32 = 8;

/// The VM's task on its worker.
pub(super) async fn serve(vm: Arc<Vm>, inbox: mpsc::UnboundedReceiver<Message>) {
    let mut task = Task {
        vm,
        inbox,
        pace: Pace::default(),
        held: VecDeque::new(),
        waited: 0,
        busy: Duration::ZERO,
        retiring: false,
    };
    while let Some(message) = task.next().await {
        if task.handle(message).await {
            return;
        }
    }
}

struct Task {
    vm: Arc<Vm>,
    inbox: mpsc::UnboundedReceiver<Message>,
    /// Of the queues.
    pace: Pace,
    /// What their messages are told with, until they have their turn again.
    held: VecDeque<Message>,
    /// So many messages more were there when the last one of a queue had waited: these need not.
    waited: usize,
    /// What messages took since the runtime was last let look for I/O.
    busy: Duration,
    retiring: bool,
}

impl Task {
    /// The next message; `None` where there will be none. Queues wait where they have had their share, and nothing waits for
    /// them but who wants to come after them.
    async fn next(&mut self) -> Option<Message> {
        loop {
            let rest = (!self.held.is_empty()).then(|| {
                let now = Instant::now();
                self.pace.rests_until(now).unwrap_or(now)
            });
            let due = self.vm.due();
            return tokio::select! {
                biased;
                () = sleep_until(rest) => self.held.pop_front(),
                message = self.inbox.recv() => match message {
                    Some(message @ Message::QueueReady { .. })
                        if rest.is_some() || self.pace.rests_until(Instant::now()).is_some() =>
                    {
                        self.held.push_back(message);
                        continue;
                    }
                    message => message,
                },
                () = sleep_until(due) => {
                    self.vm.timers();
                    // Due ticks must not starve the runtime.
                    tokio::task::yield_now().await;
                    Some(Message::Wake)
                }
            };
        }
    }

    /// Handles a message, and lets others have their turn; true where it was the last.
    async fn handle(&mut self, message: Message) -> bool {
        if let Message::Leave { .. } | Message::Sync(_) | Message::Retire = message {
            // These come after all that was there before.
            for held in std::mem::take(&mut self.held) {
                if self.handle_one(held).await {
                    return true;
                }
            }
        }
        self.handle_one(message).await
    }

    async fn handle_one(&mut self, message: Message) -> bool {
        self.retiring |= matches!(message, Message::Retire);
        let of_queue = matches!(message, Message::QueueReady { .. });
        let waited = self.waited > 0;
        self.waited = self.waited.saturating_sub(1);
        if of_queue && !waited {
            // As in Envoy, what goes on comes first: who has put it there, and the rest of what they are being told.
            for _ in 0..TURNS {
                turn().await;
            }
            self.waited = self.inbox.len();
        }
        let begin = Instant::now();
        let dead = self.vm.handle(message).await;
        let end = Instant::now();
        if of_queue {
            self.pace.spend(begin, end);
        }
        if dead || (self.retiring && self.vm.core.lock().store.data().roots.is_empty()) {
            return true;
        }
        self.busy += end - begin;
        if self.busy >= TICK {
            self.busy = Duration::ZERO;
            tokio::task::yield_now().await;
        } else if !self.inbox.is_empty() {
            turn().await;
        }
        false
    }
}

/// Lets those have their turn who were woken before: what one message set off in a stream comes before the next message, as
/// in Envoy. The runtime's own way to yield comes back only after it has looked for I/O.
async fn turn() {
    let mut taken = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut taken, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Vm {
    fn due(&self) -> Option<Instant> {
        let core = self.core.lock();
        let host = core.store.data();
        let pause = host.pauses.front().map(|(until, ..)| *until);
        host.roots.iter().filter_map(Root::due).chain(pause).min()
    }

    /// Handles one message; true where it was the last.
    async fn handle(&self, message: Message) -> bool {
        // What fails here has been dealt with by `with`.
        let result = match message {
            Message::Called { token, result } => self.with(|core| core.called(token, result)),
            Message::Grpc {
                token,
                events,
                handled,
            } => {
                let last = events.len().saturating_sub(1);
                for (index, event) in events.into_iter().enumerate() {
                    if self.with(|core| core.grpc(token, event)).is_err() {
                        return true;
                    }
                    if index < last {
                        turn().await;
                    }
                }
                drop(handled);
                Ok(())
            }
            Message::GrpcFailed(failed) => self.with(|core| core.grpc_failed(failed)),
            Message::Resolved { token, answer } => self.with(|core| core.resolved(token, answer)),
            Message::QueueReady { root, token } => self.with(|core| core.queue_ready(root, token)),
            Message::LogStream { root, id, stream } => self.with(|core| {
                let made = core.log(root, id.load(Relaxed), &stream)?;
                id.store(made, Relaxed);
                Ok(())
            }),
            Message::End { id } => self.with(|core| core.end(id.load(Relaxed))),
            Message::Closed { id, peer } => self.with(|core| core.close_connection(id, peer)),
            Message::Log { root, stream, part } => {
                let logged = self.with(|core| core.log_in_root(root, &stream));
                LogPart::end(part, logged);
                logged
            }
            Message::Move { mut to, moved } => self.with(|core| {
                let result = core.move_to(&mut to);
                *self.code.lock() = core.instance.module(&core.store).clone();
                // Who waited may have given up.
                let _ = moved.send((to, result));
                Ok(())
            }),
            Message::Sync(done) => {
                // Who waited may have given up.
                let _ = done.send(());
                Ok(())
            }
            Message::Stats { root, update } => {
                self.with(|core| core.stats_update(root, Bytes::clone(&update)))
            }
            Message::Leave { root } => self.with(|core| core.leave_root(root)),
            Message::Wake => self.with(|core| {
                core.store.data_mut().waking = false;
                Ok(())
            }),
            Message::Retire => Ok(()),
        };
        let _ = result;
        self.is_dead()
    }

    /// Ticks that are due, and root contexts that have had their time to say goodbye.
    fn timers(&self) {
        let _ = self.with(Core::timers);
    }
}
