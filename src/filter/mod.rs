//! HTTP filters: the contract, the chain that drives it, the registry, and one file a filter.
//!
//! A filter sees a stream in two halves: [`HttpFilter::request`] on the way to the upstream, in chain order, and
//! [`HttpFilter::response`] on the way back, in reverse. Both may edit the heads in [`Stream`], replace the body, wait,
//! or answer. Every filter's response half runs once for every response, local replies included, also of filters that
//! the request never reached (an exception: a verdict marked `direct`). [`HttpFilter::log`] then [`HttpFilter::end`] run
//! last, for all filters in chain order, from one place, also when the client goes away.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::http::{Body, LocalReply};
use crate::stream::Stream;

/// A boxed future.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a filter's half decides.
pub enum Step<T> {
    /// Go on. Costs no allocation.
    Next(T),
    /// Go on when the future says how.
    Wait(BoxFuture<Step<T>>),
    /// Answer with this.
    Reply(LocalReply),
}

/// A filter instance: one a chain, shared by all its streams. Per-stream state lives in the stream's slot.
pub trait HttpFilter: fmt::Debug + Send + Sync + 'static {
    /// The request half. The heads are in `stream`.
    fn request(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let _ = stream;
        Step::Next(body)
    }

    /// The response half.
    fn response(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let _ = stream;
        Step::Next(body)
    }

    /// The stream has ended; it is about to be logged.
    fn log(&self, stream: &Arc<Stream>) {
        let _ = stream;
    }

    /// The stream was logged: forget it.
    fn end(&self, stream: &Arc<Stream>) {
        let _ = stream;
    }
}
