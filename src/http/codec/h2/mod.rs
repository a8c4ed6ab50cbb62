//! HTTP/2 through hyper, both sides. Nothing outside this folder knows that.
//!
//! hyper answers a few things by itself: a malformed stream is reset (its neighbours live on), a flood cuts the
//! connection, a header block of more than twice the limit gets 431.

mod body;
pub(super) mod client;
mod convert;
mod io;
mod runtime;
mod sending;
pub(super) mod server;
mod tails;

#[cfg(test)]
mod tests;

pub(in crate::http) use body::IncomingBody;
