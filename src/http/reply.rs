//! Answers that we make ourselves: the data path's errors are replies.
//!
//! Bodies, flags and details are Envoy's, since dashboards and control planes match on them
//! (`envoy-user-surface` 5.4; `docs/compatibility.md` lists what differs).

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use smallvec::SmallVec;

macro_rules! flags {
    ($($(#[$doc:meta])* $variant:ident = $short:literal, $long:literal;)*) => {
        /// One of Envoy's response flags.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ResponseFlag { $($(#[$doc])* $variant,)* }

        impl ResponseFlag {
            /// Every flag, in Envoy's order.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The short name (`UH`).
            pub fn short(self) -> &'static str {
                match self { $(Self::$variant => $short,)* }
            }

            /// The long name (`NoHealthyUpstream`).
            pub fn long(self) -> &'static str {
                match self { $(Self::$variant => $long,)* }
            }
        }
    };
}

flags! {
    /// The local service failed its health check.
    FailedLocalHealthCheck = "LH", "FailedLocalHealthCheck";
    /// No healthy host.
    NoHealthyUpstream = "UH", "NoHealthyUpstream";
    /// Route or per-try timeout.
    UpstreamRequestTimeout = "UT", "UpstreamRequestTimeout";
    /// A reset of our own.
    LocalReset = "LR", "LocalReset";
    /// The upstream reset the stream.
    UpstreamRemoteReset = "UR", "UpstreamRemoteReset";
    /// No connection to the upstream.
    UpstreamConnectionFailure = "UF", "UpstreamConnectionFailure";
    /// The upstream closed before it answered.
    UpstreamConnectionTermination = "UC", "UpstreamConnectionTermination";
    /// A circuit breaker.
    UpstreamOverflow = "UO", "UpstreamOverflow";
    /// No route, or no filter chain.
    NoRouteFound = "NR", "NoRouteFound";
    /// The fault filter delayed.
    DelayInjected = "DI", "DelayInjected";
    /// The fault filter aborted.
    FaultInjected = "FI", "FaultInjected";
    /// Local rate limit.
    RateLimited = "RL", "RateLimited";
    /// External authorization.
    UnauthorizedExternalService = "UAEX", "UnauthorizedExternalService";
    /// The rate limit service failed.
    RateLimitServiceError = "RLSE", "RateLimitServiceError";
    /// The client went away.
    DownstreamConnectionTermination = "DC", "DownstreamConnectionTermination";
    /// Retries exhausted.
    UpstreamRetryLimitExceeded = "URX", "UpstreamRetryLimitExceeded";
    /// The stream was idle too long.
    StreamIdleTimeout = "SI", "StreamIdleTimeout";
    /// A strictly checked header is wrong.
    InvalidEnvoyRequestHeaders = "IH", "InvalidEnvoyRequestHeaders";
    /// The client broke the protocol.
    DownstreamProtocolError = "DPE", "DownstreamProtocolError";
    /// The upstream's maximum stream duration.
    UpstreamMaxStreamDurationReached = "UMSDR", "UpstreamMaxStreamDurationReached";
    /// From a cache.
    ResponseFromCacheFilter = "RFCF", "ResponseFromCacheFilter";
    /// A filter's configuration has not come.
    NoFilterConfigFound = "NFCF", "NoFilterConfigFound";
    /// Connection or request duration exceeded.
    DurationTimeout = "DT", "DurationTimeout";
    /// The upstream broke the protocol.
    UpstreamProtocolError = "UPE", "UpstreamProtocolError";
    /// The cluster is missing.
    NoClusterFound = "NC", "NoClusterFound";
    /// The overload manager.
    OverloadManager = "OM", "OverloadManagerTerminated";
    /// A name did not resolve.
    DnsResolutionFailed = "DF", "DnsResolutionFailed";
    /// EDS `drop_overloads`.
    DropOverload = "DO", "DropOverload";
    /// The client reset the stream.
    DownstreamRemoteReset = "DR", "DownstreamRemoteReset";
    /// EDS `drop_overloads` of 100 %.
    UnconditionalDropOverload = "UDO", "UnconditionalDropOverload";
}

/// The flags of a stream, in the order in which they were set, as Envoy prints them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseFlags(SmallVec<[ResponseFlag; 4]>);

