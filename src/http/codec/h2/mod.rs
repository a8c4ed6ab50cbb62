//! HTTP/2 through the h2 library: downstream as it is, upstream below hyper. Nothing outside this folder knows that.
//!
//! The library answers a few things by itself: a malformed stream is reset (its neighbours live on), a flood cuts the
//! connection, a header block of more than twice the limit gets 431.

mod body;
pub(super) mod client;
mod convert;
mod io;
mod keepalive;
mod resets;
mod runtime;
mod sending;
pub(super) mod server;
mod streams;
mod tails;
mod wakes;

#[cfg(test)]
mod tests;

pub(in crate::http) use body::IncomingBody;
