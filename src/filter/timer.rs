//! One timer a stream, for its earliest deadline.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use crate::stream::{Stream, Timeout};

pin_project! {
    /// Armed when first polled; a deadline that moves away is noticed when the old one has passed.
    pub(super) struct Timer {
        begin: Instant,
        armed: Option<Instant>,
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl Timer {
    pub(super) fn new(stream: &Stream) -> Self {
        Self {
            begin: stream.info.lock().begin,
            armed: None,
            sleep: None,
        }
    }

    /// True where it went off since it was last polled. Costs less than a poll.
    pub(super) fn went_off(&self) -> bool {
        self.sleep.as_ref().is_some_and(Sleep::is_elapsed)
    }

    /// Ready with the deadline that has passed.
    pub(super) fn poll(
        self: Pin<&mut Self>,
        stream: &Arc<Stream>,
        context: &mut Context<'_>,
    ) -> Poll<Timeout> {
        let mut this = self.project();
        loop {
            let Some((deadline, which)) = stream.next_timeout(*this.begin) else {
                return Poll::Pending;
            };
            match *this.armed {
                Some(armed) if armed <= deadline => {}
                _ => {
                    match this.sleep.as_mut().as_pin_mut() {
                        Some(sleep) => sleep.reset(deadline),
                        None => this.sleep.set(Some(tokio::time::sleep_until(deadline))),
                    }
                    *this.armed = Some(deadline);
                }
            }
            let Some(sleep) = this.sleep.as_mut().as_pin_mut() else {
                return Poll::Pending;
            };
            if sleep.poll(context).is_pending() {
                return Poll::Pending;
            }
            if *this.armed == Some(deadline) || Instant::now() >= deadline {
                return Poll::Ready(which);
            }
            *this.armed = None;
        }
    }
}