impl ResponseFlags {
    /// Sets a flag; setting it again changes nothing.
    pub fn set(&mut self, flag: ResponseFlag) {
        if !self.0.contains(&flag) {
            self.0.push(flag);
        }
    }

    /// True where `flag` is set.
    pub fn contains(&self, flag: ResponseFlag) -> bool {
        self.0.contains(&flag)
    }

    /// True where none is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In the order of setting.
    pub fn iter(&self) -> impl Iterator<Item = ResponseFlag> + '_ {
        self.0.iter().copied()
    }
}

/// Short names joined with `,`, or `-`.
impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("-");
        }
        for (index, flag) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(flag.short())?;
        }
        Ok(())
    }
}

/// An answer that we make ourselves.
#[derive(Clone, Debug)]
pub struct LocalReply {
    /// The status.
    pub status: StatusCode,
    /// The body; `text/plain` unless `headers` says otherwise.
    pub body: Bytes,
    /// Flags to set on the stream.
    pub flags: SmallVec<[ResponseFlag; 2]>,
    /// `%RESPONSE_CODE_DETAILS%`; spaces are written as `_`.
    pub details: Cow<'static, str>,
    /// Further headers.
    pub headers: HeaderMap,
    /// For gRPC requests; `None` derives it from the status.
    pub grpc_status: Option<u32>,
    /// Close the HTTP/1 connection after it.
    pub close: bool,
}

impl LocalReply {
    /// A plain reply.
    pub fn new(
        status: StatusCode,
        body: impl Into<Bytes>,
        details: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            body: body.into(),
            flags: SmallVec::new(),
            details: details.into(),
            headers: HeaderMap::new(),
            grpc_status: None,
            close: false,
        }
    }

    /// Envoy's answer to a request whose body breaks its framing, by the details of
    /// [`BodyError::Malformed`](super::BodyError::Malformed).
    pub fn malformed_body(details: &str) -> Self {
        let (status, details) = match details {
            "http1.headers_too_large" => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "http1.headers_too_large",
            ),
            "http1.too_many_headers" => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "http1.too_many_headers",
            ),
            "http1.invalid_characters" => (StatusCode::BAD_REQUEST, "http1.invalid_characters"),
            _ => (StatusCode::BAD_REQUEST, "http1.codec_error"),
        };
        Self::new(
            status,
            status.canonical_reason().unwrap_or_default(),
            details,
        )
        .flag(ResponseFlag::DownstreamProtocolError)
        .closing()
    }

    /// With a flag.
    #[must_use]
    pub fn flag(mut self, flag: ResponseFlag) -> Self {
        self.flags.push(flag);
        self
    }

    /// Closing the HTTP/1 connection.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }
}

/// The replies of the proxy itself (filters make theirs).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyReason {
    /// No virtual host or route.
    RouteNotFound,
    /// The route's cluster does not exist; with the status to answer.
    ClusterNotFound(StatusCode),
    /// The cluster has no healthy host.
    NoHealthyUpstream,
    /// No connection could be made; with the transport's reason.
    ConnectFailure(Box<str>),
    /// The connection was not made in time.
    ConnectTimeout,
    /// The upstream closed before response headers.
    UpstreamTermination,
    /// The upstream reset the stream (h2).
    UpstreamReset,
    /// The upstream's answer is not HTTP.
    UpstreamProtocolError,
    /// A pool or breaker is full.
    Overflow,
    /// The route's timeout.
    ResponseTimeout,
    /// Nothing moved for the stream idle timeout.
    StreamIdle,
    /// `max_stream_duration`.
    MaxDuration,
    /// `request_timeout`.
    RequestTimeout,
    /// `request_headers_timeout`.
    RequestHeaderTimeout,
    /// A buffered request body is over the limit.
    RequestPayloadTooLarge,
    /// A buffered response body is over the limit.
    ResponsePayloadTooLarge,
    /// A CONNECT without a protocol that nobody can send.
    MissingProtocol,
    /// No `Host`.
    MissingHost,
    /// A path that normalisation refuses.
    PathNormalizationFailed,
    /// An upgrade nobody allowed.
    UpgradeFailed,
    /// An absolute path rule (`OPTIONS *`).
    AbsolutePathRejected,
    /// An ECDS filter without configuration.
    NoFilterConfig,
    /// A filter panicked.
    FilterPanic,
}

