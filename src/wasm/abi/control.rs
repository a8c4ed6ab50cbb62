//! The course of a stream: going on, replying, resetting; and which context is meant.

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};

use super::{Guest, Outcome, Status, give, memory, pairs, put_u32, range};
use crate::http::LocalReply;
use crate::http::joined::{self, Side};
use crate::wasm::context::{Effect, Removed, StreamContext};
use crate::wasm::vm::Direction;

/// Most bytes of names and values of a local reply's headers.
const MAX_REPLY_HEADERS: usize = 256 << 10;
/// Most bytes of a local reply's details. Envoy's own are far shorter.
const MAX_DETAILS: usize = 1024;
/// What a reply's details have none of: they stand in log lines.
const WHITE_SPACE: [char; 6] = [' ', '\t', '\n', '\r', '\x0b', '\x0c'];

pub(super) fn get_status(guest: &mut Guest<'_>, code: u32, at: u32, len: u32) -> Outcome {
    let root = guest.data().root();
    let (number, message) = root.map(|root| root.status.clone()).unwrap_or_default();
    put_u32(guest, code, number)?;
    give(guest, message.as_bytes(), at, len)
}

pub(super) fn continue_stream(guest: &mut Guest<'_>, stream: u32) -> Outcome {
    match stream {
        0 => resume(guest, Direction::Request),
        1 => resume(guest, Direction::Response),
        2 => {
            let host = guest.data_mut();
            let effective = host.effective;
            if host
                .context()
                .is_some_and(|context| context.network.is_some())
            {
                host.ask(Effect::Continue(effective, Direction::Request))?;
            }
            Ok(())
        }
        3 => Err(Status::Unimplemented.into()),
        _ => Err(Status::BadArgument.into()),
    }
}

pub(super) fn continue_request(guest: &mut Guest<'_>) -> Outcome {
    resume(guest, Direction::Request)
}

pub(super) fn continue_response(guest: &mut Guest<'_>) -> Outcome {
    resume(guest, Direction::Response)
}

fn resume(guest: &mut Guest<'_>, direction: Direction) -> Outcome {
    let host = guest.data_mut();
    let (effective, running) = (host.effective, host.effective == host.current);
    if let Some(context) = host.context_mut()
        && context.network.is_none()
    {
        // As in Envoy, where it is these whichever direction goes on, and never a response's.
        context.visible.request_headers = false;
        context.visible.request_trailers = false;
        context.bodies[Direction::Request as usize].hide();
        context.may_add_trailers[Direction::Request as usize] = false;
        if running && context.callback == Some(direction) {
            context.resumed[direction as usize] = true;
        } else {
            host.ask(Effect::Continue(effective, direction))?;
        }
    }
    Ok(())
}

pub(super) fn close_stream(guest: &mut Guest<'_>, stream: u32) -> Outcome {
    match stream {
        0 | 1 => {}
        2 | 3 => {
            let host = guest.data_mut();
            let effective = host.effective;
            if let Some(context) = host.context_mut()
                && let Some(network) = &mut context.network
            {
                network.closing = true;
                let reason = match stream {
                    2 => "wasm_downstream_close",
                    _ => "wasm_upstream_close",
                };
                host.ask(Effect::Close(effective, reason))?;
            }
            return Ok(());
        }
        _ => return Err(Status::BadArgument.into()),
    }
    let host = guest.data_mut();
    let (effective, running) = (host.effective, host.effective == host.current);
    if let Some(context) = host.context_mut()
        && context.network.is_none()
        && !context.ended
        && !context.logging
    {
        context.ended = true;
        if running && context.callback.is_some() {
            context.reset = true;
        } else {
            host.effects.push(Effect::Reset(effective));
        }
    }
    Ok(())
}

pub(super) fn clear_route_cache(guest: &mut Guest<'_>) -> Outcome {
    guest.data().clear_route();
    Ok(())
}

