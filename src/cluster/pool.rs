//! Connections kept for the next request: per worker, keyed by host.
//!
//! HTTP/1 connections wait in a stack, so that the warmest is used first and the surplus grows old; HTTP/2
//! connections are shared by streams. A worker has one *keeper* task a cluster, which closes what the peer has closed,
//! what was idle for too long, and what belongs to a host or a cluster that is gone. A request never waits for it,
//! and wakes it at most once in [`TICK`].

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::connect::ConnectError;
use super::connection::Connection;
use super::host::Host;
use crate::base::task::OwnedTask;
use crate::base::{PerWorker, Shards};
use crate::config;
use crate::http::codec::client::{Http1, Http2};

/// How long after it came back a connection is watched for being closed by its peer. (It is looked at before use in
/// any case.)
const TICK: Duration = Duration::from_millis(250);

/// The pools of a cluster, one a worker, made at its first request.
#[derive(Debug)]
pub(super) struct Pools {
    workers: PerWorker<Arc<WorkerPool>>,
    signals: Arc<Signals>,
}

#[derive(Debug)]
struct Signals {
    retired: AtomicBool,
    /// Rings when the pools retire, or when a host left.
    changed: Arc<Notify>,
}

impl Pools {
    /// `changed` rings when hosts were removed.
    pub(super) fn new(shards: Shards, changed: &Arc<Notify>) -> Self {
        Self {
            workers: PerWorker::new(shards),
            signals: Arc::new(Signals {
                retired: AtomicBool::new(false),
                changed: Arc::clone(changed),
            }),
        }
    }

    /// The running worker's.
    #[inline]
    pub(super) fn here(&self) -> &Arc<WorkerPool> {
        self.workers.get_or_init(|| {
            Arc::new(WorkerPool {
                signals: Arc::clone(&self.signals),
                state: Mutex::default(),
            })
        })
    }

    /// Idle connections close, busy ones when they are done.
    pub(super) fn retire(&self) {
        self.signals.retired.store(true, Relaxed);
        self.signals.changed.notify_waiters();
    }
}

/// Whether connections made for `a` are as good as those that `b` would make.
pub(super) fn compatible(a: &config::Cluster, b: &config::Cluster) -> bool {
    a.protocol == b.protocol
        && a.tcp_keepalive == b.tcp_keepalive
        && a.source_address == b.source_address
        && a.buffer_limit == b.buffer_limit
}

/// One worker's connections of one cluster.
///
/// The lock is never contended on a worker: nobody else has a reason to take it. (The control side's pool may be used
/// by several threads.) It is never held across an await.
#[derive(Debug)]
pub(super) struct WorkerPool {
    signals: Arc<Signals>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the address of the `Arc`'s content, which the entry keeps alive.
    hosts: FxHashMap<usize, HostPool>,
    keeper: Option<OwnedTask>,
    waker: Option<Waker>,
    /// A connection came back since the keeper last looked.
    dirty: bool,
    /// The keeper will look within [`TICK`].
    ticking: bool,
}

#[derive(Debug)]
struct HostPool {
    host: Arc<Host>,
    idle: Vec<Idle>,
    http2: Vec<Arc<Shared>>,
    /// Who waits for an HTTP/2 connection that is being made.
    waiting: Vec<oneshot::Sender<Result<Lease, ConnectError>>>,
    /// How many are being made: as many as there must be for all who wait.
    connecting: usize,
}

impl HostPool {
    /// True where one more connection is to be made for who waits; it counts as being made then. Who has gone needs none.
    fn connects(&mut self, limit: usize) -> bool {
        let coming = self.connecting.saturating_mul(limit);
        if self.waiting.len() > coming {
            self.waiting.retain(|waiter| !waiter.is_closed());
        }
        let one_more = self.waiting.len() > coming;
        self.connecting += usize::from(one_more);
        one_more
    }
}

#[derive(Debug)]
struct Idle {
    http1: Http1,
    connection: Box<Connection>,
    since: Instant,
    timeout: Option<Duration>,
}

/// An HTTP/2 connection and its streams.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) http2: Http2,
    pub(super) connection: Mutex<Box<Connection>>,
    streams: AtomicUsize,
    /// How many more it may have: what is left of `max_requests_per_connection`.
    left: AtomicUsize,
    idle_since: Mutex<Instant>,
    timeout: Option<Duration>,
    /// Takes no further streams.
    spent: AtomicBool,
}

/// A place for one stream on an HTTP/2 connection.
#[derive(Debug)]
pub(super) struct Lease {
    shared: Arc<Shared>,
    /// A request has been sent on it.
    used: bool,
}

