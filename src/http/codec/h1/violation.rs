//! [`Violation`]: why a message is refused, and Envoy's answer to it.

use http::StatusCode;

use super::super::Malformed;
use crate::http::{LocalReply, RequestHead, ResponseFlag};

/// A broken rule: the status that Envoy answers, and its `%RESPONSE_CODE_DETAILS%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) status: StatusCode,
    pub(super) details: &'static str,
}

impl Violation {
    const fn bad(details: &'static str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            details,
        }
    }

    pub(super) const CODEC: Self = Self::bad("http1.codec_error");
    pub(super) const CHARACTERS: Self = Self::bad("http1.invalid_characters");
    pub(super) const URL: Self = Self::bad("http1.invalid_url");
    pub(super) const SCHEME: Self = Self::bad("http1.invalid_scheme");
    pub(super) const AUTHORITY: Self = Self::bad("http.invalid_authority");
    pub(super) const UNDERSCORE: Self = Self::bad("http1.unexpected_underscore");
    pub(super) const CONNECTION: Self = Self::bad("http1.connection_header_rejected");
    pub(super) const BODY_DISALLOWED: Self = Self::bad("http1.body_disallowed");
    pub(super) const LENGTH_AND_CHUNKED: Self =
        Self::bad("http1.content_length_and_chunked_not_allowed");
    pub(super) const LENGTH_NOT_ALLOWED: Self = Self::bad("http1.content_length_not_allowed");
    pub(super) const CODING_NOT_ALLOWED: Self = Self::bad("http1.transfer_encoding_not_allowed");
    pub(super) const HTTPS_IN_PLAINTEXT: Self = Self {
        status: StatusCode::FORBIDDEN,
        details: "http1.https_url_on_plaintext_connection",
    };
    pub(super) const CODING: Self = Self {
        status: StatusCode::NOT_IMPLEMENTED,
        details: "http1.invalid_transfer_encoding",
    };
    pub(super) const VERSION: Self = Self {
        status: StatusCode::UPGRADE_REQUIRED,
        details: "low_version",
    };
    pub(super) const TOO_LARGE: Self = Self {
        status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        details: "http1.headers_too_large",
    };
    pub(super) const TOO_MANY: Self = Self {
        status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        details: "http1.too_many_headers",
    };

    /// Envoy tells control characters apart from other syntax errors, wherever in the head they stand.
    pub(super) fn or_characters(self, head: &[u8]) -> Self {
        let forbidden = |byte: &u8| matches!(byte, 0..=8 | 11 | 12 | 14..=31 | 127);
        if self == Self::CODEC && head.iter().any(forbidden) {
            Self::CHARACTERS
        } else {
            self
        }
    }

    /// What the downstream side hands up.
    pub(super) fn malformed(self, head: Option<RequestHead>) -> Malformed {
        let body = self.status.canonical_reason().unwrap_or_default();
        Malformed {
            head,
            reply: LocalReply::new(self.status, body, self.details)
                .flag(ResponseFlag::DownstreamProtocolError)
                .closing(),
        }
    }
}
