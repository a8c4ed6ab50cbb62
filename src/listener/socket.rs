//! Opening listening sockets: one a worker with `SO_REUSEPORT`, bound by the control side, which keeps them.
//!
//! The kernel spreads connections over the sockets of a port; each worker accepts from a duplicate of its own. Since
//! the originals stay open on the control side, a listener update loses no connection that waits in a queue.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::config::Listener;
use crate::config::endpoint::Address;

/// The kernel's default on Linux since 5.4; Envoy leaves it to the system too.
const DEFAULT_BACKLOG: i32 = 4096;

/// The sockets of one address, one a worker.
#[derive(Debug)]
pub(super) enum Sockets {
    /// TCP, with the address that was bound (its port is never 0).
    Tcp(Vec<std::net::TcpListener>, SocketAddr),
    /// A unix socket: one, shared by the workers.
    Unix(UnixListener),
}

impl Sockets {
    /// Binds `address` as `listener` asks, for `workers` workers.
    pub(super) fn bind(address: &Address, listener: &Listener, workers: usize) -> io::Result<Self> {
        let backlog = listener.backlog.map_or(DEFAULT_BACKLOG, |backlog| {
            i32::try_from(backlog).unwrap_or(i32::MAX)
        });
        match address {
            Address::Socket(address) => bind_tcp(*address, listener, backlog, workers),
            Address::Pipe(path) => bind_unix(path, listener.pipe_mode, backlog).map(Self::Unix),
            Address::Name(name, _) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("malformed IP address: {name}"),
            )),
        }
    }

    /// A duplicate for worker `index`.
    pub(super) fn duplicate(&self, index: usize) -> io::Result<StdAcceptor> {
        Ok(match self {
            Self::Tcp(sockets, _) => StdAcceptor::Tcp(sockets[index % sockets.len()].try_clone()?),
            Self::Unix(socket) => StdAcceptor::Unix(socket.try_clone()?),
        })
    }

    /// The address that was bound; `None` for a unix socket.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(_, address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

/// A listening socket on its way to a worker.
#[derive(Debug)]
pub(super) enum StdAcceptor {
    Tcp(std::net::TcpListener),
    Unix(UnixListener),
}

fn bind_tcp(
    address: SocketAddr,
    listener: &Listener,
    backlog: i32,
    workers: usize,
) -> io::Result<Sockets> {
    let reuse_port = listener.reuse_port;
    let mut address = address;
    let mut sockets = Vec::new();
    for _ in 0..if reuse_port { workers } else { 1 } {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        if reuse_port {
            socket.set_reuse_port(true)?;
        }
        if address.is_ipv6() {
            socket.set_only_v6(!listener.ipv4_compat)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        // The first socket settles port 0 for the others.
        address = socket.local_addr()?.as_socket().unwrap_or(address);
        sockets.push(socket);
    }
    // All are bound before the first listens: no connection can meet a half-made group.
    let mut listening = Vec::new();
    for socket in sockets {
        socket.listen(backlog)?;
        listening.push(std::net::TcpListener::from(socket));
    }
    Ok(Sockets::Tcp(listening, address))
}

fn bind_unix(path: &Path, mode: Option<u32>, backlog: i32) -> io::Result<UnixListener> {
    let abstract_name = path.to_str().and_then(|path| path.strip_prefix('@'));
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let address = match abstract_name {
        Some(name) => SockAddr::unix(format!("\0{name}"))?,
        None => {
            // A socket left behind by a process that ended would fail the bind; Envoy removes it too.
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            SockAddr::unix(path)?
        }
    };
    socket.bind(&address)?;
    socket.set_nonblocking(true)?;
    if let (None, Some(mode)) = (abstract_name, mode) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    socket.listen(backlog)?;
    Ok(UnixListener::from(std::os::fd::OwnedFd::from(socket)))
}