impl Lease {
    /// The connection.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// A request is about to be sent.
    pub(super) fn begin(&mut self) {
        self.used = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.used {
            self.shared.left.fetch_add(1, Relaxed);
        }
        if self.shared.streams.fetch_sub(1, Relaxed) == 1 {
            *self.shared.idle_since.lock() = Instant::now();
        }
    }
}

impl Shared {
    pub(super) fn new(
        http2: Http2,
        connection: Box<Connection>,
        timeout: Option<Duration>,
        limit: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            http2,
            connection: Mutex::new(connection),
            streams: AtomicUsize::new(0),
            left: AtomicUsize::new(limit),
            idle_since: Mutex::new(Instant::now()),
            timeout,
            spent: AtomicBool::new(false),
        })
    }

    fn has_room(&self) -> bool {
        !self.spent.load(Relaxed)
            && !self.http2.is_closed()
            && self.left.load(Relaxed) > 0
            && self.streams.load(Relaxed) < self.http2.max_streams()
    }

    fn lease(self: &Arc<Self>) -> Option<Lease> {
        self.has_room().then(|| {
            self.streams.fetch_add(1, Relaxed);
            self.left.fetch_sub(1, Relaxed);
            Lease {
                shared: Arc::clone(self),
                used: false,
            }
        })
    }
}

/// What [`WorkerPool::lease`] came to.
pub(super) enum LeaseOrWait {
    /// A connection has room.
    Lease(Lease),
    /// One is being made. `true`: the caller is to see to it.
    Wait(oneshot::Receiver<Result<Lease, ConnectError>>, bool),
}

impl WorkerPool {
    /// Whether a request to `host` would have its connection at once.
    pub(super) fn is_ready(&self, host: &Arc<Host>) -> bool {
        let mut state = self.state.lock();
        let Some(pool) = state.hosts.get_mut(&key(host)) else {
            return false;
        };
        pool.idle.iter_mut().any(|idle| idle.http1.is_open())
            || pool.http2.iter().any(|shared| shared.has_room())
    }

    /// The HTTP/1 connection that came back last and is still open.
    #[inline]
    pub(super) fn take(&self, host: &Arc<Host>) -> Option<(Http1, Box<Connection>)> {
        let mut state = self.state.lock();
        let pool = state.hosts.get_mut(&key(host))?;
        while let Some(mut idle) = pool.idle.pop() {
            if idle.http1.is_open() {
                return Some((idle.http1, idle.connection));
            }
            idle.connection.closed_by_peer();
        }
        None
    }

    /// Keeps an HTTP/1 connection for the next request, unless there is to be none.
    #[inline]
    pub(super) fn put(&self, http1: Http1, connection: Box<Connection>, timeout: Option<Duration>) {
        if self.signals.retired.load(Relaxed) || connection.host().is_removed() {
            return;
        }
        let mut state = self.state.lock();
        let host = Arc::clone(connection.host());
        state.host(host).idle.push(Idle {
            http1,
            connection,
            since: Instant::now(),
            timeout,
        });
        state.dirty = true;
        if !state.ticking {
            state.ticking = true;
            if let Some(waker) = state.waker.take() {
                drop(state);
                waker.wake();
            }
        }
    }

    /// A place on an HTTP/2 connection to `host`, of which each has `limit` requests at most.
    pub(super) fn lease(&self, host: &Arc<Host>, limit: usize) -> LeaseOrWait {
        let mut state = self.state.lock();
        let pool = state.host(Arc::clone(host));
        if let Some(lease) = pool.http2.iter().find_map(Shared::lease) {
            return LeaseOrWait::Lease(lease);
        }
        let (sender, receiver) = oneshot::channel();
        pool.waiting.push(sender);
        LeaseOrWait::Wait(receiver, pool.connects(limit))
    }

    /// The HTTP/2 connection was made, or not. True where some still wait and another one is to be made.
    pub(super) fn connected(
        &self,
        host: &Arc<Host>,
        limit: usize,
        result: Result<Arc<Shared>, ConnectError>,
    ) -> bool {
        let mut state = self.state.lock();
        let pool = state.host(Arc::clone(host));
        pool.connecting = pool.connecting.saturating_sub(1);
        match result {
            Ok(shared) => {
                let mut waiting = std::mem::take(&mut pool.waiting).into_iter();
                for waiter in waiting.by_ref() {
                    if waiter.is_closed() {
                        continue;
                    }
                    let Some(lease) = shared.lease() else {
                        // Dropped at once by its peer, or as many streams as it allows: the rest waits on.
                        pool.waiting.push(waiter);
                        break;
                    };
                    // Whoever gave up since gives its lease back by dropping it.
                    let _ = waiter.send(Ok(lease));
                }
                pool.waiting.extend(waiting);
                let usable = !shared.http2.is_closed();
                if usable && !self.signals.retired.load(Relaxed) && !host.is_removed() {
                    pool.http2.push(shared);
                }
                // Those that are still being made may serve who waits.
                if !usable && pool.connecting == 0 {
                    for waiter in pool.waiting.drain(..) {
                        let _ = waiter.send(Err(ConnectError::Handshake(
                            "connection closed by the peer".into(),
                        )));
                    }
                }
            }
            Err(error) => {
                for waiter in pool.waiting.drain(..) {
                    let _ = waiter.send(Err(error.clone()));
                }
            }
        }
        let again = pool.connects(limit);
        state.dirty = true;
        if let Some(waker) = state.waker.take() {
            drop(state);
            waker.wake();
        }
        again
    }

