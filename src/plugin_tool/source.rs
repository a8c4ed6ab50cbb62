//! Where code and texts come from.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The bytes that `source` names. A path of a file; forms with a scheme are refused by name.
///
/// # Errors
/// Where it cannot be read, or has a scheme.
pub(super) fn resolve(source: &str) -> anyhow::Result<Vec<u8>> {
    match source.split_once("://") {
        None => std::fs::read(source).with_context(|| format!("cannot read {source}")),
        Some((scheme, _)) => anyhow::bail!("{source}: only files are read, not {scheme}://"),
    }
}

/// An argument that is a text, or with `@` before it a file's name; and the folder from which its own references count.
///
/// # Errors
/// Where the file cannot be read.
pub(super) fn text(argument: &str) -> anyhow::Result<(Vec<u8>, PathBuf)> {
    let Some(file) = argument.strip_prefix('@') else {
        return Ok((argument.as_bytes().to_vec(), PathBuf::from(".")));
    };
    let read = std::fs::read(file).with_context(|| format!("cannot read {file}"))?;
    let folder = Path::new(file).parent().unwrap_or(Path::new("."));
    Ok((read, folder.to_owned()))
}
