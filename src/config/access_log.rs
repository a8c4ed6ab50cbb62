//! Access logs and substitution formats (`%REQ(:METHOD)%`), parsed: the syntax is here, the evaluation in `stream`.

use std::path::PathBuf;

/// A parsed substitution format; equal when the text is.
#[derive(Clone, Debug)]
pub struct Format {
    /// As written.
    pub source: Box<str>,
    /// In order.
    pub parts: Vec<FormatPart>,
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// A literal or an operator.
#[derive(Clone, Debug, PartialEq)]
pub enum FormatPart {
    /// Written as is.
    Text(Box<str>),
    /// `%OPERATOR(arguments):LENGTH%`.
    Operator {
        /// What to write.
        operator: Operator,
        /// At most so many bytes.
        max_len: Option<usize>,
    },
}

/// A substitution operator.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Operator {
    /// Filled by the parser's owner.
    StartTime(Option<Box<str>>),
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
    Text { format: Format, omit_empty: bool },
    /// `json_format`: an object with sorted keys.
    Json {
        object: JsonFormat,
        omit_empty: bool,
    },
}

/// A JSON template.
#[derive(Clone, Debug, PartialEq)]
pub enum JsonFormat {
    /// By key, sorted.
    Object(Vec<(Box<str>, JsonFormat)>),
    /// In order.
    List(Vec<JsonFormat>),
    /// A string with operators; exactly one operator keeps its type.
    String(Format),
    /// As is.
    Literal(serde_json::Value),
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
    /// `runtime_filter`: parts of a million.
    Fraction(u32),
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
    pub body_format: Option<(LogFormat, Option<Box<str>>)>,
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
    pub body_format: Option<(LogFormat, Option<Box<str>>)>,
}
