//! State that only one thread at a time ever touches.
//!
//! Guarantees exclusive access without a wait: a cell that is in use is a bug of ours, and says so.

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Relaxed, Release},
};

use super::worker::worker_thread;

/// A lock that is only ever tried.
///
/// A cell made on a worker belongs to its thread: a lock is then a comparison and two plain writes. (A mutex
/// takes two locked instructions for each, and a request locks its cells many times.) A cell made elsewhere may be handed from thread to thread, and locks like a mutex.
pub struct WorkerCell<T> {
    /// The worker's thread that alone may lock it; 0: any.
    owner: u32,
    busy: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `value` is reached through a guard or `&mut self` alone. A guard exists only while `busy` is set by `acquire`:
// with an atomic exchange, or by the one thread that ever may where there is an owner. A guard does not leave its thread.
#[allow(
    unsafe_code,
    reason = "a lock is two plain writes instead of two locked instructions; see the type"
)]
unsafe impl<T: Send> Sync for WorkerCell<T> {}

/// Exclusive access to what a [`WorkerCell`] holds.
pub struct WorkerGuard<'a, T> {
    cell: &'a WorkerCell<T>,
    /// It is given back on the thread that took it.
    not_send: PhantomData<*const ()>,
}

impl<T> WorkerCell<T> {
    /// Wraps `value`, for the running thread where that is a worker.
    #[inline]
    pub fn new(value: T) -> Self {
        Self {
            owner: worker_thread(),
            busy: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// Gives it to the running thread where that is a worker, as if it had been made there: what is made elsewhere, and
    /// then used by one worker alone, is locked as cheaply from then on.
    pub fn settle(&mut self) {
        self.owner = worker_thread();
    }

    #[inline]
    fn acquire(&self) -> bool {
        if self.owner == 0 {
            return self
                .busy
                .compare_exchange(false, true, Acquire, Relaxed)
                .is_ok();
        }
        // Nobody else writes `busy` where there is an owner.
        let free = self.owner == worker_thread() && !self.busy.load(Relaxed);
        if free {
            self.busy.store(true, Relaxed);
        }
        free
    }

    /// Takes the value for the running thread.
    ///
    /// # Panics
    /// Where it is taken already, or belongs to another thread: a guard held across a call that locks again, or a value
    /// shared between workers.
    #[inline]
    #[track_caller]
    pub fn lock(&self) -> WorkerGuard<'_, T> {
        match self.try_lock() {
            Some(guard) => guard,
            None => in_use(),
        }
    }

    /// As [`WorkerCell::lock`], `None` where that would panic.
    #[inline]
    pub fn try_lock(&self) -> Option<WorkerGuard<'_, T>> {
        // Not `then_some`: a guard that was never due would set the cell free when it is dropped.
        self.acquire().then(|| WorkerGuard {
            cell: self,
            not_send: PhantomData,
        })
    }

    /// The value, when nobody else can hold it.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// Unwraps the value.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

#[cold]
#[track_caller]
#[allow(clippy::panic, reason = "a bug of ours; see `WorkerCell::lock`")]
fn in_use() -> ! {
    panic!("a worker's cell is in use, or another worker's")
}

impl<T: Default> Default for WorkerCell<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Drop for WorkerGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.cell.busy.store(false, Release);
    }
}

#[allow(unsafe_code, reason = "the guard's way to the value")]
impl<T> Deref for WorkerGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `busy` was set for this guard: there is no other, and `&mut self` of the cell cannot exist beside it.
        unsafe { &*self.cell.value.get() }
    }
}

#[allow(unsafe_code, reason = "the guard's way to the value")]
impl<T> DerefMut for WorkerGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`; the guard is borrowed mutably for as long.
        unsafe { &mut *self.cell.value.get() }
    }
}

impl<T: fmt::Debug> fmt::Debug for WorkerCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.try_lock() {
            Some(value) => value.fmt(f),
            None => f.write_str("<in use>"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Shard;
    use super::*;

    /// Runs `f` on a thread of its own.
    fn elsewhere<R: Send + 'static>(f: impl FnOnce() -> R + Send + 'static) -> R {
        std::thread::spawn(f).join().expect("a thread")
    }

    #[test]
    fn a_cell_in_use_is_not_taken_twice() {
        for worker in [false, true] {
            elsewhere(move || {
                if worker {
                    Shard::worker(0).enter();
                }
                let cell = WorkerCell::new(1);
                {
                    let mut guard = cell.lock();
                    *guard += 1;
                    assert!(cell.try_lock().is_none());
                    assert_eq!(format!("{cell:?}"), "<in use>");
                }
                assert_eq!(*cell.lock(), 2);
                assert_eq!(format!("{cell:?}"), "2");
                assert_eq!(cell.into_inner(), 2);
            });
        }
    }

    #[test]
    fn a_cell_settles_on_a_worker() {
        let mut cell = WorkerCell::new(7);
        let cell = elsewhere(move || {
            Shard::worker(0).enter();
            assert_eq!(*cell.lock(), 7);
            cell.settle();
            *cell.lock() += 1;
            cell
        });
        assert!(cell.try_lock().is_none());
        assert_eq!(cell.into_inner(), 8);
    }

    #[test]
    fn a_worker_s_cell_is_its_thread_s() {
        let cell = elsewhere(|| {
            Shard::worker(0).enter();
            let cell = Arc::new(WorkerCell::new(7));
            assert_eq!(*cell.lock(), 7);
            cell
        });
        assert!(cell.try_lock().is_none());
        // The same shard again, on another thread.
        let same = Arc::clone(&cell);
        elsewhere(move || {
            Shard::worker(0).enter();
            assert!(same.try_lock().is_none());
        });
        // Whoever has it alone may do as they like.
        let mut cell = Arc::into_inner(cell).expect("the last");
        *cell.get_mut() += 1;
        assert_eq!(cell.into_inner(), 8);
    }

    #[test]
    fn a_cell_of_the_control_side_goes_from_thread_to_thread() {
        let cell = Arc::new(elsewhere(|| WorkerCell::new(0)));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let cell = Arc::clone(&cell);
                std::thread::spawn(move || {
                    for _ in 0..1000 {
                        loop {
                            if let Some(mut value) = cell.try_lock() {
                                *value += 1;
                                break;
                            }
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("a thread");
        }
        assert_eq!(*cell.lock(), 4000);
    }

    #[test]
    fn a_panic_gives_the_cell_back() {
        let cell = WorkerCell::new(());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _guard = cell.lock();
            let _second = cell.lock();
        }));
        assert!(panicked.is_err());
        assert!(cell.try_lock().is_some());
    }
}
