//! Registries of images: the OCI distribution API, as far as modules need it.
//!
//! A [`Registry`] is one conversation about one repository: it asks, is told how to authenticate (Bearer tokens of a token
//! server, or a password), and asks again. Everything asked for by digest is verified.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::Url;
use serde::Deserialize;

use super::challenge::Challenge;
use super::credentials::{Credential, CredentialError};
use super::download::{Answer, Ask, DownloadError, Downloader, is_same_host};
use super::manifest::{ACCEPT, Descriptor, Layer, Manifest, ManifestError, Said};
use super::reference::Reference;
use super::shown;
use crate::wasm::archive;
use crate::wasm::module::MAX_CODE;
use crate::wasm::spec::Digest;

/// The largest manifest, as registries have it.
const MAX_MANIFEST: usize = 4 << 20;
/// The largest answer of a token server.
const MAX_TOKEN: usize = 1 << 20;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No answer.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// An answer that is no success.
    #[error("{url}: the answer is {status}{detail}")]
    Status {
        /// What was asked for.
        url: Box<str>,
        /// The answer.
        status: StatusCode,
        /// What the registry says of it; begins with a separator, or is empty.
        detail: String,
    },
    /// The registry does not let us in, or not with what we have.
    #[error("{registry}: not authorized: {reason}")]
    Unauthorized {
        /// The registry.
        registry: Box<str>,
        /// What of it failed.
        reason: String,
    },
    /// What should be told to the registry is unusable.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The manifest names no module.
    #[error("{reference}: {error}")]
    Manifest {
        /// The image.
        reference: Box<str>,
        /// Why not.
        error: ManifestError,
    },
    /// The layer holds no module.
    #[error("{reference}: {reason}")]
    Module {
        /// The image.
        reference: Box<str>,
        /// Why not.
        reason: String,
    },
    /// The registry gives something else than what has this digest.
    #[error("{url}: sha256 is {found}, not {wanted}")]
    Digest {
        /// What was asked for.
        url: Box<str>,
        /// Of what came.
        found: Digest,
        /// What it should be.
        wanted: Digest,
    },
    /// The configuration's sum is of nothing in the image.
    #[error(
        "{reference}: sha256 {wanted} is neither that of the manifest ({manifest}) nor that of the layer ({layer})"
    )]
    Pin {
        /// The image.
        reference: Box<str>,
        /// `sha256` of the configuration.
        wanted: Digest,
        /// Of the manifest.
        manifest: Digest,
        /// Of the layer with the module.
        layer: Digest,
    },
}

/// An image whose manifest is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Of the manifest that the reference names: that of the index where it is one.
    pub manifest: Digest,
    /// Of the image's own manifest.
    pub image: Digest,
    /// Where the module is.
    pub layer: Descriptor,
    /// The layer is a tar of files.
    pub files: bool,
    /// All layers, as the manifest has them.
    pub layers: Box<[Layer]>,
}

impl Image {
    /// True where `sha256` pins it: it is that of the manifest, or of the layer with the module.
    pub fn has(&self, sha256: Digest) -> bool {
        [self.manifest, self.image, self.layer.digest].contains(&sha256)
    }
}

/// A conversation about a repository.
#[derive(Debug)]
pub struct Registry {
    downloader: Downloader,
    reference: Reference,
    credential: Option<Credential>,
    authorization: Option<HeaderValue>,
}

impl Registry {
    /// About the repository of `reference`, telling it `credential` when it asks.
    pub fn new(
        downloader: Downloader,
        reference: Reference,
        credential: Option<Credential>,
    ) -> Self {
        Self {
            downloader,
            reference,
            credential,
            authorization: None,
        }
    }

