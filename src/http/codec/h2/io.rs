//! [`HyperIo`]: our byte stream in hyper's terms, with what was read before the protocol was known.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use hyper::rt::ReadBufCursor;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::super::{ConnectionMeter, Ending, Io};

/// One read goes through this much stack: hyper's buffer cannot be handed to tokio without unsafe code.
const READ: usize = 16 << 10;

/// A byte stream for hyper, counted.
#[derive(Debug)]
pub(super) struct HyperIo {
    io: Io,
    first: Bytes,
    meter: Arc<ConnectionMeter>,
}

impl HyperIo {
    /// `first`: bytes that were read from `io` already, and counted.
    pub(super) fn new(io: Io, first: Bytes, meter: Arc<ConnectionMeter>) -> Self {
        Self { io, first, meter }
    }

    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = &polled {
            self.meter.add_sent(*count);
        }
        polled
    }
}

impl hyper::rt::Read for HyperIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let count = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first[..count]);
            self.first.advance(count);
            return Poll::Ready(Ok(()));
        }
        let mut memory = [const { MaybeUninit::<u8>::uninit() }; READ];
        let room = buf.remaining().min(READ);
        let mut read = ReadBuf::uninit(&mut memory[..room]);
        let result = ready!(Pin::new(&mut self.io).poll_read(cx, &mut read));
        if result.is_err() || (room > 0 && read.filled().is_empty()) {
            self.meter.set_ending(Ending::Peer);
        }
        result?;
        self.meter.add_received(read.filled().len());
        buf.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for HyperIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
