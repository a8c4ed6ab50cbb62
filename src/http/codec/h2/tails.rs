//! Responses that were handed over to their last byte, of which some waits in the library for a window.
//!
//! No task is left that could reset such a stream, so what ends it is the end of the connection. That is due when a tail has
//! waited for the stream idle timeout, and at most for twice that: the time of each is not kept, only in which of two
//! alternating periods it began.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

/// The tails of a connection.
#[derive(Debug)]
pub(super) struct Tails {
    /// How many began in an even period, and in an odd one.
    waiting: [AtomicUsize; 2],
    period: AtomicUsize,
    limit: Option<Duration>,
}

/// One of them, until it is written.
#[derive(Debug)]
pub(super) struct Tail {
    tails: Arc<Tails>,
    period: usize,
}

impl Tails {
    /// `limit`: the stream idle timeout. Without one a tail waits for ever, as in Envoy.
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self {
            waiting: Default::default(),
            period: AtomicUsize::new(0),
            limit,
        }
    }

    pub(super) fn limit(&self) -> Option<Duration> {
        self.limit
    }

    fn waiting(&self, period: usize) -> usize {
        self.waiting[period % 2].load(Relaxed)
    }
}

impl Tail {
    pub(super) fn new(tails: &Arc<Tails>) -> Self {
        let period = tails.period.load(Relaxed);
        tails.waiting[period % 2].fetch_add(1, Relaxed);
        Self {
            tails: Arc::clone(tails),
            period,
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.tails.waiting[self.period % 2].fetch_sub(1, Relaxed);
    }
}

/// The connection's view of its tails.
#[derive(Debug)]
pub(super) struct TailWatch {
    tails: Arc<Tails>,
    /// Runs while there are any.
    timer: Option<Pin<Box<Sleep>>>,
}

impl TailWatch {
    pub(super) fn new(tails: Arc<Tails>) -> Self {
        Self { tails, timer: None }
    }

    /// Ready where one has waited for too long. For the connection's task, after it has written: whoever leaves a tail has
    /// woken it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = self.tails.limit else {
            return Poll::Pending;
        };
        loop {
            let period = self.tails.period.load(Relaxed);
            let (now, before) = (self.tails.waiting(period), self.tails.waiting(period + 1));
            match &mut self.timer {
                None if now + before == 0 => return Poll::Pending,
                None => self.timer = Some(Box::pin(tokio::time::sleep(limit))),
                Some(timer) => {
                    if timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.timer = None;
                    if before > 0 {
                        return Poll::Ready(());
                    }
                    self.tails.period.store(period + 1, Relaxed);
                }
            }
        }
    }
}