    /// The module of the image that the reference names now, and what that image is.
    ///
    /// # Errors
    /// Where there is none.
    pub async fn pull(&mut self) -> Result<(Image, Bytes), ImageError> {
        let image = self.resolve().await?;
        let layer = self.layer(&image).await?;
        let files = image.files;
        let unpacked = tokio::task::spawn_blocking(move || {
            let module = match files {
                true => archive::unpack_layer(&layer),
                false => archive::unpack(&layer),
            };
            module.map(|module| Bytes::copy_from_slice(&module))
        });
        let reason = match unpacked.await {
            Ok(Ok(module)) => return Ok((image, module)),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        Err(ImageError::Module {
            reference: self.reference.to_string().into(),
            reason,
        })
    }

    /// The image that the reference names now: manifests alone are asked for.
    ///
    /// # Errors
    /// Where there is none, or none that holds a module.
    pub async fn resolve(&mut self) -> Result<Image, ImageError> {
        let name = self.reference.manifest();
        let (manifest, parsed) = self.manifest(&name, self.reference.digest).await?;
        let (image, parsed) = match parsed {
            Manifest::Index(Descriptor { digest, .. }) => {
                let name = format!("sha256:{digest}");
                self.manifest(&name, Some(digest)).await?
            }
            image @ Manifest::Image { .. } => (manifest, image),
        };
        match parsed {
            Manifest::Image {
                layer,
                files,
                layers,
            } => Ok(Image {
                manifest,
                image,
                layer,
                files,
                layers,
            }),
            Manifest::Index(_) => {
                Err(self.of_manifest(ManifestError::Kind(Said::of("an index in an index"))))
            }
        }
    }

    /// The layer that holds the module of `image`, as it is.
    ///
    /// # Errors
    /// Where it is too large, or not what its digest says.
    pub async fn layer(&mut self, image: &Image) -> Result<Bytes, ImageError> {
        let Descriptor { digest, size } = image.layer;
        let url = self.url(&format!("blobs/sha256:{digest}"))?;
        if size > MAX_CODE as u64 {
            return Err(ImageError::Download(DownloadError::TooLarge {
                url: shown(url.as_str()),
                limit: MAX_CODE,
            }));
        }
        let answer = self.get(url, HeaderMap::new(), MAX_CODE).await?;
        verified(&answer, digest)?;
        Ok(answer.body)
    }

    fn of_manifest(&self, error: ManifestError) -> ImageError {
        ImageError::Manifest {
            reference: self.reference.to_string().into(),
            error,
        }
    }

    async fn manifest(
        &mut self,
        name: &str,
        digest: Option<Digest>,
    ) -> Result<(Digest, Manifest), ImageError> {
        let url = self.url(&format!("manifests/{name}"))?;
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
        let answer = self.get(url, headers, MAX_MANIFEST).await?;
        let found = match digest {
            Some(digest) => verified(&answer, digest)?,
            None => Digest::of(&answer.body),
        };
        // What a registry says of a tag must be true of what it gives.
        let told = answer.headers.get("docker-content-digest");
        let told = told.and_then(|told| told.to_str().ok()?.strip_prefix("sha256:"));
        if let Some(told) = told.and_then(Digest::parse) {
            verified(&answer, told)?;
        }
        let manifest = Manifest::parse(&answer.body).map_err(|error| self.of_manifest(error))?;
        Ok((found, manifest))
    }

    /// What the conversation is about.
    pub(super) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Where the registry's API is, as URLs have it: hosts in references are as somebody wrote them.
    pub(super) fn base(&self) -> Result<Url, ImageError> {
        let host = self.reference.api_host();
        let parse = |scheme: &str| {
            format!("{scheme}://{host}/v2/").parse().map_err(|_| {
                // References are validated; an address that no URL can have is left.
                ImageError::Download(DownloadError::BadUrl(shown(host)))
            })
        };
        let plain = parse("http")?;
        match self.downloader.is_insecure(&plain) {
            true => Ok(plain),
            false => parse("https"),
        }
    }

    /// Below the repository.
    pub(super) fn url(&self, path: &str) -> Result<Url, ImageError> {
        let mut url = self.base()?;
        url.set_path(&format!("/v2/{}/{path}", self.reference.repository));
        Ok(url)
    }

    async fn get(
        &mut self,
        url: Url,
        headers: HeaderMap,
        limit: usize,
    ) -> Result<Answer, ImageError> {
        let configured = self.base()?;
        let answer = self
            .ask(Ask {
                method: Method::GET,
                url,
                headers,
                body: Bytes::new(),
                limit,
                configured,
                verified: false,
            })
            .await?;
        match answer.status {
            StatusCode::OK => Ok(answer),
            _ => Err(refusal(&answer)),
        }
    }

    /// Asks, and once more after having authenticated where that is wanted.
    pub(super) async fn ask(&mut self, ask: Ask) -> Result<Answer, ImageError> {
        let again = Ask {
            method: ask.method.clone(),
            url: ask.url.clone(),
            headers: ask.headers.clone(),
            body: ask.body.clone(),
            configured: ask.configured.clone(),
            ..ask
        };
        let origin = ask.url.origin();
        let answer = self.downloader.send(self.authorized(ask)).await?;
        // A host that we were redirected to has nothing to ask of us.
        if answer.status != StatusCode::UNAUTHORIZED || answer.url.origin() != origin {
            return Ok(answer);
        }
        let Some(challenge) = Challenge::of(&answer.headers) else {
            return Err(refusal(&answer));
        };
        self.authorization = Some(self.authenticate(challenge).await?);
        let again = self.authorized(again);
        let answer = self.downloader.send(again).await?;
        match answer.status {
            StatusCode::UNAUTHORIZED => Err(self.unauthorized(match &self.credential {
                Some(_) => "the credentials are refused",
                None => "the registry wants credentials, and there are none for it",
            })),
            _ => Ok(answer),
        }
    }

    fn authorized(&self, mut ask: Ask) -> Ask {
        // An upload may go to a host that the registry names: that has its own ways to know us.
        if let Some(authorization) = &self.authorization
            && self.base().is_ok_and(|base| is_same_host(&ask.url, &base))
        {
            ask.headers
                .insert(header::AUTHORIZATION, authorization.clone());
        }
        ask
    }

    fn unauthorized(&self, reason: impl Into<String>) -> ImageError {
        ImageError::Unauthorized {
            registry: self.reference.registry.clone(),
            reason: reason.into(),
        }
    }

    /// What to put into `authorization`.
    async fn authenticate(&self, challenge: Challenge) -> Result<HeaderValue, ImageError> {
        let value = match (challenge, &self.credential) {
            (_, Some(Credential::Bearer(token))) => format!("Bearer {token}"),
            (Challenge::Basic, Some(Credential::Basic { username, password })) => {
                basic(username, password)
            }
            (Challenge::Basic, Some(Credential::Identity(_))) => {
                return Err(
                    self.unauthorized("the registry wants a password, and there is a token")
                );
            }
            (Challenge::Basic, None) => {
                return Err(
                    self.unauthorized("the registry wants a password, and there is none for it")
                );
            }
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                credential,
            ) => {
                let token = self.token(&realm, service, scope, credential.as_ref());
                format!("Bearer {}", token.await?)
            }
        };
        self.secret(&value)
    }

