//! Protobuf to matchers.

#![allow(
    deprecated,
    reason = "Envoy still honours its deprecated fields, and control planes send them"
)]

use http::HeaderName;

use super::{
    FullRegex, HeaderCondition, HeaderMatcher, MatchedHeader, QueryMatcher, StringMatcher, regex,
};
use crate::config::ConfigError;
use crate::config::error::At;
use crate::config::field::{header_text, non_empty, required};
use crate::pb::envoy::config::route::v3 as route;
use crate::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use crate::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use crate::pb::envoy::r#type::matcher::v3 as matcher;
use crate::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use crate::pb::envoy::r#type::v3::Int64Range;

/// The longest name of a query parameter, in bytes.
const MAX_QUERY_NAME: usize = 1024;

impl StringMatcher {
    /// Validates a `StringMatcher`.
    ///
    /// # Errors
    /// No pattern, a custom one, or a bad regular expression.
    pub fn parse(proto: matcher::StringMatcher) -> Result<Self, ConfigError> {
        let matcher::StringMatcher {
            ignore_case,
            match_pattern,
        } = proto;
        Ok(match required(match_pattern, "match_pattern")? {
            MatchPattern::Exact(value) => Self::Exact {
                value: value.into(),
                ignore_case,
            },
            MatchPattern::Prefix(value) => Self::Prefix {
                value: non_empty(value, "prefix")?.into(),
                ignore_case,
            },
            MatchPattern::Suffix(value) => Self::Suffix {
                value: non_empty(value, "suffix")?.into(),
                ignore_case,
            },
            MatchPattern::Contains(value) => Self::Contains {
                value: non_empty(value, "contains")?.into(),
                ignore_case,
            },
            MatchPattern::SafeRegex(_) if ignore_case => {
                return Err(ConfigError::invalid(
                    "ignore_case has no effect for safe_regex.",
                ));
            }
            MatchPattern::SafeRegex(regex) => {
                Self::Regex(FullRegex::parse(regex).at("safe_regex")?)
            }
            MatchPattern::Custom(_) => {
                return Err(ConfigError::unsupported(
                    "custom",
                    "matcher extensions are not implemented by this build yet",
                ));
            }
        })
    }
}

impl FullRegex {
    /// Validates a `RegexMatcher`.
    ///
    /// # Errors
    /// A bad regular expression, or one whose program is too large.
    pub fn parse(proto: matcher::RegexMatcher) -> Result<Self, ConfigError> {
        Self::new(&pattern(proto)?).at("regex")
    }

    /// Compiles a pattern that must match as a whole.
    ///
    /// # Errors
    /// As [`FullRegex::parse`].
    pub fn new(pattern: &str) -> Result<Self, ConfigError> {
        Ok(Self {
            source: pattern.into(),
            regex: regex::full(pattern)?,
        })
    }
}

/// The pattern of a `RegexMatcher`: there is one engine.
pub(in crate::config) fn pattern(proto: matcher::RegexMatcher) -> Result<String, ConfigError> {
    let matcher::RegexMatcher {
        regex,
        // RE2 is the only engine there is, and its `max_program_size` is deprecated: our own limit holds.
        engine_type: _,
    } = proto;
    non_empty(regex, "regex")
}

