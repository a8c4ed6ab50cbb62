//! A moment's values of all statistics, chosen and in order: what the encoders write.

use std::collections::BTreeMap;

use regex::Regex;

use super::metrics::{HistogramCounts, Kind, Registry, Stat, UNKNOWN_CODE};

/// Which statistics are asked for (`/stats?…`).
#[derive(Debug, Default)]
pub struct Query {
    /// `usedonly`: only what was written since the start.
    pub used_only: bool,
    /// `filter`: anywhere in the raw name.
    pub filter: Option<Regex>,
    /// `type`.
    pub kind: KindFilter,
}

/// `type=` of `/stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KindFilter {
    /// `All`.
    #[default]
    All,
    /// `Counters`.
    Counters,
    /// `Gauges`.
    Gauges,
    /// `Histograms`.
    Histograms,
    /// `TextReadouts`.
    TextReadouts,
}

impl KindFilter {
    /// From its spelling in the query.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "All" => Self::All,
            "Counters" => Self::Counters,
            "Gauges" => Self::Gauges,
            "Histograms" => Self::Histograms,
            "TextReadouts" => Self::TextReadouts,
            _ => return None,
        })
    }

    fn takes(self, kind: Kind) -> bool {
        match self {
            Self::All => true,
            Self::Counters => kind == Kind::Counter,
            Self::Gauges => kind == Kind::Gauge,
            Self::Histograms => kind == Kind::Histogram,
            Self::TextReadouts => false,
        }
    }
}

/// Values by raw name. Where two owners have the same name (the old and the new world of an update), theirs are added.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    /// Text readouts.
    pub texts: BTreeMap<String, String>,
    /// Counters and gauges. Where a name has both, the gauge, as Envoy's `/stats`.
    pub numbers: BTreeMap<String, (Kind, u64)>,
    /// The counters that stand behind a gauge of the same name.
    pub behind_gauges: BTreeMap<String, u64>,
    /// Histograms.
    pub histograms: BTreeMap<String, HistogramCounts>,
}

impl Samples {
    /// Reads the registry; `hidden` names are left out (`stats_matcher`).
    pub fn collect(registry: &Registry, query: &Query, hidden: &dyn Fn(&str) -> bool) -> Self {
        let mut samples = Self::default();
        let mut name = String::new();
        for set in registry.sets() {
            for (index, def) in (0u16..).zip(set.table().stats) {
                let stat = Stat(index);
                if !query.kind.takes(def.kind) || (query.used_only && !set.is_used(stat)) {
                    continue;
                }
                name.clear();
                name.push_str(set.prefix());
                name.push_str(def.name);
                if !query.wants(&name) || hidden(&name) {
                    continue;
                }
                match def.kind {
                    Kind::Histogram => samples.add_histogram(&name, &set.histogram(stat)),
                    kind => samples.add_number(&name, kind, set.value(stat)),
                }
            }
            if query.kind.takes(Kind::Counter) {
                for (code, count) in set.codes() {
                    let prefix = set.prefix();
                    // Envoy counts the code and its class; the class is the sum of its codes.
                    let names = match code {
                        UNKNOWN_CODE => vec![format!("{prefix}upstream_rq_unknown")],
                        code => vec![
                            format!("{prefix}upstream_rq_{code}"),
                            format!("{prefix}upstream_rq_{}xx", code / 100),
                        ],
                    };
                    for name in names {
                        if query.wants(&name) && !hidden(&name) {
                            samples.add_number(&name, Kind::Counter, count);
                        }
                    }
                }
            }
        }
        for metric in registry.metrics() {
            if !query.kind.takes(metric.kind())
                || (query.used_only && !metric.is_used())
                || !query.wants(metric.name())
                || hidden(metric.name())
            {
                continue;
            }
            match metric.kind() {
                Kind::Histogram => samples.add_histogram(metric.name(), &metric.counts()),
                kind => samples.add_number(metric.name(), kind, metric.value()),
            }
        }
        if matches!(query.kind, KindFilter::All | KindFilter::TextReadouts) {
            for (name, text) in registry.texts() {
                if query.wants(&name) && !hidden(&name) {
                    samples.texts.insert(name.into(), text);
                }
            }
        }
        samples
    }

