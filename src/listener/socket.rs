//! Opening listening sockets: one a worker with `SO_REUSEPORT`, bound by the control side, which keeps them.
//!
//! The kernel spreads connections over the sockets of a port; each worker accepts from a duplicate of its own. The
//! originals stay open on the control side as long as any listener has the address: no connection that waits in a queue
//! is lost to an update of the listener, or to its new name.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::config::Listener;
use crate::config::endpoint::Address;

/// The kernel's default on Linux since 5.4; Envoy leaves it to the system too.
const DEFAULT_BACKLOG: i32 = 4096;

/// The sockets of one address, one a worker.
#[derive(Debug)]
pub(super) struct Sockets {
    opened: Opened,
    kind: Kind,
}

#[derive(Debug)]
enum Opened {
    /// TCP, with the address that was bound (its port is never 0).
    Tcp(Vec<std::net::TcpListener>, SocketAddr),
    /// A unix socket: one, shared by the workers.
    Unix(UnixListener),
}

/// What of a socket is settled when it is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    reuse_port: bool,
    ipv4_compat: bool,
    pipe_mode: Option<u32>,
}

impl Kind {
    fn of(listener: &Listener) -> Self {
        Self {
            reuse_port: listener.reuse_port,
            ipv4_compat: listener.ipv4_compat,
            pipe_mode: listener.pipe_mode,
        }
    }
}

fn backlog(listener: &Listener) -> i32 {
    listener.backlog.map_or(DEFAULT_BACKLOG, |backlog| {
        i32::try_from(backlog).unwrap_or(i32::MAX)
    })
}

impl Sockets {
    /// Binds `address` as `listener` asks, for `workers` workers.
    pub(super) fn bind(address: &Address, listener: &Listener, workers: usize) -> io::Result<Self> {
        let backlog = backlog(listener);
        let opened = match address {
            Address::Socket(address) => bind_tcp(*address, listener, backlog, workers)?,
            Address::Pipe(path) => Opened::Unix(bind_unix(path, listener.pipe_mode, backlog)?),
            Address::Name(name, _) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("malformed IP address: {name}"),
                ));
            }
        };
        Ok(Self {
            opened,
            kind: Kind::of(listener),
        })
    }

    /// True where `listener` would bind the same address with sockets like these.
    pub(super) fn suit(&self, listener: &Listener) -> bool {
        self.kind == Kind::of(listener)
    }

    /// The same sockets once more, for `listener`: their queues are shared, and stay when the first are closed.
    pub(super) fn share(&self, listener: &Listener) -> io::Result<Self> {
        let opened = match &self.opened {
            Opened::Tcp(sockets, address) => {
                let sockets = sockets
                    .iter()
                    .map(|socket| {
                        SockRef::from(socket).listen(backlog(listener))?;
                        socket.try_clone()
                    })
                    .collect::<io::Result<_>>()?;
                Opened::Tcp(sockets, *address)
            }
            Opened::Unix(socket) => Opened::Unix(socket.try_clone()?),
        };
        Ok(Self {
            opened,
            kind: self.kind,
        })
    }

    /// Makes the address free for others at once, though workers may hold duplicates yet.
    pub(super) fn stop_listening(&self) {
        if let Opened::Tcp(sockets, _) = &self.opened {
            for socket in sockets {
                let _ = SockRef::from(socket).shutdown(std::net::Shutdown::Both);
            }
        }
    }

    /// A duplicate for worker `index`.
    pub(super) fn duplicate(&self, index: usize) -> io::Result<StdAcceptor> {
        Ok(match &self.opened {
            Opened::Tcp(sockets, _) => {
                StdAcceptor::Tcp(sockets[index % sockets.len()].try_clone()?)
            }
            Opened::Unix(socket) => StdAcceptor::Unix(socket.try_clone()?),
        })
    }

    /// The address that was bound; `None` for a unix socket.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        match &self.opened {
            Opened::Tcp(_, address) => Some(*address),
            Opened::Unix(_) => None,
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
) -> io::Result<Opened> {
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
    Ok(Opened::Tcp(listening, address))
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
