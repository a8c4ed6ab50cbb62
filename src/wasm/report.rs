//! What the meters of a version's workers say together, for `/wasm`.

use super::callbacks::NAMES;
use super::meter::{Quota, Times};
use super::status::{CallbackStatus, QuotaStatus, SharedStatus};
use super::vm::Counters;
use crate::config::wasm_settings::PluginPolicy;

/// The callbacks that were called, in the order of the ABI's table.
pub(crate) fn callbacks(workers: &[&Counters]) -> Vec<CallbackStatus> {
    let mut all: Vec<Option<Times>> = vec![None; NAMES.len()];
    for counters in workers {
        for (number, series) in counters.meter.callbacks() {
            if let Some(times) = all.get_mut(number) {
                times.get_or_insert_default().add(series);
            }
        }
    }
    let called = NAMES.iter().zip(all);
    called
        .filter_map(|(&name, times)| {
            let times = times?;
            Some(CallbackStatus {
                name,
                calls: times.calls,
                p50: times.quantile(0.5),
                p99: times.quantile(0.99),
            })
        })
        .collect()
}

/// Every quota of the settings; `metrics` is what the registry has of plugins of this name.
pub(crate) fn quotas(
    workers: &[&Counters],
    policy: &PluginPolicy,
    shared: &SharedStatus,
    metrics: usize,
) -> Vec<QuotaStatus> {
    let most = |read: fn(&Counters) -> u64| workers.iter().map(|counters| read(counters)).max();
    Quota::ALL
        .into_iter()
        .map(|(quota, name)| {
            let quotas = &policy.quotas;
            let (limit, used) = match quota {
                Quota::Metrics => (
                    quotas.metrics as u64,
                    // It refuses by whichever is more.
                    most(|counters| counters.meter.metrics.get()).max(Some(metrics as u64)),
                ),
                Quota::SharedData => (quotas.shared_data as u64, Some(shared.bytes as u64)),
                Quota::Queues => (quotas.queues as u64, Some(shared.queue_count as u64)),
                Quota::QueueBytes => (quotas.queue_bytes as u64, Some(shared.fullest_queue as u64)),
                Quota::TickPeriod => (
                    u64::try_from(quotas.min_tick_period.as_millis()).unwrap_or(u64::MAX),
                    None,
                ),
                Quota::Callouts => (
                    quotas.callouts as u64,
                    most(|counters| counters.meter.callouts.get()),
                ),
                Quota::CalloutBytes => (
                    quotas.callout_bytes as u64,
                    most(|counters| counters.meter.callout_bytes.get()),
                ),
                Quota::LogLines => (u64::from(quotas.log_lines_per_second), None),
                Quota::Memory => (
                    policy.memory as u64,
                    most(|counters| counters.memory.load(std::sync::atomic::Ordering::Relaxed)),
                ),
            };
            QuotaStatus {
                name,
                limit,
                used,
                refused: workers
                    .iter()
                    .map(|counters| counters.meter.refused(quota))
                    .sum(),
            }
        })
        .collect()
}
