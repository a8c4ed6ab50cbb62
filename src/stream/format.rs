//! Evaluates substitution formats: what `%OPERATORS%` mean for one stream.

use http::HeaderMap;

use super::{ConnectionInfo, Stream, StreamInfo};
use crate::config::access_log::{Format, LogFormat};
use crate::http::{RequestHead, ResponseHead};
use crate::route::SelectedRoute;

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
}

impl LogType {
    /// Envoy's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotSet => "NotSet",
            Self::DownstreamStart => "DownstreamStart",
            Self::DownstreamPeriodic => "DownstreamPeriodic",
            Self::DownstreamEnd => "DownstreamEnd",
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
    /// The route, as resolved.
    pub route: Option<&'a SelectedRoute>,
    /// `%LOCAL_REPLY_BODY%`; else that of `info`.
    pub local_reply_body: Option<&'a [u8]>,
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
            route: route.as_deref(),
            local_reply_body: None,
            log_type,
        })
    }
}

/// Appends `format` to `out`; a missing value is `-`, or nothing where `omit_empty`.
pub fn write_text(format: &Format, scope: &Scope<'_>, omit_empty: bool, out: &mut Vec<u8>) {
    let _ = (format, scope, omit_empty, out);
}

/// Appends a whole record: text as it is, JSON with a line end.
pub fn write_record(format: &LogFormat, scope: &Scope<'_>, out: &mut Vec<u8>) {
    let _ = (format, scope, out);
}