#[allow(clippy::too_many_arguments, reason = "the ABI's")]
pub(super) fn send_local_response(
    guest: &mut Guest<'_>,
    code: u32,
    details: u32,
    details_len: u32,
    body: u32,
    body_len: u32,
    headers: u32,
    headers_len: u32,
    grpc_status: i32,
) -> Outcome {
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let details = line(range(data, details, details_len)?);
    let body = range(data, body, body_len)?;
    let mut fields = HeaderMap::new();
    let mut pairs = pairs::read(range(data, headers, headers_len)?).unwrap_or_default();
    let mut refused = pairs::size(&pairs) > MAX_REPLY_HEADERS;
    if refused {
        pairs.clear();
    }
    for (name, value) in pairs {
        if name.starts_with(b":") {
            // As in Envoy they do not count: the status is the argument's.
            continue;
        }
        match (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            (Ok(name), Ok(value)) => {
                // What Envoy keeps once is joined.
                joined::append(Side::Response, &mut fields, name, value);
            }
            _ => refused = true,
        }
    }
    let status = u16::try_from(code)
        .ok()
        .filter(|code| (200..600).contains(code) && !refused)
        .and_then(|code| StatusCode::from_u16(code).ok());
    if status.is_none() {
        let plugin = &host.spec().name;
        tracing::warn!(target: "wasm", "plugin {plugin}: a local reply with status {code} or its headers is not HTTP");
    }
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    // No body can follow these two: its bytes would be read as another response.
    let body = if matches!(status.as_u16(), 204 | 304) {
        Vec::new()
    } else {
        body.to_vec()
    };
    let mut reply = LocalReply::new(status, body, details);
    if status == StatusCode::BAD_REQUEST {
        // Envoy takes every such reply for the end of an HTTP/1 connection.
        reply = reply.closing();
    }
    reply.headers = fields;
    reply.grpc_status = u32::try_from(grpc_status)
        .ok()
        // What could not be said as it was meant is no success.
        .filter(|status| *status <= 16 && !(refused && *status == 0));
    let (effective, running) = (host.effective, host.effective == host.current);
    let name = std::sync::Arc::clone(&host.spec().name);
    // As in Envoy whatever comes of the reply: also for another stream than the callback's, for none, and a second time.
    host.stopped = true;
    let Some(context) = host.context_mut() else {
        // Without a stream there is nobody to answer, and Envoy says Ok.
        return Ok(());
    };
    if context.network.is_some() || effective == context.root {
        // Nor is there a request to answer, and an access logger is shown one that has been.
        return Ok(());
    }
    if context.logging {
        tracing::warn!(target: "wasm", "plugin {name}: a local reply from on_log is too late");
        return Err(Status::BadArgument.into());
    }
    if context.ended {
        if let Some(first) = &mut context.reply {
            // The first one is the answer. Envoy's log has the last one's details.
            first.details = reply.details;
        }
        return Ok(());
    }
    context.ended = true;
    context.failed = status.is_server_error();
    if running && context.callback.is_some() {
        context.reply = Some(Box::new(reply));
    } else {
        host.effects.push(Effect::Reply(effective, reply));
    }
    Ok(())
}

/// A reply's details: the guest's text in one line, in a reasonable length.
fn line(text: &[u8]) -> String {
    // What begins within the bound ends within these.
    let begin = &text[..text.len().min(MAX_DETAILS + 3)];
    let mut line = String::from_utf8_lossy(begin).replace(WHITE_SPACE, "_");
    line.truncate(line.floor_char_boundary(MAX_DETAILS));
    line
}

/// What Envoy's codec answers where a filter left a request that cannot be sent.
pub(crate) fn invalid_request_reply(
    context: &StreamContext,
    removed: Removed,
    connect: bool,
) -> Option<LocalReply> {
    let Removed {
        method,
        path,
        authority,
        status: _,
    } = removed;
    let reason = if let Some(reason) = &context.invalid {
        &**reason
    } else if method {
        "missing required header: :method"
    } else if path {
        "missing required header: :path"
    } else if authority && connect {
        "missing required header: :authority"
    } else {
        return None;
    };
    Some(LocalReply::new(
        StatusCode::SERVICE_UNAVAILABLE,
        reason.to_owned(),
        format!(
            "filter_removed_required_request_headers{{{}}}",
            reason.replace(' ', "_")
        ),
    ))
}

pub(super) fn set_effective_context(guest: &mut Guest<'_>, id: u32) -> Outcome {
    if guest.data_mut().set_effective(id) {
        Ok(())
    } else {
        Err(Status::BadArgument.into())
    }
}

pub(super) fn done(guest: &mut Guest<'_>) -> Outcome {
    let host = guest.data_mut();
    let root = host.root_mut().ok_or(Status::NotFound)?;
    root.pending_done.take().ok_or(Status::NotFound)?;
    let id = root.id;
    host.effects.push(Effect::Done(id));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_one_line_of_a_bounded_length() {
        assert_eq!(line(b"a b\tc\nd"), "a_b_c_d");
        assert_eq!(line(b"\xff"), "\u{fffd}");
        assert_eq!(line(&[b' '; 1024]), "_".repeat(1024));
        assert_eq!(line(&[b'a'; 1 << 20]), "a".repeat(1024));
        let wide = "a".to_owned() + &"\u{1f600}".repeat(1000);
        assert_eq!(line(wide.as_bytes()), wide[..1021]);
        assert!(line(&[0xff; 1 << 20]).len() <= 1024);
    }
}