impl HeaderMatcher {
    /// Validates a `HeaderMatcher`, the deprecated forms included.
    ///
    /// # Errors
    /// A bad name or condition.
    pub fn parse(proto: route::HeaderMatcher) -> Result<Self, ConfigError> {
        let route::HeaderMatcher {
            name,
            invert_match,
            treat_missing_header_as_empty,
            header_match_specifier,
        } = proto;
        let name =
            MatchedHeader::parse(&header_text(non_empty(name, "name")?, "name")?).at("name")?;
        let string = |value: String, make: fn(Box<str>) -> StringMatcher, field| {
            non_empty(value, field)
                .map(|value| HeaderCondition::String(make(value.into_boxed_str())))
        };
        let condition = match header_match_specifier {
            None => HeaderCondition::Present(true),
            Some(HeaderMatchSpecifier::PresentMatch(present)) => HeaderCondition::Present(present),
            Some(HeaderMatchSpecifier::ExactMatch(value)) => {
                HeaderCondition::String(StringMatcher::Exact {
                    value: value.into(),
                    ignore_case: false,
                })
            }
            Some(HeaderMatchSpecifier::PrefixMatch(value)) => string(
                value,
                |value| StringMatcher::Prefix {
                    value,
                    ignore_case: false,
                },
                "prefix_match",
            )?,
            Some(HeaderMatchSpecifier::SuffixMatch(value)) => string(
                value,
                |value| StringMatcher::Suffix {
                    value,
                    ignore_case: false,
                },
                "suffix_match",
            )?,
            Some(HeaderMatchSpecifier::ContainsMatch(value)) => string(
                value,
                |value| StringMatcher::Contains {
                    value,
                    ignore_case: false,
                },
                "contains_match",
            )?,
            Some(HeaderMatchSpecifier::SafeRegexMatch(regex)) => HeaderCondition::String(
                StringMatcher::Regex(FullRegex::parse(regex).at("safe_regex_match")?),
            ),
            Some(HeaderMatchSpecifier::RangeMatch(Int64Range { start, end })) => {
                HeaderCondition::Range { start, end }
            }
            Some(HeaderMatchSpecifier::StringMatch(string)) => {
                HeaderCondition::String(StringMatcher::parse(string).at("string_match")?)
            }
        };
        Ok(Self {
            name,
            condition,
            invert: invert_match,
            missing_as_empty: treat_missing_header_as_empty,
        })
    }
}

impl MatchedHeader {
    /// Reads the name of a header to match; pseudo-headers by their names, `host` is `:authority`.
    ///
    /// # Errors
    /// No header name, or a pseudo-header that requests do not have.
    pub fn parse(name: &str) -> Result<Self, ConfigError> {
        Ok(match name.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            lower => Self::Header(HeaderName::from_bytes(lower.as_bytes()).map_err(|_| {
                ConfigError::invalid(format!("'{name}' is not a header that a request has"))
            })?),
        })
    }
}

