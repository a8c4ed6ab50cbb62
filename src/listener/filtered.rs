//! Network filters between a socket and the HTTP codec of its connection.
//!
//! The codec has [`Filtered::io`] for its socket: what it reads has walked through the filters, and what it writes does
//! before it leaves. [`serve`] polls the codec, and in the same task what filters ask for between callbacks. The rules are
//! those of [`crate::filter::network`]; of what Envoy's connections do beside: a filter sees the end of neither direction,
//! since HTTP closes a connection whose client has closed its side; what follows once the codec has closed its own side is
//! shown to no filter; and the end of the connection is told when it is over for both.

#[cfg(test)]
mod tests;

use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::bytes::{FLUSH, Outgoing, flush, poll_read_all};
use crate::base::WorkerCell;
use crate::filter::network::{ConnectionFilters, Peer, REQUESTS, Request, Walk};
use crate::http::codec::server::ConnectionEnd;
use crate::http::codec::{ConnectionMeter, Io, Layer};
use crate::stream::Stream;
use crate::stream::network::Towards;

/// A connection whose bytes pass through network filters. Clones share it: the codec has one, and [`serve`] the other.
#[derive(Clone)]
pub(super) struct Filtered(Arc<WorkerCell<Session>>);

struct Session {
    client: Io,
    stream: Arc<Stream>,
    filters: ConnectionFilters,
    meter: Arc<ConnectionMeter>,
    /// How much may be held of either direction, in bytes.
    limit: usize,
    /// What has passed the filters, and what has passed them the other way.
    to_codec: Outgoing,
    to_client: Outgoing,
    end: Option<End>,
    /// The codec has closed its side.
    shut: bool,
    /// The codec closes its side, and waits for what is on its way to the client.
    shutting: bool,
    /// Who waits: for the connection's end, for data, for room.
    driver: Option<Waker>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// The reader and the writer wait for room, not for the socket.
    no_room: [bool; 2],
}

/// What the connection ends by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client has closed it, or its side.
    Remote,
    /// A filter wants it closed; why.
    Filter(&'static str),
}

impl Filtered {
    /// `stream` stands for the connection of `client`; the filters hear of it when [`serve`] begins.
    pub(super) fn new(client: Io, stream: Arc<Stream>, filters: ConnectionFilters) -> Self {
        Self(Arc::new(WorkerCell::new(Session {
            client,
            filters,
            meter: Arc::clone(&stream.connection.meter),
            limit: stream.config.options.buffer_limit,
            stream,
            to_codec: Outgoing::default(),
            to_client: Outgoing::default(),
            end: None,
            shut: false,
            shutting: false,
            driver: None,
            reader: None,
            writer: None,
            no_room: [false; 2],
        })))
    }

    /// The codec's end of it.
    pub(super) fn io(&self) -> Io {
        Io::Layered(Box::new(self.clone()))
    }
}

/// Polls what the codec makes of the connection, `served`, until that has ended or a filter closes the connection. What is on its way
/// to the client then is sent first, where the client takes some of it within each `patience`.
pub(super) async fn serve<F>(
    filtered: Filtered,
    mut served: Pin<Box<F>>,
    patience: Option<Duration>,
) -> ConnectionEnd
where
    F: Future<Output = ConnectionEnd>,
{
    let patience = patience.unwrap_or(FLUSH);
    // Dropped before `served`.
    let _cut = Cut(filtered.clone());
    filtered.0.lock().walk(0);
    // While the codec waits for its last bytes to leave: how many were left when the time began.
    let mut last: Option<(usize, Pin<Box<Sleep>>)> = None;
    let end = poll_fn(|cx| {
        if let Poll::Ready(reason) = filtered.0.lock().poll(cx) {
            return Poll::Ready(Err(reason));
        }
        if let Poll::Ready(end) = served.as_mut().poll(cx) {
            return Poll::Ready(Ok(end));
        }
        let left = {
            let session = filtered.0.lock();
            session.shutting.then_some(session.to_client.len)
        };
        let Some(left) = left else {
            return Poll::Pending;
        };
        let (before, timer) =
            last.get_or_insert_with(|| (left, Box::pin(tokio::time::sleep(patience))));
        if left < *before {
            *before = left;
            timer.as_mut().reset(Instant::now() + patience);
        }
        timer.as_mut().poll(cx).map(|()| Err(""))
    })
    .await;
    let gave_up = last.is_some() && end.is_err();
    if !gave_up {
        let mut out = std::mem::take(&mut filtered.0.lock().to_client);
        flush(&mut out, patience, |cx, data| {
            filtered.0.lock().poll_write_client(cx, data)
        })
        .await;
    }
    filtered.0.lock().closed(end.as_ref().err().copied());
    // Filters hear of the end before the exchanges do, as in Envoy.
    drop(served);
    end.unwrap_or(ConnectionEnd::Local)
}

