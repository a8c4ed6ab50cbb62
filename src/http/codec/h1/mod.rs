//! HTTP/1: our own codec, both sides.
//!
//! What a message means is decided by Envoy's rules (`reliability` 3), stricter where leniency could be used for
//! smuggling (`docs/compatibility.md` lists those). Both sides are futures of their owner: no task, no channel, one
//! read and one write a message where the sizes allow it; an idle connection holds no buffer.
//!
//! | file | what |
//! |---|---|
//! | `parse` | field lines, status line, request line: bytes to names and values |
//! | `fields` | joining rules of repeated headers, `Connection` and what it nominates |
//! | `request` | a request head: target, framing, validity |
//! | `response` | a response head: framing, validity |
//! | `decode` | body framings: bytes to frames |
//! | `encode` | heads and frames to bytes; the output buffer |
//! | `outgoing` | a message being written |
//! | `incoming` | the shared read half of a connection, and the bodies read from it |
//! | `server`, `client` | the two connections |

pub(super) mod client;
mod decode;
mod encode;
mod fields;
mod incoming;
mod outgoing;
mod parse;
mod request;
mod response;
pub(super) mod server;
mod violation;

#[cfg(test)]
mod tests;

pub(super) use incoming::Wire;
pub(in crate::http) use incoming::{RequestBody, ResponseBody};
