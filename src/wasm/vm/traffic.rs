//! The callbacks of a stream's traffic: its heads, its bodies, its trailers, and what becomes of what they decide.

use bytes::Bytes;
use http::StatusCode;

use super::core::Core;
use super::{Answer, DataAction, Dead, Direction, HeadersAction};
use crate::http::{LocalReply, ResponseFlag};
use crate::wasm::abi::{self, invalid_request_reply};
use crate::wasm::context::{BodyView, Removed, StreamContext, Visible};

impl Core {
    pub(super) fn headers(
        &mut self,
        id: u32,
        direction: Direction,
        end_of_stream: bool,
    ) -> Result<Answer<HeadersAction>, Dead> {
        let hears = self.callbacks.hears_headers(direction);
        let context = self.enter(id).ok_or(Dead)?;
        context.callback = Some(direction);
        match direction {
            Direction::Request => context.visible.request_headers = true,
            Direction::Response => {
                context.visible.response_headers = true;
                context.responding = true;
                // Of its own reply it may think better.
                context.ended = false;
            }
        }
        if !hears {
            return Ok(self.unheard(id, direction));
        }
        let count = abi::count(context, direction);
        let end = u32::from(end_of_stream);
        let action = match direction {
            Direction::Request if self.callbacks.request_headers_0_1_0.is_some() => {
                self.call(|c| c.request_headers_0_1_0.as_ref(), (id, count))?
            }
            Direction::Response if self.callbacks.response_headers_0_1_0.is_some() => {
                self.call(|c| c.response_headers_0_1_0.as_ref(), (id, count))?
            }
            Direction::Request => self.call(|c| c.request_headers.as_ref(), (id, count, end))?,
            Direction::Response => self.call(|c| c.response_headers.as_ref(), (id, count, end))?,
        };
        let host = self.leave();
        let action = match action.unwrap_or(0) {
            _ if host.stopped => HeadersAction::StopAllAndWatermark,
            // Envoy's filter does not end the stream at ContinueAndEndStream.
            0 | 2 => HeadersAction::Continue,
            1 if host.stops_for_real(id) => HeadersAction::Stop,
            3 => HeadersAction::StopAllAndBuffer,
            _ => HeadersAction::StopAllAndWatermark,
        };
        let context = host.streams.get_mut(id).ok_or(Dead)?;
        let mut answer = take_answer(context, direction, action);
        let goes_on = action == HeadersAction::Continue || answer.resumed;
        let ends = answer.reply.is_some() || answer.reset;
        if action == HeadersAction::Continue && !ends {
            hide(&mut context.visible, direction);
        }
        let pauses = !goes_on && !ends;
        if direction == Direction::Request && answer.reply.is_none() && !answer.reset {
            answer.reply = repair(context);
            context.request_gone = goes_on;
        }
        if direction == Direction::Response && goes_on && !ends {
            answer.reply = without_status(context);
        }
        if pauses {
            // With the heads alone, the body's callbacks may go on.
            let last = action != HeadersAction::Stop || end_of_stream;
            self.pause(id, direction, last, last);
        }
        Ok(answer)
    }

    /// Headers that the guest has no callback for go on.
    fn unheard(&mut self, id: u32, direction: Direction) -> Answer<HeadersAction> {
        let context = self.leave().streams.get_mut(id);
        let mut reply = None;
        if let Some(context) = context {
            context.callback = None;
            hide(&mut context.visible, direction);
            if direction == Direction::Request {
                reply = repair(context);
                context.request_gone = true;
            }
        }
        Answer {
            action: HeadersAction::Continue,
            reply,
            reset: false,
            resumed: false,
        }
    }

    pub(super) fn body(
        &mut self,
        id: u32,
        direction: Direction,
        buffer: &mut Bytes,
        end_of_stream: bool,
    ) -> Result<Answer<DataAction>, Dead> {
        let size = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let side = direction as usize;
        let context = self.enter(id).ok_or(Dead)?;
        context.callback = Some(direction);
        context.bodies[side] = BodyView {
            data: Some(std::mem::take(buffer)),
            kept: context.bodies[side].kept,
            hidden: false,
        };
        // A plugin may add trailers where none come.
        context.may_add_trailers[side] = end_of_stream;
        let params = (id, size, u32::from(end_of_stream));
        let action = match direction {
            Direction::Request => self.call(|c| c.request_body.as_ref(), params)?,
            Direction::Response => self.call(|c| c.response_body.as_ref(), params)?,
        };
        let host = self.leave();
        let stopped = host.stopped;
        let context = host.streams.get_mut(id).ok_or(Dead)?;
        *buffer = context.bodies[side].data.take().unwrap_or_default();
        let action = match action.unwrap_or(0) {
            _ if stopped => DataAction::Drop,
            0 => DataAction::Continue,
            1 => DataAction::Buffer,
            2 => DataAction::Watermark,
            _ => DataAction::Drop,
        };
        let mut answer = take_answer(context, direction, action);
        context.bodies[side].kept = action == DataAction::Buffer && !answer.resumed;
        if answer.resumed
            && action != DataAction::Continue
            && let Some(pump) = &context.pumps[side]
        {
            pump.resume();
        }
        let pauses = action != DataAction::Continue && !answer.resumed;
        if !pauses {
            context.paused[side] = None;
            context.may_add_trailers[side] = false;
        }
        if action == DataAction::Continue {
            hide_trailers(&mut context.visible, direction);
            // Going on from a body callback releases headers that were held.
            if let Some(waiting) = context.waiting[side].take() {
                // Nobody waits where the stream has gone on already.
                let _ = waiting.sender.send(());
            }
        }
        if direction == Direction::Request && answer.reply.is_none() && !answer.reset {
            answer.reply = repair(context);
            context.request_gone |= action == DataAction::Continue;
        }
        if pauses && answer.reply.is_none() && !answer.reset {
            // More of the body may come, but the source is not read for ever.
            let held = end_of_stream || action == DataAction::Watermark;
            self.pause(id, direction, held, end_of_stream);
        }
        Ok(answer)
    }

