//! `/stats/prometheus`: the text format, with Envoy's names and labels.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::metrics::Kind;
use super::samples::Samples;
use super::tags::{Labels, TagExtractor, sanitized};
use super::text::{Buckets, QUANTILES, cumulative, quantile};

/// Plugins' metrics lose this, and do not get `envoy_`: `wasmcustom.istio_requests_total` is `istio_requests_total`.
const CUSTOM: &str = "wasmcustom.";

/// What the page is to hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// `text_readouts`: texts as gauges of value 0, with the text as a label.
    pub text_readouts: bool,
    /// [`Buckets::Summary`] gives summaries; everything else cumulative buckets.
    pub buckets: Option<Buckets>,
}

/// The page. Families are in the order of Envoy: counters, gauges, texts, histograms; each by name, its series together.
pub fn page(samples: &Samples, tags: &TagExtractor, options: Options) -> String {
    let mut out = String::new();
    for wanted in [Kind::Counter, Kind::Gauge] {
        let mut families: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (raw, value) in samples.of(wanted) {
            let Some((name, labels)) = named(raw, tags) else {
                continue;
            };
            let line = format!("{name}{{{}}} {value}\n", written(&labels));
            families.entry(name).or_default().push(line);
        }
        let kind = if wanted == Kind::Counter {
            "counter"
        } else {
            "gauge"
        };
        write_families(families, kind, &mut out);
    }
    if options.text_readouts {
        let mut families: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (raw, text) in &samples.texts {
            let Some((name, mut labels)) = named(raw, tags) else {
                continue;
            };
            labels.push(("text_value".into(), text.as_str().into()));
            let line = format!("{name}{{{}}} 0\n", written(&labels));
            families.entry(name).or_default().push(line);
        }
        write_families(families, "gauge", &mut out);
    }
    let summary = options.buckets == Some(Buckets::Summary);
    let mut families: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (raw, counts) in &samples.histograms {
        let Some((name, labels)) = named(raw, tags) else {
            continue;
        };
        let labels = written(&labels);
        let joint = if labels.is_empty() { "" } else { "," };
        let mut lines = String::new();
        if summary {
            for percent in QUANTILES {
                let value = quantile(counts, percent)
                    .map_or_else(|| "nan".to_owned(), |value| value.to_string());
                let _ = writeln!(
                    lines,
                    "{name}{{{labels}{joint}quantile=\"{}\"}} {value}",
                    (percent * 10.0).round() / 1000.0
                );
            }
        } else {
            for (bound, count) in cumulative(counts) {
                let _ = writeln!(
                    lines,
                    "{name}_bucket{{{labels}{joint}le=\"{bound}\"}} {count}"
                );
            }
            let _ = writeln!(
                lines,
                "{name}_bucket{{{labels}{joint}le=\"+Inf\"}} {}",
                counts.count()
            );
        }
        let _ = writeln!(lines, "{name}_sum{{{labels}}} {}", counts.sum);
        let _ = writeln!(lines, "{name}_count{{{labels}}} {}", counts.count());
        families.entry(name).or_default().push(lines);
    }
    write_families(
        families,
        if summary { "summary" } else { "histogram" },
        &mut out,
    );
    out
}

fn write_families(families: BTreeMap<String, Vec<String>>, kind: &str, out: &mut String) {
    for (name, series) in families {
        let _ = writeln!(out, "# TYPE {name} {kind}");
        out.extend(series);
    }
}

/// `None` for what is left out: a custom metric all of whose name is labels, as in Envoy. A line without a name would make
/// the whole page unreadable.
fn named<'a>(raw: &'a str, tags: &'a TagExtractor) -> Option<(String, Labels<'a>)> {
    let (name, labels) = tags.extract(raw);
    let name = match name.strip_prefix(CUSTOM) {
        Some("") => return None,
        Some(custom) => sanitized(custom),
        None => format!("envoy_{}", sanitized_tail(&name)),
    };
    Some((name, labels))
}

/// What follows `envoy_` may begin with a digit.
fn sanitized_tail(name: &str) -> String {
    let text = sanitized(name);
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        text[1..].to_owned()
    } else {
        text
    }
}

fn written(labels: &Labels<'_>) -> String {
    let mut out = String::new();
    for (name, value) in labels {
        if !out.is_empty() {
            out.push(',');
        }
        let _ = write!(out, "{name}=\"{}\"", escaped(value));
    }
    out
}

