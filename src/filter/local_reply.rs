//! A local reply becomes a response: mapping, gRPC form, headers, and what the log keeps of it.

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::http::{Body, LocalReply, ResponseHead};
use crate::stream::Stream;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Makes `reply` the stream's response: the head is in `stream.response`, the body is the result.
pub fn apply(stream: &Arc<Stream>, reply: LocalReply) -> Body {
    let LocalReply {
        status,
        body,
        flags,
        details,
        headers,
        grpc_status,
        close,
    } = reply;
    {
        let mut info = stream.info.lock();
        for flag in flags {
            info.flags.set(flag);
        }
        info.details = Some(underscored(details));
        info.local_reply = true;
        info.close |= close;
        info.local_reply_body = Some(body.clone());
    }
    let (is_grpc, is_head, version) = {
        let request = stream.request.lock();
        (
            request.is_grpc(),
            request.method == Method::HEAD,
            request.version,
        )
    };
    let mut head = ResponseHead::new(status);
    head.version = version;
    *stream.response_trailers.lock() = None;
    if is_grpc {
        grpc_head(&mut head, status, &body, grpc_status);
        for (name, value) in &headers {
            head.headers.append(name.clone(), value.clone());
        }
        *stream.response.lock() = Some(head);
        return Body::empty();
    }
    let mut content_type = (!body.is_empty()).then(|| HeaderValue::from_static("text/plain"));
    if !body.is_empty() || version < http::Version::HTTP_2 {
        head.headers
            .insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    if let Some(given) = headers.get(CONTENT_TYPE) {
        content_type = Some(given.clone());
    }
    if let Some(content_type) = content_type {
        head.headers.insert(CONTENT_TYPE, content_type);
    }
    for (name, value) in &headers {
        if name != CONTENT_TYPE && name != CONTENT_LENGTH {
            head.headers.append(name.clone(), value.clone());
        }
    }
    *stream.response.lock() = Some(head);
    if is_head {
        Body::empty()
    } else {
        Body::full(body)
    }
}

fn underscored(details: std::borrow::Cow<'static, str>) -> std::borrow::Cow<'static, str> {
    if details.contains(' ') {
        details.replace(' ', "_").into()
    } else {
        details
    }
}

fn grpc_head(head: &mut ResponseHead, status: StatusCode, message: &[u8], grpc: Option<u32>) {
    head.status = StatusCode::OK;
    head.headers
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let code = grpc.unwrap_or_else(|| grpc_status_of(status));
    head.headers.insert(GRPC_STATUS, HeaderValue::from(code));
    if !message.is_empty() {
        insert_message(&mut head.headers, message);
    }
}

/// `grpc-message` is percent-encoded: what is not printable ASCII, and `%`.
fn insert_message(headers: &mut HeaderMap, message: &[u8]) {
    const PRINTABLE: percent_encoding::AsciiSet = percent_encoding::CONTROLS.add(b'%');
    let encoded = percent_encoding::percent_encode(message, &PRINTABLE).to_string();
    if let Ok(value) = HeaderValue::try_from(encoded) {
        headers.insert(GRPC_MESSAGE, value);
    }
}

/// The gRPC status that stands for an HTTP status.
pub fn grpc_status_of(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}
