//! A connection to a host for the bytes of one downstream connection: no pool, no requests.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::connect::{self, ConnectError};
use super::connection::Connection;
use super::send::{Pending, UpstreamConnection};
use super::stats::cluster as stat;
use super::{Cluster, Host};
use crate::http::codec::Io;

/// A connection to a host, counted as long as it lives.
#[derive(Debug)]
pub struct TcpConnection {
    io: Io,
    connection: Box<Connection>,
    facts: UpstreamConnection,
}

impl Cluster {
    /// Connects to `host` within the cluster's `connect_timeout`. Dropping the future gives the attempt up.
    ///
    /// # Errors
    /// Why there is no connection.
    pub async fn connect_tcp(&self, host: &Arc<Host>) -> Result<TcpConnection, ConnectError> {
        let mut pending = Pending::new(&self.live, host);
        let mut connection = Connection::tcp(&self.live, host);
        let connected = connect::connect(&host.connect_address(), &self.config).await;
        pending.resolved(connected.is_ok());
        match connected {
            Ok(connected) => {
                connection.established(&connected);
                let facts = connection.begin();
                Ok(TcpConnection {
                    io: connected.io,
                    connection,
                    facts,
                })
            }
            Err(error) => {
                connection.failed(&error);
                Err(error)
            }
        }
    }

    /// Counts a downstream connection that was given up after as many attempts as it may make.
    pub fn attempts_exceeded(&self) {
        self.live
            .stats
            .set
            .inc(stat::UPSTREAM_CX_CONNECT_ATTEMPTS_EXCEEDED);
    }
}

impl TcpConnection {
    /// What is known of it.
    pub fn facts(&self) -> &UpstreamConnection {
        &self.facts
    }

    /// The peer ended it.
    pub fn closed_by_peer(&mut self) {
        self.connection.closed_by_peer();
    }

    /// Makes the coming close a reset.
    pub fn reset_on_close(&self) {
        self.io.reset_on_close();
    }

    /// Reads.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buffer);
        self.connection
            .meter()
            .add_received(buffer.filled().len() - before);
        result
    }

    /// Writes.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, data);
        if let Poll::Ready(Ok(written)) = &result {
            self.connection.meter().add_sent(*written);
        }
        result
    }

    /// Ends what is sent to the host.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Drop for TcpConnection {
    fn drop(&mut self) {
        self.connection.end();
        self.connection.ended_in_use();
    }
}
