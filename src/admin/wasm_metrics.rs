//! The plugins' series of `/stats/prometheus`: by plugin, version (as `/wasm` shows it) and callback.
//!
//! No series is there twice: what drains has none where a version of its key is wanted again, or runs anew.

use std::collections::HashSet;
use std::fmt::Write as _;

use regex::Regex;

use crate::wasm::PluginStatus;
use crate::wasm::status::{SharedStatus, State};

/// Appends the series whose names `filter` matches.
pub(super) fn write(plugins: &[PluginStatus], filter: Option<&Regex>, out: &mut String) {
    let mut page = Page { filter, out };
    let plugins = told_apart(plugins);
    let each = || plugins.iter().map(|(plugin, labels)| (*plugin, labels));
    let workers = |read: fn(&crate::wasm::status::VmStatus) -> u64| {
        each().map(move |(plugin, labels)| {
            let sum: u64 = plugin.vms.iter().map(read).sum();
            (labels.clone(), sum as f64)
        })
    };
    page.family("vms", "gauge", workers(|vm| u64::from(vm.working)));
    page.family("vms_created_total", "counter", workers(|vm| vm.created));
    page.family("traps_total", "counter", workers(|vm| vm.traps));
    page.family("memory_bytes", "gauge", workers(|vm| vm.memory));
    page.family("streams", "gauge", workers(|vm| vm.contexts));
    page.family("paused_streams", "gauge", workers(|vm| vm.paused));
    page.family(
        "paused_streams_ended_total",
        "counter",
        workers(|vm| vm.overdue),
    );
    page.family("callouts", "gauge", workers(|vm| vm.callouts));
    page.family(
        "soft_deadlines_total",
        "counter",
        workers(|vm| vm.soft_deadlines),
    );
    page.family(
        "hard_deadlines_total",
        "counter",
        workers(|vm| vm.hard_deadlines),
    );
    page.family(
        "state",
        "gauge",
        each().map(|(plugin, labels)| {
            let state = plugin.state.as_str();
            (format!("{labels},state=\"{state}\""), 1.0)
        }),
    );
    let live = || each().filter_map(|(plugin, labels)| Some((plugin.live.as_ref()?, labels)));
    page.family(
        "breaker_closed",
        "gauge",
        live().map(|(live, labels)| {
            (
                labels.clone(),
                f64::from(u8::from(live.breaker == "closed")),
            )
        }),
    );
    let quotas = || {
        live().flat_map(|(live, labels)| {
            live.quotas
                .iter()
                .map(move |quota| (format!("{labels},quota=\"{}\"", quota.name), quota))
        })
    };
    page.family(
        "quota_refused_total",
        "counter",
        quotas().map(|(labels, quota)| (labels, quota.refused as f64)),
    );
    page.family(
        "quota_limit",
        "gauge",
        quotas().map(|(labels, quota)| (labels, quota.limit as f64)),
    );
    page.family(
        "quota_used",
        "gauge",
        quotas().filter_map(|(labels, quota)| Some((labels, quota.used? as f64))),
    );
    let shared = |read: fn(&SharedStatus) -> usize| {
        live().map(move |(live, labels)| (labels.clone(), read(&live.shared) as f64))
    };
    page.family("shared_data_bytes", "gauge", shared(|shared| shared.bytes));
    page.family("shared_data_keys", "gauge", shared(|shared| shared.count));
    page.family("queues", "gauge", shared(|shared| shared.queue_count));
    page.family("queue_messages", "gauge", shared(|shared| shared.messages));
    let callbacks = || {
        live().flat_map(|(live, labels)| {
            live.callbacks
                .iter()
                .map(move |callback| (format!("{labels},callback=\"{}\"", callback.name), callback))
        })
    };
    page.family(
        "callback_calls_total",
        "counter",
        callbacks().map(|(labels, callback)| (labels, callback.calls as f64)),
    );
    page.family(
        "callback_seconds",
        "gauge",
        callbacks().flat_map(|(labels, callback)| {
            [("0.5", callback.p50), ("0.99", callback.p99)]
                .into_iter()
                .filter_map(move |(quantile, time)| {
                    let labels = format!("{labels},quantile=\"{quantile}\"");
                    Some((labels, time?.as_secs_f64()))
                })
        }),
    );
}