impl QueryMatcher {
    /// Validates a `QueryParameterMatcher`.
    ///
    /// # Errors
    /// A bad name or condition.
    pub fn parse(proto: route::QueryParameterMatcher) -> Result<Self, ConfigError> {
        let route::QueryParameterMatcher {
            name,
            query_parameter_match_specifier,
        } = proto;
        let name = non_empty(name, "name")?;
        if name.len() > MAX_QUERY_NAME {
            return Err(ConfigError::invalid("value length must be at most 1024 bytes").at("name"));
        }
        let (value, absent) = match query_parameter_match_specifier {
            None => (None, false),
            Some(QueryParameterMatchSpecifier::PresentMatch(present)) => (None, !present),
            Some(QueryParameterMatchSpecifier::StringMatch(string)) => (
                Some(StringMatcher::parse(string).at("string_match")?),
                false,
            ),
        };
        Ok(Self {
            name: name.into(),
            value,
            absent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb;

    fn header(yaml: &str) -> Result<HeaderMatcher, String> {
        let proto = pb::from_yaml::<route::HeaderMatcher>(yaml).expect("a HeaderMatcher");
        HeaderMatcher::parse(proto).map_err(|error| error.to_string())
    }

    fn query(yaml: &str) -> Result<QueryMatcher, String> {
        let proto =
            pb::from_yaml::<route::QueryParameterMatcher>(yaml).expect("a QueryParameterMatcher");
        QueryMatcher::parse(proto).map_err(|error| error.to_string())
    }

    #[test]
    fn deprecated_header_forms_mean_what_the_new_ones_do() {
        for (old, new) in [
            ("exact_match: v", "string_match: {exact: v}"),
            ("prefix_match: v", "string_match: {prefix: v}"),
            ("suffix_match: v", "string_match: {suffix: v}"),
            ("contains_match: v", "string_match: {contains: v}"),
            (
                "safe_regex_match: {regex: v+}",
                "string_match: {safe_regex: {regex: v+}}",
            ),
            (
                "safe_regex_match: {google_re2: {}, regex: v+}",
                "string_match: {safe_regex: {regex: v+}}",
            ),
            ("invert_match: false", "present_match: true"),
        ] {
            let old = header(&format!("{{name: X-A, {old}}}"));
            assert!(old.is_ok(), "{old:?}");
            assert_eq!(old, header(&format!("{{name: x-a, {new}}}")));
        }
    }

    #[test]
    fn pseudo_headers_are_matched_by_name() {
        for (name, matched) in [
            (":method", MatchedHeader::Method),
            (":path", MatchedHeader::Path),
            (":authority", MatchedHeader::Authority),
            ("Host", MatchedHeader::Authority),
            (":scheme", MatchedHeader::Scheme),
            ("X-Y", MatchedHeader::Header(HeaderName::from_static("x-y"))),
        ] {
            assert_eq!(MatchedHeader::parse(name), Ok(matched));
        }
    }

    #[test]
    fn wrong_matchers_are_refused_by_field() {
        for (yaml, error) in [
            (
                "name: ''",
                "name: value length must be at least 1 characters",
            ),
            (
                "name: 'a b'",
                "name: 'a b' is not a header that a request has",
            ),
            (
                "name: ':status'",
                "name: ':status' is not a header that a request has",
            ),
            (
                "{name: a, prefix_match: ''}",
                "prefix_match: value length must be at least 1 characters",
            ),
            (
                "{name: a, string_match: {}}",
                "string_match.match_pattern: value is required",
            ),
            (
                "{name: a, string_match: {suffix: ''}}",
                "string_match.suffix: value length must be at least 1 characters",
            ),
            (
                "{name: a, string_match: {ignore_case: true, safe_regex: {regex: a}}}",
                "string_match: ignore_case has no effect for safe_regex.",
            ),
            (
                "{name: a, string_match: {safe_regex: {regex: '(a'}}}",
                "string_match.safe_regex.regex: invalid regex '(a': unclosed group",
            ),
            (
                "{name: a, string_match: {custom: {name: x, typed_config: {'@type': type.googleapis.com/google.protobuf.Empty}}}}",
                "string_match.custom: not supported: matcher extensions are not implemented by this build yet",
            ),
        ] {
            assert_eq!(header(yaml), Err(error.to_owned()), "{yaml}");
        }
    }

    #[test]
    fn header_conditions_keep_their_modifiers() {
        let range = header("{name: a, range_match: {start: -5, end: 7}, invert_match: true}");
        assert_eq!(
            range.map(|m| (m.condition, m.invert, m.missing_as_empty)),
            Ok((HeaderCondition::Range { start: -5, end: 7 }, true, false))
        );
        let empty = header("{name: a, exact_match: '', treat_missing_header_as_empty: true}");
        assert!(empty.is_ok_and(|m| m.missing_as_empty));
    }

    #[test]
    fn query_parameters_are_present_absent_or_matched() {
        assert!(query("name: a").is_ok_and(|m| !m.absent && m.value.is_none()));
        assert!(query("{name: a, present_match: false}").is_ok_and(|m| m.absent));
        assert!(
            query("{name: a, string_match: {exact: ''}}")
                .is_ok_and(|m| m.value.is_some() && !m.absent)
        );
        assert_eq!(
            query(&format!("name: {}", "a".repeat(1025))),
            Err("name: value length must be at most 1024 bytes".to_owned())
        );
        assert_eq!(
            query("{name: a, string_match: {prefix: ''}}"),
            Err("string_match.prefix: value length must be at least 1 characters".to_owned())
        );
    }
}
