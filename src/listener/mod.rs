//! The downstream side: sockets, accept loops, connections, and the HTTP connection manager.
//!
//! [`manager`] reconciles sockets with the current Generation; the accept loops hand connections to [`connection`],
//! which picks the filter chain and serves it through the codec, with network filters between it and the socket where the
//! chain has some (`filtered`); `http` is the per-request entry point.

mod accept;
mod bytes;
pub mod connection;
mod filtered;
mod http;
pub mod manager;
mod request_head;
pub mod server_state;
mod socket;
mod tcp_proxy;

pub use connection::ServeContext;
pub use manager::{BindError, BoundListener, ListenerManager};
pub use server_state::{DrainStrategy, ServerState};
