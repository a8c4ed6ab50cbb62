//! Any tower `Layer` as a filter: the door for the tower ecosystem. Built-in filters do not pay for it.
//!
//! The layer is given the rest of the chain as a service, once a request, with the heads rebuilt as `http` types and the
//! stream in the request's extensions. What the layer does to a request before it calls the service becomes the filter's
//! request half, what it does to the response its response half; the layer's future is polled all the while, so that
//! its timers run. The rest of a chain can be called once: a layer that retries gets an error the second time.
//!
//! A layer that answers by itself, or fails, while the rest of the chain works, ends that work: its answer is then a
//! local reply, made of as much of the body as is ready. Errors become 500 (`tower_layer_error`), in [`failed`] alone.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use http::header::HOST;
use http::{Request, Response, StatusCode, Uri};
use http_body::Body as _;
use tokio::sync::oneshot;
use tower_layer::Layer;
use tower_service::Service;

use super::{BoxFuture, HttpFilter, Step};
use crate::base::WorkerCell;
use crate::http::{Body, LocalReply, ResponseHead};
use crate::stream::{Companion, Phase, Progress, Stream, Verdict};

/// A layer's errors.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A tower layer in a chain.
#[derive(Debug)]
pub struct TowerFilter<L> {
    layer: L,
    slot: usize,
}

impl<L> TowerFilter<L> {
    /// `layer` as filter number `slot` of its chain.
    pub fn new(slot: usize, layer: L) -> Self {
        Self { layer, slot }
    }
}

/// The layer has called the rest of the chain: what with, and where the answer goes.
type Called = (Request<Body>, oneshot::Sender<Response<Body>>);

/// The rest of the chain, as the layer sees it: always ready.
#[derive(Clone)]
pub struct Rest(Arc<Link>);

struct Link {
    called: WorkerCell<Option<Called>>,
    used: std::sync::atomic::AtomicBool,
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rest")
    }
}

/// The rest of the chain was called twice, or gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestError {
    /// A request passes a chain once.
    #[error("the rest of a filter chain can be called once")]
    CalledTwice,
    /// The stream ended without a response.
    #[error("the stream ended without a response")]
    NoResponse,
}

impl Service<Request<Body>> for Rest {
    type Response = Response<Body>;
    type Error = RestError;
    type Future = BoxFuture<Result<Response<Body>, RestError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), RestError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if self.0.used.swap(true, std::sync::atomic::Ordering::Relaxed) {
            return Box::pin(std::future::ready(Err(RestError::CalledTwice)));
        }
        let (sender, receiver) = oneshot::channel();
        *self.0.called.lock() = Some((request, sender));
        Box::pin(async move { receiver.await.map_err(|_| RestError::NoResponse) })
    }
}

type Call = BoxFuture<Result<Response<Body>, BoxError>>;

/// What a stream keeps of its layer.
struct Running {
    /// The layer's future; `None` once it has ended.
    call: WorkerCell<Option<Call>>,
    /// Where the response goes.
    answer: WorkerCell<Option<oneshot::Sender<Response<Body>>>>,
}

impl Running {
    /// Polls the layer's future, if it goes on. It is out of its cell meanwhile: it may end the stream.
    fn poll(&self, context: &mut Context<'_>) -> Poll<Option<Result<Response<Body>, BoxError>>> {
        let Some(mut call) = self.call.lock().take() else {
            return Poll::Ready(None);
        };
        match call.as_mut().poll(context) {
            Poll::Pending => {
                *self.call.lock() = Some(call);
                Poll::Pending
            }
            Poll::Ready(result) => Poll::Ready(Some(result)),
        }
    }
}

/// Polls the layer while the rest of the chain works.
struct Watch(Arc<Running>);

