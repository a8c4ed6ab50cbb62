//! The accept loop of one socket on one worker.
//!
//! It never ends because of an error: running out of file descriptors, or a client that left before it was accepted,
//! costs a pause, not the listener.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};

use super::connection::{self, Entrance, ServeContext};
use super::socket::StdAcceptor;
use crate::base::drain::DrainWatch;
use crate::base::task;
use crate::http::codec::Io;

/// How long the loop rests when the process has no file descriptor or memory left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Acceptor {
    async fn accept(&self) -> io::Result<(Io, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, remote) = listener.accept().await?;
                // Small writes must not wait for acknowledgements: gRPC stalls of 40 ms otherwise.
                let _ = stream.set_nodelay(true);
                Ok((Io::Tcp(stream), Some(remote)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Io::Unix(stream), None))
            }
        }
    }
}

/// Accepts until `stop`; then takes what still waits in the queue, and ends.
///
/// # Errors
/// Where the socket cannot be registered with the worker's runtime.
pub(super) fn start(
    context: Arc<ServeContext>,
    entrance: Arc<Entrance>,
    acceptor: StdAcceptor,
    mut stop: DrainWatch,
) -> io::Result<()> {
    let acceptor = match acceptor {
        StdAcceptor::Tcp(socket) => Acceptor::Tcp(TcpListener::from_std(socket)?),
        StdAcceptor::Unix(socket) => Acceptor::Unix(UnixListener::from_std(socket)?),
    };
    task::spawn("accept", async move {
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = acceptor.accept() => accepted,
                () = stop.draining() => return,
            };
            match accepted {
                Ok((io, remote)) => {
                    task::spawn(
                        "connection",
                        connection::serve(Arc::clone(&context), Arc::clone(&entrance), io, remote),
                    );
                }
                // The client left before it was accepted.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted
                            | io::ErrorKind::ConnectionReset
                            | io::ErrorKind::Interrupted
                    ) => {}
                // The address was made free for another listener.
                Err(_) if stop.is_draining() => return,
                Err(error) => {
                    tracing::warn!(target: "connection", listener = %entrance.listener, %error, "accept failed; resting");
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    });
    Ok(())
}