    /// A header that is not shown.
    fn secret(&self, value: &str) -> Result<HeaderValue, ImageError> {
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| self.unauthorized("the credentials cannot be in a header"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// A token of the server `realm`.
    async fn token(
        &self,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
        credential: Option<&Credential>,
    ) -> Result<String, ImageError> {
        #[derive(Deserialize)]
        struct Granted {
            token: Option<String>,
            access_token: Option<String>,
        }

        let mut url: Url = realm
            .parse()
            .ok()
            .filter(Url::has_host)
            .ok_or_else(|| self.unauthorized("its token server is not a URL"))?;
        let scope =
            scope.unwrap_or_else(|| format!("repository:{}:pull", self.reference.repository));
        let mut fields = vec![("scope", &*scope)];
        fields.extend(service.as_deref().map(|service| ("service", service)));
        let mut ask = Ask {
            method: Method::GET,
            url: url.clone(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            limit: MAX_TOKEN,
            configured: self.base()?,
            verified: false,
        };
        if let Some(Credential::Identity(token)) = credential {
            fields.extend([
                ("grant_type", "refresh_token"),
                ("client_id", "plenipo"),
                ("refresh_token", token),
            ]);
            ask.method = Method::POST;
            ask.body = form(&mut url, &fields).into();
            ask.headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/x-www-form-urlencoded"),
            );
        } else {
            url.query_pairs_mut().extend_pairs(fields);
            ask.url = url;
            if let Some(Credential::Basic { username, password }) = credential {
                let value = self.secret(&basic(username, password))?;
                ask.headers.insert(header::AUTHORIZATION, value);
            }
        }
        let answer = self.downloader.send(ask).await?;
        if answer.status != StatusCode::OK {
            let refused = refusal(&answer);
            return Err(match answer.status.as_u16() {
                401 | 403 => self.unauthorized(format!("the token server refuses: {refused}")),
                _ => refused,
            });
        }
        let granted: Option<Granted> = serde_json::from_slice(&answer.body).ok();
        granted
            .and_then(|granted| granted.token.or(granted.access_token))
            .filter(|token| !token.is_empty())
            .ok_or_else(|| self.unauthorized("its token server gives no token"))
    }
}

/// The fields as a form's body; the URL only lends its encoder.
fn form(url: &mut Url, fields: &[(&str, &str)]) -> String {
    url.set_query(None);
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

fn basic(username: &str, password: &str) -> String {
    format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{password}"))
    )
}

fn verified(answer: &Answer, wanted: Digest) -> Result<Digest, ImageError> {
    let found = Digest::of(&answer.body);
    if found == wanted {
        return Ok(found);
    }
    Err(ImageError::Digest {
        url: shown(answer.url.as_str()),
        found,
        wanted,
    })
}

/// What an answer that is no success says.
pub(super) fn refusal(answer: &Answer) -> ImageError {
    #[derive(Deserialize)]
    struct Body {
        errors: Vec<Reason>,
    }
    #[derive(Deserialize)]
    struct Reason {
        code: Option<String>,
        message: Option<String>,
    }

    let body: Option<Body> = serde_json::from_slice(&answer.body).ok();
    let reason = body.and_then(|body| body.errors.into_iter().next());
    let mut detail = String::new();
    if let Some(Reason { code, message }) = reason {
        for part in [code, message].into_iter().flatten() {
            detail.push_str(": ");
            detail.extend(part.chars().filter(|c| !c.is_control()).take(200));
        }
    }
    ImageError::Status {
        url: shown(answer.url.as_str()),
        status: answer.status,
        detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::WasmSettings;

    #[test]
    fn a_registry_is_known_however_its_host_is_written() {
        let downloader = Downloader::new(&WasmSettings {
            insecure_registries: vec!["127.0.0.1:80".into(), "localhost:18500".into()],
            ..WasmSettings::default()
        });
        let downloader = downloader.expect("made");
        for (reference, expected) in [
            ("127.0.0.1:80/x:1", "http://127.0.0.1/v2/x/blobs/1"),
            ("LocalHost:18500/x:1", "http://localhost:18500/v2/x/blobs/1"),
            (
                "reg.example:443/a/x:1",
                "https://reg.example/v2/a/x/blobs/1",
            ),
            ("reg.example:80/x:1", "https://reg.example:80/v2/x/blobs/1"),
            ("x", "https://registry-1.docker.io/v2/library/x/blobs/1"),
        ] {
            let reference = Reference::parse(reference).expect("a reference");
            let mut registry = Registry::new(downloader.clone(), reference, None);
            let secret = registry.secret("Bearer x").expect("a header");
            assert!(secret.is_sensitive());
            registry.authorization = Some(secret);
            let url = registry.url("blobs/1").expect("a URL");
            assert_eq!(url.as_str(), expected);
            let told = |url: &str| {
                let ask = registry.authorized(Ask {
                    method: Method::GET,
                    url: url.parse().expect("a URL"),
                    headers: HeaderMap::new(),
                    body: Bytes::new(),
                    limit: 0,
                    configured: registry.base().expect("a URL"),
                    verified: false,
                });
                ask.headers.contains_key(header::AUTHORIZATION)
            };
            assert!(
                told(expected) && !told("https://other.example/"),
                "{expected}"
            );
        }
    }
}
