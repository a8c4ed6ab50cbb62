//! [`Io`]: the byte stream below a codec, of any kind that a listener accepts or a cluster connects.
//!
//! Closed set, no boxing of what is usual: the codecs are compiled once, and a further transport (TLS) is a further arm.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// What stands between a socket and a codec, and may change what passes.
pub trait Layer: AsyncRead + AsyncWrite + fmt::Debug + Unpin + Send + Sync {
    /// As [`Io::reset_on_close`].
    fn reset_on_close(&self);
}

/// A connected byte stream. Whoever makes it sets its socket options (`TCP_NODELAY` above all).
#[derive(Debug)]
pub enum Io {
    /// TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
    /// Memory: internal listeners and tests.
    Memory(DuplexStream),
    /// Another byte stream, behind what changes it.
    Layered(Box<dyn Layer>),
}

impl Io {
    /// Our end; `None` but for TCP.
    pub fn local_addr(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok(),
            Self::Unix(_) | Self::Memory(_) | Self::Layered(_) => None,
        }
    }

    /// Makes the coming close a reset, so that the peer does not take what it got for all there was.
    pub(crate) fn reset_on_close(&self) {
        match self {
            Self::Tcp(stream) => {
                let _ = stream.set_zero_linger();
            }
            Self::Layered(layer) => layer.reset_on_close(),
            Self::Unix(_) | Self::Memory(_) => {}
        }
    }
}

macro_rules! each {
    ($self:expr, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Io::Tcp($io) => $call,
            Io::Unix($io) => $call,
            Io::Memory($io) => $call,
            Io::Layered($io) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        !matches!(self, Self::Memory(_))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

impl From<TcpStream> for Io {
    fn from(io: TcpStream) -> Self {
        Self::Tcp(io)
    }
}

impl From<UnixStream> for Io {
    fn from(io: UnixStream) -> Self {
        Self::Unix(io)
    }
}

impl From<DuplexStream> for Io {
    fn from(io: DuplexStream) -> Self {
        Self::Memory(io)
    }
}
