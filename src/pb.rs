//! The only importer of `envoy_types`: the API's messages under their package names, and what is generic over them.
//!
//! * Text (YAML, JSON) becomes a message with [`from_text`]: one canonical mapping, driven by the descriptors of
//!   `proto/*.descriptors.bin`, with `Any` expanded at any depth, unknown fields collected by their path, and
//!   places named by line.
//! * A message becomes Envoy's JSON (what `/config_dump` shows) with [`to_json`] and [`any_to_json`].
//! * An `Any` becomes its message with [`unpack`]; [`resolve_typed_struct`] turns the two `TypedStruct`s into the
//!   message they stand for.
//! * [`unknown_fields`] finds what a decoded message would silently lose.
//!
//! Nothing here panics on foreign bytes.

use std::time::Duration;

use parking_lot::Mutex;
use prost::Name;
use prost_reflect::DescriptorPool;
use tokio::time::Instant;

mod any;
mod error;
mod json;
mod node;
pub mod plenipo;
mod read;
mod schema;
mod wire;

pub use any::{is_message, mask_fits, pack, resolve_typed_struct, unknown_fields, unpack};
pub use envoy_types::pb::envoy::config::core::v3::{Metadata, Node};
pub use envoy_types::pb::google::protobuf::{Any, Struct};
pub use envoy_types::pb::{envoy, google, xds};
pub use error::Error;
pub use json::{any_to_json, json_text, to_json};
pub use read::{Format, Parsed, UnknownField, from_text, from_yaml};
pub use wire::split_off;

/// What stands before the message's name in a type URL.
pub const TYPE_PREFIX: &str = "type.googleapis.com/";

/// Envoy's API, and our own messages, which refer to it.
const DESCRIPTOR_SETS: [&[u8]; 2] = [
    include_bytes!("../proto/envoy.descriptors.bin"),
    include_bytes!("../proto/plenipo.descriptors.bin"),
];

/// The pool while it is in use, and when it was asked for last.
static DESCRIPTORS: Mutex<Option<(DescriptorPool, Instant)>> = Mutex::new(None);

/// The descriptors of every message of the API; a handle. Loaded when needed (about 35 ms), which is where text is read
/// or written, and kept while in use: see [`release_descriptors`].
pub fn descriptors() -> DescriptorPool {
    let mut held = DESCRIPTORS.lock();
    let (pool, used) = held.get_or_insert_with(|| {
        let mut pool = DescriptorPool::new();
        for set in DESCRIPTOR_SETS {
            pool.decode_file_descriptor_set(set)
                .expect("the embedded descriptor sets are valid");
        }
        (pool, Instant::now())
    });
    *used = Instant::now();
    pool.clone()
}

/// Lets the descriptors go where nobody has asked for them for so long: they are a good part of an idle proxy's memory.
/// True where that freed them.
pub fn release_descriptors(unused_for: Duration) -> bool {
    let mut held = DESCRIPTORS.lock();
    let unused = held
        .as_ref()
        .is_some_and(|(_, used)| used.elapsed() >= unused_for);
    if unused {
        *held = None;
    }
    unused
}

/// The message name in a type URL: what follows the last slash.
pub fn type_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

/// True where the `Any` holds an `M`.
pub fn is<M: Name>(any: &Any) -> bool {
    let name = type_name(&any.type_url);
    name.strip_prefix(M::PACKAGE)
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|rest| rest == M::NAME)
        || name == M::full_name()
}

/// The number that Envoy's `*.version` gauges show for a version string: xxHash64 with seed 0.
pub fn version_hash(version: &str) -> u64 {
    twox_hash::XxHash64::oneshot(0, version.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_gauge_is_what_envoy_shows() {
        assert_eq!(version_hash("v1"), 9194640092791331756);
        assert_eq!(version_hash(""), 17241709254077376921);
    }

    #[test]
    fn type_urls_are_compared_by_name() {
        let any = Any {
            type_url: "example.com/envoy.config.core.v3.Node".to_owned(),
            value: Vec::new(),
        };
        assert!(is::<Node>(&any));
        assert!(!is::<Metadata>(&any));
        assert_eq!(type_name("no_slash"), "no_slash");
    }
}
