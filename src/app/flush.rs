//! The flush of statistics: the gauges that Envoy writes then, and the sinks that are told of all values.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::control::Readiness;
use super::stats::{generation as generation_stat, server as stat};
use crate::admin::hidden;
use crate::base::memory;
use crate::bootstrap::{StatsConfig, StatsFlush};
use crate::generation::CurrentGeneration;
use crate::listener::ServerState;
use crate::telemetry::metrics::{Registry, StatSet};
use crate::telemetry::samples::{Query, Samples};
use crate::wasm::StatsSink;

/// Envoy writes these gauges at every flush of statistics; readers of `?usedonly` rely on it.
#[derive(Debug)]
pub(super) struct Flush {
    pub(super) server: Arc<StatSet>,
    pub(super) generation: Arc<StatSet>,
    pub(super) current: Arc<CurrentGeneration>,
    pub(super) state: Arc<ServerState>,
    pub(super) readiness: watch::Receiver<Readiness>,
    pub(super) started: Instant,
    /// What sinks are told of.
    pub(super) registry: Registry,
    pub(super) config: StatsConfig,
    pub(super) sinks: Mutex<Vec<StatsSink>>,
}

impl Flush {
    /// Flushes at the interval of the configuration, where it has one.
    pub(super) async fn run(self: Arc<Self>) {
        let mut readiness = self.readiness.clone();
        let mut initialized = false;
        let mut interval = match self.config.flush {
            StatsFlush::Every(interval) => {
                let mut interval = tokio::time::interval(interval);
                interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
                // The first one is due at once, and for the gauges alone.
                interval.tick().await;
                Some(interval)
            }
            StatsFlush::OnAdmin => None,
        };
        self.set_gauges();
        loop {
            if *readiness.borrow_and_update() == Readiness::Live && !initialized {
                initialized = true;
                let took = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.server.record(stat::INITIALIZATION_TIME_MS, took);
            }
            let due = async {
                match &mut interval {
                    Some(interval) => {
                        interval.tick().await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => self.now(),
                // Readiness is told at once, not at the next flush.
                changed = readiness.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.set_gauges();
                }
            }
        }
    }

    /// Flushes now. To be called on the control side, whose statistics these are.
    pub(super) fn now(&self) {
        self.set_gauges();
        self.tell_sinks();
    }

    /// Flushes as the process ends, unless only admin does.
    pub(super) fn last(&self) {
        if let StatsFlush::Every(_) = self.config.flush {
            self.now();
        }
    }

    fn set_gauges(&self) {
        let state = match *self.readiness.borrow() {
            _ if self.state.health_failed() => 1,
            Readiness::Live => 0,
            Readiness::PreInitializing => 2,
            Readiness::Initializing => 3,
        };
        self.server.set(stat::STATE, state);
        self.server.set(stat::LIVE, u64::from(state == 0));
        self.server
            .set(stat::UPTIME, self.started.elapsed().as_secs());
        self.generation
            .set(generation_stat::CURRENT, self.current.load().number);
        self.generation
            .set(generation_stat::ALIVE, self.current.sweep() as u64);
        if let Some(resident) = memory::resident_bytes() {
            for gauge in [
                stat::MEMORY_ALLOCATED,
                stat::MEMORY_HEAP_SIZE,
                stat::MEMORY_PHYSICAL_SIZE,
            ] {
                self.server.set(gauge, resident);
            }
        }
    }

    fn tell_sinks(&self) {
        let mut sinks = self.sinks.lock();
        if sinks.is_empty() {
            return;
        }
        let used = Query {
            used_only: true,
            ..Query::default()
        };
        let matcher = &self.config.matcher;
        let samples = Samples::collect(&self.registry, &used, &|name| hidden(matcher, name));
        for sink in sinks.iter_mut() {
            if !sink.flush(&samples) {
                self.server.inc(stat::DROPPED_STAT_FLUSHES);
            }
        }
    }
}