impl Companion for Watch {
    fn poll(&mut self, stream: &Arc<Stream>, context: &mut Context<'_>) -> Progress {
        // From the response half on, that half polls it.
        if stream.phase() != Phase::Request {
            return Progress::Done;
        }
        match self.0.poll(context) {
            Poll::Pending => Progress::Idle,
            Poll::Ready(None) => Progress::Done,
            Poll::Ready(Some(result)) => {
                let reply = match result {
                    Ok(response) => ready_part(response, context),
                    Err(error) => failed(&error),
                };
                stream.decide(Verdict::Reply {
                    reply: Box::new(reply),
                    direct: false,
                });
                Progress::Done
            }
        }
    }
}

impl<L> HttpFilter for TowerFilter<L>
where
    L: Layer<Rest> + fmt::Debug + Send + Sync + 'static,
    L::Service: Service<Request<Body>, Response = Response<Body>> + Send + 'static,
    <L::Service as Service<Request<Body>>>::Error: Into<BoxError>,
    <L::Service as Service<Request<Body>>>::Future: Send,
{
    fn request(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let Some(request) = request_of(stream, body) else {
            return Step::reply(LocalReply::new(
                StatusCode::BAD_REQUEST,
                "",
                "path_is_not_a_uri",
            ));
        };
        let link = Arc::new(Link {
            called: WorkerCell::new(None),
            used: std::sync::atomic::AtomicBool::new(false),
        });
        let mut service = self.layer.layer(Rest(Arc::clone(&link)));
        let call: Call = Box::pin(async move {
            std::future::poll_fn(|context| service.poll_ready(context))
                .await
                .map_err(Into::into)?;
            service.call(request).await.map_err(Into::into)
        });
        let running = Arc::new(Running {
            call: WorkerCell::new(Some(call)),
            answer: WorkerCell::new(None),
        });
        stream.with_slot(self.slot, || Arc::clone(&running), |_| ());
        let stream = Arc::clone(stream);
        Step::Wait(Box::pin(std::future::poll_fn(move |context| {
            let polled = running.poll(context);
            if let Some((request, answer)) = link.called.lock().take() {
                *running.answer.lock() = Some(answer);
                stream.attach(Box::new(Watch(Arc::clone(&running))));
                return Poll::Ready(Step::Next(take_request(&stream, request)));
            }
            match polled {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(Ok(response))) => Poll::Ready(answer(response)),
                Poll::Ready(Some(Err(error))) => Poll::Ready(Step::reply(failed(&error))),
                Poll::Ready(None) => {
                    Poll::Ready(Step::reply(failed(&RestError::NoResponse.into())))
                }
            }
        })))
    }

    fn response(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let running = stream.peek_slot(self.slot, |running: &mut Arc<Running>| Arc::clone(running));
        let Some(running) = running else {
            return Step::Next(body);
        };
        let Some(sender) = running.answer.lock().take() else {
            return Step::Next(body);
        };
        if running.call.lock().is_none() {
            // The layer has answered already: this is its answer.
            return Step::Next(body);
        }
        let Some(head) = stream.response.lock().clone() else {
            return Step::Next(body);
        };
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.version_mut() = head.version;
        *response.headers_mut() = head.headers;
        response.extensions_mut().insert(Arc::clone(stream));
        if let Err(response) = sender.send(response) {
            return Step::Next(response.into_body());
        }
        Step::Wait(Box::pin(std::future::poll_fn(move |context| {
            running.poll(context).map(|result| match result {
                Some(Ok(response)) => answer(response),
                Some(Err(error)) => Step::reply(failed(&error)),
                None => Step::reply(failed(&RestError::NoResponse.into())),
            })
        })))
    }

    fn end(&self, stream: &Arc<Stream>) {
        // The layer's future holds the stream.
        if let Some(running) = stream.take_slot::<Arc<Running>>(self.slot) {
            let call = running.call.lock().take();
            drop(call);
        }
    }
}

