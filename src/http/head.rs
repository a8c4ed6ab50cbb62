//! Message heads. Pseudo-headers are fields of their own; `headers` never holds `:…` names or `host`.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};

use super::Interim;

/// `http` or `https`, once it is known, until a filter writes something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// An HTTP/1 target names none: the listener finds it. A head that is refused before then has none, nor has one of which
    /// a filter has removed it.
    Unknown,
    /// Plain text.
    Http,
    /// TLS.
    Https,
    /// What a filter wrote. The router replaces what is no scheme, as in Envoy.
    Other(Box<str>),
}

impl Scheme {
    /// That of this text.
    pub fn of(text: &str) -> Self {
        match text {
            "http" => Self::Http,
            "https" => Self::Https,
            _ => Self::Other(text.into()),
        }
    }

    /// True where a request can be sent with it.
    pub fn is_valid(&self) -> bool {
        match self {
            Self::Http | Self::Https => true,
            Self::Unknown => false,
            Self::Other(text) => ["http", "https"]
                .iter()
                .any(|scheme| text.eq_ignore_ascii_case(scheme)),
        }
    }

    /// As [`Scheme::as_str`]; `None` where there is none.
    pub fn shown(&self) -> Option<&str> {
        (*self != Self::Unknown).then(|| self.as_str())
    }

    /// As in a URL; empty where there is none.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Unknown => "",
            Self::Http => "http",
            Self::Https => "https",
            Self::Other(text) => text,
        }
    }
}

/// The head of a request, of either protocol version.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// `:method`.
    pub method: Method,
    /// `:scheme`.
    pub scheme: Scheme,
    /// `:authority` or `Host`; empty where there was none, or where it was empty.
    pub authority: HeaderValue,
    /// There was an `:authority` or `Host`, though perhaps empty: its absence is a 400.
    pub has_host: bool,
    /// `:path`, with the query; as received (it need not be a valid URI). Empty for CONNECT.
    pub path: HeaderValue,
    /// The version it was received in.
    pub version: Version,
    /// All other headers, lower case.
    pub headers: HeaderMap,
    /// The `Upgrade` header's value, or `:protocol` of an extended CONNECT: a wish that the route may grant.
    pub upgrade: Option<HeaderValue>,
    /// Where the client waits for what the upstream says to its `expect: 100-continue`.
    pub interim: Option<Arc<Interim>>,
}

impl RequestHead {
    /// A head with no headers, for requests of our own and tests.
    pub fn new(method: Method, authority: &str, path: &str) -> Self {
        let value =
            |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        Self {
            method,
            scheme: Scheme::Http,
            authority: value(authority),
            has_host: true,
            path: value(path),
            version: Version::HTTP_11,
            headers: HeaderMap::new(),
            upgrade: None,
            interim: None,
        }
    }

    /// The path without query and fragment.
    pub fn path_only(&self) -> &[u8] {
        let path = self.path.as_bytes();
        let end = memchr::memchr2(b'?', b'#', path).unwrap_or(path.len());
        &path[..end]
    }

    /// The query without its `?`; `None` where there is no `?`.
    pub fn query(&self) -> Option<&[u8]> {
        let path = self.path.as_bytes();
        let start = memchr::memchr(b'?', path)? + 1;
        Some(&path[start..])
    }

    /// True for `content-type: application/grpc` and its suffixed forms.
    pub fn is_grpc(&self) -> bool {
        is_grpc(&self.headers)
    }

    /// True where an upgrade was asked for and still is: a filter that takes away one of the two headers that say so makes
    /// an ordinary request of it. Over HTTP/2 there are none.
    pub fn is_upgrade(&self) -> bool {
        let says_so = |value: &HeaderValue| {
            let mut tokens = value.as_bytes().split(|byte| *byte == b',');
            tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
        };
        self.upgrade.is_some()
            && (self.version >= Version::HTTP_2
                || (self.headers.contains_key(header::UPGRADE)
                    && self.headers.get(header::CONNECTION).is_some_and(says_so)))
    }
}

/// A head, or what keeps one: codecs read it for a moment where filters and logs have it for longer.
pub trait Lend<H> {
    /// Reads the head. It is in use meanwhile: `read` must not ask its owner for it.
    fn lend<R>(&self, read: impl FnOnce(&H) -> R) -> R;
}

impl<H, L: Lend<H>> Lend<H> for &L {
    fn lend<R>(&self, read: impl FnOnce(&H) -> R) -> R {
        (**self).lend(read)
    }
}

impl Lend<RequestHead> for RequestHead {
    fn lend<R>(&self, read: impl FnOnce(&RequestHead) -> R) -> R {
        read(self)
    }
}

impl Lend<ResponseHead> for ResponseHead {
    fn lend<R>(&self, read: impl FnOnce(&ResponseHead) -> R) -> R {
        read(self)
    }
}

/// The head of a response.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// `:status`.
    pub status: StatusCode,
    /// The version it was received in.
    pub version: Version,
    /// Headers, lower case.
    pub headers: HeaderMap,
}

impl ResponseHead {
    /// A head with no headers.
    pub fn new(status: StatusCode) -> Self {
        Self {
            status,
            version: Version::HTTP_11,
            headers: HeaderMap::new(),
        }
    }
}

/// True for `content-type: application/grpc`, alone or followed by `+`; Envoy knows no parameters here.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
}
