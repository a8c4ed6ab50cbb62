//! Where code is fetched without a cluster: web servers and registries of images, off the workers.
//!
//! * [`reference`] names images, [`oci`] speaks to registries, [`push`] puts images there, [`manifest`] finds the module in an image.
//! * [`download`] makes the requests: bounded in time, bytes and redirects, over TLS unless settings say otherwise.
//! * [`guard`] keeps what a server sends us on to (token servers, redirects) away from private addresses.

pub mod reference;

#[cfg(feature = "wasm")]
mod challenge;
#[cfg(feature = "wasm")]
pub mod credentials;
#[cfg(feature = "wasm")]
pub mod download;
#[cfg(feature = "wasm")]
mod guard;
#[cfg(feature = "wasm")]
mod keeper;
#[cfg(feature = "wasm")]
pub mod manifest;
#[cfg(feature = "wasm")]
pub mod oci;
#[cfg(feature = "wasm")]
pub mod push;
