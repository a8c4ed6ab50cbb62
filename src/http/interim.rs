//! An upstream's interim answer on its way to the client that waits for one.

use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::ResponseHead;

/// Takes one interim answer (1xx) from the upstream's codec to the client's. The first counts, as in Envoy.
#[derive(Debug, Default)]
pub struct Interim(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    Waiting,
    Parked(Waker),
    Offered(Box<ResponseHead>),
    Taken,
}

impl Interim {
    /// Offers an answer to the client.
    pub fn offer(&self, head: ResponseHead) {
        let mut state = self.0.lock();
        if matches!(*state, State::Offered(_) | State::Taken) {
            return;
        }
        let before = std::mem::replace(&mut *state, State::Offered(Box::new(head)));
        drop(state);
        if let State::Parked(waker) = before {
            waker.wake();
        }
    }

    /// Ready with the answer, once.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Box<ResponseHead>> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Offered(head) => Poll::Ready(head),
            State::Taken => Poll::Pending,
            State::Parked(waker) if waker.will_wake(cx.waker()) => {
                *state = State::Parked(waker);
                Poll::Pending
            }
            State::Waiting | State::Parked(_) => {
                *state = State::Parked(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
