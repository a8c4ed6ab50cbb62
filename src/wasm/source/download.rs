//! Requests to servers that have no cluster: registries, their token servers, web servers with code.
//!
//! Bounded in bytes and redirects; who calls bounds the time. TLS is verified against the roots of this host
//! (`SSL_CERT_FILE`, `SSL_CERT_DIR`, else its store). Without TLS go only hosts that the settings name, and code whose
//! sum is known beforehand. Where a server sends us on, [`guard`](super::guard) watches, unless the settings name it.
//! No proxy of the environment is used: the guard would see its address instead of the target's.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, header};
use reqwest::Url;

use super::guard::{PublicOnly, is_public};
use super::shown;
use crate::config::WasmSettings;
use crate::wasm::module::MAX_CODE;

/// So many redirects are followed.
const MAX_REDIRECTS: usize = 5;
/// An answer that is no success is read up to this.
const MAX_REFUSAL: usize = 64 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// No connection, TLS that does not verify, a broken answer.
    #[error("{url}: {reason}")]
    Transport {
        /// What was asked for.
        url: Box<str>,
        /// What the libraries say, outermost first.
        reason: String,
    },
    /// The body is larger than what it may be.
    #[error("{url}: more than {limit} bytes")]
    TooLarge {
        /// What was asked for.
        url: Box<str>,
        /// In bytes.
        limit: usize,
    },
    /// An answer that is no success.
    #[error("{url}: the answer is {status}")]
    Status {
        /// What was asked for.
        url: Box<str>,
        /// The answer.
        status: StatusCode,
    },
    /// Not a URL with a host, or a redirect without a target.
    #[error("{0}: it, or what it redirects to, is not a URL")]
    BadUrl(Box<str>),
    /// Too many redirects.
    #[error("{0}: more than {MAX_REDIRECTS} redirects")]
    TooManyRedirects(Box<str>),
    /// We do not go there.
    #[error("{url}: refused: {reason}")]
    Refused {
        /// What was asked for.
        url: Box<str>,
        /// Why not, and which setting allows it.
        reason: &'static str,
        /// The configuration named it, and its scheme; otherwise a server sent us there.
        configured: bool,
    },
    /// There is no TLS.
    #[error("no TLS: {0}")]
    Tls(String),
}

/// A request.
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) url: Url,
    /// Credentials among them go to the host of `url` alone.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// The largest body of a success, in bytes.
    pub(super) limit: usize,
    /// A URL of the host that the configuration names.
    pub(super) configured: Url,
    /// What comes is verified by its sum: it may come without TLS.
    pub(super) verified: bool,
}

/// Headers and body, and the URL's query, may be secrets.
impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ask({} {})", self.method, shown(self.url.as_str()))
    }
}

/// Its answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// What answered, after redirects.
    pub(super) url: Url,
}

/// Makes requests. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Downloader(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    open: reqwest::Client,
    guarded: reqwest::Client,
    insecure: Box<[Named]>,
    internal: Box<[Named]>,
}

