//! Evaluates string, header and query-parameter matchers over a request.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::matcher::{
    HeaderCondition, HeaderMatcher, MatchedHeader, QueryMatcher, StringMatcher,
};
use crate::http::{RequestHead, ResponseHead};

/// True where `value` fits `matcher`. Case is ignored in ASCII only.
pub fn string_matches(matcher: &StringMatcher, value: &[u8]) -> bool {
    match matcher {
        StringMatcher::Exact {
            value: wanted,
            ignore_case,
        } => value.len() == wanted.len() && bytes_equal(value, wanted.as_bytes(), *ignore_case),
        StringMatcher::Prefix {
            value: wanted,
            ignore_case,
        } => value
            .get(..wanted.len())
            .is_some_and(|head| bytes_equal(head, wanted.as_bytes(), *ignore_case)),
        StringMatcher::Suffix {
            value: wanted,
            ignore_case,
        } => value
            .len()
            .checked_sub(wanted.len())
            .is_some_and(|at| bytes_equal(&value[at..], wanted.as_bytes(), *ignore_case)),
        StringMatcher::Contains {
            value: wanted,
            ignore_case: false,
        } => memchr::memmem::find(value, wanted.as_bytes()).is_some(),
        StringMatcher::Contains {
            value: wanted,
            ignore_case: true,
        } => {
            wanted.is_empty()
                || value
                    .windows(wanted.len())
                    .any(|window| window.eq_ignore_ascii_case(wanted.as_bytes()))
        }
        StringMatcher::Regex(regex) => regex.regex.is_match(value),
    }
}

fn bytes_equal(a: &[u8], b: &[u8], ignore_case: bool) -> bool {
    if ignore_case {
        a.eq_ignore_ascii_case(b)
    } else {
        a == b
    }
}

/// True where `head` fits `matcher`.
pub fn header_matches(matcher: &HeaderMatcher, head: &RequestHead) -> bool {
    match &matcher.name {
        MatchedHeader::Header(name) => named_matches(matcher, &head.headers, name),
        MatchedHeader::Method => values_match(matcher, [head.method.as_str().as_bytes()]),
        MatchedHeader::Path => values_match(matcher, present(head.path.as_bytes())),
        MatchedHeader::Authority => {
            let there = head.has_host.then(|| head.authority.as_bytes());
            values_match(matcher, there)
        }
        // A head that was refused may have none yet.
        MatchedHeader::Scheme => values_match(matcher, head.scheme.shown().map(str::as_bytes)),
    }
}

/// True where `matcher` fits a message without headers.
pub fn absent_matches(matcher: &HeaderMatcher) -> bool {
    values_match(matcher, None)
}

/// True where the response `head` fits `matcher`; pseudo-headers of requests are absent.
pub fn response_header_matches(matcher: &HeaderMatcher, head: &ResponseHead) -> bool {
    match &matcher.name {
        MatchedHeader::Header(name) => named_matches(matcher, &head.headers, name),
        MatchedHeader::Method
        | MatchedHeader::Path
        | MatchedHeader::Authority
        | MatchedHeader::Scheme => values_match(matcher, None),
    }
}

fn named_matches(matcher: &HeaderMatcher, headers: &HeaderMap, name: &HeaderName) -> bool {
    values_match(
        matcher,
        headers.get_all(name).iter().map(HeaderValue::as_bytes),
    )
}

fn present(value: &[u8]) -> Option<&[u8]> {
    (!value.is_empty()).then_some(value)
}

/// Values are matched one by one, and one is enough; inverted, none may match. (The headers that are joined when they
/// are received are one value.)
fn values_match<'a>(matcher: &HeaderMatcher, values: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let mut values = values.into_iter().peekable();
    if values.peek().is_none() {
        // Of an absent header only its absence can be asked; other conditions fail, inverted or not.
        return match (&matcher.condition, matcher.missing_as_empty) {
            (condition, true) => holds(condition, b"") != matcher.invert,
            (HeaderCondition::Present(wanted), false) => *wanted == matcher.invert,
            (_, false) => false,
        };
    }
    values.any(|value| holds(&matcher.condition, value)) != matcher.invert
}

fn holds(condition: &HeaderCondition, value: &[u8]) -> bool {
    match condition {
        HeaderCondition::Present(wanted) => *wanted,
        HeaderCondition::String(string) => string_matches(string, value),
        HeaderCondition::Range { start, end } => std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.trim().parse::<i64>().ok())
            .is_some_and(|number| (*start..*end).contains(&number)),
    }
}

/// True where the query string (without its `?`) fits `matcher`; values are compared as they are, undecoded.
pub fn query_matches(matcher: &QueryMatcher, query: Option<&[u8]>) -> bool {
    let value = query.and_then(|query| query_parameter(query, matcher.name.as_bytes()));
    match value {
        None => matcher.absent,
        Some(_) if matcher.absent => false,
        Some(value) => matcher
            .value
            .as_ref()
            .is_none_or(|wanted| string_matches(wanted, value)),
    }
}

/// The first value of the parameter `name`; empty where it has no `=`.
pub fn query_parameter<'a>(query: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    query.split(|byte| *byte == b'&').find_map(|pair| {
        let (key, value) = match memchr::memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &b""[..]),
        };
        (key == name && !key.is_empty()).then_some(value)
    })
}
