//! Does the model accept what Envoy accepts? `tests/golden/config/verdicts.jsonl` holds small configurations with what
//! `envoy --mode validate` (1.40.0) said of each: null, or the reason of its refusal.

use plenipo::config::error::ErrorKind;
use plenipo::config::{Cluster, ConfigError, Listener, ParseContext, Source};
use plenipo::filter::registry::Registry;
use plenipo::pb;
use plenipo::pb::envoy::config::bootstrap::v3::Bootstrap;
use plenipo::pb::envoy::config::bootstrap::v3::bootstrap::StaticResources;
use serde::Deserialize;

const VERDICTS: &str = include_str!("../golden/config/verdicts.jsonl");

/// Accepted by Envoy, and refused here although nothing is missing.
const STRICTER: &[(&str, &str)] = &[
    ("no filters", "a chain without a router answers nothing"),
    ("redirect port", "no port is above 65535"),
    ("host rewrite hdr", "no request has a header of that name"),
    ("cluster_header bad", "no request has a header of that name"),
    ("hdr space", "no request has a header of that name"),
    ("hdr :foo", "no request has a pseudo-header of that name"),
    ("hdr add space", "such a header cannot be sent"),
    ("rm sp", "no request has a header of that name"),
    ("internal only bad", "no request has a header of that name"),
    ("lr enum bias", "a negative bias"),
];

/// Refused by Envoy, and accepted here.
const LAXER: &[(&str, &str)] = &[
    (
        "regex 1000",
        "Envoy's limit of RE2's program size; ours is another",
    ),
    (
        "api v2",
        "whether the cluster of an API is static is checked with the bootstrap",
    ),
    (
        "api nocl",
        "whether the cluster of an API is static is checked with the bootstrap",
    ),
    (
        "api ok unres",
        "whether the cluster of an API is static is checked with the bootstrap",
    ),
    (
        "dup cluster",
        "duplicates are checked where resources are put together",
    ),
];

#[derive(Deserialize)]
struct Verdict {
    name: String,
    envoy: Option<String>,
    #[serde(default)]
    listeners: serde_json::Value,
    #[serde(default)]
    clusters: serde_json::Value,
}

/// What the model says; an error of the text itself is an error too.
fn ours(verdict: &Verdict, registry: &Registry) -> Result<(), ConfigError> {
    let list = |value: &serde_json::Value| match value {
        serde_json::Value::Null => serde_json::json!([]),
        list => list.clone(),
    };
    let text = serde_json::json!({"static_resources": {
        "listeners": list(&verdict.listeners),
        "clusters": list(&verdict.clusters),
    }});
    let bootstrap = pb::from_text::<Bootstrap>(&text.to_string(), pb::Format::Json)?.message;
    let StaticResources {
        listeners,
        clusters,
        ..
    } = bootstrap.static_resources.unwrap_or_default();
    let names: Vec<String> = clusters
        .iter()
        .map(|cluster| cluster.name.clone())
        .collect();
    let known = |name: &str| names.iter().any(|known| known == name);
    let context = ParseContext::new(registry, Source::Static).with_clusters(&known);
    for cluster in clusters {
        Cluster::parse(cluster, &context)?;
    }
    for listener in listeners {
        Listener::parse(listener, &context)?;
    }
    Ok(())
}

#[test]
fn the_model_judges_as_envoy_does() {
    let registry = Registry::new();
    let listed = |list: &[(&str, &str)], name: &str| list.iter().any(|(listed, _)| *listed == name);
    let mut differences = Vec::new();
    for line in VERDICTS.lines() {
        let verdict: Verdict = serde_json::from_str(line).expect("a verdict");
        let name = &verdict.name;
        let fine = match (&verdict.envoy, ours(&verdict, &registry)) {
            (None, Ok(())) => !listed(STRICTER, name),
            (Some(_), Err(_)) => !listed(LAXER, name),
            // What is not implemented says so.
            (None, Err(error)) => {
                matches!(error.kind, ErrorKind::Unsupported(_)) || listed(STRICTER, name)
            }
            (Some(_), Ok(())) => listed(LAXER, name),
        };
        if !fine {
            let said = ours(&verdict, &registry).map_err(|error| error.to_string());
            differences.push(format!("{name}: Envoy {:?}, we {said:?}", verdict.envoy));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn refusals_of_the_model_are_worded_as_envoys() {
    let registry = Registry::new();
    let mut compared = 0;
    for line in VERDICTS.lines() {
        let verdict: Verdict = serde_json::from_str(line).expect("a verdict");
        let (Some(envoy), Err(ours)) = (&verdict.envoy, ours(&verdict, &registry)) else {
            continue;
        };
        let ErrorKind::Invalid(reason) = &ours.kind else {
            continue;
        };
        if envoy.contains(reason.as_str()) {
            compared += 1;
        }
    }
    // Most are; the rest say the same of a place in Envoy's own structures, or of a message printed whole.
    assert!(compared > 120, "{compared}");
}
