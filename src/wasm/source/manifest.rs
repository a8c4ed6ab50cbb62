//! Manifests of images, and where in one the module is.
//!
//! | image | its module |
//! |---|---|
//! | a layer that is a module (`application/wasm`, `application/vnd.module.wasm.content.layer.v1+wasm`, `application/vnd.wasm.content.layer.v1+wasm`) | the first such layer |
//! | layers of files (of Docker or OCI, tar, tar and gzip, tar and zstd) | `plugin.wasm` of the last one, in whatever folder |
//! | an index | the image for `wasm`, else for Linux on this machine, else for Linux |

use std::fmt;

use serde::Deserialize;

use crate::wasm::spec::Digest;

/// Manifests that are asked for.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
                                 application/vnd.docker.distribution.manifest.v2+json, \
                                 application/vnd.oci.image.index.v1+json, \
                                 application/vnd.docker.distribution.manifest.list.v2+json";

/// Layers that are a module as they are.
const MODULES: &[&str] = &[
    "application/wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
];

/// Layers of files.
const FILES: &[&str] = &[
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.oci.image.layer.v1.tar+zstd",
];

/// Why a manifest names no module. Where the manifest was asked for by its digest, it never will.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of this form.
    #[error("the manifest is malformed: {0}")]
    Malformed(Said),
    /// Neither an image nor an index.
    #[error("the manifest is neither an image nor an index, but {0:?}")]
    Kind(Said),
    /// No layer that a module can be in.
    #[error("no layer of the image can hold a module; their types are {0:?}{more}", more = more(.1))]
    NoModule(Vec<Said>, usize),
    /// An index without an image for us.
    #[error("no image of the index is for wasm or linux")]
    NoPlatform,
    /// A digest that is not SHA-256.
    #[error("the digest {0:?} is not sha256")]
    Digest(Said),
}

/// So many types of layers are told.
const MAX_TYPES: usize = 8;

fn more(more: &usize) -> String {
    match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    }
}

/// What a registry says, as far as it is told: cut to 200 characters, without those that control a terminal.
#[derive(Clone, PartialEq, Eq)]
pub struct Said(Box<str>);

impl Said {
    pub(super) fn of(text: &str) -> Self {
        let told = text.chars().filter(|c| !c.is_control()).take(200);
        Self(told.collect::<String>().into())
    }
}

impl fmt::Debug for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a blob or another manifest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Of the content.
    pub digest: Digest,
    /// In bytes, as the manifest says.
    pub size: u64,
}

/// A layer as a manifest has it; nothing of it is verified, and what is long is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// What it is.
    pub media_type: Box<str>,
    /// With the name of the sum before it.
    pub digest: Box<str>,
    /// In bytes.
    pub size: u64,
}

