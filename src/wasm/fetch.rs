//! Fetching remote code: one attempt, bounded and verified; who calls decides about the next.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};

use super::archive;
use super::module::{LoadError, MAX_CODE};
use super::source::credentials::{self, Credential, CredentialError};
use super::source::download::{DownloadError, Downloader};
use super::source::oci::{Image, ImageError, Registry};
use super::source::reference::Reference;
use super::source::shown;
use super::spec::{Digest, Origin, Remote, Secret};
use crate::cluster::ClusterMap;
use crate::cluster::client::{self, Call, CallError};
use crate::http::{RequestHead, Scheme};

/// Why there is no code.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// No answer.
    #[error("fetching {0}: {1}")]
    Call(Box<str>, CallError),
    /// The answer is not the code.
    #[error("fetching {0}: the answer is {1}")]
    Status(Box<str>, StatusCode),
    /// The code is larger than the limit.
    #[error("fetching {0}: more than {MAX_CODE} bytes")]
    TooLarge(Box<str>),
    /// Another code than was asked for.
    #[error("fetching {uri}: sha256 is {found}, not {wanted}")]
    Digest {
        uri: Box<str>,
        found: Digest,
        wanted: Digest,
    },
    /// Without a cluster, no answer.
    #[error("fetching {0}")]
    Download(#[from] DownloadError),
    /// No image.
    #[error("fetching {0}")]
    Image(#[from] ImageError),
    /// It took too long.
    #[error("fetching {0}: not done within {1:?}")]
    Timeout(Box<str>, Duration),
    /// The work on what came has panicked, or the process ends.
    #[error("fetching was cut off")]
    CutOff,
    /// What came holds no module.
    #[error("fetching {uri}: {error}")]
    Unpack {
        uri: Box<str>,
        error: LoadError,
        /// It is that, whenever one asks: its sum is as configured.
        pinned: bool,
    },
}

impl FetchError {
    /// True where the same source may give the code later.
    pub(crate) fn heals(&self, remote: &Remote) -> bool {
        match self {
            Self::Download(error) | Self::Image(ImageError::Download(error)) => !matches!(
                error,
                DownloadError::Refused {
                    configured: true,
                    ..
                }
            ),
            // The secret is in the configuration; files of this host may change.
            Self::Image(ImageError::Credentials(_)) => remote.pull.secret.is_none(),
            // What a tag names may change; the sum of the code says nothing about the manifest.
            Self::Image(ImageError::Manifest { .. }) => match &remote.origin {
                Origin::Image(reference) => reference.digest.is_none(),
                Origin::Cluster { .. } | Origin::Direct => true,
            },
            Self::Unpack { pinned, .. } => !pinned,
            _ => true,
        }
    }
}

/// Fetches `remote`, which is at `authority` and `path`, once, through `cluster`.
pub(crate) async fn through_cluster(
    clusters: &ClusterMap,
    remote: &Remote,
    cluster: &str,
    head: RequestHead,
) -> Result<Bytes, FetchError> {
    let uri = || shown(&remote.uri);
    let call = Call {
        head,
        body: Bytes::new(),
        trailers: HeaderMap::new(),
        timeout: remote.timeout,
        limit: MAX_CODE,
    };
    let mut code = BytesMut::new();
    let mut too_large = false;
    let response = client::download(clusters, cluster, call, |chunk| {
        if code.len() + chunk.len() > MAX_CODE {
            too_large = true;
        } else if !too_large {
            code.extend_from_slice(&chunk);
        }
    })
    .await
    .map_err(|error| FetchError::Call(uri(), error))?;
    if response.head.status != StatusCode::OK {
        return Err(FetchError::Status(uri(), response.head.status));
    }
    if too_large {
        return Err(FetchError::TooLarge(uri()));
    }
    let code = code.freeze();
    match remote.sha256 {
        Some(wanted) if wanted != Digest::of(&code) => Err(FetchError::Digest {
            uri: uri(),
            found: Digest::of(&code),
            wanted,
        }),
        _ => Ok(code),
    }
}

/// The head of a request for code.
pub(crate) fn head(https: bool, authority: &str, path: &str) -> RequestHead {
    let mut head = RequestHead::new(Method::GET, authority, path);
    if https {
        head.scheme = Scheme::Https;
    }
    head
}

/// Of what came from the URI itself: the bytes to keep, and their sum. They are those that came, or, where the
/// configured sum is that of the module in them, as Istio reckons, the module. Call it on a blocking thread.
pub(crate) fn check(remote: &Remote, bytes: Bytes) -> Result<(Bytes, Digest), FetchError> {
    let found = Digest::of(&bytes);
    let pinned = remote.sha256 == Some(found);
    let module = archive::unpack(&bytes).map_err(|error| FetchError::Unpack {
        uri: shown(&remote.uri),
        error,
        pinned,
    })?;
    let Some(wanted) = remote.sha256.filter(|_| !pinned) else {
        return Ok((bytes, found));
    };
    if Digest::of(&module) == wanted {
        let module = Bytes::copy_from_slice(&module);
        return Ok((module, wanted));
    }
    Err(FetchError::Digest {
        uri: shown(&remote.uri),
        found,
        wanted,
    })
}

/// The module in the layer of an image, and its sum. Call it on a blocking thread.
pub(crate) fn check_layer(
    remote: &Remote,
    image: &Image,
    layer: Bytes,
) -> Result<(Bytes, Digest), FetchError> {
    let pinned = remote.pin().is_some_and(|pin| image.has(pin));
    let module = if image.files {
        archive::unpack_layer(&layer)
    } else {
        archive::unpack(&layer)
    };
    let module = module.map_err(|error| FetchError::Unpack {
        uri: shown(&remote.uri),
        error,
        pinned,
    })?;
    let digest = Digest::of(&module);
    match remote.sha256 {
        Some(wanted) if wanted != digest && !image.has(wanted) => {
            Err(FetchError::Image(ImageError::Pin {
                reference: shown(&remote.uri),
                wanted,
                manifest: image.manifest,
                layer: image.layer.digest,
            }))
        }
        _ => Ok((Bytes::copy_from_slice(&module), digest)),
    }
}

/// A conversation with the registry of `reference`. Reads a file, and may wait for a program: call it on a blocking thread.
pub(crate) fn registry(
    downloader: Downloader,
    reference: &Reference,
    secret: Option<&Secret>,
) -> Result<Registry, FetchError> {
    let credential = credential(&reference.registry, secret).map_err(ImageError::from)?;
    Ok(Registry::new(downloader, reference.clone(), credential))
}

fn credential(
    registry: &str,
    secret: Option<&Secret>,
) -> Result<Option<Credential>, CredentialError> {
    match secret {
        Some(Secret(json)) => credentials::from_docker_config(json, registry),
        None => credentials::of_host(registry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::source::manifest::ManifestError;
    use crate::wasm::spec::Pull;

    #[test]
    fn a_manifest_is_final_where_its_digest_is_configured() {
        let digest = "a".repeat(64);
        let error = || {
            FetchError::Image(ImageError::Manifest {
                reference: "r".into(),
                error: ManifestError::NoPlatform,
            })
        };
        for (name, heals) in [
            ("h.test/p:1".to_owned(), true),
            (format!("h.test/p@sha256:{digest}"), false),
        ] {
            let reference = Reference::parse(&name).expect("a name");
            let mut remote = remote(&format!("oci://{name}"), Origin::Image(reference));
            assert_eq!(error().heals(&remote), heals, "{name}");
            remote.sha256 = Some(Digest::of(b"code"));
            assert_eq!(error().heals(&remote), heals, "{name} with a sum");
        }
    }

    #[test]
    fn a_signed_url_is_not_told() {
        let uri = "https://me:secret@h.test/p.wasm?signature=secret";
        let mut remote = remote(uri, Origin::Direct);
        let unpack = check(&remote, Bytes::from_static(b"no module"));
        remote.sha256 = Some(Digest::of(b"other"));
        let digest = check(&remote, Bytes::from_static(b"\0asm\x01\0\0\0"));
        for error in [unpack, digest] {
            let error = error.expect_err("no code");
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("https://h.test/p.wasm"), "{shown}");
            assert!(!shown.contains("secret"), "{shown}");
        }
    }

    fn remote(uri: &str, origin: Origin) -> Remote {
        Remote {
            uri: uri.into(),
            origin,
            timeout: Duration::from_secs(1),
            sha256: None,
            pull: Pull::default(),
            backoff_base: Duration::from_secs(1),
            backoff_cap: Duration::from_secs(1),
            retries: 1,
        }
    }
}
