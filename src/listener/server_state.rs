//! Whether the process is being drained or failed its health check, as the admin commands set it.
//!
//! What each action does to responses is Envoy's (`envoy-user-surface` 2.5): a failed health check closes after every
//! response; a drain closes at once (`immediate`) or ever more likely until `drain-time-s` is over (`gradual`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::Instant;

use crate::config::listener::TrafficDirection;

/// `--drain-strategy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DrainStrategy {
    /// Ever more likely, until the drain time is over.
    #[default]
    Gradual,
    /// At once.
    Immediate,
}

/// What the admin commands change, and requests read.
#[derive(Debug)]
pub struct ServerState {
    strategy: DrainStrategy,
    drain_time: Duration,
    health_failed: Arc<AtomicBool>,
    /// Any drain at all: keeps the common case to one load.
    draining: AtomicBool,
    drains: RwLock<Drains>,
}

#[derive(Debug, Default)]
struct Drains {
    all: Option<Instant>,
    inbound: Option<Instant>,
}

impl ServerState {
    /// Not draining, healthy.
    pub fn new(strategy: DrainStrategy, drain_time: Duration) -> Self {
        Self {
            strategy,
            drain_time,
            health_failed: Arc::default(),
            draining: AtomicBool::new(false),
            drains: RwLock::default(),
        }
    }

    /// `--drain-time-s`.
    pub fn drain_time(&self) -> Duration {
        self.drain_time
    }

    /// `/healthcheck/fail` and `/healthcheck/ok`.
    pub fn set_health_failed(&self, failed: bool) {
        self.health_failed.store(failed, Relaxed);
    }

    /// The same as [`ServerState::health_failed`], to be watched by filters.
    pub fn health_switch(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.health_failed)
    }

    /// True between `/healthcheck/fail` and `/healthcheck/ok`.
    pub fn health_failed(&self) -> bool {
        self.health_failed.load(Relaxed)
    }

    /// `/drain_listeners`: responses begin to close their connections. False where they do already.
    pub fn start_drain(&self, inbound_only: bool) -> bool {
        let mut drains = self.drains.write();
        let which = if inbound_only {
            &mut drains.inbound
        } else {
            &mut drains.all
        };
        let begins = which.is_none();
        which.get_or_insert_with(Instant::now);
        self.draining.store(true, Relaxed);
        begins
    }

    /// True where the response about to be sent should close its connection.
    pub fn closes(&self, direction: TrafficDirection) -> bool {
        if self.health_failed() {
            return true;
        }
        if !self.draining.load(Relaxed) {
            return false;
        }
        let drains = self.drains.read();
        let inbound = (direction == TrafficDirection::Inbound)
            .then_some(drains.inbound)
            .flatten();
        let Some(started) = drains.all.or(inbound) else {
            return false;
        };
        match self.strategy {
            DrainStrategy::Immediate => true,
            DrainStrategy::Gradual => {
                let elapsed = started.elapsed().as_secs_f64();
                elapsed >= self.drain_time.as_secs_f64() * fastrand::f64()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_gradual_drain_closes_ever_more_often() {
        let state = ServerState::new(DrainStrategy::Gradual, Duration::from_secs(100));
        assert!(!state.closes(TrafficDirection::Inbound));
        state.start_drain(true);
        let closed = |state: &ServerState| {
            (0..1000)
                .filter(|_| state.closes(TrafficDirection::Inbound))
                .count()
        };
        tokio::time::advance(Duration::from_secs(10)).await;
        let early = closed(&state);
        tokio::time::advance(Duration::from_secs(80)).await;
        let late = closed(&state);
        assert!(
            early > 20 && early < 300 && late > 800,
            "{early} then {late} of 1000"
        );
        assert!(
            !state.closes(TrafficDirection::Outbound),
            "only inbound listeners drain"
        );
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(closed(&state), 1000);
    }
}
