//! The flush of statistics: the gauges that Envoy writes then, and the sinks that are told of all values.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::control::Readiness;
use super::stats::{generation as generation_stat, server as stat};
use crate::admin::hidden;
use crate::bootstrap::StatsConfig;
use crate::generation::CurrentGeneration;
use crate::listener::ServerState;
use crate::telemetry::metrics::{Registry, StatSet};
use crate::telemetry::samples::{Query, Samples};
use crate::wasm::StatsSink;

/// Envoy writes these gauges at every flush of statistics; readers of `?usedonly` rely on it.
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
    pub(super) sinks: Vec<StatsSink>,
}

impl Flush {
    pub(super) async fn run(mut self) {
        let mut flush = tokio::time::interval(self.config.flush_interval);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one is due at once, and for the gauges alone.
        flush.tick().await;
        let mut initialized = false;
        let mut due = false;
        loop {
            let readiness = *self.readiness.borrow_and_update();
            let state = match readiness {
                _ if self.state.health_failed() => 1,
                Readiness::Live => 0,
                Readiness::PreInitializing => 2,
                Readiness::Initializing => 3,
            };
            self.server.set(stat::STATE, state);
            if readiness == Readiness::Live && !initialized {
                initialized = true;
                let took = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.server.record(stat::INITIALIZATION_TIME_MS, took);
            }
            self.server.set(stat::LIVE, u64::from(state == 0));
            self.server
                .set(stat::UPTIME, self.started.elapsed().as_secs());
            self.generation
                .set(generation_stat::CURRENT, self.current.load().number);
            self.generation
                .set(generation_stat::ALIVE, self.current.sweep() as u64);
            if let Some(resident) = resident_bytes() {
                for gauge in [
                    stat::MEMORY_ALLOCATED,
                    stat::MEMORY_HEAP_SIZE,
                    stat::MEMORY_PHYSICAL_SIZE,
                ] {
                    self.server.set(gauge, resident);
                }
            }
            if due {
                self.tell_sinks();
            }
            due = tokio::select! {
                _ = flush.tick() => true,
                // Readiness is told at once, not at the next flush.
                changed = self.readiness.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    false
                }
            };
        }
    }

    fn tell_sinks(&mut self) {
        if self.sinks.is_empty() {
            return;
        }
        let used = Query {
            used_only: true,
            ..Query::default()
        };
        let matcher = &self.config.matcher;
        let samples = Samples::collect(&self.registry, &used, &|name| hidden(matcher, name));
        for sink in &mut self.sinks {
            if !sink.flush(&samples) {
                self.server.inc(stat::DROPPED_STAT_FLUSHES);
            }
        }
    }
}

/// Resident memory of the process.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}
