//! The byte streams below our two sides of HTTP/2, counted.
//!
//! The library writes each frame of data with a system call of its own, and asks for it to be on its way before it goes
//! on. Where many streams are answered at once, [`Gathered`] makes one call of it: small frames wait until the connection
//! has nothing more to say, which its task then tells by [`Gathered::poll_out`].

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::{ConnectionMeter, Ending, Io};
use crate::base::WorkerCell;

/// A byte stream, with what was read from it before the protocol was known.
#[derive(Debug)]
pub(super) struct Metered {
    io: Io,
    first: Bytes,
    /// The peer sends no more.
    ended: bool,
    meter: Arc<ConnectionMeter>,
}

impl Metered {
    /// `first`: bytes that were read from `io` already, and counted.
    pub(super) fn new(io: Io, first: Bytes, meter: Arc<ConnectionMeter>) -> Self {
        Self {
            io,
            first,
            ended: false,
            meter,
        }
    }

    /// Reads what was not read ahead.
    fn poll_more(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        let count = buf.filled().len() - before;
        if result.is_err() || (count == 0 && buf.remaining() > 0) {
            self.ended = true;
            self.meter.set_ending(Ending::Peer);
        }
        self.meter.add_received(count);
        Poll::Ready(result)
    }

    /// Reads on for a reader that does not, as far as there is room, so that the peer's end is seen.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) {
        let mut room = [0; 2 << 10];
        while !self.ended && self.first.len() < AHEAD {
            let mut buf = ReadBuf::new(&mut room);
            if self.poll_more(cx, &mut buf).is_pending() {
                return;
            }
            self.first = [&self.first, buf.filled()].concat().into();
        }
    }

    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = &polled {
            self.meter.add_sent(*count);
        }
        polled
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let count = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first[..count]);
            self.first.advance(count);
            return Poll::Ready(Ok(()));
        }
        self.poll_more(cx, buf)
    }
}

impl AsyncWrite for Metered {
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
        bufs: &[IoSlice<'_>],
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

/// So much is read ahead of the library at most.
const AHEAD: usize = 16 << 10;
/// So much at once is written without a copy.
const DIRECT: usize = 4 << 10;
/// So much waits at most.
const MOST: usize = 32 << 10;
/// So much memory is kept for the next time.
const KEPT: usize = 4 << 10;
/// More slices than the library ever has at once, and one of our own.
const SLICES: usize = 8;

/// The library's end of a byte stream whose small writes wait for their like. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Gathered(Arc<WorkerCell<Gathering>>);

#[derive(Debug)]
struct Gathering {
    io: Metered,
    waiting: Vec<u8>,
    /// So much of it is written.
    written: usize,
    /// The byte stream took less than all: nothing is added before it has taken the rest. Where nothing waits here, the
    /// rest is the library's, which tries again by itself.
    blocked: bool,
    /// The library is told that there is nothing to read.
    paused: bool,
    /// The library has read all there was, since this was taken away.
    read: bool,
}

impl Gathered {
    pub(super) fn new(io: Metered) -> Self {
        Self(Arc::new(WorkerCell::new(Gathering {
            io,
            waiting: Vec::new(),
            written: 0,
            blocked: false,
            paused: false,
            read: false,
        })))
    }

    /// Writes what waits. Pending also where the library's own last write was.
    pub(super) fn poll_out(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.0.lock();
        ready!(this.poll_waiting(cx))?;
        match this.blocked {
            true => Poll::Pending,
            false => Poll::Ready(Ok(())),
        }
    }

    /// Before the library is polled. `paused`: it is to read nothing. Gives back whether it was told so before, and thus may
    /// have asked for a wake-up that does not come.
    pub(super) fn pace(&self, paused: bool) -> bool {
        let mut this = self.0.lock();
        this.read = false;
        std::mem::replace(&mut this.paused, paused)
    }

    /// After that, while [`Gathered::poll_out`] is pending: whether the peer is gone. The library does not read on where it
    /// must write before, and would learn of that when the socket takes something, which is never.
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> bool {
        let mut this = self.0.lock();
        if !this.read {
            this.io.poll_ahead(cx);
        }
        this.io.ended
    }
}

impl Gathering {
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.waiting.len() {
            let waiting = &self.waiting[self.written..];
            let polled = Pin::new(&mut self.io).poll_write(cx, waiting);
            self.blocked = polled.is_pending();
            match ready!(polled)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.clear();
        Poll::Ready(Ok(()))
    }

    fn clear(&mut self) {
        self.waiting.clear();
        self.waiting.shrink_to(KEPT);
        self.written = 0;
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.blocked {
            ready!(self.poll_waiting(cx))?;
            self.blocked = false;
        }
        let size = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if size < DIRECT && self.waiting.len() + size <= MOST {
            for buf in bufs {
                self.waiting.extend_from_slice(buf);
            }
            return Poll::Ready(Ok(size));
        }
        while self.written < self.waiting.len() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            slices[0] = IoSlice::new(&self.waiting[self.written..]);
            let count = bufs.len().min(SLICES - 1);
            slices[1..=count].copy_from_slice(&bufs[..count]);
            let polled = Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..=count]);
            self.blocked = polled.is_pending();
            let count = ready!(polled)?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let ours = count.min(self.waiting.len() - self.written);
            self.written += ours;
            if count > ours {
                self.clear();
                return Poll::Ready(Ok(count - ours));
            }
        }
        self.clear();
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.blocked = polled.is_pending();
        polled
    }
}

