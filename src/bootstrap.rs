//! Envoy's bootstrap, validated.

pub mod version;
