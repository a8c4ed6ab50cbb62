//! The one integration binary: whole proxies in process, protocol tables, and laws of the tree.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the test binary has no users, and is not held to the rules of the data path"
)]

mod containment;
#[cfg(feature = "wasm")]
mod delivery;
mod docs;
mod examples;
mod grpc;
mod guests;
mod hostile;
mod layering;
mod listeners;
mod names;
mod network;
mod options;
#[cfg(feature = "wasm")]
mod places;
#[cfg(feature = "wasm")]
mod plugin_cases;
#[cfg(feature = "wasm")]
mod plugin_cli;
#[cfg(feature = "wasm")]
mod plugin_docs;
mod plugins;
mod process;
mod requests;
mod rollout;
mod services;
mod start;
mod support;
mod tiers;
mod updates;
mod upstream_filters;
#[cfg(feature = "wasm")]
mod usecases;
mod verdicts;
