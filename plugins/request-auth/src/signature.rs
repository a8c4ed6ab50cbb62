//! An HMAC-SHA256 of the request: method, path with query, date and the body's digest, each on a line.
//!
//! ```text
//! authorization: HMAC-SHA256 <key>:<base64 of the HMAC>
//! date: Sun, 06 Nov 1994 08:49:37 GMT
//! x-content-sha256: <hex of the body's SHA-256; may be left out where there is no body>
//! ```
//!
//! The head is judged, in constant time, before a byte of the body is taken; the body is then held to the digest that was
//! signed. The date bounds how long a request can be played again, it does not prevent it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use data_encoding::{BASE64, HEXLOWER};
use hmac::{Hmac, Mac as _};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{Refusal, Secret};

/// The scheme in `authorization`.
pub(crate) const SCHEME: &str = "HMAC-SHA256";
/// The header with the body's digest.
pub(crate) const DIGEST_HEADER: &str = "x-content-sha256";

/// Which signatures are good.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verifier {
    /// Secrets by the name that requests give.
    keys: BTreeMap<String, Secret>,
    /// How far `date` may be from now, to either side.
    #[serde(default = "five_minutes")]
    max_skew_seconds: u64,
    /// The request header that tells the upstream whose key it was.
    pub(crate) key_header: String,
}

fn five_minutes() -> u64 {
    300
}

/// What is looked at of a request's head.
pub(crate) struct Head {
    pub(crate) authorization: Option<Vec<u8>>,
    pub(crate) method: Vec<u8>,
    pub(crate) path: Vec<u8>,
    pub(crate) date: Option<Vec<u8>>,
    pub(crate) digest: Option<Vec<u8>>,
}

/// What a good signature says.
pub(crate) struct Signed<'a> {
    pub(crate) key: &'a str,
    pub(crate) digest: Digest,
}

/// The SHA-256 that the body has to have.
pub(crate) struct Digest(Vec<u8>);

impl Verifier {
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.keys.is_empty() {
            return Err("hmac.keys: there is none".to_owned());
        }
        if self.key_header.is_empty() {
            return Err("hmac.key_header: it is empty".to_owned());
        }
        Ok(())
    }

    pub(crate) fn verify(&self, head: &Head, now: SystemTime) -> Result<Signed<'_>, Refusal> {
        let authorization = head.authorization.as_deref().ok_or("no signature")?;
        let malformed = "malformed signature";
        let text = std::str::from_utf8(authorization).map_err(|_| malformed)?;
        let (scheme, rest) = text.split_once(' ').ok_or("no signature")?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err("no signature");
        }
        // Base64 has no colon; the name of a key may have one.
        let (key, signature) = rest.rsplit_once(':').ok_or(malformed)?;
        let signature = BASE64.decode(signature.as_bytes()).map_err(|_| malformed)?;
        let date = head.date.as_deref().ok_or("no date")?;
        let digest = match &head.digest {
            Some(hex) => hex.clone(),
            None => HEXLOWER.encode(&Sha256::digest(b"")).into_bytes(),
        };
        let (key, secret) = self.keys.get_key_value(key).ok_or("unknown key")?;
        let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0).map_err(|_| "unknown key")?;
        for (index, part) in [&head.method, &head.path, date, &digest]
            .into_iter()
            .enumerate()
        {
            if index > 0 {
                mac.update(b"\n");
            }
            mac.update(part);
        }
        mac.verify_slice(&signature)
            .map_err(|_| "wrong signature")?;
        self.check_date(date, now)?;
        let digest = HEXLOWER
            .decode(&digest)
            .ok()
            .filter(|digest| digest.len() == 32)
            .ok_or("malformed digest")?;
        Ok(Signed {
            key,
            digest: Digest(digest),
        })
    }

    fn check_date(&self, date: &[u8], now: SystemTime) -> Result<(), Refusal> {
        let date = std::str::from_utf8(date).map_err(|_| "malformed date")?;
        let date = httpdate::parse_http_date(date).map_err(|_| "malformed date")?;
        let apart = match now.duration_since(date) {
            Ok(apart) => apart,
            Err(error) => error.duration(),
        };
        if apart > Duration::from_secs(self.max_skew_seconds) {
            return Err("date too far from now");
        }
        Ok(())
    }
}

impl Digest {
    pub(crate) fn check(&self, body: &[u8]) -> Result<(), Refusal> {
        if Sha256::digest(body)[..] == self.0[..] {
            return Ok(());
        }
        Err("wrong digest of the body")
    }
}
