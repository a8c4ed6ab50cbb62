//! Connections to hosts: TCP and unix sockets, with the cluster's socket options, and why one could not be made.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use crate::config;
use crate::config::cluster::TcpKeepalive;
use crate::config::endpoint::Address;
use crate::http::codec::Io;

/// Why no connection could be made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The peer (or the way to it) refused.
    #[error("{0}")]
    Refused(Arc<io::Error>),
    /// Our own system refused before anything was sent: no route, no such socket, no descriptor left.
    #[error("{error} ({remote})")]
    Local {
        /// What it said.
        error: Arc<io::Error>,
        /// Where the connection was to go.
        remote: Address,
    },
    /// The source address of `upstream_bind_config` cannot be had.
    #[error("cannot bind: {0}")]
    Bind(Arc<io::Error>),
    /// `connect_timeout` passed.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// A name that was never resolved.
    #[error("the name has not been resolved")]
    Unresolved,
    /// The connection was made, but the peer does not speak the protocol.
    #[error("handshake: {0}")]
    Handshake(Box<str>),
}

impl ConnectError {
    /// True where the failure is ours and not the peer's.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Bind(_) | Self::Unresolved | Self::Timeout(_))
    }

    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%` as Envoy writes it; empty where it has none.
    pub fn transport_reason(&self) -> Box<str> {
        let text = |prefix: &str, error: &io::Error| format!("{prefix}: {}", reason(error));
        match self {
            Self::Refused(error) => text("delayed connect error", error).into(),
            Self::Local { error, remote } => {
                let text = text("immediate connect error", error);
                format!("{text}|remote_address:{remote}").into()
            }
            Self::Bind(error) => text("bind error", error).into(),
            Self::Timeout(_) | Self::Unresolved => "".into(),
            Self::Handshake(what) => what.clone(),
        }
    }
}

/// The system's own words (`Connection refused`), without the number that Rust adds.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_owned()
}

/// A fresh connection.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) io: Io,
    pub(super) local: Option<SocketAddr>,
    pub(super) remote: Option<SocketAddr>,
}

/// Connects to `address` within the cluster's `connect_timeout`.
pub(super) async fn connect(
    address: &Address,
    config: &config::Cluster,
) -> Result<Connected, ConnectError> {
    let limit = config.connect_timeout;
    match tokio::time::timeout(limit, connect_unlimited(address, config)).await {
        Ok(connected) => connected,
        Err(_) => Err(ConnectError::Timeout(limit)),
    }
}

async fn connect_unlimited(
    address: &Address,
    config: &config::Cluster,
) -> Result<Connected, ConnectError> {
    let failed = |error| failure(error, address);
    match address {
        Address::Socket(remote) => {
            let stream = match config.source_address {
                None => TcpStream::connect(*remote).await.map_err(failed)?,
                Some(source) => connect_from(source, *remote)?
                    .connect(*remote)
                    .await
                    .map_err(failed)?,
            };
            // Without it, a small frame waits for the peer's delayed acknowledgement.
            stream.set_nodelay(true).map_err(failed)?;
            if let Some(keepalive) = &config.tcp_keepalive {
                set_keepalive(&stream, keepalive).map_err(failed)?;
            }
            Ok(Connected {
                local: stream.local_addr().ok(),
                remote: Some(*remote),
                io: Io::Tcp(stream),
            })
        }
        Address::Pipe(path) => {
            let stream = match path.to_str().and_then(|path| path.strip_prefix('@')) {
                // The abstract namespace: tokio wants a leading zero byte.
                Some(name) => UnixStream::connect(format!("\0{name}")).await,
                None => UnixStream::connect(path).await,
            };
            Ok(Connected {
                io: Io::Unix(stream.map_err(failed)?),
                local: None,
                remote: None,
            })
        }
        Address::Name(..) => Err(ConnectError::Unresolved),
    }
}

fn connect_from(source: SocketAddr, remote: SocketAddr) -> Result<TcpSocket, ConnectError> {
    let bind = |error| ConnectError::Bind(Arc::new(error));
    let socket = if remote.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
    .map_err(bind)?;
    socket.bind(source).map_err(bind)?;
    Ok(socket)
}

fn set_keepalive(stream: &TcpStream, keepalive: &TcpKeepalive) -> io::Result<()> {
    let mut parameters = socket2::TcpKeepalive::new();
    if let Some(time) = keepalive.time {
        parameters = parameters.with_time(time);
    }
    if let Some(interval) = keepalive.interval {
        parameters = parameters.with_interval(interval);
    }
    if let Some(probes) = keepalive.probes {
        parameters = parameters.with_retries(probes);
    }
    SockRef::from(stream).set_tcp_keepalive(&parameters)
}

/// Tells what the kernel found out by itself from what the network answered: Envoy's "immediate" and "delayed".
fn failure(error: io::Error, address: &Address) -> ConnectError {
    let immediate = matches!(address, Address::Pipe(_))
        || matches!(
            error.kind(),
            io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::AddrNotAvailable
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::InvalidInput
        )
        || matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
    let error = Arc::new(error);
    if immediate {
        ConnectError::Local {
            error,
            remote: address.clone(),
        }
    } else {
        ConnectError::Refused(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_as_envoy_writes_them() {
        let refused = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        let missing = io::Error::from_raw_os_error(libc::ENOENT);
        let tcp = Address::Socket(([127, 0, 0, 1], 1).into());
        let pipe = Address::Pipe("/run/none.sock".into());
        assert_eq!(
            &*failure(refused, &tcp).transport_reason(),
            "delayed connect error: Connection refused"
        );
        assert_eq!(
            &*failure(missing, &pipe).transport_reason(),
            "immediate connect error: No such file or directory|remote_address:/run/none.sock"
        );
        let unreachable = io::Error::from_raw_os_error(libc::ENETUNREACH);
        assert!(matches!(
            failure(unreachable, &tcp),
            ConnectError::Local { .. }
        ));
    }
}
