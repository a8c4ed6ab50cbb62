//! The ends of streams and connections: told at once, or posted where the guest must not be entered.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use tokio::time::Instant;

use super::{Dead, Message, Vm};
use crate::stream::Stream;
use crate::wasm::rollout::Part;

/// The number of a stream's context: 0 until the VM's task has made it.
pub type ContextId = Arc<AtomicU32>;

/// An access logger's part in a trial: how long a stream lasts is not its doing, but how long it takes to log it.
#[derive(Debug)]
pub(crate) struct LogPart {
    part: Part,
    begin: Instant,
}

impl LogPart {
    pub(super) fn begin(part: Part) -> Self {
        let begin = Instant::now();
        Self { part, begin }
    }

    pub(super) fn end(this: Option<Self>, logged: Result<(), Dead>) {
        if let Some(Self { part, begin }) = this {
            part.ended(logged.is_err(), begin.elapsed());
        }
    }
}

impl Vm {
    /// `on_log`, in a context made for it below `root` where `id` is 0; the context's id. `None` where the guest runs
    /// already, or is dead.
    pub fn log(&self, root: u32, id: u32, stream: &Arc<Stream>) -> Option<u32> {
        self.try_with(|core| core.log(root, id, stream))?.ok()
    }

    /// `on_log` in the root context `root`: at once, or by the VM's task where the guest runs already, or where `now` is
    /// false because it must not be entered. `part`: that in a trial, which ends with it.
    pub fn log_in_root(&self, root: u32, stream: &Arc<Stream>, now: bool, part: Option<Part>) {
        let part = part.map(LogPart::begin);
        if now && let Some(logged) = self.try_with(|core| core.log_in_root(root, stream)) {
            LogPart::end(part, logged);
            return;
        }
        // A VM without a task is dead.
        let _ = self.mailbox.send(Message::Log {
            root,
            stream: Arc::clone(stream),
            part,
        });
    }

    /// `on_done`, `on_delete`. False where the guest runs already.
    pub fn end(&self, id: u32) -> bool {
        self.try_with(|core| core.end(id)).is_some()
    }

    /// As [`Vm::log`], by the VM's task: for use where the guest must not be entered. For the end, the context's id.
    pub fn post_log(&self, root: u32, id: u32, stream: &Arc<Stream>) -> ContextId {
        let id = Arc::new(AtomicU32::new(id));
        // A VM without a task is dead.
        let _ = self.mailbox.send(Message::LogStream {
            root,
            id: Arc::clone(&id),
            stream: Arc::clone(stream),
        });
        id
    }

    /// As [`Vm::end`], by the VM's task, after what was posted before.
    pub fn post_end(&self, id: ContextId) {
        // A VM without a task is dead.
        let _ = self.mailbox.send(Message::End { id });
    }

    /// As [`Vm::close_connection`], by the VM's task: for use where the guest must not be entered.
    pub fn post_close(&self, id: u32, peer: u32) {
        // A VM without a task is dead.
        let _ = self.mailbox.send(Message::Closed { id, peer });
    }
}