    fn add_number(&mut self, name: &str, kind: Kind, value: u64) {
        match self.numbers.get_mut(name) {
            Some((known, sum)) if *known == kind => *sum = sum.wrapping_add(value),
            Some(number) => {
                let counter = match kind {
                    Kind::Gauge => std::mem::replace(number, (kind, value)).1,
                    _ => value,
                };
                let sum = self.behind_gauges.entry(name.to_owned()).or_default();
                *sum = sum.wrapping_add(counter);
            }
            None => {
                self.numbers.insert(name.to_owned(), (kind, value));
            }
        }
    }

    /// All counters, or all gauges.
    pub fn of(&self, wanted: Kind) -> impl Iterator<Item = (&str, u64)> {
        let numbers = self.numbers.iter();
        let numbers = numbers.filter(move |(_, (kind, _))| *kind == wanted);
        let behind = self.behind_gauges.iter();
        let behind = behind.filter(move |_| wanted == Kind::Counter);
        numbers
            .map(|(name, (_, value))| (&**name, *value))
            .chain(behind.map(|(name, value)| (&**name, *value)))
    }

    fn add_histogram(&mut self, name: &str, counts: &HistogramCounts) {
        let sum = self.histograms.entry(name.to_owned()).or_default();
        for (to, from) in sum.buckets.iter_mut().zip(counts.buckets) {
            *to += from;
        }
        sum.sum = sum.sum.wrapping_add(counts.sum);
    }
}

impl Query {
    fn wants(&self, name: &str) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| filter.is_match(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Shards;

    crate::stats! { mod sample { HITS: Counter = "hits", OPEN: Gauge = "open", TOOK: Histogram = "took_ms" } }

    #[test]
    fn of_two_kinds_of_a_name_the_gauge_is_shown() {
        let registry = Registry::new(Shards::for_workers(1));
        let gauge = registry.metric("m", Kind::Gauge);
        let counter = registry.metric("m", Kind::Counter);
        gauge.set(7);
        counter.add(2);
        let all = Samples::collect(&registry, &Query::default(), &|_| false);
        assert_eq!(all.numbers["m"], (Kind::Gauge, 7));
        assert_eq!(all.of(Kind::Counter).collect::<Vec<_>>(), [("m", 2)]);
        assert_eq!(all.of(Kind::Gauge).collect::<Vec<_>>(), [("m", 7)]);
    }

    #[test]
    fn values_are_chosen_and_added() {
        let registry = Registry::new(Shards::for_workers(1));
        let old = registry.set(&sample::TABLE, "s.a.", "s", []);
        let new = registry.set(&sample::TABLE, "s.a.", "s", []);
        old.add(sample::HITS, 2);
        new.add(sample::HITS, 3);
        new.record(sample::TOOK, 7);
        old.inc_code(404);
        old.inc_code(600);
        new.inc_code(999);
        registry.set_text("s.a.version_text", "v1");
        registry.metric("wasmcustom.m", Kind::Gauge);
        let all = Samples::collect(&registry, &Query::default(), &|_| false);
        assert_eq!(all.numbers["s.a.hits"], (Kind::Counter, 5));
        assert_eq!(all.numbers["s.a.open"], (Kind::Gauge, 0));
        assert_eq!(all.numbers["s.a.upstream_rq_404"], (Kind::Counter, 1));
        assert_eq!(all.numbers["wasmcustom.m"], (Kind::Gauge, 0));
        assert_eq!(all.histograms["s.a.took_ms"].sum, 7);
        assert_eq!(all.texts["s.a.version_text"], "v1");

        let used = Query {
            used_only: true,
            ..Query::default()
        };
        let used = Samples::collect(&registry, &used, &|_| false);
        assert_eq!(
            used.numbers.keys().collect::<Vec<_>>(),
            [
                "s.a.hits",
                "s.a.upstream_rq_404",
                "s.a.upstream_rq_4xx",
                "s.a.upstream_rq_unknown"
            ]
        );
        assert_eq!(used.numbers["s.a.upstream_rq_unknown"].1, 2);
        new.set(sample::OPEN, 0);
        let gauges = Query {
            used_only: true,
            kind: KindFilter::Gauges,
            filter: Some(Regex::new(r"^s\.").unwrap()),
        };
        let gauges = Samples::collect(&registry, &gauges, &|_| false);
        assert_eq!(gauges.numbers.keys().collect::<Vec<_>>(), ["s.a.open"]);
        assert!(gauges.histograms.is_empty() && gauges.texts.is_empty());
        let hidden = Samples::collect(&registry, &Query::default(), &|name| {
            name.starts_with("s.a.")
        });
        assert_eq!(hidden.numbers.len(), 1);
    }
}
