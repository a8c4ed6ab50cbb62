//! JSON Web Tokens (RFC 7519) in the compact form, signed with HS256.
//!
//! The algorithm is ours, not the token's: a header that names another, `none` too, is refused before any key is looked
//! at (RFC 8725, section 3.1). Base64url is read strictly: no padding, no line breaks, no stray bits, so that a token has
//! one spelling. The signature is compared in constant time, and claims are read only after it was right.

use std::collections::BTreeMap;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, Mac as _};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use sha2::Sha256;

use crate::{Refusal, Secret};

/// Longer tokens are refused unread.
const MAX_TOKEN: usize = 8192;

/// There are no credentials at all.
pub(crate) const NO_TOKEN: Refusal = "no bearer token";

/// Which tokens are good, and what is told of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verifier {
    /// `iss` is exactly this.
    issuer: String,
    /// `aud` is or contains this, where it is set.
    audience: Option<String>,
    /// Secrets by `kid`. A token that names none gets the only one there is.
    keys: BTreeMap<String, Secret>,
    /// By how much the issuer's clock may differ.
    #[serde(default)]
    leeway_seconds: u32,
    /// Claim to request header.
    #[serde(default)]
    claim_headers: BTreeMap<String, String>,
    /// True: the upstream sees the token, too.
    #[serde(default)]
    pub(crate) forward: bool,
}

/// What is read of a token's header. A member that stands there twice is an error.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
}

impl Verifier {
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.keys.is_empty() {
            return Err("jwt.keys: there is none".to_owned());
        }
        if self.issuer.is_empty() {
            return Err("jwt.issuer: it is empty".to_owned());
        }
        Ok(())
    }

    /// The headers that are ours alone to set.
    pub(crate) fn headers(&self) -> impl Iterator<Item = &str> {
        self.claim_headers.values().map(String::as_str)
    }

    /// The headers to set for a good token in `authorization`, at `now` (seconds of Unix time).
    pub(crate) fn verify(
        &self,
        authorization: Option<&[u8]>,
        now: u64,
    ) -> Result<Vec<(&str, String)>, Refusal> {
        let token = bearer(authorization.ok_or(NO_TOKEN)?)?;
        let claims = self.claims(token)?;
        self.check_times(&claims, now)?;
        if claims.get("iss").and_then(Value::as_str) != Some(&self.issuer) {
            return Err("wrong issuer");
        }
        if let Some(audience) = &self.audience {
            let is_ours = |value: &Value| value.as_str() == Some(audience);
            let found = claims.get("aud").is_some_and(|aud| match aud {
                Value::Array(all) => all.iter().any(is_ours),
                one => is_ours(one),
            });
            if !found {
                return Err("wrong audience");
            }
        }
        let mut headers = Vec::new();
        for (claim, header) in &self.claim_headers {
            let value = match claims.get(claim) {
                None => continue,
                Some(Value::String(text)) => text.clone(),
                Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
                Some(_) => return Err("a claim that does not fit into a header"),
            };
            if value.chars().any(char::is_control) {
                return Err("a claim that does not fit into a header");
            }
            headers.push((header.as_str(), value));
        }
        Ok(headers)
    }

    /// The claims of a token whose signature is right.
    fn claims(&self, token: &str) -> Result<Map<String, Value>, Refusal> {
        let malformed = "malformed token";
        let (signed, signature) = token.rsplit_once('.').ok_or(malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(malformed)?;
        let decode = |part: &str| {
            let bytes = BASE64URL_NOPAD.decode(part.as_bytes());
            bytes.map_err(|_| malformed)
        };
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| malformed)?;
        if header.alg != "HS256" {
            return Err("algorithm not allowed");
        }
        if header.crit.is_some() {
            return Err("critical extension not supported");
        }
        let secret = match &header.kid {
            Some(kid) => self.keys.get(kid),
            None if self.keys.len() == 1 => self.keys.values().next(),
            None => None,
        };
        let secret = secret.ok_or("unknown key")?;
        let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0).map_err(|_| "unknown key")?;
        mac.update(signed.as_bytes());
        mac.verify_slice(&decode(signature)?)
            .map_err(|_| "wrong signature")?;
        serde_json::from_slice(&decode(payload)?).map_err(|_| malformed)
    }

    fn check_times(&self, claims: &Map<String, Value>, now: u64) -> Result<(), Refusal> {
        // Seconds may have a fraction (RFC 7519, section 2).
        let time = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or("malformed time"),
        };
        let (now, leeway) = (now as f64, f64::from(self.leeway_seconds));
        let expires = time("exp")?.ok_or("no expiry")?;
        if now >= expires + leeway {
            return Err("expired");
        }
        if time("nbf")?.is_some_and(|begins| now + leeway < begins) {
            return Err("not valid yet");
        }
        Ok(())
    }
}

/// The token of `Bearer <token>`.
fn bearer(authorization: &[u8]) -> Result<&str, Refusal> {
    let text = std::str::from_utf8(authorization).map_err(|_| "malformed token")?;
    let (scheme, token) = text.split_once(' ').ok_or(NO_TOKEN)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(NO_TOKEN);
    }
    let token = token.trim_matches(' ');
    if token.len() > MAX_TOKEN {
        return Err("token too long");
    }
    Ok(token)
}
