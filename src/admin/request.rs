//! What an endpoint is asked, and what it answers.

use std::borrow::Cow;

use http::{Method, StatusCode};

/// A request to the admin interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Without query, decoded, with slashes merged.
    pub path: String,
    /// `path`, and the query as it came: what `allow_paths` is matched with.
    pub target: String,
    /// Query parameters, and those of a form.
    pub params: Vec<(String, String)>,
    /// As it came; only POST changes something.
    pub method: Method,
}

impl Request {
    /// From a request's target, such as `//stats?usedonly`.
    pub fn new(method: Method, target: &str) -> Self {
        let query_at = target.find('?').unwrap_or(target.len());
        let (path, query) = target.split_at(query_at);
        let merged = normalized(&decoded(path, false));
        let mut request = Self {
            target: format!("{merged}{query}"),
            path: merged,
            params: Vec::new(),
            method,
        };
        request.add_params(query.strip_prefix('?').unwrap_or_default());
        request
    }

    /// Adds `a=b&c`, of a query or a form.
    pub fn add_params(&mut self, text: &str) {
        let pairs = text.trim().split('&').filter(|pair| !pair.is_empty());
        self.params.extend(pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (
                decoded(name, true).into_owned(),
                decoded(value, true).into_owned(),
            )
        }));
    }

    /// The first value of a parameter.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// As [`Request::param`], absent where it is empty.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.param(name).filter(|value| !value.is_empty())
    }

    /// True where the parameter is there, whatever its value.
    pub fn flag(&self, name: &str) -> bool {
        self.param(name).is_some()
    }

    /// True for `format=json`.
    pub fn wants_json(&self) -> bool {
        self.param("format") == Some("json")
    }
}

/// Without `.` and `..`, and with slashes merged.
fn normalized(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut ends_open = false;
    for segment in path.split('/') {
        ends_open = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            segment => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in kept {
        out.push('/');
        out.push_str(segment);
    }
    if ends_open && path.starts_with('/') {
        out.push('/');
    }
    out
}

fn decoded(text: &str, form: bool) -> Cow<'_, str> {
    let text = if form && text.contains('+') {
        Cow::Owned(text.replace('+', " "))
    } else {
        Cow::Borrowed(text)
    };
    Cow::Owned(
        percent_encoding::percent_decode_str(&text)
            .decode_utf8_lossy()
            .into_owned(),
    )
}

/// The type of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// `text/plain; charset=UTF-8`.
    #[default]
    Text,
    /// `text/plain`: the errors of `/config_dump`, as in Envoy.
    Bare,
    /// `application/json`.
    Json,
    /// `text/html; charset=UTF-8`.
    Html,
}

impl Kind {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; charset=UTF-8",
            Self::Bare => "text/plain",
            Self::Json => "application/json",
            Self::Html => "text/html; charset=UTF-8",
        }
    }
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// The status; by default 200.
    pub status: StatusCode,
    /// What the body is.
    pub kind: Kind,
    /// The body.
    pub body: String,
}

impl Response {
    /// Plain text.
    pub fn text(body: impl Into<String>) -> Self {
        Self {
            body: body.into(),
            ..Self::default()
        }
    }

    /// `OK`, as for every action.
    pub fn ok() -> Self {
        Self::text("OK\n")
    }

    /// JSON in Envoy's layout.
    pub fn json(value: &serde_json::Value) -> Self {
        Self {
            kind: Kind::Json,
            body: crate::pb::json_text(value) + "\n",
            ..Self::default()
        }
    }

    /// Plain text with another status.
    pub fn error(status: StatusCode, body: impl Into<String>) -> Self {
        Self {
            status,
            ..Self::text(body)
        }
    }

    /// The same, of a type without a character set.
    pub(super) fn bare(self) -> Self {
        Self {
            kind: Kind::Bare,
            ..self
        }
    }

    /// 400.
    pub fn bad(body: impl Into<String>) -> Self {
        Self::error(StatusCode::BAD_REQUEST, body)
    }
}

/// A compiled parameter, or the 400 that says why not, with Envoy's first words.
pub(super) fn regex(pattern: &str, otherwise: &str) -> Result<regex::Regex, Response> {
    regex::Regex::new(pattern).map_err(|error| {
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default();
        let reason = reason.strip_prefix("error: ").unwrap_or(reason);
        Response::bad(format!("{otherwise}: {reason}: {pattern}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_taken_apart() {
        let request = Request::new(
            Method::GET,
            "//stats//%70rometheus?usedonly&filter=a%2Bb+c&x=&x=2",
        );
        assert_eq!(request.path, "/stats/prometheus");
        assert_eq!(
            request.target,
            "/stats/prometheus?usedonly&filter=a%2Bb+c&x=&x=2"
        );
        assert!(request.flag("usedonly") && request.flag("x") && !request.flag("y"));
        assert_eq!(request.param("filter"), Some("a+b c"));
        assert_eq!((request.param("x"), request.text("x")), (Some(""), None));
        let path = |target: &str| Request::new(Method::GET, target).path;
        for (target, is) in [
            ("", ""),
            ("/", "/"),
            ("/ready/", "/ready/"),
            ("/./ready", "/ready"),
            ("/x/../ready?a", "/ready"),
            ("/../ready/.", "/ready/"),
            ("/stats/..", "/"),
        ] {
            assert_eq!(path(target), is, "{target}");
        }
    }
}
