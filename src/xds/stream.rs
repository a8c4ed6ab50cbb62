//! The task of one gRPC stream: it connects, opens the stream, moves messages, and begins anew when it breaks.
//!
//! Between attempts it waits with full jitter, from 500 ms to 30 s, beginning anew after the first response.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;

use super::ResourceType;
use super::ads::{Request, Response};
use super::client::Event;
use super::engine::ChannelId;
use super::transport::{Target, Wire};
use crate::base::backoff::Backoff;

const BACKOFF_BASE: Duration = Duration::from_millis(500);
const BACKOFF_CAP: Duration = Duration::from_secs(30);

/// What a stream's task needs.
pub(super) struct Stream {
    pub(super) channel: ChannelId,
    pub(super) target: Target,
    pub(super) delta: bool,
    /// `None` is the aggregated stream.
    pub(super) kind: Option<ResourceType>,
    pub(super) events: mpsc::Sender<Event>,
}

impl Stream {
    /// Runs until it is dropped, or nobody listens.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_CAP);
        loop {
            let reason = match self.target.connect().await {
                Err(error) => format!("{}, {error}", i32::from(tonic::Code::Unavailable)),
                Ok(channel) => {
                    let grpc = Grpc::with_origin(channel, self.target.origin())
                        .max_decoding_message_size(usize::MAX);
                    let status = if self.delta {
                        self.exchange(
                            grpc,
                            &mut backoff,
                            |request| match request {
                                Request::Delta(request) => Some(request),
                                Request::Sotw(_) => None,
                            },
                            Response::Delta,
                        )
                        .await
                    } else {
                        self.exchange(
                            grpc,
                            &mut backoff,
                            |request| match request {
                                Request::Sotw(request) => Some(request),
                                Request::Delta(_) => None,
                            },
                            Response::Sotw,
                        )
                        .await
                    };
                    match status {
                        Ok(()) => "0, ".to_owned(),
                        Err(status) => {
                            format!("{}, {}", i32::from(status.code()), status.message())
                        }
                    }
                }
            };
            // Worded as Envoy's, which log matchers know.
            tracing::warn!(
                "{} gRPC config stream to {} closed: {reason}",
                self.path().rsplit('/').next().unwrap_or_default(),
                self.target.name(),
            );
            let event = Event::Closed(self.channel);
            if self.events.send(event).await.is_err() {
                return;
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// One stream, from its first request to its end.
    async fn exchange<E, D>(
        &self,
        mut grpc: Grpc<tonic::transport::Channel>,
        backoff: &mut Backoff,
        encode: fn(Request) -> Option<E>,
        decode: fn(D) -> Response,
    ) -> Result<(), tonic::Status>
    where
        E: prost::Message + 'static,
        D: prost::Message + Default + 'static,
    {
        grpc.ready()
            .await
            .map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let (sender, receiver) = mpsc::unbounded_channel();
        // Servers send their head with the first response, so requests must flow before it is waited for.
        if self
            .events
            .send(Event::Opened(self.channel, sender))
            .await
            .is_err()
        {
            return Ok(());
        }
        let requests = UnboundedReceiverStream::new(receiver).filter_map(encode);
        let mut request = tonic::Request::new(requests);
        *request.metadata_mut() = self.target.metadata();
        let path = PathAndQuery::from_static(self.path());
        let mut responses = grpc
            .streaming(request, path, Wire::<E, D>::default())
            .await?
            .into_inner();
        while let Some(response) = responses.message().await? {
            backoff.reset();
            let event = Event::Received(self.channel, decode(response));
            if self.events.send(event).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The gRPC method.
    fn path(&self) -> &'static str {
        match self.kind {
            Some(kind) => kind.method(self.delta),
            None if self.delta => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
            }
            None => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
            }
        }
    }
}
