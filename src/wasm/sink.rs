//! A plugin as a sink of statistics: at each flush its root context is called (`envoy_on_stats_update`) with the values of
//! the counters and gauges in use as its call data, which [`encode`] describes.
//!
//! At most one update is under way: while a VM has not taken the last, the next one is dropped, and what it would have
//! told comes with the one after.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::{Plugins, Service};
use crate::telemetry::metrics::Kind;
use crate::telemetry::samples::Samples;

/// A sink.
#[derive(Debug)]
pub struct StatsSink {
    plugins: Plugins,
    slot: Arc<str>,
    /// Counters as last told.
    told: BTreeMap<String, u64>,
    under_way: Weak<Bytes>,
}

impl StatsSink {
    /// Tells the plugin of `service`, which was told nothing yet.
    pub fn new(service: &Service) -> Self {
        let (plugins, slot) = service.slot();
        Self {
            plugins: plugins.clone(),
            slot: Arc::clone(slot),
            told: BTreeMap::new(),
            under_way: Weak::new(),
        }
    }

    /// Tells `samples`, of which those in use should be. False where the plugin still has the last ones before it; a
    /// plugin that is not there, or whose VM has failed, misses them, as in Envoy.
    pub fn flush(&mut self, samples: &Samples) -> bool {
        if self.under_way.strong_count() > 0 {
            return false;
        }
        let update = Arc::new(Bytes::from(encode(samples, &self.told)));
        self.told = counters(samples)
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        if let Some(plugin) = self.plugins.serving(&self.slot) {
            plugin.send_stats(&update);
        }
        self.under_way = Arc::downgrade(&update);
        true
    }
}

fn counters(samples: &Samples) -> impl Iterator<Item = (&str, u64)> {
    samples.of(Kind::Counter)
}

/// Two blocks, of counters (type 1) and gauges (type 2), all numbers little-endian:
///
/// ```text
/// u32 bytes of the block   u32 type   u32 number of entries
///   u32 bytes of the name   the name   up to 7 bytes, so that a multiple of 8 follows   u64 value
///   of counters also: u64 what was added since the last update
/// ```
///
/// Envoy 1.40 counts entries that it does not write, and gives a block of gauges a size that doubles with each of them;
/// here sizes and numbers are what they should be, and readers of Envoy's own API read both.
fn encode(samples: &Samples, told: &BTreeMap<String, u64>) -> Vec<u8> {
    let mut out = Vec::new();
    block(&mut out, 1, counters(samples), |name, value| {
        let before = told.get(name).copied().unwrap_or(0);
        // Smaller than before: it was reset meanwhile.
        Some(value.checked_sub(before).unwrap_or(value))
    });
    block(&mut out, 2, samples.of(Kind::Gauge), |_, _| None);
    out
}

fn block<'a>(
    out: &mut Vec<u8>,
    kind: u32,
    entries: impl Iterator<Item = (&'a str, u64)>,
    delta: impl Fn(&str, u64) -> Option<u64>,
) {
    let short = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
    let start = out.len();
    out.extend_from_slice(&[0; 12]);
    let mut count = 0;
    for (name, value) in entries {
        count += 1;
        out.extend_from_slice(&short(name.len()));
        out.extend_from_slice(name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
        out.extend_from_slice(&value.to_le_bytes());
        if let Some(delta) = delta(name, value) {
            out.extend_from_slice(&delta.to_le_bytes());
        }
    }
    let size = short(out.len() - start);
    out[start..start + 4].copy_from_slice(&size);
    out[start + 4..start + 8].copy_from_slice(&kind.to_le_bytes());
    out[start + 8..start + 12].copy_from_slice(&short(count));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(numbers: &[(&str, Kind, u64)]) -> Samples {
        Samples {
            numbers: numbers
                .iter()
                .map(|(name, kind, value)| ((*name).to_owned(), (*kind, *value)))
                .collect(),
            ..Samples::default()
        }
    }

    #[test]
    fn entries_are_where_envoys_are() {
        // The entries as Envoy 1.40 wrote them, with zeros for its padding.
        let told = samples(&[
            ("cluster_manager.cluster_added", Kind::Counter, 2),
            ("server.live", Kind::Gauge, 1),
            ("server.static_unknown_fields", Kind::Counter, 0),
            ("server.uptime", Kind::Gauge, 2),
        ]);
        let mut expected = Vec::new();
        for part in [
            &b"\x70\0\0\0\x01\0\0\0\x02\0\0\0"[..],
            b"\x1d\0\0\0cluster_manager.cluster_added\0\0\0",
            b"\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0",
            b"\x1c\0\0\0server.static_unknown_fields",
            b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"\x48\0\0\0\x02\0\0\0\x02\0\0\0",
            b"\x0b\0\0\0server.live\0\0\0\0\0",
            b"\x01\0\0\0\0\0\0\0",
            b"\x0d\0\0\0server.uptime\0\0\0\0\0\0\0",
            b"\x02\0\0\0\0\0\0\0",
        ] {
            expected.extend_from_slice(part);
        }
        assert_eq!(encode(&told, &BTreeMap::new()), expected);
    }

    #[test]
    fn counters_tell_what_was_added() {
        let delta = |now: u64, before: Option<u64>| {
            let told = before.map(|value| ("c".to_owned(), value));
            let bytes = encode(
                &samples(&[("c", Kind::Counter, now)]),
                &told.into_iter().collect(),
            );
            u64::from_le_bytes(bytes[32..40].try_into().expect("8 bytes"))
        };
        assert_eq!(delta(5, None), 5);
        assert_eq!(delta(5, Some(3)), 2);
        assert_eq!(delta(5, Some(5)), 0);
        assert_eq!(delta(1, Some(5)), 1, "after a reset");
    }
}
