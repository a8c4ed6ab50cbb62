//! Which parts of a connection's task are due: its streams, the library's connection, its timers.
//!
//! A part that is woken while the task runs does not have the task woken: the task looks again before it rests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel};
use std::task::{Context, Wake, Waker};

use parking_lot::Mutex;

/// Shared by the task and the wakers of its parts.
#[derive(Debug, Default)]
pub(super) struct Wakes(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Streams by their places, each once.
    streams: Vec<usize>,
    parts: Parts,
    running: bool,
    task: Option<Waker>,
}

/// Parts that a connection has one of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    /// The library's connection.
    pub(super) connection: bool,
    /// Timers.
    pub(super) timers: bool,
}

impl Wakes {
    /// The task runs. What is due is taken: the streams into `streams`, which must be empty.
    pub(super) fn begin(&self, cx: &Context<'_>, streams: &mut Vec<usize>) -> Parts {
        let mut state = self.0.lock();
        state.running = true;
        match &mut state.task {
            Some(task) if task.will_wake(cx.waker()) => {}
            task => *task = Some(cx.waker().clone()),
        }
        std::mem::swap(&mut state.streams, streams);
        std::mem::take(&mut state.parts)
    }

    /// True where the library's connection was woken since [`Wakes::begin`], or since this was asked last.
    pub(super) fn take_connection(&self) -> bool {
        std::mem::take(&mut self.0.lock().parts.connection)
    }

    /// The task is about to rest. True where something has become due meanwhile: it must see to its being woken.
    pub(super) fn end(&self) -> bool {
        let mut state = self.0.lock();
        state.running = false;
        !state.streams.is_empty() || state.parts != Parts::default()
    }

    fn note(&self, note: impl FnOnce(&mut State)) {
        let task = {
            let mut state = self.0.lock();
            note(&mut state);
            match state.running {
                true => None,
                // It is given back with the next run.
                false => state.task.take(),
            }
        };
        if let Some(task) = task {
            task.wake();
        }
    }

    /// The waker of the library's connection.
    pub(super) fn connection(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::new(ConnectionWake(Arc::clone(self))))
    }

    /// The waker of the timers.
    pub(super) fn timers(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::new(TimersWake(Arc::clone(self))))
    }
}

struct ConnectionWake(Arc<Wakes>);

impl Wake for ConnectionWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.note(|state| state.parts.connection = true);
    }
}

struct TimersWake(Arc<Wakes>);

impl Wake for TimersWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.note(|state| state.parts.timers = true);
    }
}

/// What wakes the stream of one place, whichever is there.
#[derive(Debug)]
pub(super) struct StreamWake {
    place: usize,
    due: AtomicBool,
    wakes: Arc<Wakes>,
}

impl StreamWake {
    pub(super) fn new(place: usize, wakes: &Arc<Wakes>) -> Arc<Self> {
        Arc::new(Self {
            place,
            due: AtomicBool::new(false),
            wakes: Arc::clone(wakes),
        })
    }

    /// The stream is about to be polled for what has woken it.
    pub(super) fn clear(&self) {
        self.due.swap(false, AcqRel);
    }
}

impl Wake for StreamWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wakes.note(|state| {
            // Who finds it set knows the place to be in the list, or taken from there and not yet polled.
            if !self.due.swap(true, AcqRel) {
                state.streams.push(self.place);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn a_resting_task_is_woken_once_and_a_running_one_looks_again() {
        let wakes = Arc::<Wakes>::default();
        let counter = Arc::<Counter>::default();
        let task = Waker::from(Arc::clone(&counter));
        let cx = Context::from_waker(&task);
        let stream = StreamWake::new(7, &wakes);
        let waker = Waker::from(Arc::clone(&stream));
        let mut due = Vec::new();

        // Running: noted, each stream once.
        assert_eq!(wakes.begin(&cx, &mut due), Parts::default());
        waker.wake_by_ref();
        waker.wake_by_ref();
        wakes.connection().wake();
        assert!(wakes.take_connection());
        assert!(!wakes.take_connection());
        assert!(wakes.end());
        assert_eq!(counter.0.load(Relaxed), 0);

        assert_eq!(wakes.begin(&cx, &mut due), Parts::default());
        assert_eq!(due, [7]);
        due.clear();
        // Taken and not yet polled: what wakes it now is seen by that poll.
        waker.wake_by_ref();
        stream.clear();
        assert!(!wakes.end());

        // At rest: the task is woken, by the first alone.
        waker.wake_by_ref();
        wakes.timers().wake();
        assert_eq!(counter.0.load(Relaxed), 1);
        let parts = wakes.begin(&cx, &mut due);
        assert!(parts.timers && !parts.connection);
        assert_eq!(due, [7]);
        assert!(!wakes.end());
    }
}