impl From<ReplyReason> for LocalReply {
    fn from(reason: ReplyReason) -> Self {
        use ResponseFlag as F;
        const RESET: &str =
            "upstream connect error or disconnect/reset before headers. reset reason: ";
        let reset = |what: &str| format!("{RESET}{what}");
        match reason {
            ReplyReason::RouteNotFound => {
                Self::new(StatusCode::NOT_FOUND, "", "route_not_found").flag(F::NoRouteFound)
            }
            ReplyReason::ClusterNotFound(status) => {
                Self::new(status, "", "cluster_not_found").flag(F::NoClusterFound)
            }
            ReplyReason::NoHealthyUpstream => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no healthy upstream",
                "no_healthy_upstream",
            )
            .flag(F::NoHealthyUpstream),
            ReplyReason::ConnectFailure(transport) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                reset("remote connection failure"),
                format!(
                    "upstream_reset_before_response_started{{remote_connection_failure|{}}}",
                    transport.replace(' ', "_")
                ),
            )
            .flag(F::UpstreamConnectionFailure),
            ReplyReason::MissingProtocol => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "missing required header: :protocol",
                "filter_removed_required_request_headers{missing_required_header:_:protocol}",
            )
            .flag(F::DownstreamProtocolError),
            ReplyReason::ConnectTimeout => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                reset("connection timeout"),
                "upstream_reset_before_response_started{connection_timeout}",
            )
            .flag(F::UpstreamConnectionFailure),
            ReplyReason::UpstreamTermination => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                reset("connection termination"),
                "upstream_reset_before_response_started{connection_termination}",
            )
            .flag(F::UpstreamConnectionTermination),
            ReplyReason::UpstreamReset => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                reset("remote reset"),
                "upstream_reset_before_response_started{remote_reset}",
            )
            .flag(F::UpstreamRemoteReset),
            ReplyReason::UpstreamProtocolError => Self::new(
                StatusCode::BAD_GATEWAY,
                reset("protocol error"),
                "upstream_reset_before_response_started{protocol_error}",
            )
            .flag(F::UpstreamProtocolError),
            ReplyReason::Overflow => {
                let mut reply = Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    reset("overflow"),
                    "upstream_reset_before_response_started{overflow}",
                )
                .flag(F::UpstreamOverflow);
                reply
                    .headers
                    .insert("x-envoy-overloaded", http::HeaderValue::from_static("true"));
                reply
            }
            ReplyReason::ResponseTimeout => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "upstream request timeout",
                "response_timeout",
            )
            .flag(F::UpstreamRequestTimeout),
            ReplyReason::StreamIdle => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "stream timeout",
                "stream_idle_timeout",
            )
            .flag(F::StreamIdleTimeout),
            ReplyReason::MaxDuration => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "downstream duration timeout",
                "max_duration_timeout",
            ),
            ReplyReason::RequestTimeout => Self::new(
                StatusCode::REQUEST_TIMEOUT,
                "request timeout",
                "request_overall_timeout",
            )
            .closing(),
            ReplyReason::RequestHeaderTimeout => Self::new(
                StatusCode::REQUEST_TIMEOUT,
                "request header timeout",
                "request_header_timeout",
            )
            .closing(),
            ReplyReason::RequestPayloadTooLarge => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "Payload Too Large",
                "request_payload_too_large",
            ),
            ReplyReason::ResponsePayloadTooLarge => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Internal Server Error",
                "response_payload_too_large",
            ),
            ReplyReason::MissingHost => {
                Self::new(StatusCode::BAD_REQUEST, "", "missing_host_header").closing()
            }
            ReplyReason::PathNormalizationFailed => {
                Self::new(StatusCode::BAD_REQUEST, "", "path_normalization_failed").closing()
            }
            ReplyReason::UpgradeFailed => {
                Self::new(StatusCode::FORBIDDEN, "", "upgrade_failed").closing()
            }
            ReplyReason::AbsolutePathRejected => {
                Self::new(StatusCode::NOT_FOUND, "", "absolute_path_rejected")
            }
            ReplyReason::NoFilterConfig => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "",
                "filter_config_not_found",
            )
            .flag(F::NoFilterConfigFound),
            ReplyReason::FilterPanic => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", "filter_panic")
            }
        }
    }
}
