//! The plugins' series of `/stats/prometheus`: by plugin, version (as `/wasm` shows it) and callback.

use std::fmt::Write as _;

use regex::Regex;

use crate::wasm::PluginStatus;

/// Appends the series whose names `filter` matches.
pub(super) fn write(plugins: &[PluginStatus], filter: Option<&Regex>, out: &mut String) {
    let mut page = Page { filter, out };
    let labels: Vec<_> = plugins.iter().map(labels).collect();
    let each = || plugins.iter().zip(&labels);
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
