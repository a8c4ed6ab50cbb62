//! String, header and query-parameter matchers (`envoy.type.matcher.v3`, `config.route.v3.HeaderMatcher`).
//!
//! Regular expressions work on bytes, with Unicode off, and must match the whole value, as Envoy's RE2 full match.

pub(super) mod parse;
pub(super) mod regex;

use ::regex::bytes::Regex;
use http::HeaderName;

/// A compiled regular expression that matches whole values; equal when the source is.
#[derive(Clone, Debug)]
pub struct FullRegex {
    /// As written in the configuration.
    pub source: Box<str>,
    /// Anchored at both ends.
    pub regex: Regex,
}

impl PartialEq for FullRegex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// `envoy.type.matcher.v3.StringMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub enum StringMatcher {
    /// Equal to.
    Exact {
        /// As written.
        value: Box<str>,
        /// ASCII letters match in either case.
        ignore_case: bool,
    },
    /// Begins with.
    Prefix {
        /// As written.
        value: Box<str>,
        /// ASCII letters match in either case.
        ignore_case: bool,
    },
    /// Ends with.
    Suffix {
        /// As written.
        value: Box<str>,
        /// ASCII letters match in either case.
        ignore_case: bool,
    },
    /// Holds.
    Contains {
        /// As written.
        value: Box<str>,
        /// ASCII letters match in either case.
        ignore_case: bool,
    },
    /// Matches as a whole.
    Regex(FullRegex),
}

/// `envoy.config.route.v3.HeaderMatcher`. Of several values of a header one must match, as in Envoy 1.40.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatcher {
    /// The header; pseudo-headers by `Pseudo`.
    pub name: MatchedHeader,
    /// What is asked of it.
    pub condition: HeaderCondition,
    /// Inverts the result (of a present header; see `missing_as_empty`).
    pub invert: bool,
    /// `treat_missing_header_as_empty`.
    pub missing_as_empty: bool,
}

/// The name in a header matcher.
#[derive(Clone, Debug, PartialEq)]
pub enum MatchedHeader {
    /// An ordinary header.
    Header(HeaderName),
    /// `:method`.
    Method,
    /// `:path`, with the query.
    Path,
    /// `:authority` (also `host`).
    Authority,
    /// `:scheme`.
    Scheme,
}

/// What a header matcher asks.
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderCondition {
    /// `present_match`.
    Present(bool),
    /// `string_match` and its deprecated forms.
    String(StringMatcher),
    /// `range_match`: a decimal integer in `[start, end)`.
    Range {
        /// The least.
        start: i64,
        /// One above the greatest.
        end: i64,
    },
}

/// `envoy.config.route.v3.QueryParameterMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryMatcher {
    /// The parameter's name.
    pub name: Box<str>,
    /// `None` is `present_match: true`; the first value of the parameter is matched.
    pub value: Option<StringMatcher>,
    /// `present_match: false`: must be absent.
    pub absent: bool,
}