    pub(super) fn trailers(
        &mut self,
        id: u32,
        direction: Direction,
        buffer: &mut Bytes,
    ) -> Result<Answer<DataAction>, Dead> {
        let side = direction as usize;
        let context = self.enter(id).ok_or(Dead)?;
        let trailers = match direction {
            Direction::Request => context.stream.request_trailers.lock(),
            Direction::Response => context.stream.response_trailers.lock(),
        };
        let count = trailers.as_ref().map_or(0, http::HeaderMap::len);
        drop(trailers);
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        context.callback = Some(direction);
        if context.bodies[side].kept {
            context.bodies[side].data = Some(std::mem::take(buffer));
        }
        match direction {
            Direction::Request => context.visible.request_trailers = true,
            Direction::Response => context.visible.response_trailers = true,
        }
        let action = match direction {
            Direction::Request => self.call(|c| c.request_trailers.as_ref(), (id, count))?,
            Direction::Response => self.call(|c| c.response_trailers.as_ref(), (id, count))?,
        };
        let host = self.leave();
        let stopped = host.stopped;
        let context = host.streams.get_mut(id).ok_or(Dead)?;
        if let Some(kept) = context.bodies[side].data.take() {
            *buffer = kept;
        }
        let action = match action.unwrap_or(0) {
            0 if !stopped => DataAction::Continue,
            _ => DataAction::Watermark,
        };
        let mut answer = take_answer(context, direction, action);
        if answer.resumed
            && action != DataAction::Continue
            && let Some(pump) = &context.pumps[side]
        {
            pump.resume();
        }
        let goes_on = action == DataAction::Continue || answer.resumed;
        if goes_on {
            context.paused[side] = None;
            if let Some(waiting) = context.waiting[side].take() {
                let _ = waiting.sender.send(());
            }
            if answer.reply.is_none() && !answer.reset {
                hide_trailers(&mut context.visible, direction);
            }
        }
        if direction == Direction::Request && answer.reply.is_none() && !answer.reset {
            answer.reply = repair(context);
            context.request_gone |= goes_on;
        }
        if !goes_on && answer.reply.is_none() && !answer.reset {
            self.pause(id, direction, true, true);
        }
        Ok(answer)
    }
}

/// Takes out what the guest decided in the callback that has just returned.
pub(super) fn take_answer<A>(
    context: &mut StreamContext,
    direction: Direction,
    action: A,
) -> Answer<A> {
    context.callback = None;
    Answer {
        action,
        reply: context.reply.take(),
        reset: std::mem::take(&mut context.reset),
        resumed: std::mem::take(&mut context.resumed[direction as usize]),
    }
}

pub(super) fn hide(visible: &mut Visible, direction: Direction) {
    match direction {
        Direction::Request => visible.request_headers = false,
        Direction::Response => visible.response_headers = false,
    }
}

fn hide_trailers(visible: &mut Visible, direction: Direction) {
    match direction {
        Direction::Request => visible.request_trailers = false,
        Direction::Response => visible.response_trailers = false,
    }
}

/// What is answered in the place of an upstream's answer whose status a filter of the upstream has removed.
pub(super) fn without_status(context: &mut StreamContext) -> Option<Box<LocalReply>> {
    if !(context.upstream && context.removed.status) {
        return None;
    }
    context.ended = true;
    context.failed = true;
    Some(Box::new(LocalReply::new(
        StatusCode::BAD_GATEWAY,
        "missing required header: :status",
        "filter_removed_required_response_headers{missing_required_header:_:status}",
    )))
}

/// Applies what the guest removed of a request's pseudo-headers; the reply where nothing sendable is left.
#[inline]
pub(super) fn repair(context: &mut StreamContext) -> Option<Box<LocalReply>> {
    let removed = if context.request_gone {
        Removed::default()
    } else {
        context.removed
    };
    if context.invalid.is_none() && !(removed.method || removed.path || removed.authority) {
        return None;
    }
    mend(context, removed)
}

#[cold]
fn mend(context: &mut StreamContext, removed: Removed) -> Option<Box<LocalReply>> {
    if removed.authority {
        let mut head = context.stream.request.lock();
        head.authority = http::HeaderValue::from_static("");
        head.has_host = false;
    }
    let connect = context.stream.request.lock().method == http::Method::CONNECT;
    let mut reply = invalid_request_reply(context, removed, connect)?;
    if context.upstream || context.invalid.is_none() {
        // Envoy's codec finds what is missing; and in an upstream's filters what is not HTTP, too.
        reply = reply.flag(ResponseFlag::DownstreamProtocolError);
    }
    context.ended = true;
    context.failed = reply.status.is_server_error();
    Some(Box::new(reply))
}
