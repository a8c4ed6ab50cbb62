//! `/stats` as text and as JSON.
//!
//! Histograms are kept as counts of Envoy's default buckets; quantiles are read off these, by linear interpolation. The
//! part of the last flush interval, which Envoy also shows, is not kept: `nan`, or null.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::metrics::{BUCKETS, HistogramCounts};
use super::samples::Samples;

/// `histogram_buckets=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Buckets {
    /// Quantiles (the default of text and JSON).
    #[default]
    Summary,
    /// Counts up to each bound.
    Cumulative,
    /// Counts a bucket.
    Disjoint,
    /// JSON alone: all there is.
    Detailed,
}

impl Buckets {
    /// From its spelling in the query.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "summary" => Self::Summary,
            "cumulative" => Self::Cumulative,
            "disjoint" => Self::Disjoint,
            "detailed" => Self::Detailed,
            _ => return None,
        })
    }
}

/// In percent.
pub(super) const QUANTILES: [f64; 10] =
    [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

/// The value below which `percent` of the counted ones are; `None` where there are none.
pub(super) fn quantile(counts: &HistogramCounts, percent: f64) -> Option<f64> {
    let total = counts.count();
    if total == 0 {
        return None;
    }
    #[allow(clippy::cast_precision_loss, reason = "a quantile is an estimate")]
    let wanted = total as f64 * percent / 100.0;
    let mut below = 0.0;
    let mut lower = 0.0;
    let mut answer = 0.0;
    for (index, count) in counts.buckets.iter().enumerate() {
        let upper = BUCKETS.get(index).copied().unwrap_or(lower);
        #[allow(clippy::cast_precision_loss, reason = "a quantile is an estimate")]
        let count = *count as f64;
        if count > 0.0 {
            let share = ((wanted - below) / count).clamp(0.0, 1.0);
            answer = lower + (upper - lower) * share;
            if below + count >= wanted {
                break;
            }
        }
        below += count;
        lower = upper;
    }
    Some(answer)
}

/// As C++ prints it with six digits: `0.5`, `1000`, `1.8e+06`.
fn bound(value: f64) -> String {
    if value >= 1e6 {
        let text = format!("{value:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{mantissa}e+{exponent:0>2}");
    }
    value.to_string()
}

/// Three digits at most.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Counts up to each bound.
pub(super) fn cumulative(counts: &HistogramCounts) -> impl Iterator<Item = (f64, u64)> {
    let mut sum = 0;
    BUCKETS
        .into_iter()
        .zip(counts.buckets)
        .map(move |(bound, count)| {
            sum += count;
            (bound, sum)
        })
}

fn disjoint(counts: &HistogramCounts) -> impl Iterator<Item = (f64, u64)> {
    BUCKETS.into_iter().zip(counts.buckets)
}

/// The text form: text readouts, counters and gauges, histograms, each by name.
pub fn text(samples: &Samples, buckets: Buckets) -> String {
    let mut out = String::new();
    for (name, value) in &samples.texts {
        let _ = writeln!(out, "{name}: \"{}\"", html(value));
    }
    for (name, (_, value)) in &samples.numbers {
        let _ = writeln!(out, "{name}: {value}");
    }
    for (name, counts) in &samples.histograms {
        let _ = write!(out, "{name}:");
        match buckets {
            Buckets::Cumulative => {
                for (upper, count) in cumulative(counts) {
                    let _ = write!(out, " B{}(0,{count})", bound(upper));
                }
            }
            Buckets::Disjoint => {
                for (upper, count) in disjoint(counts) {
                    let _ = write!(out, " B{}(0,{count})", bound(upper));
                }
            }
            Buckets::Summary | Buckets::Detailed if counts.count() == 0 => {
                out.push_str(" No recorded values");
            }
            Buckets::Summary | Buckets::Detailed => {
                for percent in QUANTILES {
                    let value = quantile(counts, percent).unwrap_or(f64::NAN);
                    let _ = write!(out, " P{percent}(nan,{})", rounded(value));
                }
            }
        }
        out.push('\n');
    }
    out
}

/// What Envoy does to text readouts.
fn html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// The JSON form.
pub fn json(samples: &Samples, buckets: Buckets) -> String {
    let mut stats: Vec<Value> = Vec::new();
    stats.extend(
        samples
            .texts
            .iter()
            .map(|(name, value)| json!({"name": name, "value": value})),
    );
    stats.extend(
        samples
            .numbers
            .iter()
            .map(|(name, (_, value))| json!({"name": name, "value": value})),
    );
    if !samples.histograms.is_empty() {
        stats.push(json!({ "histograms": histograms(samples, buckets) }));
    }
    json!({ "stats": stats }).to_string()
}

fn histograms(samples: &Samples, buckets: Buckets) -> Value {
    let all = samples.histograms.iter();
    let bucket_list = |pairs: Vec<(f64, u64)>| -> Value {
        pairs
            .into_iter()
            .map(|(upper, count)| json!({"upper_bound": number(upper), "interval": 0, "cumulative": count}))
            .collect()
    };
    let quantiles = |counts: &HistogramCounts| -> Value {
        QUANTILES
            .iter()
            .map(|percent| {
                let value = quantile(counts, *percent).map(|value| number(rounded(value)));
                json!({"cumulative": value, "interval": null})
            })
            .collect()
    };
    let supported: Value = QUANTILES.iter().map(|percent| number(*percent)).collect();
    match buckets {
        Buckets::Cumulative => all
            .map(|(name, counts)| json!({"name": name, "buckets": bucket_list(cumulative(counts).collect())}))
            .collect(),
        Buckets::Disjoint => all
            .map(|(name, counts)| json!({"name": name, "buckets": bucket_list(disjoint(counts).collect())}))
            .collect(),
        Buckets::Summary => {
            let computed: Value = all
                .map(|(name, counts)| json!({"name": name, "values": quantiles(counts)}))
                .collect();
            json!({"supported_quantiles": supported, "computed_quantiles": computed})
        }
        Buckets::Detailed => {
            let details: Value = all
                .map(|(name, counts)| {
                    let mut lower = 0.0;
                    let mut totals = Vec::new();
                    for (upper, count) in disjoint(counts) {
                        if count > 0 {
                            totals.push(json!({"lower_bound": number(lower), "width": number(upper - lower), "count": count}));
                        }
                        lower = upper;
                    }
                    json!({"name": name, "totals": totals, "intervals": [], "percentiles": quantiles(counts)})
                })
                .collect();
            json!({"supported_percentiles": supported, "details": details})
        }
    }
}

/// Whole numbers without a fraction.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        #[allow(clippy::cast_possible_truncation, reason = "integral and below 2^53")]
        let value = value as i64;
        value.into()
    } else {
        value.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Kind;

    fn samples() -> Samples {
        let mut counts = HistogramCounts::default();
        counts.buckets[3] = 2;
        counts.sum = 13;
        Samples {
            texts: [("z.version_text".to_owned(), "v\"1".to_owned())].into(),
            numbers: [
                ("b.total".to_owned(), (Kind::Counter, 7)),
                ("a.open".to_owned(), (Kind::Gauge, 0)),
            ]
            .into(),
            histograms: [
                ("h.took_ms".to_owned(), counts),
                ("h.empty_ms".to_owned(), HistogramCounts::default()),
            ]
            .into(),
            ..Samples::default()
        }
    }

    #[test]
    fn text_is_in_envoys_order() {
        assert_eq!(
            text(&samples(), Buckets::Summary),
            "z.version_text: \"v&quot;1\"\na.open: 0\nb.total: 7\nh.empty_ms: No recorded values\n\
             h.took_ms: P0(nan,5) P25(nan,6.25) P50(nan,7.5) P75(nan,8.75) P90(nan,9.5) P95(nan,9.75) P99(nan,9.95) \
             P99.5(nan,9.975) P99.9(nan,9.995) P100(nan,10)\n"
        );
    }

    #[test]
    fn buckets_are_written_as_envoy_does() {
        let only = |buckets| {
            let mut samples = samples();
            samples.texts.clear();
            samples.numbers.clear();
            samples.histograms.remove("h.empty_ms");
            text(&samples, buckets)
        };
        assert_eq!(
            only(Buckets::Cumulative),
            "h.took_ms: B0.5(0,0) B1(0,0) B5(0,0) B10(0,2) B25(0,2) B50(0,2) B100(0,2) B250(0,2) B500(0,2) B1000(0,2) \
             B2500(0,2) B5000(0,2) B10000(0,2) B30000(0,2) B60000(0,2) B300000(0,2) B600000(0,2) B1.8e+06(0,2) B3.6e+06(0,2)\n"
        );
        assert!(only(Buckets::Disjoint).contains("B10(0,2) B25(0,0)"));
    }

    #[test]
    fn json_has_envoys_shapes() {
        let read = |buckets| -> Value { serde_json::from_str(&json(&samples(), buckets)).unwrap() };
        let value = read(Buckets::Summary);
        assert_eq!(
            value["stats"][0],
            json!({"name": "z.version_text", "value": "v\"1"})
        );
        assert_eq!(value["stats"][2], json!({"name": "b.total", "value": 7}));
        let histograms = &value["stats"][3]["histograms"];
        assert_eq!(
            histograms["supported_quantiles"].to_string(),
            "[0,25,50,75,90,95,99,99.5,99.9,100]"
        );
        assert_eq!(
            histograms["computed_quantiles"][0]["values"][0],
            json!({"cumulative": null, "interval": null})
        );
        assert_eq!(
            histograms["computed_quantiles"][1]["values"][2]["cumulative"],
            7.5
        );
        let value = read(Buckets::Cumulative);
        assert_eq!(
            value["stats"][3]["histograms"][1]["buckets"][3],
            json!({"upper_bound": 10, "interval": 0, "cumulative": 2})
        );
        let value = read(Buckets::Detailed);
        assert_eq!(
            value["stats"][3]["histograms"]["details"][1]["totals"],
            json!([{"lower_bound": 5, "width": 5, "count": 2}])
        );
        assert_eq!(
            json(&Samples::default(), Buckets::Summary),
            "{\"stats\":[]}"
        );
    }

    #[test]
    fn quantiles_beyond_the_last_bound_stay_there() {
        let mut counts = HistogramCounts::default();
        counts.buckets[BUCKETS.len()] = 1;
        assert_eq!(quantile(&counts, 50.0), Some(3_600_000.0));
        assert_eq!(quantile(&HistogramCounts::default(), 50.0), None);
    }
}