/// Where the connection's task is dropped, filters hear of its end before the exchanges do as well.
struct Cut(Filtered);

impl Drop for Cut {
    fn drop(&mut self) {
        // A panic may have come while it was locked.
        if let Some(mut session) = self.0.0.try_lock() {
            session.filters.cut();
        }
    }
}

impl Session {
    /// Walks through the filters with what the client sent; behind them the codec reads it.
    fn walk(&mut self, from: usize) {
        match self.filters.downstream(from, false) {
            Walk::Stopped => {}
            Walk::Close(reason) => self.end(End::Filter(reason)),
            Walk::Passed => {
                let data = self.filters.held().take(Towards::Upstream);
                self.to_codec.push(data);
                wake(&mut self.reader);
            }
        }
    }

    /// The first end stays, but a filter's own word counts until the connection is over.
    fn end(&mut self, end: End) {
        if !matches!(self.end, Some(End::Filter(_))) {
            self.end = Some(end);
        }
        wake(&mut self.driver);
    }

    /// What filters ask for, and what is on its way to the client. Ready: a filter wants the connection closed; why.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        keep(&mut self.driver, cx);
        let mut requests = REQUESTS;
        loop {
            if let Some(End::Filter(reason)) = self.end {
                return Poll::Ready(reason);
            }
            if requests == 0 {
                // Plugins that keep each other going leave the worker to others now and then.
                cx.waker().wake_by_ref();
                break;
            }
            requests -= 1;
            let room = self.to_codec.len < self.limit.max(1);
            match self.filters.poll_request(cx, room) {
                Some(Request::GoOn(from)) => self.walk(from),
                Some(Request::Close(reason)) => self.end(End::Filter(reason)),
                None => break,
            }
        }
        // A failure shows where the codec reads or writes next.
        let _ = self.poll_send(cx);
        self.wake_for_room();
        Poll::Pending
    }

    /// A plugin may have made room between callbacks.
    fn wake_for_room(&mut self) {
        let [up, down] = [Towards::Upstream, Towards::Downstream]
            .map(|towards| self.filters.held().len(towards));
        if self.no_room[0] && up < self.limit {
            self.no_room[0] = false;
            wake(&mut self.reader);
        }
        if self.no_room[1] && down < self.limit && self.to_client.len < self.limit {
            self.no_room[1] = false;
            wake(&mut self.writer);
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let waiting = self.to_codec.len;
            if waiting > 0 {
                self.to_codec.take_into(buf);
                if waiting >= self.limit {
                    // What has asked to go on may.
                    wake(&mut self.driver);
                }
                self.meter.take_off(waiting - self.to_codec.len, 0);
                return Poll::Ready(Ok(()));
            }
            match self.end {
                Some(End::Remote) => return Poll::Ready(Ok(())),
                Some(End::Filter(_)) => return Poll::Pending,
                None => {}
            }
            if self.shut {
                let before = buf.filled().len();
                ready!(Pin::new(&mut self.client).poll_read(cx, buf))?;
                let count = buf.filled().len() - before;
                // It is the codec that counts it.
                if count == 0 {
                    self.end(End::Remote);
                }
                return Poll::Ready(Ok(()));
            }
            let held = self.filters.held();
            let before = held.len(Towards::Upstream);
            let room = self.limit.saturating_sub(before);
            if room == 0 {
                self.no_room[0] = true;
                keep(&mut self.reader, cx);
                return Poll::Pending;
            }
            let (client, meter) = (&mut self.client, &self.meter);
            let read = poll_read_all(
                room,
                |buffer| Pin::new(&mut *client).poll_read(cx, buffer),
                |data| {
                    meter.add_received(data.len());
                    held.push(Towards::Upstream, data);
                },
            );
            let more = held.len(Towards::Upstream) > before;
            match read {
                Poll::Pending => {
                    keep(&mut self.reader, cx);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(after)) => {
                    if more {
                        self.walk(0);
                    }
                    if after.end || after.failure.is_some() {
                        self.end(End::Remote);
                    }
                }
                Poll::Ready(Err(error)) => {
                    self.end(End::Remote);
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if matches!(self.end, Some(End::Filter(_))) {
            return Poll::Pending;
        }
        let held = self.filters.held().len(Towards::Downstream);
        if held >= self.limit || self.to_client.len >= self.limit {
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
            if held >= self.limit || self.to_client.len >= self.limit {
                self.no_room[1] = true;
                keep(&mut self.writer, cx);
                return Poll::Pending;
            }
        }
        let mut count = 0;
        for part in parts {
            self.filters.held().push(Towards::Downstream, part);
            count += part.len();
        }
        if count == 0 {
            return Poll::Ready(Ok(0));
        }
        match self.filters.upstream(false) {
            Walk::Stopped => {}
            Walk::Close(reason) => self.end(End::Filter(reason)),
            Walk::Passed => {
                let data = self.filters.held().take(Towards::Downstream);
                self.to_client.push(data);
            }
        }
        match self.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // Envoy closes within the write: the codec's answer has not been sent.
            Poll::Ready(Ok(())) | Poll::Pending if matches!(self.end, Some(End::Filter(_))) => {
                Poll::Pending
            }
            Poll::Ready(Ok(())) | Poll::Pending => {
                self.meter.take_off(0, count);
                Poll::Ready(Ok(count))
            }
        }
    }

    /// Writes what has passed.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.to_client.len == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut out = std::mem::take(&mut self.to_client);
        let before = out.len;
        let sent = out.poll(|data| self.poll_write_client(cx, data));
        if out.len < before {
            wake(&mut self.writer);
        }
        self.to_client = out;
        if let Poll::Ready(Err(_)) = &sent {
            self.to_client = Outgoing::default();
            self.end(End::Remote);
            wake(&mut self.reader);
        }
        sent
    }

    fn poll_write_client(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.client).poll_write(cx, data))?;
        self.meter.add_sent(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.poll_send(cx);
        if sent.is_pending() {
            // The driver sends too, and the socket wakes the last who asked.
            keep(&mut self.writer, cx);
        }
        ready!(sent)?;
        Pin::new(&mut self.client).poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shutting = true;
        ready!(self.poll_flush(cx))?;
        self.shutting = false;
        self.shut = true;
        Pin::new(&mut self.client).poll_shutdown(cx)
    }

    /// The connection is over; where a filter has closed it, why.
    fn closed(&mut self, reason: Option<&'static str>) {
        if let Some(reason) = reason {
            self.meter.set_closed(reason);
        }
        let peer = match self.end {
            Some(End::Remote) => Peer::Remote,
            Some(End::Filter(_)) | None => Peer::Local,
        };
        if let (Some(reason), Some(closed)) = (
            reason.filter(|reason| !reason.is_empty()),
            &mut self.stream.info.lock().closed,
        ) {
            closed.downstream_reason = Some(reason.into());
        }
        self.filters.closed(peer);
    }
}

/// Wakes who waits for the end of the connection, for data or for room.
fn wake(waiting: &mut Option<Waker>) {
    if let Some(waker) = waiting.take() {
        waker.wake();
    }
}

fn keep(waiting: &mut Option<Waker>, cx: &Context<'_>) {
    match waiting {
        Some(waker) => waker.clone_from(cx.waker()),
        none => *none = Some(cx.waker().clone()),
    }
}

impl AsyncRead for Filtered {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.lock().poll_read(cx, buf)
    }
}

impl AsyncWrite for Filtered {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write(cx, &[IoSlice::new(buf)])
    }

    /// One piece for the filters.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().poll_shutdown(cx)
    }
}

impl Layer for Filtered {
    fn reset_on_close(&self) {
        self.0.lock().client.reset_on_close();
    }
}

impl fmt::Debug for Filtered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filtered").finish_non_exhaustive()
    }
}
