//! Evaluates substitution formats: what `%OPERATORS%` mean for one stream.
//!
//! Values are appended to the caller's buffer; nothing is allocated for the usual operators. A missing value is `-` in
//! text and `null` in JSON, or left out where the format says so.

mod operator;
mod time;
mod value;

use http::HeaderMap;

use super::{ConnectionInfo, Stream, StreamConfig, StreamInfo};
use crate::config::access_log::{Format, FormatPart, JsonFormat, LogFormat};
use crate::http::{RequestHead, ResponseHead};
use crate::route::SelectedRoute;

use operator::Written;
pub use operator::{grpc_status, grpc_status_of};

/// Which record of a stream is written (`%ACCESS_LOG_TYPE%`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogType {
    /// No record: a header value, a local reply.
    #[default]
    NotSet,
    /// The stream began.
    DownstreamStart,
    /// It goes on.
    DownstreamPeriodic,
    /// It ended.
    DownstreamEnd,
    /// A connection of a TCP proxy ended.
    TcpConnectionEnd,
}

impl LogType {
    /// Envoy's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotSet => "NotSet",
            Self::DownstreamStart => "DownstreamStart",
            Self::DownstreamPeriodic => "DownstreamPeriodic",
            Self::DownstreamEnd => "DownstreamEnd",
            Self::TcpConnectionEnd => "TcpConnectionEnd",
        }
    }
}

/// What a format is evaluated over.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// The request.
    pub request: &'a RequestHead,
    /// The response, once there is one.
    pub response: Option<&'a ResponseHead>,
    /// Its trailers.
    pub response_trailers: Option<&'a HeaderMap>,
    /// Times, sizes and the like.
    pub info: &'a StreamInfo,
    /// The connection.
    pub connection: &'a ConnectionInfo,
    /// What the stream pins of its Generation.
    pub config: &'a StreamConfig,
    /// The route, as resolved.
    pub route: Option<&'a SelectedRoute>,
    /// The status to show instead of the response's: a local reply's, which is 0 while its head is made.
    pub status: Option<u16>,
    /// `%LOCAL_REPLY_BODY%`: empty in access logs, as in Envoy.
    pub local_reply_body: &'a [u8],
    /// Which record.
    pub log_type: LogType,
}

impl Scope<'_> {
    /// Runs `f` on the scope of `stream` as it stands: its cells are locked meanwhile.
    pub fn with<R>(stream: &Stream, log_type: LogType, f: impl FnOnce(&Scope<'_>) -> R) -> R {
        let route = stream.resolved_route();
        let request = stream.request.lock();
        let response = stream.response.lock();
        let trailers = stream.response_trailers.lock();
        let info = stream.info.lock();
        f(&Scope {
            request: &request,
            response: response.as_ref(),
            response_trailers: trailers.as_ref(),
            info: &info,
            connection: &stream.connection,
            config: &stream.config,
            route: route.as_deref(),
            status: None,
            local_reply_body: b"",
            log_type,
        })
    }
}

/// Appends `format` to `out`; a missing value is `-`, or nothing where `omit_empty`.
pub fn write_text(format: &Format, scope: &Scope<'_>, omit_empty: bool, out: &mut Vec<u8>) {
    for part in &format.parts {
        match part {
            FormatPart::Text(text) => out.extend_from_slice(text.as_bytes()),
            FormatPart::Operator { operator, max_len } => {
                let start = out.len();
                // What stands for a missing value is not cut.
                if operator::write(operator, scope, out) == Written::Missing {
                    out.truncate(start);
                    if !omit_empty {
                        out.push(b'-');
                    }
                } else if let Some(max_len) = max_len {
                    out.truncate(start + (out.len() - start).min(*max_len));
                }
            }
        }
    }
}

/// Appends a whole record: text as it is, JSON with a line end.
pub fn write_record(format: &LogFormat, scope: &Scope<'_>, out: &mut Vec<u8>) {
    match format {
        LogFormat::Text { format, omit_empty } => write_text(format, scope, *omit_empty, out),
        LogFormat::Json { object, omit_empty } => {
            if !write_json(object, scope, *omit_empty, out) {
                // The outermost object is always there.
                out.extend_from_slice(b"{}");
            }
            out.push(b'\n');
        }
    }
}

/// Appends `template` as JSON. False where nothing was written, because a missing value is to be left out.
fn write_json(
    template: &JsonFormat,
    scope: &Scope<'_>,
    omit_empty: bool,
    out: &mut Vec<u8>,
) -> bool {
    match template {
        JsonFormat::Literal(text) => out.extend_from_slice(text.as_bytes()),
        JsonFormat::Null if omit_empty => return false,
        JsonFormat::Null => out.extend_from_slice(b"null"),
        JsonFormat::String(format) => {
            out.push(b'"');
            let start = out.len();
            write_text(format, scope, omit_empty, out);
            value::escape_from(out, start);
            out.push(b'"');
        }
        JsonFormat::Typed { operator, max_len } => {
            // Most values are text: begin as one, and take the quote back where it is not.
            out.push(b'"');
            let start = out.len();
            match operator::write(operator, scope, out) {
                Written::Text => {
                    if let Some(max_len) = max_len {
                        out.truncate(start + (out.len() - start).min(*max_len));
                    }
                    value::escape_from(out, start);
                    out.push(b'"');
                }
                Written::Json => {
                    out.remove(start - 1);
                }
                Written::Missing => {
                    out.truncate(start - 1);
                    if omit_empty {
                        return false;
                    }
                    out.extend_from_slice(b"null");
                }
            }
        }
        JsonFormat::Object(entries) => {
            let start = out.len();
            out.push(b'{');
            for (key, entry) in entries {
                let before = out.len();
                if before > start + 1 {
                    out.push(b',');
                }
                out.extend_from_slice(key.as_bytes());
                if !write_json(entry, scope, omit_empty, out) {
                    out.truncate(before);
                }
            }
            if out.len() == start + 1 && omit_empty {
                out.truncate(start);
                return false;
            }
            out.push(b'}');
        }
        JsonFormat::List(entries) => {
            let start = out.len();
            out.push(b'[');
            for entry in entries {
                let before = out.len();
                if before > start + 1 {
                    out.push(b',');
                }
                if !write_json(entry, scope, omit_empty, out) {
                    out.truncate(before);
                }
            }
            out.push(b']');
        }
    }
    true
}

#[cfg(test)]
mod tests;