    /// Forgets an HTTP/2 connection: no new streams.
    pub(super) fn forget(&self, shared: &Arc<Shared>) {
        shared.spent.store(true, Relaxed);
        let host = key(shared.connection.lock().host());
        if let Some(pool) = self.state.lock().hosts.get_mut(&host) {
            pool.http2.retain(|other| !Arc::ptr_eq(other, shared));
        }
    }

    /// Starts the keeper where there is none. Called where a connection is made, thus on a runtime.
    pub(super) fn keep(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.keeper.is_none() {
            state.keeper = Some(OwnedTask::spawn(
                "upstream-keeper",
                Keeper::run(Arc::downgrade(self), Arc::clone(&self.signals)),
            ));
        }
    }

    /// Closes what is to be closed, and asks to be woken for the rest. The moment to look again, if any.
    fn sweep(&self, cx: &mut Context<'_>) -> Option<Instant> {
        let now = Instant::now();
        let retired = self.signals.retired.load(Relaxed);
        let mut state = self.state.lock();
        let mut next: Option<Instant> = None;
        let mut at = |moment: Instant| next = Some(next.map_or(moment, |next| next.min(moment)));
        state.hosts.retain(|_, pool| {
            let gone = retired || pool.host.is_removed();
            if gone {
                pool.idle.clear();
                pool.http2.clear();
            }
            pool.idle.retain_mut(|idle| {
                if idle.http1.poll_closed(cx).is_ready() {
                    idle.connection.closed_by_peer();
                    return false;
                }
                let Some(timeout) = idle.timeout else {
                    return true;
                };
                if idle.since + timeout <= now {
                    idle.connection.timed_out();
                    return false;
                }
                at(idle.since + timeout);
                true
            });
            pool.http2.retain(|shared| {
                let Some(timeout) = shared.timeout else {
                    return true;
                };
                if shared.streams.load(Relaxed) > 0 {
                    at(now + timeout);
                    return true;
                }
                let since = *shared.idle_since.lock();
                if since + timeout <= now {
                    shared.connection.lock().timed_out();
                    return false;
                }
                at(since + timeout);
                true
            });
            !(pool.idle.is_empty()
                && pool.http2.is_empty()
                && pool.waiting.is_empty()
                && pool.connecting == 0)
        });
        state.ticking = std::mem::take(&mut state.dirty);
        if state.ticking {
            at(now + TICK);
        }
        state.waker = Some(cx.waker().clone());
        next
    }
}

impl State {
    fn host(&mut self, host: Arc<Host>) -> &mut HostPool {
        self.hosts.entry(key(&host)).or_insert_with(|| HostPool {
            host,
            idle: Vec::new(),
            http2: Vec::new(),
            waiting: Vec::new(),
            connecting: 0,
        })
    }
}

fn key(host: &Arc<Host>) -> usize {
    Arc::as_ptr(host) as usize
}

/// Watches over the connections of one [`WorkerPool`]; ends with it.
struct Keeper;

impl Keeper {
    async fn run(pool: Weak<WorkerPool>, signals: Arc<Signals>) {
        let mut changed = Box::pin(notified(Arc::clone(&signals.changed)));
        let mut sleep: Pin<Box<tokio::time::Sleep>> = Box::pin(tokio::time::sleep(Duration::ZERO));
        std::future::poll_fn(move |cx| {
            loop {
                // Before looking, so that no ring between looking and sleeping is lost.
                while changed.as_mut().poll(cx).is_ready() {
                    changed.set(notified(Arc::clone(&signals.changed)));
                }
                let Some(pool) = pool.upgrade() else {
                    return Poll::Ready(());
                };
                let Some(next) = pool.sweep(cx) else {
                    return Poll::Pending;
                };
                sleep.as_mut().reset(next);
                if sleep.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await;
    }
}

async fn notified(notify: Arc<Notify>) {
    notify.notified().await;
}

#[cfg(test)]
mod tests;
