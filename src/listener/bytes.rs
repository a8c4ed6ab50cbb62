//! What is read from one side, and what is on its way out of the other.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::ReadBuf;

/// How long what is on its way out may take where nothing else limits it.
pub(super) const FLUSH: Duration = Duration::from_secs(3600);

/// What one read takes at most.
const READ: usize = 16 << 10;

/// What is on its way out of a connection.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    pub(super) queue: VecDeque<Bytes>,
    pub(super) len: usize,
    /// Nothing follows.
    pub(super) end: bool,
    /// The end was sent.
    pub(super) shut: bool,
}

impl Outgoing {
    pub(super) fn push(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.len += data.len();
            self.queue.push_back(data);
        }
    }

    /// Moves as much of it as `buffer` takes.
    pub(super) fn take_into(&mut self, buffer: &mut ReadBuf<'_>) {
        while buffer.remaining() > 0
            && let Some(front) = self.queue.front_mut()
        {
            let count = front.len().min(buffer.remaining());
            buffer.put_slice(&front[..count]);
            front.advance(count);
            self.len -= count;
            if front.is_empty() {
                self.queue.pop_front();
            }
        }
    }

    /// Writes until all is written.
    pub(super) fn poll(
        &mut self,
        mut write: impl FnMut(&[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        while let Some(front) = self.queue.front_mut() {
            let written = ready!(write(front))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.len -= written;
            front.advance(written);
            if front.is_empty() {
                self.queue.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What came behind the data of a reading.
#[derive(Debug, Default)]
pub(super) struct After {
    /// There will be no more.
    pub(super) end: bool,
    /// The connection has failed. A socket tells that once: whoever forgets it takes the next reading for an end.
    pub(super) failure: Option<io::Error>,
}

/// Reads what is there, up to `room` bytes. Pending: nothing was there. Failed: and nothing came before.
pub(super) fn poll_read_all(
    room: usize,
    mut read: impl FnMut(&mut ReadBuf<'_>) -> Poll<io::Result<()>>,
    mut take: impl FnMut(&[u8]),
) -> Poll<io::Result<After>> {
    let mut after = After::default();
    let mut space = [MaybeUninit::uninit(); READ];
    let mut total = 0;
    while total < room {
        let mut buffer = ReadBuf::uninit(&mut space);
        match read(&mut buffer) {
            Poll::Pending if total == 0 => return Poll::Pending,
            Poll::Pending => break,
            Poll::Ready(Err(error)) if total > 0 => {
                after.failure = Some(error);
                break;
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {}
        }
        let data = buffer.filled();
        if data.is_empty() {
            after.end = true;
            break;
        }
        total += data.len();
        take(data);
    }
    Poll::Ready(Ok(after))
}

/// Writes what is left, for as long as the peer takes some of it now and then. What fails now is closed anyway.
pub(super) async fn flush(
    out: &mut Outgoing,
    patience: Duration,
    mut write: impl FnMut(&mut Context<'_>, &[u8]) -> Poll<io::Result<usize>>,
) {
    loop {
        let before = out.len;
        let all = std::future::poll_fn(|cx| out.poll(|data| write(cx, data)));
        if tokio::time::timeout(patience, all).await.is_ok() || out.len == before {
            return;
        }
    }
}

#[cfg(test)]
#[path = "bytes/tests.rs"]
mod tests;
