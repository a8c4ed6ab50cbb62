//! PINGs to a peer that says nothing.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

use super::super::ConnectionMeter;

/// Asks a peer that was silent for the interval whether it is there.
pub(super) struct KeepAlive {
    pings: PingPong,
    interval: Duration,
    timeout: Duration,
    meter: Arc<ConnectionMeter>,
    /// Bytes received when it was looked at last.
    received: u64,
    /// When some were.
    heard: Instant,
    asked: bool,
    /// The next PING is due, or the answer to the last one.
    timer: Pin<Box<Sleep>>,
}

impl KeepAlive {
    /// `limits`: the interval, and how long an answer may take.
    pub(super) fn new(
        pings: PingPong,
        (interval, timeout): (Duration, Duration),
        meter: Arc<ConnectionMeter>,
    ) -> Self {
        Self {
            pings,
            interval,
            timeout,
            received: meter.received(),
            meter,
            heard: Instant::now(),
            asked: false,
            timer: Box::pin(tokio::time::sleep(interval)),
        }
    }

    /// Ready where the peer did not answer. To be polled whenever the connection was.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let received = self.meter.received();
        if received != self.received {
            self.received = received;
            self.heard = Instant::now();
            if self.asked {
                // Who says something is there: its answer may be behind much else, as Envoy allows.
                self.timer.as_mut().reset(self.heard + self.timeout);
            }
        }
        loop {
            if self.asked {
                match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.asked = false;
                        self.heard = Instant::now();
                        self.timer.as_mut().reset(self.heard + self.interval);
                        continue;
                    }
                    // The connection is at its end.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => return self.timer.as_mut().poll(cx),
                }
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let due = self.heard + self.interval;
            let now = Instant::now();
            if due > now {
                self.timer.as_mut().reset(due);
            } else if self.pings.send_ping(Ping::opaque()).is_ok() {
                self.asked = true;
                self.timer.as_mut().reset(now + self.timeout);
            } else {
                return Poll::Pending;
            }
        }
    }
}
