//! A local reply becomes a response: mapping, gRPC form, headers, and what the log keeps of it.

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Version};

use crate::config::route::Action;
use crate::http::{Body, LocalReply, ResponseHead, grpc};
use crate::stream::finalize::finalize_response;
use crate::stream::local_reply::map_local_reply;
use crate::stream::{Phase, Refusal, Stream, StreamInfo};

/// Makes `reply` the stream's response: the head is in `stream.response`, the body is the result.
///
/// As in Envoy, the route's response header mutations apply to it, before the reply's own headers; those of a route that
/// answers by itself only where it is that answer.
pub fn apply(stream: &Arc<Stream>, mut reply: LocalReply) -> Body {
    let (is_head, version, upgrade) = {
        let request = stream.request.lock();
        (
            request.method == Method::HEAD,
            request.version,
            request.upgrade.is_some(),
        )
    };
    let (is_grpc, reached_router, early) = {
        let mut info = stream.info.lock();
        // What the codec has against a head is noted behind its answer: mappers do not see it.
        let early = info.refused != Some(Refusal::Codec);
        if early {
            set_flags(&mut info, &mut reply);
        }
        info.details = Some(underscored(std::mem::take(&mut reply.details)));
        info.local_reply = true;
        // What follows a refused upgrade on the connection is nobody's HTTP/1.
        info.close |= reply.close || (upgrade && version < Version::HTTP_2);
        info.local_reply_body = Some(reply.body.clone());
        if info.request_end.is_none()
            && let Some(length) = info.held
        {
            info.bytes_received = length;
        }
        (info.grpc, info.reached_router, early)
    };
    // Where a head was there before, its trailers stay for the log, as in Envoy.
    if stream.phase() != Phase::Response {
        *stream.response_trailers.lock() = None;
    }
    let mut head = ResponseHead::new(reply.status);
    head.version = version;
    let route = stream.resolved_route();
    let forwards = route
        .as_ref()
        .is_some_and(|route| matches!(route.route.action, Action::Forward(_)));
    if !forwards {
        add(&mut head.headers, &reply.headers);
    }
    *stream.response.lock() = Some(head);
    if let Some(route) = route
        .as_ref()
        .filter(|route| reached_router || route.is_entry())
    {
        finalize_response(stream, route);
    }
    // Out of the stream while it is mapped: formats look at the stream.
    let made = stream.response.lock().take();
    let mut head = made.unwrap_or_else(|| ResponseHead::new(reply.status));
    if forwards {
        add(&mut head.headers, &reply.headers);
    }
    if let Some(config) = &stream.config.options.local_reply {
        map_local_reply(stream, config, &mut reply, &mut head);
    }
    if !early {
        set_flags(&mut stream.info.lock(), &mut reply);
    }
    let mut response = stream.response.lock();
    let head = response.insert(head);
    if is_grpc {
        stream.info.lock().reply_status = Some(reply.status);
        // The line end of a body in JSON is no part of the message; an answer to HEAD has none.
        let json = head
            .headers
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind == "application/json");
        let message = match (is_head, reply.body.strip_suffix(b"\n")) {
            (true, _) => b"",
            (false, Some(line)) if json => line,
            (false, _) => &reply.body,
        };
        grpc::reply(head, reply.status, message, reply.grpc_status);
        return Body::empty();
    }
    if !reply.body.is_empty() {
        head.headers
            .insert(CONTENT_LENGTH, HeaderValue::from(reply.body.len()));
        head.headers
            .entry(CONTENT_TYPE)
            .or_insert(HeaderValue::from_static("text/plain"));
    }
    if is_head {
        Body::empty()
    } else {
        Body::full(reply.body)
    }
}

fn set_flags(info: &mut StreamInfo, reply: &mut LocalReply) {
    for flag in reply.flags.drain(..) {
        info.flags.set(flag);
    }
}

fn add(headers: &mut HeaderMap, more: &HeaderMap) {
    for (name, value) in more {
        if name != CONTENT_LENGTH {
            // Past the map's capacity nothing is added.
            let _ = headers.try_append(name.clone(), value.clone());
        }
    }
}

fn underscored(details: std::borrow::Cow<'static, str>) -> std::borrow::Cow<'static, str> {
    if details.contains(' ') {
        details.replace(' ', "_").into()
    } else {
        details
    }
}