/// The one place where errors of layers become replies.
fn failed(error: &BoxError) -> LocalReply {
    tracing::warn!(%error, "a tower layer failed");
    LocalReply::new(StatusCode::INTERNAL_SERVER_ERROR, "", "tower_layer_error")
}

fn request_of(stream: &Arc<Stream>, body: Body) -> Option<Request<Body>> {
    let head = stream.request.lock();
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.version_mut() = head.version;
    *request.uri_mut() = Uri::try_from(head.path.as_bytes()).ok()?;
    *request.headers_mut() = head.headers.clone();
    if head.has_host {
        request.headers_mut().insert(HOST, head.authority.clone());
    }
    request.extensions_mut().insert(Arc::clone(stream));
    Some(request)
}

/// Puts what the layer has made of the request back.
fn take_request(stream: &Stream, request: Request<Body>) -> Body {
    let (mut parts, body) = request.into_parts();
    let mut head = stream.request.lock();
    head.method = parts.method;
    if let Some(path) = parts.uri.path_and_query()
        && let Ok(path) = http::HeaderValue::from_str(path.as_str())
    {
        head.path = path;
    }
    if let Some(authority) = parts.headers.remove(HOST) {
        head.authority = authority;
        head.has_host = true;
    }
    head.headers = parts.headers;
    body
}

fn head_of(response: &mut Response<Body>) -> ResponseHead {
    let mut head = ResponseHead::new(response.status());
    head.version = response.version();
    head.headers = std::mem::take(response.headers_mut());
    head
}

fn answer(mut response: Response<Body>) -> Step<Body> {
    let head = head_of(&mut response);
    Step::Answer(Box::new(head), response.into_body())
}

