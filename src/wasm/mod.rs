//! The Proxy-Wasm host: plugins are fetched, verified, compiled, warmed and swapped while traffic flows.
//!
//! The only importer of `wasmtime`. Without the feature `wasm` only [`PluginSpec`] and the status types remain, and
//! every plugin is refused.

mod disabled;
mod options;
pub mod spec;
pub mod status;

pub use disabled::{Plugin, Plugins};
pub use options::{Options, Resolution};
pub use spec::PluginSpec;
pub use status::PluginStatus;
