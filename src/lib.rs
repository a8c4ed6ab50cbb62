//! Plenipo: an Envoy-compatible xDS data plane with hot-reloaded Wasm extensions.
//!
//! Data flows one way, from the control side (one task, one writer) to the data side (many readers):
//!
//! ```text
//!             control side                                             │           data side
//! file ─► bootstrap ─► xds::client ─► xds::ads ─► xds::cache ─► Snapshot ─► Generation ─► listener ─► filter chain ─► router ─► cluster
//! ```
//!
//! Modules are layered: a module imports only modules of lower levels, or its own (`tests/it/layering.rs`
//! is the law). From the top:
//!
//! | level | modules |
//! |---|---|
//! | 11 | [`demo`] |
//! | 10 | [`app`], `plugin_tool` |
//! | 9 | [`admin`], [`cli`], [`control_plane`] |
//! | 8 | [`listener`] |
//! | 7 | [`generation`] |
//! | 6 | [`filter`] |
//! | 5 | [`wasm`] |
//! | 4 | [`stream`] |
//! | 3 | [`cluster`], [`route`] |
//! | 2 | [`http`], [`xds`], [`bootstrap`] |
//! | 1 | [`config`] |
//! | 0 | [`base`], [`telemetry`], [`pb`] |

pub mod admin;
pub mod app;
pub mod base;
pub mod bootstrap;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod control_plane;
pub mod demo;
pub mod filter;
pub mod generation;
pub mod http;
pub mod listener;
pub mod pb;
#[cfg(feature = "wasm")]
pub mod plugin_tool;
pub mod route;
pub mod stream;
pub mod telemetry;
pub mod wasm;
pub mod xds;