/// A response as a local reply, with what is ready of its body.
fn ready_part(mut response: Response<Body>, context: &mut Context<'_>) -> LocalReply {
    let head = head_of(&mut response);
    let mut body = response.into_body();
    let mut data = BytesMut::new();
    while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(context) {
        if let Some(bytes) = frame.data_ref() {
            data.extend_from_slice(bytes);
        }
    }
    let mut reply = LocalReply::new(head.status, data.freeze(), "tower_layer_response");
    reply.headers = head.headers;
    reply
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderValue, Method};

    use super::*;
    use crate::filter::testing::{Answer, FakeUpstream, TestChain};

    /// A layer as people write them: a service around a service.
    #[derive(Clone, Debug)]
    enum TestLayer {
        Headers,
        AnswerItself,
        Timeout(Duration),
        Fail,
        CallTwice,
    }

    struct TestService<S> {
        what: TestLayer,
        inner: S,
    }

    impl<S> Layer<S> for TestLayer {
        type Service = TestService<S>;
        fn layer(&self, inner: S) -> TestService<S> {
            TestService {
                what: self.clone(),
                inner,
            }
        }
    }

    impl<S> Service<Request<Body>> for TestService<S>
    where
        S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
    {
        type Response = Response<Body>;
        type Error = BoxError;
        type Future = BoxFuture<Result<Response<Body>, BoxError>>;

        fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            self.inner.poll_ready(context).map_err(Into::into)
        }

        fn call(&mut self, mut request: Request<Body>) -> Self::Future {
            let (what, mut inner) = (self.what.clone(), self.inner.clone());
            Box::pin(async move {
                match what {
                    TestLayer::Headers => {
                        assert_eq!(request.headers()[HOST], "a.test");
                        assert!(request.extensions().get::<Arc<Stream>>().is_some());
                        request
                            .headers_mut()
                            .insert("x-layer", HeaderValue::from_static("down"));
                        *request.uri_mut() = Uri::from_static("/changed?x=1");
                        let mut response = inner.call(request).await.map_err(Into::into)?;
                        response
                            .headers_mut()
                            .insert("x-layer", HeaderValue::from_static("up"));
                        Ok(response)
                    }
                    TestLayer::AnswerItself => {
                        let mut response = Response::new(Body::full("layer"));
                        *response.status_mut() = StatusCode::IM_A_TEAPOT;
                        Ok(response)
                    }
                    TestLayer::Timeout(after) => {
                        match tokio::time::timeout(after, inner.call(request)).await {
                            Ok(response) => response.map_err(Into::into),
                            Err(_) => {
                                let mut response = Response::new(Body::full("too late"));
                                *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
                                Ok(response)
                            }
                        }
                    }
                    TestLayer::Fail => Err("no".into()),
                    TestLayer::CallTwice => {
                        let first = inner.call(request).await.map_err(Into::into)?;
                        inner
                            .call(Request::new(first.into_body()))
                            .await
                            .map_err(Into::into)
                    }
                }
            })
        }
    }

    async fn ask(layer: TestLayer, delay: Option<Duration>) -> (Answer, Arc<FakeUpstream>, u32) {
        let upstream = Arc::new(FakeUpstream {
            delay,
            ..FakeUpstream::default()
        });
        let chain = TestChain::new(vec![Arc::new(TowerFilter::new(0, layer))])
            .terminal(Arc::new(Arc::clone(&upstream)));
        let answer = chain.request(Method::GET, "/", &[]).await;
        let logs = chain.logs();
        (answer, upstream, logs)
    }

    #[tokio::test]
    async fn a_layer_sees_both_ways() {
        let (answer, upstream, logs) = ask(TestLayer::Headers, None).await;
        assert_eq!((answer.status(), answer.text()), (200, "upstream"));
        assert_eq!(answer.header("x-layer"), Some("up"));
        assert_eq!(logs, 1);
        let requests = upstream.requests.lock();
        assert_eq!(requests[0].0.headers["x-layer"], "down");
        assert_eq!(requests[0].0.path, "/changed?x=1");
        assert_eq!(requests[0].0.authority, "a.test");
        assert!(!requests[0].0.headers.contains_key(HOST));
        assert_eq!(
            Arc::strong_count(&answer.stream),
            1,
            "nothing holds the stream"
        );
    }

    #[tokio::test]
    async fn a_layer_may_answer() {
        let (answer, upstream, _) = ask(TestLayer::AnswerItself, None).await;
        assert_eq!((answer.status(), answer.text()), (418, "layer"));
        assert!(upstream.requests.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_layers_timers_run_while_the_rest_works() {
        let (answer, _, logs) = ask(
            TestLayer::Timeout(Duration::from_secs(1)),
            Some(Duration::from_secs(5)),
        )
        .await;
        assert_eq!((answer.status(), answer.text()), (504, "too late"));
        assert_eq!(logs, 1);
        assert_eq!(Arc::strong_count(&answer.stream), 1);
    }

    #[tokio::test]
    async fn an_error_is_a_reply() {
        for layer in [TestLayer::Fail, TestLayer::CallTwice] {
            let (answer, _, logs) = ask(layer, None).await;
            assert_eq!(answer.status(), 500);
            assert_eq!(answer.details(), "tower_layer_error");
            assert_eq!(logs, 1);
        }
    }

    #[tokio::test]
    async fn layers_of_tower_itself_fit() {
        let layer = tower::util::MapResponseLayer::new(|mut response: Response<Body>| {
            *response.status_mut() = StatusCode::ACCEPTED;
            response
        });
        let chain = TestChain::new(vec![Arc::new(TowerFilter::new(0, Named(layer)))]);
        assert_eq!(chain.get("/").await.status(), 202);
    }

    /// `MapResponseLayer` of a closure has a `Debug`, but closures that are not `Clone` do not nest: as is.
    #[derive(Clone)]
    struct Named<L>(L);

    impl<L> fmt::Debug for Named<L> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Named")
        }
    }

    impl<S, L: Layer<S>> Layer<S> for Named<L> {
        type Service = L::Service;
        fn layer(&self, inner: S) -> L::Service {
            self.0.layer(inner)
        }
    }
}
