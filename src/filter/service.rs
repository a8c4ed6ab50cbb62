//! A filter chain as a tower service: requests of `http` types in, responses out.
//!
//! Always ready: overload is a decision of the chain (503), not back-pressure through a shared service. The connection
//! manager does not go this way (it has the heads already); tests, benchmarks and in-process callers do.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::HOST;
use http::{HeaderValue, Request, Response, StatusCode};
use tower_service::Service;

use super::{BoxFuture, HttpFilterChain, Observer};
use crate::http::codec::Reset;
use crate::http::{Body, RequestHead, ResponseHead, Scheme};
use crate::stream::{ConnectionInfo, Stream, StreamConfig};

/// A chain with what its streams pin.
#[derive(Clone)]
pub struct ChainService {
    chain: Arc<HttpFilterChain>,
    connection: Arc<ConnectionInfo>,
    config: Arc<StreamConfig>,
    observer: Arc<dyn Observer>,
}

impl ChainService {
    /// Runs requests of `connection` through `chain`.
    pub fn new(
        chain: Arc<HttpFilterChain>,
        connection: Arc<ConnectionInfo>,
        config: Arc<StreamConfig>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self {
            chain,
            connection,
            config,
            observer,
        }
    }
}

impl std::fmt::Debug for ChainService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ChainService").field(&self.chain).finish()
    }
}

/// The stream was reset before it had a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream was reset: {0:?}")]
pub struct ResetError(pub Reset);

impl Service<Request<Body>> for ChainService {
    type Response = Response<Body>;
    type Error = ResetError;
    type Future = BoxFuture<Result<Response<Body>, ResetError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ResetError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (head, body) = head_of(request);
        let stream = Stream::new(
            Arc::clone(&self.connection),
            Arc::clone(&self.config),
            head,
            self.chain.len(),
        );
        let run =
            Arc::clone(&self.chain).run(Arc::clone(&stream), body, Arc::clone(&self.observer));
        Box::pin(async move {
            let body = run.await.map_err(ResetError)?;
            let head = stream.response.lock().clone();
            let head = head.unwrap_or_else(|| ResponseHead::new(StatusCode::INTERNAL_SERVER_ERROR));
            let mut response = Response::new(body);
            *response.status_mut() = head.status;
            *response.version_mut() = head.version;
            *response.headers_mut() = head.headers;
            response.extensions_mut().insert(stream);
            Ok(response)
        })
    }
}

fn head_of(request: Request<Body>) -> (RequestHead, Body) {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut head = RequestHead::new(parts.method, "", path);
    if parts.uri.scheme_str() == Some("https") {
        head.scheme = Scheme::Https;
    }
    let authority = parts.headers.remove(HOST).or_else(|| {
        let authority = parts.uri.authority()?;
        HeaderValue::from_str(authority.as_str()).ok()
    });
    head.has_host = authority.is_some();
    head.authority = authority.unwrap_or(HeaderValue::from_static(""));
    head.version = parts.version;
    head.headers = parts.headers;
    (head, body)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;
    use crate::filter::testing::{FakeUpstream, chain, connection};

    #[tokio::test]
    async fn a_chain_is_a_service() {
        let upstream = Arc::new(FakeUpstream::default());
        let chain = chain![].terminal(Arc::new(Arc::clone(&upstream)));
        let stream = chain.stream(RequestHead::new(http::Method::GET, "", "/"));
        let service = ChainService::new(
            chain.chain(),
            connection(),
            Arc::clone(&stream.config),
            chain.seen.clone(),
        );
        let request = Request::post("https://a.test/p?x=1")
            .body(Body::full("hello"))
            .expect("a request");
        let response = service.oneshot(request).await.expect("not reset");
        assert_eq!(response.status(), 200);
        let body = response.into_body().collect().await.expect("no error");
        assert_eq!(body.to_bytes(), "upstream");
        let requests = upstream.requests.lock();
        let (head, body, _) = &requests[0];
        assert_eq!(head.path, "/p?x=1");
        assert_eq!(head.authority, "a.test");
        assert_eq!(head.scheme, Scheme::Https);
        assert_eq!(body, b"hello");
        assert_eq!(chain.logs(), 1);
    }
}
