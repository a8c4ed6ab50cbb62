//! `local_reply_config`: what an operator makes of our own answers.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};

use super::Stream;
use super::access_log::filter;
use super::finalize::{mutate_reply, with_scope};
use super::format::{Scope, write_record};
use crate::config::access_log::{BodyFormat, LocalReplyConfig, LogFormat};
use crate::http::{LocalReply, ResponseHead};

/// Rewrites `reply` and its `head` as the first matching mapper and the body format say: status, body, content type and
/// headers.
///
/// Comes after the route's own mutations of the head, which is not yet in `stream`. Holds for gRPC requests, too: the
/// body becomes their message.
pub fn map_local_reply(
    stream: &Stream,
    config: &LocalReplyConfig,
    reply: &mut LocalReply,
    head: &mut ResponseHead,
) {
    let route = stream.resolved_route();
    let mut body_format = config.body_format.as_ref();
    // Mappers see the status as it was; what they set shows in the body.
    let mapper = with_scope(
        stream,
        route.as_deref(),
        Some(reply.status.as_u16()),
        |scope| {
            let mapper = config
                .mappers
                .iter()
                .find(|mapper| filter::passes(&mapper.filter, scope))?;
            let before = head.clone();
            let scope = Scope {
                response: Some(&before),
                ..*scope
            };
            mutate_reply(&mapper.headers, &scope, head);
            Some(mapper)
        },
    );
    if let Some(mapper) = mapper {
        if let Some(status) = mapper.status {
            reply.status = status;
            head.status = status;
        }
        if let Some(body) = &mapper.body {
            reply.body = body.clone();
        }
        body_format = mapper.body_format.as_ref().or(body_format);
    }
    if let Some(format) = body_format {
        let mut out = Vec::with_capacity(reply.body.len() + 128);
        with_scope(
            stream,
            route.as_deref(),
            Some(reply.status.as_u16()),
            |scope| {
                let scope = Scope {
                    response: Some(&*head),
                    local_reply_body: &reply.body,
                    ..*scope
                };
                write_record(&format.format, &scope, &mut out);
            },
        );
        reply.body = out.into();
        if !reply.body.is_empty() {
            set_content_type(format, &mut head.headers);
        }
    }
}

fn set_content_type(format: &BodyFormat, headers: &mut HeaderMap) {
    let value = match (&format.content_type, &format.format) {
        (Some(kind), _) => match HeaderValue::from_str(kind) {
            Ok(value) => value,
            Err(_) => return,
        },
        (None, LogFormat::Json { .. }) => HeaderValue::from_static("application/json"),
        (None, LogFormat::Text { .. }) => HeaderValue::from_static("text/plain"),
    };
    headers.entry(CONTENT_TYPE).or_insert(value);
}
