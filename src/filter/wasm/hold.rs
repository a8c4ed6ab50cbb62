//! A stream's hold on its VM: how it goes on as the guest has decided.

use std::future::pending;
use std::sync::Arc;

use http_body::Body as _;

use super::declared::declared;
use super::tap::GuestTap;
use super::{State, fail_stream, passes, replies_directly};
use crate::filter::Step;
use crate::http::Body;
use crate::stream::{PumpHandle, Side, Start, Stream, Verdict};
use crate::wasm::spec::FailurePolicy;
use crate::wasm::{Answer, Dead, Direction, HeadersAction, OnLoss, Vm, reset_details};

/// A stream's hold on its VM.
#[derive(Clone)]
pub(super) struct Hold<V = Arc<Vm>> {
    pub(super) vm: V,
    pub(super) id: u32,
    pub(super) policy: FailurePolicy,
    pub(super) slot: usize,
}

impl Hold {
    /// True where an answer to this half goes past the filters. That of an upstream filter never does.
    pub(super) fn replies_directly(&self, direction: Direction) -> bool {
        replies_directly(self.slot, direction)
    }

    pub(super) fn by_ref(&self) -> Hold<&Arc<Vm>> {
        Hold {
            vm: &self.vm,
            id: self.id,
            policy: self.policy,
            slot: self.slot,
        }
    }
}

impl Hold<&Arc<Vm>> {
    fn keep(&self) -> Hold {
        Hold {
            vm: Arc::clone(self.vm),
            id: self.id,
            policy: self.policy,
            slot: self.slot,
        }
    }

    /// Goes on as the guest has answered to the head.
    #[inline]
    pub(super) fn head(
        &self,
        stream: &Arc<Stream>,
        direction: Direction,
        body: Body,
        answer: Result<Answer<HeadersAction>, Dead>,
        on_loss: &OnLoss,
    ) -> Step<Body> {
        // What nearly all come to, in a few comparisons.
        if let Ok(Answer {
            action: HeadersAction::Continue,
            reply: None,
            reset: false,
            ..
        }) = answer
            && !self.vm.wants_body(direction)
        {
            return Step::Next(body);
        }
        self.decided(stream, direction, body, answer, on_loss)
    }

    fn decided(
        &self,
        stream: &Arc<Stream>,
        direction: Direction,
        body: Body,
        answer: Result<Answer<HeadersAction>, Dead>,
        on_loss: &OnLoss,
    ) -> Step<Body> {
        let Ok(answer) = answer else {
            return self.dead(stream, body, true);
        };
        if let Some(reply) = answer.reply {
            return Step::Reply(reply);
        }
        if answer.reset {
            stream.decide(Verdict::Reset {
                details: reset_details(direction == Direction::Response).into(),
            });
            return Step::Wait(Box::pin(pending()));
        }
        let action = if answer.resumed {
            HeadersAction::Continue
        } else {
            answer.action
        };
        if action == HeadersAction::Continue {
            let (body, pump) = self.watch(stream, direction, body, Start::Flowing, on_loss);
            return Step::Next(match pump {
                None => body,
                Some(_) => declared(stream, direction, body, true),
            });
        }
        self.held(stream, direction, body, action, on_loss)
    }

    /// The guest holds the head back.
    #[cold]
    fn held(
        &self,
        stream: &Arc<Stream>,
        direction: Direction,
        body: Body,
        action: HeadersAction,
        on_loss: &OnLoss,
    ) -> Step<Body> {
        let start = match action {
            HeadersAction::Stop | HeadersAction::Continue => Start::Flowing,
            HeadersAction::StopAllAndBuffer => Start::HeldBuffer,
            HeadersAction::StopAllAndWatermark => Start::HeldWatermark,
        };
        let flowing = start == Start::Flowing;
        let resume = self.vm.wait(self.id, direction, flowing);
        let (body, pump) = match action {
            // The source need not be read for this: it stays where it is.
            HeadersAction::StopAllAndWatermark if !self.vm.wants_body(direction) => (body, None),
            HeadersAction::StopAllAndBuffer => self.pump(stream, direction, body, start, on_loss),
            // As in Envoy a body that comes lets the head go on, also where the guest has no callback to say so.
            HeadersAction::Stop => self.pump(stream, direction, body, start, on_loss),
            _ => self.watch(stream, direction, body, start, on_loss),
        };
        let (hold, stream) = (self.keep(), Arc::clone(stream));
        Step::Wait(Box::pin(async move {
            let resumed = resume.await;
            // Of a dead VM nobody else lets go what it held of the body.
            if (!flowing || resumed.is_err())
                && let Some(pump) = &pump
            {
                pump.resume();
            }
            match resumed {
                Ok(()) if let Some(reply) = hold.vm.refusal(hold.id, direction) => {
                    Step::Reply(reply)
                }
                Ok(()) => Step::Next(declared(&stream, direction, body, pump.is_some())),
                // The sender goes with its VM.
                Err(_) => hold.by_ref().dead(&stream, body, false),
            }
        }))
    }

    /// Pumps the body where the guest wants to see it.
    fn watch(
        &self,
        stream: &Arc<Stream>,
        direction: Direction,
        body: Body,
        start: Start,
        on_loss: &OnLoss,
    ) -> (Body, Option<PumpHandle>) {
        if !self.vm.wants_body(direction) {
            return (body, None);
        }
        self.pump(stream, direction, body, start, on_loss)
    }

    fn pump(
        &self,
        stream: &Arc<Stream>,
        direction: Direction,
        body: Body,
        start: Start,
        on_loss: &OnLoss,
    ) -> (Body, Option<PumpHandle>) {
        if body.is_end_stream() {
            return (body, None);
        }
        let side = match direction {
            Direction::Request => Side::Request,
            Direction::Response => Side::Response,
        };
        let tap = Box::new(GuestTap {
            hold: self.keep(),
            direction,
        });
        let (body, pump) = stream.pump(side, body, start, tap);
        self.vm.set_pump(self.id, direction, pump.clone(), on_loss);
        (body, Some(pump))
    }

    /// The VM is dead; `here`: it died in this very callback.
    pub(super) fn dead(&self, stream: &Stream, body: Body, here: bool) -> Step<Body> {
        stream.with_slot(self.slot, State::default, |state| {
            state.failed = true;
            state.broken = true;
        });
        if passes(self.policy, here) {
            Step::Next(body)
        } else {
            Step::reply(fail_stream())
        }
    }
}
