//! gRPC callouts in a VM: their root contexts are told of them.

use super::Dead;
use super::core::Core;
use crate::wasm::abi::grpc::{Event, Exchanges, Failed, View};

impl Core {
    /// Tells of a call, unless the guest has given it up.
    pub(super) fn grpc(&mut self, token: u32, event: Event) -> Result<(), Dead> {
        let calls = &mut self.store.data_mut().calls;
        let Some(root) = calls.grpc.root(token) else {
            return Ok(());
        };
        // A single call ends with its message.
        let last = match &event {
            Event::Message(_) => Exchanges::is_single(token),
            Event::Close(..) => {
                calls.grpc.end(token);
                true
            }
            Event::Initial(_) | Event::Trailing(_) => false,
        };
        self.tell_grpc(root, token, event)?;
        if last {
            // Not before: in its last callback a call can be cancelled still.
            let host = self.store.data_mut();
            host.calls.grpc.finish(token);
            host.count_calls();
        }
        self.count_memory();
        Ok(())
    }

    /// Tells of a call that failed as it was made.
    pub(super) fn grpc_failed(&mut self, failed: Failed) -> Result<(), Dead> {
        let host = self.store.data_mut();
        host.calls.grpc.begin_failure(&failed);
        host.count_calls();
        for event in failed.events {
            self.tell_grpc(failed.root, failed.token, event)?;
        }
        self.store.data_mut().calls.grpc.end_failure();
        Ok(())
    }

    /// The callback for `event`.
    fn tell_grpc(&mut self, root: u32, token: u32, event: Event) -> Result<(), Dead> {
        if self.store.data_mut().root_of(root).is_none() {
            return Ok(());
        }
        let hears_close = self.callbacks.grpc_close.is_some();
        let host = self.enter_root(root);
        match event {
            Event::Initial(metadata) => {
                let count = metadata.count();
                host.grpc.initial = Some(metadata);
                let params = (root, token, count);
                self.call(|c| c.grpc_receive_initial_metadata.as_ref(), params)?;
            }
            Event::Message(message) => {
                let size = u32::try_from(message.len()).unwrap_or(u32::MAX);
                host.grpc.message = Some(message);
                self.call(|c| c.grpc_receive.as_ref(), (root, token, size))?;
            }
            Event::Trailing(metadata) => {
                let count = metadata.count();
                host.grpc.trailing = Some(metadata);
                let params = (root, token, count);
                self.call(|c| c.grpc_receive_trailing_metadata.as_ref(), params)?;
            }
            Event::Close(status, message) if hears_close => {
                host.set_status(root, status, message);
                self.call(|c| c.grpc_close.as_ref(), (root, token, status))?;
                self.store.data_mut().clear_status(root);
            }
            Event::Close(..) => {}
        }
        self.leave().grpc = View::default();
        Ok(())
    }
}