impl AsyncRead for Gathered {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut this = self.0.lock();
        if this.paused {
            return Poll::Pending;
        }
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        this.read |= polled.is_pending();
        polled
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.lock().io.is_write_vectored()
    }

    /// What waits goes on its way by [`Gathered::poll_out`].
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.0.lock();
        ready!(this.poll_waiting(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn gathered(room: usize) -> (Gathered, tokio::io::DuplexStream, Arc<ConnectionMeter>) {
        let (ours, theirs) = tokio::io::duplex(room);
        let meter = Arc::<ConnectionMeter>::default();
        let io = Metered::new(ours.into(), Bytes::new(), Arc::clone(&meter));
        (Gathered::new(io), theirs, meter)
    }

    async fn write(io: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
        tokio::io::AsyncWriteExt::write_all(io, bytes)
            .await
            .expect("written");
    }

    #[tokio::test]
    async fn small_writes_wait_for_each_other() {
        let (mut io, mut peer, meter) = gathered(1 << 20);
        let mut expected = Vec::new();
        for round in 0..3_u8 {
            for size in [1, 300, 40, DIRECT - 1] {
                let bytes = vec![round; size];
                write(&mut io, &bytes).await;
                expected.extend(bytes);
                assert_eq!(meter.sent(), 0);
            }
        }
        poll_fn(|cx| io.poll_out(cx)).await.expect("written");
        assert_eq!(meter.sent(), expected.len() as u64);
        let mut seen = vec![0; expected.len()];
        peer.read_exact(&mut seen).await.expect("read");
        assert_eq!(seen, expected);
        assert!(io.0.lock().waiting.capacity() <= KEPT);
    }

    #[tokio::test]
    async fn what_does_not_fit_keeps_its_order() {
        // A pipe that takes less than any write.
        let (mut io, mut peer, meter) = gathered(100);
        let sizes = [10, DIRECT + 10, 3, 2_000, 1, MOST, DIRECT, 5];
        let expected: Vec<u8> = (0..sizes.iter().sum::<usize>())
            .map(|at| (at % 251) as u8)
            .collect();
        let all = expected.clone();
        let writer = async {
            let mut at = 0;
            for size in sizes {
                write(&mut io, &all[at..at + size]).await;
                at += size;
            }
            poll_fn(|cx| io.poll_out(cx)).await.expect("written");
        };
        let mut seen = vec![0; expected.len()];
        let (_, read) = tokio::join!(writer, peer.read_exact(&mut seen));
        read.expect("read");
        assert!(seen == expected);
        assert_eq!(meter.sent(), expected.len() as u64);
    }

    #[tokio::test]
    async fn nothing_is_added_behind_a_blocked_stream() {
        let (mut io, mut peer, _) = gathered(10);
        write(&mut io, &[1; 20]).await;
        let blocked = poll_fn(|cx| Poll::Ready(io.poll_out(cx).is_pending())).await;
        assert!(blocked);
        let more = poll_fn(|cx| Poll::Ready(Pin::new(&mut io).poll_write(cx, &[2]).is_pending()));
        assert!(more.await);
        let mut seen = [0; 10];
        peer.read_exact(&mut seen).await.expect("read");
        write(&mut io, &[2]).await;
    }

    #[tokio::test]
    async fn a_blocked_write_of_the_library_shows() {
        let (mut io, mut peer, _) = gathered(10);
        let big = [1; DIRECT];
        let mut write = async |expected: Option<usize>| {
            let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut io).poll_write(cx, &big))).await;
            assert_eq!(polled.is_ready(), expected.is_some());
            let blocked = poll_fn(|cx| Poll::Ready(io.poll_out(cx).is_pending())).await;
            assert_eq!(blocked, expected.is_none());
        };
        write(Some(10)).await;
        write(None).await;
        peer.read_exact(&mut [0; 10]).await.expect("read");
        write(Some(10)).await;
    }

    #[tokio::test]
    async fn an_end_is_seen_ahead_of_a_reader_that_is_behind() {
        let (mut io, mut peer, meter) = gathered(1 << 20);
        let sent = [7; 3_000];
        write(&mut peer, &sent).await;
        let gone = async |io: &Gathered| poll_fn(|cx| Poll::Ready(io.poll_gone(cx))).await;
        io.pace(true);
        assert!(!gone(&io).await);
        drop(peer);
        io.pace(true);
        assert!(gone(&io).await);
        // What was read ahead is not lost, and counted once.
        io.pace(false);
        let mut seen = Vec::new();
        io.read_to_end(&mut seen).await.expect("read");
        assert_eq!((&*seen, meter.received()), (&sent[..], 3_000));
    }
}
