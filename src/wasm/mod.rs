//! The Proxy-Wasm host: plugins are fetched, verified, compiled, warmed and swapped while traffic flows.
//!
//! * [`PluginSpec`] is a validated `PluginConfig`. [`Plugins`] (control side) turns a spec into a live [`Plugin`]: it
//!   fetches and checks the code, compiles it on a blocking pool, builds one configured VM **per worker** off the
//!   workers, and moves each to its worker. Until then the slot's last ready version serves.
//! * Versions with the same VM key share their VMs, each with a root context of its own in them.
//! * A [`Service`] is a plugin without streams: of the bootstrap's `WasmService`, or a [`StatsSink`].
//! * A [`Vm`] belongs to one worker. Guest calls are short and synchronous, under an epoch deadline; no guest is
//!   entered twice and none from `Drop`. Host functions of the ABI are in `abi`, by group.
//! * A trap kills the VM, never the process or another VM; a fresh one is built off the worker, within limits.
//!
//! The only importer of `wasmtime`. Without the feature `wasm` only [`PluginSpec`] and the status types remain, and
//! every plugin is refused.

#[cfg(not(feature = "wasm"))]
mod disabled;
mod options;
mod probe;
mod service;
mod sink;
pub mod slot;
pub mod source;
pub mod spec;
pub mod status;

#[cfg(feature = "wasm")]
mod abi;
#[cfg(feature = "wasm")]
mod archive;
#[cfg(feature = "wasm")]
mod breaker;
#[cfg(feature = "wasm")]
mod callbacks;
#[cfg(feature = "wasm")]
mod context;
#[cfg(feature = "wasm")]
mod disk;
#[cfg(feature = "wasm")]
mod engine;
#[cfg(feature = "wasm")]
mod fetch;
#[cfg(all(feature = "wasm", any(test, feature = "fuzzing")))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "wasm")]
mod inspect;
#[cfg(feature = "wasm")]
mod manager;
#[cfg(feature = "wasm")]
mod meter;
#[cfg(feature = "wasm")]
mod module;
#[cfg(feature = "wasm")]
mod payload;
#[cfg(feature = "wasm")]
mod plugin;
#[cfg(feature = "wasm")]
mod portable;
#[cfg(feature = "wasm")]
mod recipe;
#[cfg(feature = "wasm")]
mod report;
#[cfg(feature = "wasm")]
mod reviver;
#[cfg(feature = "wasm")]
pub(crate) mod rollout;
#[cfg(feature = "wasm")]
mod sdk;
#[cfg(feature = "wasm")]
mod shared;
#[cfg(feature = "wasm")]
mod store;
#[cfg(feature = "wasm")]
mod streams;
#[cfg(all(test, feature = "wasm"))]
pub(crate) mod testing;
#[cfg(feature = "wasm")]
mod trace;
#[cfg(feature = "wasm")]
mod vm;
#[cfg(feature = "wasm")]
mod vm_set;

#[cfg(feature = "wasm")]
pub(crate) use archive::unpack;
#[cfg(feature = "wasm")]
pub(crate) use callbacks::ENDS;
#[cfg(feature = "wasm")]
pub use context::OnLoss;
#[cfg(not(feature = "wasm"))]
pub use disabled::{Plugin, Plugins};
#[cfg(feature = "wasm")]
pub use inspect::{Inspection, Kind as InspectionKind, hint as import_hint, inspect};
#[cfg(feature = "wasm")]
pub use manager::Plugins;
#[cfg(feature = "wasm")]
pub(crate) use module::LoadError;
pub use options::{Options, Resolution, RolloutCommand};
#[cfg(feature = "wasm")]
pub use plugin::{Place, Plugin};
pub use probe::{BuildTimes, Probe};
pub use service::{Service, ServiceSpec};
pub use sink::StatsSink;
pub use spec::PluginSpec;
pub use status::PluginStatus;
#[cfg(feature = "wasm")]
pub use vm::{Answer, ContextId, DataAction, Dead, Direction, HeadersAction, Vm, reset_details};
