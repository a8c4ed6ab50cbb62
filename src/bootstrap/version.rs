//! What we say we are.
//!
//! Launchers and control planes read Envoy's version from us and refuse what is too old or not shaped as theirs, so we
//! name the release whose behaviour we follow.

/// The Envoy release that this build follows: major, minor, patch.
pub const ENVOY: (u32, u32, u32) = (1, 40, 0);

/// The version of this product.
pub const PRODUCT: &str = env!("CARGO_PKG_VERSION");

/// The revision that this was built from, 40 hexadecimal digits; zeros where the build was not told
/// (`PLENIPO_REVISION`).
pub const REVISION: &str = match option_env!("PLENIPO_REVISION") {
    Some(revision) => revision,
    None => "0000000000000000000000000000000000000000",
};

/// `clean` builds of a revision, as Envoy writes it.
pub const STATUS: &str = "Clean";

/// The TLS library.
pub const TLS: &str = "rustls";

/// `RELEASE` or `DEBUG`.
pub const BUILD_TYPE: &str = if cfg!(debug_assertions) {
    "DEBUG"
} else {
    "RELEASE"
};

/// Five parts, as `--version` and `/server_info` show it: `<revision>/1.40.0/Clean/RELEASE/<TLS library>`.
pub fn full() -> String {
    let (major, minor, patch) = ENVOY;
    format!("{REVISION}/{major}.{minor}.{patch}/{STATUS}/{BUILD_TYPE}/{TLS}")
}

/// `server.version`: the first six hexadecimal digits of the revision.
pub fn number() -> u64 {
    REVISION
        .get(..6)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .unwrap_or(0)
}
