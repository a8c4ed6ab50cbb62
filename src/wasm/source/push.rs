//! Putting a module into a registry.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::Url;
use serde_json::{Value, json};

use super::download::{Answer, Ask, DownloadError};
use super::oci::{ImageError, Registry, refusal};
use super::shown;
use crate::wasm::archive;
use crate::wasm::spec::Digest;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The largest answer to an upload.
const MAX_ANSWER: usize = 64 << 10;

/// How an image holds its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The layer is the module, as the CNCF's Wasm artifacts have it.
    Artifact,
    /// The layer is a tar with `plugin.wasm`, which Istio and Envoy Gateway take too.
    Files,
}

/// What goes up.
struct Blob {
    media_type: &'static str,
    content: Bytes,
    digest: Digest,
}

impl Blob {
    fn new(media_type: &'static str, content: impl Into<Bytes>) -> Self {
        let content = content.into();
        Self {
            media_type,
            digest: Digest::of(&content),
            content,
        }
    }

    fn descriptor(&self) -> Value {
        json!({
            "mediaType": self.media_type,
            "digest": format!("sha256:{}", self.digest),
            "size": self.content.len(),
        })
    }
}

impl Registry {
    /// Puts `module` there under the name of this conversation, and tells the digest of the manifest. What the registry
    /// has already does not go up again.
    ///
    /// # Errors
    /// Where the registry takes one of its parts not.
    pub async fn push(&mut self, module: Bytes, layout: Layout) -> Result<Digest, ImageError> {
        let (config, layer) = match layout {
            Layout::Artifact => {
                let config = json!({
                    "architecture": "wasm",
                    "os": "wasip1",
                    "layerDigests": [format!("sha256:{}", Digest::of(&module))],
                });
                (
                    Blob::new("application/vnd.wasm.config.v0+json", config.to_string()),
                    Blob::new("application/wasm", module),
                )
            }
            Layout::Files => {
                let tar = archive::pack_layer(&module);
                let config = json!({
                    "architecture": "wasm",
                    "os": "wasip1",
                    "config": {},
                    "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", Digest::of(&tar))]},
                });
                (
                    Blob::new(
                        "application/vnd.oci.image.config.v1+json",
                        config.to_string(),
                    ),
                    Blob::new(
                        "application/vnd.oci.image.layer.v1.tar+gzip",
                        archive::gzip(&tar),
                    ),
                )
            }
        };
        for blob in [&config, &layer] {
            self.push_blob(blob).await?;
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
        });
        let manifest = Bytes::from(manifest.to_string());
        let digest = Digest::of(&manifest);
        let name = match &self.reference().tag {
            Some(tag) => tag.to_string(),
            None => format!("sha256:{digest}"),
        };
        let url = self.url(&format!("manifests/{name}"))?;
        let answer = self.upload(Method::PUT, url, MANIFEST, manifest).await?;
        match answer.status {
            StatusCode::CREATED | StatusCode::OK => Ok(digest),
            _ => Err(refusal(&answer)),
        }
    }

    async fn push_blob(&mut self, blob: &Blob) -> Result<(), ImageError> {
        const BYTES: &str = "application/octet-stream";
        let digest = format!("sha256:{}", blob.digest);
        let url = self.url(&format!("blobs/{digest}"))?;
        let known = self.upload(Method::HEAD, url, BYTES, Bytes::new()).await?;
        if known.status == StatusCode::OK {
            return Ok(());
        }
        let url = self.url("blobs/uploads/")?;
        let begun = self
            .upload(Method::POST, url.clone(), BYTES, Bytes::new())
            .await?;
        if begun.status != StatusCode::ACCEPTED {
            return Err(refusal(&begun));
        }
        let place = begun.headers.get(header::LOCATION);
        let place = place.and_then(|place| url.join(place.to_str().ok()?).ok());
        let mut place = place.ok_or_else(|| DownloadError::BadUrl(shown(url.as_str())))?;
        place.query_pairs_mut().append_pair("digest", &digest);
        let content = blob.content.clone();
        let answer = self.upload(Method::PUT, place, BYTES, content).await?;
        match answer.status {
            StatusCode::CREATED => Ok(()),
            _ => Err(refusal(&answer)),
        }
    }

    async fn upload(
        &mut self,
        method: Method,
        url: Url,
        media_type: &'static str,
        body: Bytes,
    ) -> Result<Answer, ImageError> {
        let mut headers = HeaderMap::new();
        if !body.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        }
        let configured = self.base()?;
        self.ask(Ask {
            method,
            url,
            headers,
            body,
            limit: MAX_ANSWER,
            configured,
            verified: false,
        })
        .await
    }
}
