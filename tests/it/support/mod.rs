//! A whole proxy in this process, with upstreams that record and clients that look closely. Ports are always 0.

pub mod client;
pub mod guests;
pub mod proxy;
pub mod registry;
pub mod upstream;

pub use client::{Client, Response, exchange};
pub use guests::guest;
pub use proxy::{TestProxy, ads_bootstrap, any, listener_yaml};
pub use upstream::FakeUpstream;
