//! `plenipo plugin push` and `pull`: modules into registries of images, and out of them.

use std::fmt::Write as _;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::source::{self, Access, OCI};
use super::{Verdict, bytes};
use crate::cli::plugin::{ImageLayout, PullArgs, PushArgs};
use crate::wasm;
use crate::wasm::source::oci::Image;
use crate::wasm::source::push::Layout;
use crate::wasm::spec::Digest;

/// Puts a file into a registry, unless this host would not load it.
pub(super) fn push(arguments: &PushArgs) -> anyhow::Result<(String, Verdict)> {
    let PushArgs {
        file,
        image,
        layout,
        registry,
    } = arguments;
    let code = source::read_code(file)?.code;
    let found = wasm::inspect(&code)?;
    if let Some(reason) = &found.refused {
        anyhow::bail!("{}: {reason}", file.display());
    }
    let access = Access::of(registry)?;
    let mut registry = access.registry(image)?;
    let layout = match layout {
        ImageLayout::Artifact => Layout::Artifact,
        ImageLayout::Files => Layout::Files,
    };
    let pushed = registry.push(code.into(), layout);
    let manifest =
        source::wait(&image.to_string(), pushed).map_err(|error| access.hinted(error))?;
    let mut out = String::new();
    let _ = writeln!(out, "pushed       {OCI}{image}");
    let _ = writeln!(out, "manifest     sha256:{manifest}");
    let _ = writeln!(out, "module       sha256:{}", found.sha256);
    Ok((out, Verdict::Well))
}

/// Writes the module of an image into a file.
pub(super) fn pull(arguments: &PullArgs) -> anyhow::Result<(String, Verdict)> {
    let PullArgs {
        image: reference,
        output,
        registry,
    } = arguments;
    let fetched = Access::of(registry)?.pull(reference)?;
    std::fs::write(output, &fetched.code)
        .with_context(|| format!("cannot write {}", output.display()))?;
    let mut out = String::new();
    let _ = writeln!(out, "pulled       {OCI}{reference}");
    if let Some(image) = &fetched.image {
        for (heading, value) in lines(image) {
            let _ = writeln!(out, "{heading:<12} {}", super::printable(&value));
        }
    }
    let sum = Digest::of(&fetched.code);
    let _ = writeln!(out, "module       sha256:{sum}");
    let size = bytes(fetched.code.len() as u64);
    let _ = writeln!(out, "file         {} ({size})", output.display());
    Ok((out, Verdict::Well))
}

/// What an image is, for people: headings, and what belongs to them.
pub(super) fn lines(image: &Image) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if image.manifest != image.image {
        lines.push(("index", format!("sha256:{}", image.manifest)));
    }
    lines.push(("manifest", format!("sha256:{}", image.image)));
    for (index, layer) in image.layers.iter().enumerate() {
        let use_of = match (is_module(image, &layer.digest), image.files) {
            (false, _) => "not used",
            (true, false) => "the module",
            (true, true) => "the module is a file in it",
        };
        let heading = if index == 0 { "layers" } else { "" };
        let (digest, size) = (&layer.digest, bytes(layer.size));
        lines.push((
            heading,
            format!("{digest} ({size}, {}): {use_of}", layer.media_type),
        ));
    }
    lines
}

/// The same as JSON.
pub(super) fn json_of(reference: &str, image: &Image) -> Value {
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(|layer| {
            json!({
                "media_type": layer.media_type,
                "digest": layer.digest,
                "size": layer.size,
                "holds_module": is_module(image, &layer.digest),
            })
        })
        .collect();
    let index = (image.manifest != image.image).then(|| format!("sha256:{}", image.manifest));
    json!({
        "reference": reference,
        "index": index,
        "manifest": format!("sha256:{}", image.image),
        "layers": layers,
    })
}

fn is_module(image: &Image, digest: &str) -> bool {
    digest.strip_prefix("sha256:").and_then(Digest::parse) == Some(image.layer.digest)
}
