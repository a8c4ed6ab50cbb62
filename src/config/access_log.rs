//! Access logs and substitution formats (`%REQ(:METHOD)%`), parsed: the syntax is here, the evaluation in `stream`.

use std::path::PathBuf;

use super::extension::HttpFilterConfig;

mod format;
mod json;
mod operator;
mod parse;
mod time;

pub use format::{Format, FormatPart};
pub use json::JsonFormat;
pub use operator::{
    DurationUnit, Field, FormatHeader, GrpcStatusFormat, HeaderChoice, MaskableAddress,
    MetadataSource, Operator, PathSource, ServerNameChoice, TimePoint,
};
pub use time::{TimeFormat, TimePart};

/// Envoy's default line.
pub const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQUEST_HEADER(:METHOD)% \
    %REQUEST_HEADER(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% \
    %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESPONSE_HEADER(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
    \"%REQUEST_HEADER(X-FORWARDED-FOR)%\" \"%REQUEST_HEADER(USER-AGENT)%\" \
    \"%REQUEST_HEADER(X-REQUEST-ID)%\" \"%REQUEST_HEADER(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// The short names of the response flags; `http::ResponseFlag` holds their meaning.
const RESPONSE_FLAGS: &[&str] = &[
    "LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE", "DC",
    "URX", "SI", "IH", "DPE", "UMSDR", "RFCF", "NFCF", "DT", "UPE", "NC", "OM", "DF", "DO", "DR",
    "UDO",
];

/// An access logger that is a plugin (`envoy.access_loggers.wasm`).
#[derive(Clone, Debug, PartialEq)]
pub struct PluginLog {
    /// Its place in `access_log`.
    pub index: usize,
    /// Its configuration, as its factory made it.
    pub config: HttpFilterConfig,
    /// Which requests it hears of.
    pub filter: Option<AccessLogFilter>,
}

/// One access logger.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLog {
    /// Where lines go.
    pub sink: AccessLogSink,
    /// What a line looks like.
    pub format: LogFormat,
    /// Which requests are logged.
    pub filter: Option<AccessLogFilter>,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AccessLogSink {
    /// A file, `/dev/stdout` included.
    File(PathBuf),
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Text or JSON.
#[derive(Clone, Debug, PartialEq)]
pub enum LogFormat {
    /// `text_format`, or Envoy's default.
    Text {
        /// The line, its line end included.
        format: Format,
        /// Missing values are empty, not `-`.
        omit_empty: bool,
    },
    /// `json_format`: an object with sorted keys.
    Json {
        /// The template.
        object: JsonFormat,
        /// Missing values are left out, not `null`.
        omit_empty: bool,
    },
}

/// `SubstitutionFormatString` for a body.
#[derive(Clone, Debug, PartialEq)]
pub struct BodyFormat {
    /// What is written.
    pub format: LogFormat,
    /// `content_type`, where set.
    pub content_type: Option<Box<str>>,
}

/// `AccessLogFilter`.
#[derive(Clone, Debug, PartialEq)]
pub enum AccessLogFilter {
    /// `status_code_filter`: the comparison and the default value.
    Status(Comparison, u32),
    /// `duration_filter`, in milliseconds.
    Duration(Comparison, u32),
    /// `not_health_check_filter`.
    NotHealthCheck,
    /// `traceable_filter`.
    Traceable,
    /// `runtime_filter`.
    Fraction {
        /// So many…
        numerator: u32,
        /// …of so many.
        denominator: u32,
        /// Drawn anew, not derived from the request id.
        independent: bool,
    },
    /// `and_filter`.
    And(Vec<AccessLogFilter>),
    /// `or_filter`.
    Or(Vec<AccessLogFilter>),
    /// `header_filter`.
    Header(super::matcher::HeaderMatcher),
    /// `response_flag_filter`; empty: any flag. Short names.
    ResponseFlags(Vec<Box<str>>),
    /// `grpc_status_filter`: codes, and whether to exclude them.
    GrpcStatus(Vec<u32>, bool),
    /// `log_type_filter`: names of types, and whether to exclude them.
    LogType(Vec<Box<str>>, bool),
}

/// `ComparisonFilter.Op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Equal.
    Eq,
    /// At least.
    Ge,
    /// At most.
    Le,
    /// Not equal.
    Ne,
}

/// `local_reply_config`.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalReplyConfig {
    /// First match wins.
    pub mappers: Vec<LocalReplyMapper>,
    /// `body_format`; default `%LOCAL_REPLY_BODY%`.
    pub body_format: Option<BodyFormat>,
}

/// `ResponseMapper`.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalReplyMapper {
    /// `filter`.
    pub filter: AccessLogFilter,
    /// `status_code`.
    pub status: Option<http::StatusCode>,
    /// `body`.
    pub body: Option<bytes::Bytes>,
    /// `headers_to_add`.
    pub headers: super::header::HeaderMutations,
    /// `body_format_override`, with its content type.
    pub body_format: Option<BodyFormat>,
}