/// One of each plugin and version with its labels: that which is wanted, else that which drains for the shortest time.
fn told_apart(plugins: &[PluginStatus]) -> Vec<(&PluginStatus, String)> {
    let drains = |plugin: &&PluginStatus| plugin.state == State::Draining;
    let wanted = plugins.iter().filter(|plugin| !drains(plugin));
    let all = wanted.chain(plugins.iter().rev().filter(drains));
    let mut seen = HashSet::new();
    all.map(|plugin| (plugin, labels(plugin)))
        .filter(|(_, labels)| seen.insert(labels.clone()))
        .collect()
}

fn labels(plugin: &PluginStatus) -> String {
    let mut name = String::new();
    for c in plugin.name.chars() {
        match c {
            '\\' => name.push_str("\\\\"),
            '"' => name.push_str("\\\""),
            '\n' => name.push_str("\\n"),
            c => name.push(c),
        }
    }
    format!(
        "plugin=\"{name}\",version=\"{:.12}\"",
        plugin.key.to_string()
    )
}

struct Page<'a> {
    filter: Option<&'a Regex>,
    out: &'a mut String,
}

impl Page<'_> {
    /// Writing to a string cannot fail.
    fn family(&mut self, name: &str, kind: &str, series: impl Iterator<Item = (String, f64)>) {
        let name = format!("plenipo_wasm_{name}");
        if self.filter.is_some_and(|filter| !filter.is_match(&name)) {
            return;
        }
        let mut series = series.peekable();
        if series.peek().is_none() {
            return;
        }
        let _ = writeln!(self.out, "# TYPE {name} {kind}");
        for (labels, value) in series {
            let _ = writeln!(self.out, "{name}{{{labels}}} {value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::spec::Digest;
    use crate::wasm::status::{CallbackStatus, LiveStatus, QuotaStatus, SharedStatus, VmStatus};

    fn status(key: u8, state: State, calls: u64) -> PluginStatus {
        let callback = CallbackStatus {
            name: "proxy_on_tick",
            calls,
            p50: None,
            p99: None,
        };
        let quota = QuotaStatus {
            name: "metrics",
            limit: 10,
            used: Some(calls),
            refused: calls,
        };
        let vm = VmStatus {
            traps: calls,
            ..VmStatus::default()
        };
        PluginStatus {
            name: "test".to_owned(),
            root_id: String::new(),
            vm_id: String::new(),
            key: Digest([key; 32]),
            sha256: None,
            image: None,
            origin: String::new(),
            state,
            error: None,
            slots: Vec::new(),
            vms: vec![vm],
            history: Vec::new(),
            compile_time: None,
            unknown_imports: Vec::new(),
            trial: None,
            live: Some(LiveStatus {
                callbacks: vec![callback],
                quotas: vec![quota],
                shared: SharedStatus {
                    messages: calls as usize,
                    ..SharedStatus::default()
                },
                ..LiveStatus::default()
            }),
        }
    }

    #[test]
    fn no_series_is_there_twice_whatever_drains() {
        let plugins = [
            status(1, State::Draining, 10),
            status(1, State::Live, 11),
            status(2, State::Draining, 20),
            status(2, State::Draining, 21),
        ];
        let mut page = String::new();
        write(&plugins, None, &mut page);
        let series: Vec<_> = page
            .lines()
            .filter_map(|line| Some(line.rsplit_once(' ')?.0))
            .collect();
        let apart: HashSet<_> = series.iter().collect();
        assert_eq!(apart.len(), series.len(), "{page}");
        for (version, count) in [("010101010101", 11), ("020202020202", 21)] {
            let labels = format!("plugin=\"test\",version=\"{version}\"");
            for series in [
                format!("plenipo_wasm_traps_total{{{labels}}} {count}\n"),
                format!("plenipo_wasm_quota_used{{{labels},quota=\"metrics\"}} {count}\n"),
                format!("plenipo_wasm_queue_messages{{{labels}}} {count}\n"),
                format!(
                    "plenipo_wasm_callback_calls_total{{{labels},callback=\"proxy_on_tick\"}} {count}\n"
                ),
            ] {
                assert!(page.contains(&series), "{series} in\n{page}");
            }
        }
    }
}