fn escaped(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return value.into();
    }
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
        .into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::telemetry::metrics::HistogramCounts;

    /// The series of a page, without values: `name{labels}`.
    fn series(page: &str) -> BTreeSet<&str> {
        page.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' ').map(|(series, _)| series))
            .collect()
    }

    /// Every name that a real Envoy listed becomes the series that it became there.
    fn same_series(text: &str, prometheus: &str) {
        let mut samples = Samples::default();
        let kinds: BTreeSet<&str> = prometheus
            .lines()
            .filter(|line| line.ends_with(" histogram"))
            .collect();
        for line in text.lines() {
            let (name, value) = line.split_once(": ").unwrap();
            if value.starts_with('"') {
                continue;
            }
            match value.parse() {
                Ok(value) => {
                    samples
                        .numbers
                        .insert(name.to_owned(), (Kind::Counter, value));
                }
                Err(_) => {
                    samples
                        .histograms
                        .insert(name.to_owned(), HistogramCounts::default());
                }
            }
        }
        assert!(!kinds.is_empty());
        let page = page(&samples, &TagExtractor::default(), Options::default());
        let (ours, envoys) = (series(&page), series(prometheus));
        let missing: Vec<_> = envoys.difference(&ours).collect();
        let extra: Vec<_> = ours
            .difference(&envoys)
            // Two scrapes are not of the same moment.
            .filter(|series| !series.contains("admin") && !series.contains("downstream_rq_time"))
            .collect();
        assert_eq!(missing, [] as [&&str; 0], "missing");
        assert_eq!(extra, [] as [&&str; 0], "extra");
    }

    #[test]
    fn every_series_of_a_real_envoy() {
        same_series(
            include_str!("../../tests/golden/stats/stats.txt"),
            include_str!("../../tests/golden/stats/prometheus.txt"),
        );
        same_series(
            include_str!("../../tests/golden/stats/stats_all.txt"),
            include_str!("../../tests/golden/stats/prometheus_all.txt"),
        );
    }

    #[test]
    fn a_family_is_written_once_with_all_its_series() {
        let mut samples = Samples::default();
        for (name, kind) in [
            ("cluster.a.upstream_rq_200", Kind::Counter),
            ("cluster.a.upstream_rq_503", Kind::Counter),
            ("cluster.b\"\\.upstream_rq_200", Kind::Counter),
            ("cluster.a.membership_total", Kind::Gauge),
            ("wasmcustom.istio_requests_total", Kind::Counter),
            ("wasmcustom.9lives", Kind::Counter),
            ("wasmcustom", Kind::Counter),
        ] {
            samples.numbers.insert(name.to_owned(), (kind, 1));
        }
        assert_eq!(
            page(&samples, &TagExtractor::default(), Options::default()),
            "# TYPE _9lives counter\n_9lives{} 1\n\
             # TYPE envoy_cluster_upstream_rq counter\n\
             envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"a\"} 1\n\
             envoy_cluster_upstream_rq{envoy_response_code=\"503\",envoy_cluster_name=\"a\"} 1\n\
             envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"b\\\"\\\\\"} 1\n\
             # TYPE envoy_wasmcustom counter\nenvoy_wasmcustom{} 1\n\
             # TYPE istio_requests_total counter\nistio_requests_total{} 1\n\
             # TYPE envoy_cluster_membership_total gauge\n\
             envoy_cluster_membership_total{envoy_cluster_name=\"a\"} 1\n"
        );
    }

    #[test]
    fn a_name_that_is_nothing_but_labels_has_no_series() {
        let rule = ("cache".to_owned(), r"(cache\.(.*?)\.)".to_owned());
        let tags = TagExtractor::new(true, Vec::new(), vec![rule]).expect("it compiles");
        let samples = Samples {
            numbers: [
                ("wasmcustom.cache.hit.".to_owned(), (Kind::Counter, 1)),
                ("wasmcustom.cache.hit.total".to_owned(), (Kind::Counter, 2)),
            ]
            .into(),
            texts: [("wasmcustom.cache.text.".to_owned(), "v1".to_owned())].into(),
            histograms: [(
                "wasmcustom.cache.took.".to_owned(),
                HistogramCounts::default(),
            )]
            .into(),
            ..Samples::default()
        };
        let options = Options {
            text_readouts: true,
            ..Options::default()
        };
        assert_eq!(
            page(&samples, &tags, options),
            "# TYPE total counter\ntotal{cache=\"hit\"} 2\n"
        );
    }

    #[test]
    fn histograms_texts_and_summaries() {
        let mut counts = HistogramCounts::default();
        counts.buckets[0] = 1;
        counts.buckets[19] = 2;
        counts.sum = 9;
        let samples = Samples {
            texts: [("cluster.a.version_text".to_owned(), "v1".to_owned())].into(),
            histograms: [("server.x_ms".to_owned(), counts)].into(),
            ..Samples::default()
        };
        let plain = page(&samples, &TagExtractor::default(), Options::default());
        assert!(plain.starts_with(
            "# TYPE envoy_server_x_ms histogram\nenvoy_server_x_ms_bucket{le=\"0.5\"} 1\n"
        ));
        assert!(
            plain.contains("_bucket{le=\"3600000\"} 1\nenvoy_server_x_ms_bucket{le=\"+Inf\"} 3\n")
        );
        assert!(plain.ends_with("envoy_server_x_ms_sum{} 9\nenvoy_server_x_ms_count{} 3\n"));
        let other = page(
            &samples,
            &TagExtractor::default(),
            Options {
                text_readouts: true,
                buckets: Some(Buckets::Summary),
            },
        );
        assert!(other.contains(
            "envoy_cluster_version_text{envoy_cluster_name=\"a\",text_value=\"v1\"} 0\n"
        ));
        assert!(
            other.contains("# TYPE envoy_server_x_ms summary\nenvoy_server_x_ms{quantile=\"0\"} ")
        );
        assert!(other.contains("envoy_server_x_ms{quantile=\"0.999\"} "));
    }
}