/// So many layers of an image are told of: it is for people.
const MAX_LAYERS: usize = 64;

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manifest {
    /// An image: the layer that holds its module.
    Image {
        /// The layer.
        layer: Descriptor,
        /// The layer holds files; otherwise it is the module.
        files: bool,
        /// All of them, or the first 64.
        layers: Box<[Layer]>,
    },
    /// An index: the manifest of the image for us.
    Index(Descriptor),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u32>,
    media_type: Option<String>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

impl RawDescriptor {
    fn read(&self) -> Result<Descriptor, ManifestError> {
        let digits = self.digest.strip_prefix("sha256:");
        let digest = digits.and_then(Digest::parse);
        Ok(Descriptor {
            digest: digest.ok_or_else(|| ManifestError::Digest(Said::of(&self.digest)))?,
            size: self.size,
        })
    }

    /// How well an image of an index suits, the larger the better.
    fn suits(&self) -> Option<u32> {
        let Some(Platform { architecture, os }) = &self.platform else {
            return Some(1);
        };
        let machine = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        match (&**architecture, &**os) {
            // A component, most likely, which is no module.
            ("wasm" | "wasm32", "wasip2" | "wasip3") => Some(0),
            ("wasm" | "wasm32", _) => Some(4),
            (architecture, "linux") if architecture == machine => Some(3),
            (_, "linux") => Some(2),
            // Attestations among them are of no platform.
            _ => None,
        }
    }
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// Where it does not say where a module is.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        let raw: Raw = serde_json::from_slice(json)
            .map_err(|error| ManifestError::Malformed(Said::of(&error.to_string())))?;
        if raw.schema_version != Some(2) {
            return Err(ManifestError::Malformed(Said::of("schemaVersion is not 2")));
        }
        match (raw.layers, raw.manifests) {
            (Some(layers), None) => Self::image(&layers),
            (None, Some(images)) => {
                let suiting = images
                    .iter()
                    .filter_map(|image| Some((image.suits()?, image)));
                // The first of the best.
                let best = suiting.rev().max_by_key(|(suits, _)| *suits);
                let (_, best) = best.ok_or(ManifestError::NoPlatform)?;
                Ok(Self::Index(best.read()?))
            }
            _ => {
                let kind = raw.media_type.unwrap_or_default();
                Err(ManifestError::Kind(Said::of(&kind)))
            }
        }
    }

    fn image(layers: &[RawDescriptor]) -> Result<Self, ManifestError> {
        let is_one_of =
            |layer: &&RawDescriptor, types: &[&str]| types.contains(&&*layer.media_type);
        let told = layers.iter().take(MAX_LAYERS).map(|layer| Layer {
            media_type: Said::of(&layer.media_type).0,
            digest: Said::of(&layer.digest).0,
            size: layer.size,
        });
        let told = told.collect();
        if let Some(layer) = layers.iter().find(|layer| is_one_of(layer, MODULES)) {
            return Ok(Self::Image {
                layer: layer.read()?,
                files: false,
                layers: told,
            });
        }
        match layers.last().filter(|layer| is_one_of(layer, FILES)) {
            Some(layer) => Ok(Self::Image {
                layer: layer.read()?,
                files: true,
                layers: told,
            }),
            None => {
                let types = layers.iter().map(|layer| Said::of(&layer.media_type));
                Err(ManifestError::NoModule(
                    types.take(MAX_TYPES).collect(),
                    layers.len().saturating_sub(MAX_TYPES),
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn layer(media_type: &str, content: &str) -> serde_json::Value {
        let digest = format!("sha256:{}", Digest::of(content.as_bytes()));
        json!({"mediaType": media_type, "digest": digest, "size": content.len()})
    }

    fn descriptor(content: &str) -> Descriptor {
        Descriptor {
            digest: Digest::of(content.as_bytes()),
            size: content.len() as u64,
        }
    }

    fn parse(value: &serde_json::Value) -> Result<Manifest, ManifestError> {
        Manifest::parse(value.to_string().as_bytes())
    }

    fn image(layers: &[serde_json::Value]) -> Result<Manifest, ManifestError> {
        parse(&json!({"schemaVersion": 2, "config": {"x": 1}, "layers": layers}))
    }

    #[test]
    fn every_layout_has_its_module() {
        let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        let oci = "application/vnd.oci.image.layer.v1.tar+gzip";
        let solo = "application/vnd.module.wasm.content.layer.v1+wasm";
        for (layers, content, files) in [
            (
                vec![layer(docker, "base"), layer(docker, "top")],
                "top",
                true,
            ),
            (vec![layer(oci, "base"), layer(oci, "top")], "top", true),
            (
                vec![layer(solo, "module"), layer("text/x", "other")],
                "module",
                false,
            ),
            (
                vec![layer("text/x", "other"), layer(solo, "module")],
                "module",
                false,
            ),
            (vec![layer("application/wasm", "cncf")], "cncf", false),
            (
                vec![layer("application/vnd.wasm.content.layer.v1+wasm", "m")],
                "m",
                false,
            ),
        ] {
            let told = layers.iter().map(|layer| Layer {
                media_type: layer["mediaType"].as_str().expect("a type").into(),
                digest: layer["digest"].as_str().expect("a digest").into(),
                size: layer["size"].as_u64().expect("a size"),
            });
            assert_eq!(
                image(&layers),
                Ok(Manifest::Image {
                    layer: descriptor(content),
                    files,
                    layers: told.collect(),
                }),
                "{content}"
            );
        }
    }

    #[test]
    fn an_index_gives_the_image_that_suits_best() {
        let one = |content: &str, architecture: &str, os: &str| {
            let mut of_it = layer("application/vnd.oci.image.manifest.v1+json", content);
            of_it["platform"] = json!({"architecture": architecture, "os": os});
            of_it
        };
        let index =
            |images: &[serde_json::Value]| parse(&json!({"schemaVersion": 2, "manifests": images}));
        let wasm = one("wasm", "wasm", "wasip1");
        let linux = one("linux", "s390x", "linux");
        let later = one("later", "mips", "linux");
        let attestation = one("attestation", "unknown", "unknown");
        let chosen = |content| Ok(Manifest::Index(descriptor(content)));
        let component = one("component", "wasm", "wasip2");
        assert_eq!(
            index(&[linux.clone(), wasm.clone(), attestation.clone()]),
            chosen("wasm")
        );
        assert_eq!(index(&[component.clone(), wasm]), chosen("wasm"));
        assert_eq!(index(&[component.clone(), linux.clone()]), chosen("linux"));
        assert_eq!(index(&[component]), chosen("component"));
        assert_eq!(index(&[attestation.clone(), linux, later]), chosen("linux"));
        assert_eq!(index(&[layer("x", "bare")]), chosen("bare"));
        assert_eq!(index(&[attestation]), Err(ManifestError::NoPlatform));
    }

    #[test]
    fn what_holds_no_module_is_told() {
        let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
        assert_eq!(
            image(&[layer(encrypted, "x")]),
            Err(ManifestError::NoModule(vec![Said::of(encrypted)], 0))
        );
        assert_eq!(image(&[]), Err(ManifestError::NoModule(Vec::new(), 0)));
        let mut other = layer("application/wasm", "x");
        other["digest"] = json!("sha512:00");
        assert_eq!(
            image(&[other]),
            Err(ManifestError::Digest(Said::of("sha512:00")))
        );
        assert!(matches!(
            Manifest::parse(b"<html>"),
            Err(ManifestError::Malformed(_))
        ));
        assert!(matches!(
            parse(&json!({"schemaVersion": 1, "fsLayers": []})),
            Err(ManifestError::Malformed(_))
        ));
        assert!(matches!(
            parse(&json!({"schemaVersion": 2})),
            Err(ManifestError::Kind(_))
        ));
    }

    #[test]
    fn what_a_registry_says_is_told_in_part() {
        let long = "A\u{1b}[31m".repeat(1000);
        let mut odd = layer("application/wasm", "x");
        odd["digest"] = json!(long);
        let many = vec![layer(&long, "x"); 100];
        for answer in [
            image(&[odd]),
            image(&many),
            parse(&json!({"schemaVersion": 2, "mediaType": long})),
            parse(&json!({"schemaVersion": long})),
        ] {
            let error = answer.expect_err("no module").to_string();
            assert!(error.len() < 2000 && !error.contains('\u{1b}'), "{error}");
        }
        let error = image(&many).expect_err("no module").to_string();
        assert!(error.ends_with("] and 92 more"), "{error}");
        let mut told = many.clone();
        told.push(layer("application/wasm", "x"));
        let Ok(Manifest::Image { layers, .. }) = image(&told) else {
            panic!("it has a module");
        };
        assert!(layers.iter().all(|layer| layer.media_type.len() <= 200));
    }
}
