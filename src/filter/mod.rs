//! HTTP filters: the contract, the chain that drives it, the registry, and one file a filter.
//!
//! A filter sees a stream in two halves: [`HttpFilter::request`] on the way to the upstream, in chain order, and
//! [`HttpFilter::response`] on the way back, in reverse. Both may edit the heads in [`Stream`], replace the body, wait,
//! or answer. Every filter's response half runs once for every response, local replies included, also of filters that
//! the request never reached (an exception: a direct reply, see [`Verdict`](crate::stream::Verdict)).
//! [`HttpFilter::log`] then [`HttpFilter::end`] run last, for all filters in chain order, from one place, also when the
//! client goes away.
//!
//! The last filter of a chain is terminal (the [`router`]): its request half gives [`Step::Answer`], never
//! [`Step::Next`].
//!
//! Filters of connections are [`network`].
//!
//! To write one: a file here with the type, [`FilterFactory`] and [`HttpFilter`] for it, and a line in [`registry`].

mod body;
pub mod chain;
pub mod cors;
pub mod factory;
pub mod fault;
pub mod header_mutation;
pub mod health_check;
pub mod idle;
pub mod local_reply;
pub mod network;
pub mod no_op;
#[cfg(test)]
mod pump_tests;
pub mod registry;
pub mod router;
pub mod service;
#[cfg(test)]
pub(crate) mod testing;
mod timer;
pub mod tower;
pub mod upstream;
#[cfg(feature = "wasm")]
pub mod wasm;
#[cfg(feature = "wasm")]
mod wasm_log;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::http::{Body, LocalReply, ResponseHead};
use crate::stream::Stream;

pub use chain::{HttpFilterChain, Observer};
pub use factory::{BuildContext, ChainContext, FilterFactory, PerRoute};
pub use registry::Registry;

/// A boxed future.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a filter's half decides.
pub enum Step<T> {
    /// Go on. Costs no allocation.
    Next(T),
    /// Go on when the future says how.
    Wait(BoxFuture<Step<T>>),
    /// Answer with this.
    Reply(Box<LocalReply>),
    /// In the request half: answer with this; the filters' response halves follow. In the response half: this takes
    /// the place of the response so far.
    Answer(Box<ResponseHead>, Body),
}

impl<T> Step<T> {
    /// Answers with `reply`.
    pub fn reply(reply: LocalReply) -> Self {
        Self::Reply(Box::new(reply))
    }
}

impl<T: fmt::Debug> fmt::Debug for Step<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Next(next) => f.debug_tuple("Next").field(next).finish(),
            Self::Wait(_) => f.write_str("Wait"),
            Self::Reply(reply) => f.debug_tuple("Reply").field(reply).finish(),
            Self::Answer(head, body) => f.debug_tuple("Answer").field(head).field(body).finish(),
        }
    }
}

/// A filter instance: one a chain, shared by all its streams. Per-stream state lives in the stream's slot.
pub trait HttpFilter: fmt::Debug + Send + Sync + 'static {
    /// The request half. The heads are in `stream`.
    fn request(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let _ = stream;
        Step::Next(body)
    }

    /// The response half. The head is in `stream`.
    fn response(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let _ = stream;
        Step::Next(body)
    }

    /// The stream has ended; it is about to be logged. May run inside a `Drop`: be short, and enter no guest.
    fn log(&self, stream: &Arc<Stream>) {
        let _ = stream;
    }

    /// The stream was logged: forget it. May run inside a `Drop`, as [`HttpFilter::log`].
    fn end(&self, stream: &Arc<Stream>) {
        let _ = stream;
    }
}
