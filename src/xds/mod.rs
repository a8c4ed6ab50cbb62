//! The control side's door to the world: configuration by xDS, from a gRPC stream or from files.
//!
//! ```text
//! stream, file (IO) ─► ads (sans-io: nonces, versions) ─► cache (judged, last good) ─► assemble (warm) ─► Snapshot
//! ```
//!
//! * `ads`: one stream as a pure machine, in both encodings.
//! * `cache`: what was accepted and what was refused, per type and name; who refers to whom.
//! * `engine`: which streams there are, what each asks for, what is judged next, when the world is warm. No IO either.
//! * `check`: can every source be reached?
//! * `addresses`: does every listener have addresses of its own?
//! * [`client`]: the task that moves bytes and keeps time.
//! * [`status`]: what the admin endpoints read.
//!
//! A rejected resource changes nothing but its recorded rejection; its good neighbours are applied. A control
//! plane's outage changes nothing at all.

pub mod admission;
pub mod client;
pub mod resource;
pub mod status;

mod addresses;
mod ads;
mod assemble;
mod cache;
mod check;
mod engine;
mod file;
mod stats;
mod stream;
pub(crate) mod transport;

pub use admission::{Admission, Candidate};
pub use client::{ApiSource, Client, Options, Progress, UnknownFields};
pub use resource::ResourceType;
pub use status::Status;
