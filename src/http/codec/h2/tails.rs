//! Responses that were handed over to their last byte, of which some waits in the library for a window.
//!
//! Nothing is left that could reset such a stream, so what ends it is the end of the connection. That is due when a tail has
//! waited for the stream idle timeout, and at most for twice that, while the connection sent nothing: the time of each is not
//! kept, only in which of two alternating periods it began.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use super::super::ConnectionMeter;

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
    meter: Arc<ConnectionMeter>,
    /// Runs while there are any.
    timer: Option<Pin<Box<Sleep>>>,
    /// Bytes sent when it was set.
    sent: u64,
}

impl TailWatch {
    pub(super) fn new(tails: Arc<Tails>, meter: Arc<ConnectionMeter>) -> Self {
        Self {
            tails,
            meter,
            timer: None,
            sent: 0,
        }
    }

    /// Ready where one has waited for too long, and nothing is sent any more. For the connection's task, after it has written: whoever leaves a tail has
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
                None => {
                    self.timer = Some(Box::pin(tokio::time::sleep(limit)));
                    self.sent = self.meter.sent();
                }
                Some(timer) => {
                    if timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.timer = None;
                    if before == 0 {
                        self.tails.period.store(period + 1, Relaxed);
                    } else if self.meter.sent() == self.sent {
                        return Poll::Ready(());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When the watch of a tail is ready, in seconds, where the connection sends a byte at each of `moments`.
    async fn ready_after(moments: &[u64]) -> u64 {
        let begin = tokio::time::Instant::now();
        let meter = Arc::new(ConnectionMeter::default());
        let tails = Arc::new(Tails::new(Some(Duration::from_secs(5))));
        let mut watch = TailWatch::new(Arc::clone(&tails), Arc::clone(&meter));
        let _tail = Tail::new(&tails);
        let mut ready = std::pin::pin!(std::future::poll_fn(|cx| watch.poll(cx)));
        for moment in moments {
            let moment = begin + Duration::from_secs(*moment);
            tokio::select! {
                () = &mut ready => break,
                () = tokio::time::sleep_until(moment) => meter.add_sent(1),
            }
        }
        ready.await;
        begin.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_tail_waits_for_ever_while_something_is_sent() {
        assert_eq!(ready_after(&[]).await, 10);
        assert_eq!(ready_after(&[3]).await, 10);
        assert_eq!(ready_after(&[3, 7, 12, 17]).await, 25);
    }
}
