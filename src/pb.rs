//! The only importer of `envoy_types`: the API's messages under their package names, and what is generic over them.

pub use envoy_types::pb::envoy::config::core::v3::Metadata;
pub use envoy_types::pb::google::protobuf::{Any, Struct};
pub use envoy_types::pb::{envoy, google, xds};
