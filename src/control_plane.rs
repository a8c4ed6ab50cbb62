//! A control plane of our own: for the demonstration (`plenipo control-plane DIR --listen ADDR`) and for tests.
//!
//! It serves what it is given over every gRPC transport of xDS (aggregated and per type, state of the world and
//! delta) and follows the rules of real servers that bite a client: stale nonces are ignored, one response of a type
//! is out at a time, nothing is resent after a refusal until it changes, a wildcard is an empty first subscription
//! or `*`, the first request of a stream must say who asks.
//!
//! * `store`: what is served, to whom, and what clients said.
//! * `session`: one stream as a pure machine.
//! * `service`: the gRPC server.
//! * `folder`: files to resources, and the command.

mod folder;
mod service;
mod session;
mod store;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

pub use folder::{ServedFolder, serve_folder};
pub use store::{Answer, Event, Rules};

use crate::base::task::OwnedTask;
use crate::pb;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use store::{Raw, Store};

/// A running control plane. Dropping it closes its socket and every stream.
#[derive(Debug)]
pub struct ControlPlane {
    address: SocketAddr,
    store: Arc<Store>,
    _task: OwnedTask,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq)]
pub enum ReceivedRequest {
    /// State of the world.
    Sotw(DiscoveryRequest),
    /// Delta.
    Delta(DeltaDiscoveryRequest),
}

impl ReceivedRequest {
    /// The type asked for.
    pub fn type_url(&self) -> &str {
        match self {
            Self::Sotw(request) => &request.type_url,
            Self::Delta(request) => &request.type_url,
        }
    }

    /// The nonce answered; empty for a spontaneous request.
    pub fn nonce(&self) -> &str {
        match self {
            Self::Sotw(request) => &request.response_nonce,
            Self::Delta(request) => &request.response_nonce,
        }
    }
}

impl ControlPlane {
    /// Serves on `listener`, on the current runtime, and records what clients say.
    ///
    /// # Errors
    /// The socket's address cannot be read.
    pub fn start(listener: TcpListener) -> std::io::Result<Self> {
        Self::start_with(
            listener,
            Rules {
                record: true,
                ..Rules::default()
            },
        )
    }

    /// As [`ControlPlane::start`], with rules of one's own.
    ///
    /// # Errors
    /// The socket's address cannot be read.
    pub fn start_with(listener: TcpListener, rules: Rules) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let store = Arc::new(Store::new(rules));
        let task = OwnedTask::spawn(
            "control_plane",
            service::serve(listener, Arc::clone(&store)),
        );
        Ok(Self {
            address,
            store,
            _task: task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces every resource of a type, for every client, and tells those who subscribed. A resource whose name
    /// cannot be read is served under its position.
    pub fn set_resources(&self, type_url: &str, resources: Vec<pb::Any>, version: &str) {
        self.store.set(None, type_url, resources, version);
    }

    /// As [`ControlPlane::set_resources`], for one node: these override the shared ones by name.
    pub fn set_node_resources(
        &self,
        node: &str,
        type_url: &str,
        resources: Vec<pb::Any>,
        version: &str,
    ) {
        self.store.set(Some(node), type_url, resources, version);
    }

    /// Sends a response as it is on every open state-of-the-world stream that asked for its type, whatever is out
    /// already; an empty nonce is filled in.
    pub fn push(&self, response: DiscoveryResponse) {
        self.store.push(Raw::Sotw(response));
    }

    /// As [`ControlPlane::push`], on delta streams.
    pub fn push_delta(&self, response: DeltaDiscoveryResponse) {
        self.store.push(Raw::Delta(response));
    }

    /// Ends every open stream with `UNAVAILABLE`; clients may come back.
    pub fn disconnect(&self) {
        self.store.disconnect();
    }

    /// Waits for the next answer to a response of this type that was not yet looked at.
    pub async fn next_answer(&self, type_url: &str) -> Answer {
        self.store
            .take(|event| match event {
                Event::Answered(answer) if *answer.type_url == *type_url => Some(answer.clone()),
                _ => None,
            })
            .await
    }

    /// Waits for the next answer of this type.
    ///
    /// # Errors
    /// The answer, where it is a refusal.
    pub async fn expect_ack(&self, type_url: &str) -> Result<Answer, Box<Answer>> {
        let answer = self.next_answer(type_url).await;
        if answer.error.is_none() {
            Ok(answer)
        } else {
            Err(Box::new(answer))
        }
    }

    /// Waits for the next answer of this type.
    ///
    /// # Errors
    /// The answer, where it is an acknowledgement.
    pub async fn expect_nack(&self, type_url: &str) -> Result<Answer, Box<Answer>> {
        let answer = self.next_answer(type_url).await;
        if answer.error.is_some() {
            Ok(answer)
        } else {
            Err(Box::new(answer))
        }
    }

    /// Waits for the next request of this type that was not yet looked at.
    pub async fn next_request(&self, type_url: &str) -> ReceivedRequest {
        self.store
            .take(|event| match event {
                Event::Request(request) if request.type_url() == type_url => {
                    Some((**request).clone())
                }
                _ => None,
            })
            .await
    }

    /// Waits for the next stream to open; the node that opened it.
    pub async fn next_stream(&self) -> pb::Node {
        self.store
            .take(|event| match event {
                Event::Opened(node) => Some((**node).clone()),
                _ => None,
            })
            .await
    }

    /// What was recorded and not yet taken, in order.
    pub fn events(&self) -> Vec<Event> {
        self.store.events()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.store.close();
    }
}

#[cfg(test)]
mod tests;