impl Downloader {
    /// Reads the host's certificates: call it off the workers.
    ///
    /// # Errors
    /// Where there are none, or they are unusable.
    pub fn new(settings: &WasmSettings) -> Result<Self, DownloadError> {
        let tls = tls()?;
        let builder = || {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .user_agent(concat!("plenipo/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                .http1_only()
                .referer(false)
                .connect_timeout(Duration::from_secs(10))
                // Fetches are rare.
                .pool_idle_timeout(Duration::from_secs(5))
        };
        let built = |builder: reqwest::ClientBuilder| {
            builder
                .build()
                .map_err(|error| DownloadError::Tls(chain(&error)))
        };
        Ok(Self(Arc::new(Inner {
            open: built(builder())?,
            guarded: built(builder().dns_resolver(Arc::new(PublicOnly)))?,
            insecure: Named::list(&settings.insecure_registries),
            internal: Named::list(&settings.internal_registries),
        })))
    }

    /// True where the host of `url` is asked without TLS.
    pub(super) fn is_insecure(&self, url: &Url) -> bool {
        self.0.insecure.iter().any(|known| known.is_of(url))
    }

    /// True where the host of `url` may be at a private address, and send us on to others.
    fn is_internal(&self, url: &Url) -> bool {
        self.is_insecure(url) || self.0.internal.iter().any(|known| known.is_of(url))
    }

    /// The code at `uri`: the body of a 200. With `verified` the caller knows its sum.
    pub(crate) async fn code(&self, uri: &str, verified: bool) -> Result<Bytes, DownloadError> {
        let url: Url = uri
            .parse()
            .ok()
            .filter(Url::has_host)
            .ok_or_else(|| DownloadError::BadUrl(shown(uri)))?;
        let answer = self
            .send(Ask {
                method: Method::GET,
                configured: url.clone(),
                url,
                headers: HeaderMap::new(),
                body: Bytes::new(),
                limit: MAX_CODE,
                verified,
            })
            .await?;
        match answer.status {
            StatusCode::OK => Ok(answer.body),
            status => Err(DownloadError::Status {
                url: shown(answer.url.as_str()),
                status,
            }),
        }
    }

    /// Asks, following redirects.
    pub(super) async fn send(&self, ask: Ask) -> Result<Answer, DownloadError> {
        let begin = ask.url.clone();
        let mut url = ask.url;
        let mut headers = ask.headers;
        for _ in 0..=MAX_REDIRECTS {
            let client = self.client(&url, &ask.configured, ask.verified, url == begin)?;
            let response = client
                .request(ask.method.clone(), url.clone())
                .headers(headers.clone())
                .body(ask.body.clone())
                .send()
                .await
                .map_err(|error| transport(&url, error))?;
            let status = response.status();
            let redirected = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
            if !redirected || !matches!(ask.method, Method::GET | Method::HEAD) {
                // The length that an answer to HEAD tells is that of what does not come.
                let limit = (ask.method != Method::HEAD).then_some(ask.limit);
                return read(response, url, limit).await;
            }
            let target = response.headers().get(header::LOCATION);
            let target = target.and_then(|target| target.to_str().ok());
            let next = target.and_then(|target| url.join(target).ok());
            let next = next.filter(|next| next.has_host());
            url = next.ok_or_else(|| DownloadError::BadUrl(shown(url.as_str())))?;
            if url.origin() != begin.origin() {
                headers.remove(header::AUTHORIZATION);
            }
        }
        Err(DownloadError::TooManyRedirects(shown(begin.as_str())))
    }

    /// The client for `url`, where the configuration named the host `configured`; `first`: no redirect led there.
    fn client(
        &self,
        url: &Url,
        configured: &Url,
        verified: bool,
        first: bool,
    ) -> Result<&reqwest::Client, DownloadError> {
        let is_configured = is_same_host(url, configured);
        let refused = |reason| DownloadError::Refused {
            url: shown(url.as_str()),
            reason,
            configured: url.origin() == configured.origin(),
        };
        match url.scheme() {
            "https" => {}
            "http" if verified || self.is_insecure(url) => {}
            // The token server of a registry without TLS, on another port.
            "http"
                if first
                    && configured.scheme() == "http"
                    && self.is_insecure(configured)
                    && url.host() == configured.host() => {}
            "http" => return Err(refused("it is not https, and not in insecure_registries")),
            _ => return Err(refused("it is not https")),
        }
        if is_configured || self.is_internal(url) || self.is_internal(configured) {
            return Ok(&self.0.open);
        }
        // An address is not resolved, so it is looked at here.
        let literal = host_address(url);
        if literal.is_some_and(|address| !is_public(address)) {
            return Err(refused(
                "a server sent us to a private address, and is not in internal_registries",
            ));
        }
        Ok(&self.0.guarded)
    }
}

fn host_address(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok()
}

/// True where both are of the same host and port, or each has the port of its scheme.
pub(super) fn is_same_host(one: &Url, other: &Url) -> bool {
    (one.host_str(), one.port()) == (other.host_str(), other.port())
}

/// A host that the settings name, as URLs have it.
#[derive(Debug)]
struct Named {
    host: Box<str>,
    /// `None`: that of the scheme, whichever it is.
    port: Option<u16>,
}

impl Named {
    /// Reads `host` or `host:port`; `None` where no URL has such a host.
    fn parse(text: &str) -> Option<Self> {
        let of = |scheme: &str| format!("{scheme}://{text}/").parse::<Url>().ok();
        // A URL does not tell of its scheme's own port.
        let (plain, secure) = (of("http")?, of("https")?);
        Some(Self {
            host: plain.host_str()?.into(),
            port: plain.port().or(secure.port()),
        })
    }

    fn list(texts: &[Box<str>]) -> Box<[Self]> {
        texts.iter().filter_map(|text| Self::parse(text)).collect()
    }

    fn is_of(&self, url: &Url) -> bool {
        let port = match self.port {
            Some(port) => url.port_or_known_default() == Some(port),
            None => url.port().is_none(),
        };
        port && url.host_str() == Some(&self.host)
    }
}

async fn read(
    mut response: reqwest::Response,
    url: Url,
    limit: Option<usize>,
) -> Result<Answer, DownloadError> {
    let status = response.status();
    let Some(limit) = limit else {
        return Ok(Answer {
            status,
            headers: std::mem::take(response.headers_mut()),
            body: Bytes::new(),
            url,
        });
    };
    let limit = if status.is_success() {
        limit
    } else {
        MAX_REFUSAL.min(limit)
    };
    let announced = response.content_length();
    let too_large = || DownloadError::TooLarge {
        url: shown(url.as_str()),
        limit,
    };
    if status.is_success() && announced.is_some_and(|bytes| bytes > limit as u64) {
        return Err(too_large());
    }
    // Growing step by step would hold it twice; room that is not of use is never touched.
    let room = announced.and_then(|bytes| usize::try_from(bytes).ok());
    let mut body = BytesMut::with_capacity(room.unwrap_or(limit).min(limit));
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| transport(&url, error))?
    {
        if body.len() + chunk.len() > limit {
            if status.is_success() {
                return Err(too_large());
            }
            break;
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer {
        status,
        headers: std::mem::take(response.headers_mut()),
        body: body.freeze(),
        url,
    })
}

fn transport(url: &Url, error: reqwest::Error) -> DownloadError {
    DownloadError::Transport {
        url: shown(url.as_str()),
        reason: chain(&error.without_url()),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

fn tls() -> Result<rustls::ClientConfig, DownloadError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = rustls::RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        // A host that only asks insecure registries needs none; others fail to verify, and say so.
        let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        tracing::warn!(
            target: "wasm",
            "no certificates to verify servers with; SSL_CERT_FILE names some: {}",
            errors.join("; ")
        );
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| DownloadError::Tls(error.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
#[path = "download/tests.rs"]
mod tests;
