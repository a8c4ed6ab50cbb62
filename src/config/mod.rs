//! The validated model: what a resource means once it is believed.
//!
//! Every type here is immutable, complete and made only by its `parse` function (protobuf in, model out, every field
//! destructured: used, refused with [`ConfigError`], or listed as knowingly ignored). No sockets, no I/O. A default
//! of Envoy's is resolved here, so that nothing later asks "and if it is unset?".

pub mod access_log;
pub mod any;
pub mod cluster;
pub mod context;
pub mod endpoint;
pub mod error;
pub mod extension;
pub(crate) mod field;
pub mod header;
pub mod http_connection_manager;
pub mod ignored;
pub mod ignored_extensions;
pub mod listener;
pub mod matcher;
mod protocol;
pub mod route;
pub mod snapshot;
#[cfg(test)]
pub(crate) mod stub;
pub mod tcp_proxy;
pub mod wasm_settings;

pub use cluster::Cluster;
pub use context::{ParseContext, Source};
pub use endpoint::Endpoints;
pub use error::{ConfigError, FieldPath};
pub use extension::{ExtensionConfig, Extensions, PerRouteConfig};
pub use http_connection_manager::HttpConnectionManager;
pub use listener::Listener;
pub use route::RouteConfig;
pub use snapshot::Snapshot;
pub use tcp_proxy::TcpProxy;
pub use wasm_settings::WasmSettings;
