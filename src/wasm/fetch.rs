//! Fetching remote code through its cluster: one attempt, bounded and verified; who calls decides about the next.

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};

use super::module::MAX_CODE;
use super::spec::{Digest, Remote};
use crate::cluster::ClusterMap;
use crate::cluster::client::{self, Call, CallError};
use crate::http::{RequestHead, Scheme};

/// Why there is no code.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// No answer.
    #[error("fetching {0}: {1}")]
    Call(Box<str>, CallError),
    /// The answer is not the code.
    #[error("fetching {0}: the answer is {1}")]
    Status(Box<str>, StatusCode),
    /// The code is larger than the limit.
    #[error("fetching {0}: more than {MAX_CODE} bytes")]
    TooLarge(Box<str>),
    /// Another code than was asked for.
    #[error("fetching {uri}: sha256 is {found}, not {wanted}")]
    Digest {
        uri: Box<str>,
        found: Digest,
        wanted: Digest,
    },
}

/// Fetches `remote` once.
pub(crate) async fn fetch(clusters: &ClusterMap, remote: &Remote) -> Result<Bytes, FetchError> {
    let uri = || remote.uri.clone();
    let mut head = RequestHead::new(Method::GET, &remote.authority, &remote.path);
    if remote.https {
        head.scheme = Scheme::Https;
    }
    let call = Call {
        head,
        body: Bytes::new(),
        trailers: http::HeaderMap::new(),
        timeout: remote.timeout,
        limit: MAX_CODE,
    };
    let mut code = BytesMut::new();
    let mut too_large = false;
    let response = client::download(clusters, &remote.cluster, call, |chunk| {
        if code.len() + chunk.len() > MAX_CODE {
            too_large = true;
        } else if !too_large {
            code.extend_from_slice(&chunk);
        }
    })
    .await
    .map_err(|error| FetchError::Call(uri(), error))?;
    if response.head.status != StatusCode::OK {
        return Err(FetchError::Status(uri(), response.head.status));
    }
    if too_large {
        return Err(FetchError::TooLarge(uri()));
    }
    let code = code.freeze();
    let found = Digest::of(&code);
    if found != remote.sha256 {
        return Err(FetchError::Digest {
            uri: uri(),
            found,
            wanted: remote.sha256,
        });
    }
    Ok(code)
}
