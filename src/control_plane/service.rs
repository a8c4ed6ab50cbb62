//! The gRPC server: which method is which type and encoding, and the task of one stream.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::BoxStream;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::metadata::AsciiMetadataValue;
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use super::ReceivedRequest;
use super::session::{Out, Session};
use super::store::{Event, Store};
use crate::base::task;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::xds::ResourceType;
use crate::xds::transport::Wire;

const AGGREGATED: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/";

/// Serves until the store closes.
pub(super) async fn serve(listener: TcpListener, store: Arc<Store>) {
    let mut signal = store.signal();
    let closed = async move {
        // The store outlives its signal's receivers.
        let _ = signal.wait_for(|signal| signal.closed).await;
    };
    let served = tonic::transport::Server::builder()
        .serve_with_incoming_shutdown(Discovery(store), TcpListenerStream::new(listener), closed)
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "control plane stopped");
    }
}

/// All discovery services.
#[derive(Clone)]
struct Discovery(Arc<Store>);

/// The type (`None`: aggregated) and encoding of a method.
fn method(path: &str) -> Option<(Option<ResourceType>, bool)> {
    if let Some(method) = path.strip_prefix(AGGREGATED) {
        return match method {
            "StreamAggregatedResources" => Some((None, false)),
            "DeltaAggregatedResources" => Some((None, true)),
            _ => None,
        };
    }
    ResourceType::ALL
        .into_iter()
        .flat_map(|kind| [(kind, false), (kind, true)])
        .find(|(kind, delta)| kind.method(*delta) == path)
        .map(|(kind, delta)| (Some(kind), delta))
}

impl tower::Service<http::Request<Body>> for Discovery {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let store = Arc::clone(&self.0);
        let method = method(request.uri().path());
        Box::pin(async move {
            Ok(match method {
                None => Status::unimplemented("").into_http(),
                Some((kind, false)) => {
                    Grpc::new(Wire::<DiscoveryResponse, DiscoveryRequest>::default())
                        .max_decoding_message_size(usize::MAX)
                        .streaming(Open { store, kind }, request)
                        .await
                }
                Some((kind, true)) => {
                    Grpc::new(Wire::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default())
                        .max_decoding_message_size(usize::MAX)
                        .streaming(Open { store, kind }, request)
                        .await
                }
            })
        })
    }
}

/// Opens one stream.
struct Open {
    store: Arc<Store>,
    kind: Option<ResourceType>,
}

/// A request and the response that belongs to it: the two encodings.
trait Encoding: Message + Sized + 'static {
    const DELTA: bool;
    type Response: Message;
    fn wrap(self) -> ReceivedRequest;
    fn unwrap(out: Out) -> Option<Self::Response>;
}

impl Encoding for DiscoveryRequest {
    const DELTA: bool = false;
    type Response = DiscoveryResponse;
    fn wrap(self) -> ReceivedRequest {
        ReceivedRequest::Sotw(self)
    }
    fn unwrap(out: Out) -> Option<DiscoveryResponse> {
        match out {
            Out::Sotw(response) => Some(response),
            Out::Delta(_) => None,
        }
    }
}

impl Encoding for DeltaDiscoveryRequest {
    const DELTA: bool = true;
    type Response = DeltaDiscoveryResponse;
    fn wrap(self) -> ReceivedRequest {
        ReceivedRequest::Delta(self)
    }
    fn unwrap(out: Out) -> Option<DeltaDiscoveryResponse> {
        match out {
            Out::Sotw(_) => None,
            Out::Delta(response) => Some(response),
        }
    }
}

impl<E: Encoding> StreamingService<E> for Open
where
    E::Response: 'static,
{
    type Response = E::Response;
    type ResponseStream = BoxStream<'static, Result<E::Response, Status>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<E>>) -> Self::Future {
        if let Some((name, value)) = &self.store.rules.metadata
            && request
                .metadata()
                .get(name)
                .map(AsciiMetadataValue::as_bytes)
                != Some(value.as_bytes())
        {
            return std::future::ready(Err(Status::unauthenticated(name.clone())));
        }
        let (sender, receiver) = mpsc::channel(16);
        let session = Session::new(
            Arc::clone(&self.store),
            self.kind.map(ResourceType::type_url),
        );
        let store = Arc::clone(&self.store);
        // Ends with its stream: the client's end, the store's signal, or a receiver that is gone.
        task::spawn(
            "control_plane_stream",
            converse(store, session, request.into_inner(), sender),
        );
        let responses: Self::ResponseStream = Box::pin(ReceiverStream::new(receiver));
        std::future::ready(Ok(Response::new(responses)))
    }
}

/// One stream from beginning to end.
async fn converse<E: Encoding>(
    store: Arc<Store>,
    mut session: Session,
    mut requests: Streaming<E>,
    responses: mpsc::Sender<Result<E::Response, Status>>,
) {
    let mut signal = store.signal();
    let mut pushed = store.pushed();
    let begun = *signal.borrow_and_update();
    let status = 'stream: loop {
        let out = tokio::select! {
            request = requests.next() => match request {
                None => break None,
                Some(Err(status)) => break Some(status),
                Some(Ok(request)) => match session.request(request.wrap()) {
                    Ok(out) => out,
                    Err(reason) => break Some(Status::invalid_argument(reason)),
                },
            },
            changed = signal.changed() => {
                let now = *signal.borrow_and_update();
                if changed.is_err() || now.closed || now.epoch != begun.epoch {
                    break Some(Status::unavailable("the control plane goes away"));
                }
                session.changed(E::DELTA)
            }
            Ok(raw) = pushed.recv() => session.raw(raw, E::DELTA).into_iter().collect(),
            () = responses.closed() => break None,
        };
        for response in out.into_iter().filter_map(E::unwrap) {
            if responses.send(Ok(response)).await.is_err() {
                break 'stream None;
            }
        }
    };
    if let Some(status) = status {
        // The client may be gone already.
        let _ = responses.send(Err(status)).await;
    }
    if let Some(node) = session.node() {
        store.record(Event::Closed(Arc::clone(node)));
    }
}
