//! The downstream side: sockets, accept loops, connections, and the HTTP connection manager.
//!
//! [`manager`] reconciles sockets with the current Generation; [`accept`] hands connections to [`connection`], which
//! picks the filter chain and serves it through the codec; [`http`] is the per-request entry point.

mod request_head;
