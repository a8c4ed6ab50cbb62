//! The eyes of a plugin on a body that is pumped.

use std::sync::Arc;

use bytes::Bytes;

use super::{Hold, State, fail_stream, passes};
use crate::stream::{Flow, Stream, Tap, Verdict};
use crate::wasm::{Answer, DataAction, Dead, Direction, Vm, reset_details};

/// The guest's eyes on a body.
pub(super) struct GuestTap {
    pub(super) hold: Hold,
    pub(super) direction: Direction,
}

impl GuestTap {
    fn failed(&self, stream: &Stream, here: bool) -> Flow {
        stream.with_slot(self.hold.slot, State::default, |state| {
            state.failed = true;
            state.broken = true;
        });
        if passes(self.hold.policy, here) {
            return Flow::Continue;
        }
        stream.decide(Verdict::Reply {
            reply: Box::new(fail_stream()),
            direct: self.hold.replies_directly(self.direction),
        });
        Flow::Drop
    }

    fn flow(&self, stream: &Stream, answer: Answer<DataAction>) -> Flow {
        if let Some(reply) = answer.reply {
            stream.decide(Verdict::Reply {
                reply,
                direct: self.hold.replies_directly(self.direction),
            });
            return Flow::Drop;
        }
        if answer.reset {
            stream.decide(Verdict::Reset {
                details: reset_details(self.direction == Direction::Response).into(),
            });
            return Flow::Drop;
        }
        match answer.action {
            DataAction::Continue => Flow::Continue,
            DataAction::Buffer => Flow::Buffer,
            DataAction::Watermark => Flow::Watermark,
            DataAction::Drop => Flow::Drop,
        }
    }

    /// Calls the guest, keeping the data where the stream may go on without it.
    fn call(
        &self,
        stream: &Arc<Stream>,
        buffer: &mut Bytes,
        call: impl FnOnce(&Vm, &mut Bytes) -> Result<Answer<DataAction>, Dead>,
    ) -> Flow {
        let failed = stream.peek_slot(self.hold.slot, |state: &mut State| state.failed);
        if failed.unwrap_or(false) {
            return Flow::Continue;
        }
        if self.hold.vm.is_dead() {
            return self.failed(stream, false);
        }
        let kept = passes(self.hold.policy, true).then(|| buffer.clone());
        match call(&self.hold.vm, buffer) {
            Ok(answer) => self.flow(stream, answer),
            Err(Dead) => {
                if let Some(kept) = kept {
                    *buffer = kept;
                }
                self.failed(stream, true)
            }
        }
    }
}

impl Tap for GuestTap {
    fn data(&mut self, stream: &Arc<Stream>, buffer: &mut Bytes, end_of_stream: bool) -> Flow {
        let (id, direction) = (self.hold.id, self.direction);
        self.call(stream, buffer, |vm, buffer| {
            vm.body(id, direction, buffer, end_of_stream)
        })
    }

    fn trailers(&mut self, stream: &Arc<Stream>, buffer: &mut Bytes) -> Flow {
        let (id, direction) = (self.hold.id, self.direction);
        self.call(stream, buffer, |vm, buffer| {
            vm.trailers(id, direction, buffer)
        })
    }
}
