//! Where code comes from.

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
