//! `/clusters`: what we know of every host.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Map, Value, json};

use super::Context;
use super::listeners::address_json;
use super::request::{Request, Response, regex};
use crate::cluster::{ClusterStatus, HostStatus};
use crate::config::endpoint::{HealthStatus, Locality};

/// Envoy's defaults. Configured thresholds are accepted without effect yet, and are not shown.
const THRESHOLDS: [(&str, u32); 4] = [
    ("max_connections", 1024),
    ("max_pending_requests", 1024),
    ("max_requests", 1024),
    ("max_retries", 3),
];

pub(super) fn page(context: &Context, request: &Request) -> Response {
    let filter = match request
        .text("filter")
        .map(|pattern| regex(pattern, "Invalid re2 regex"))
    {
        None => None,
        Some(Ok(filter)) => Some(filter),
        Some(Err(response)) => return response,
    };
    let mut clusters = context.proxy.clusters();
    clusters.retain(|cluster| {
        filter
            .as_ref()
            .is_none_or(|filter| filter.is_match(&cluster.name))
    });
    clusters.sort_by(|a, b| a.name.cmp(&b.name));
    let fixed: BTreeSet<&str> = context
        .bootstrap
        .clusters
        .iter()
        .map(|cluster| &*cluster.value.name)
        .collect();
    if request.wants_json() {
        let statuses: Vec<_> = clusters
            .iter()
            .map(|cluster| cluster_json(cluster, !fixed.contains(&*cluster.name)))
            .collect();
        return Response::json(&if statuses.is_empty() {
            json!({})
        } else {
            json!({ "cluster_statuses": statuses })
        });
    }
    let mut out = String::new();
    for cluster in &clusters {
        cluster_text(cluster, !fixed.contains(&*cluster.name), &mut out);
    }
    Response::text(out)
}

/// Counters first, then gauges, as JSON has them; the text sorts them.
fn counts(host: &HostStatus) -> [(&'static str, bool, u64); 9] {
    let stats = &host.host.stats;
    [
        (
            "cx_connect_fail",
            false,
            stats.cx_connect_fail.load(Relaxed),
        ),
        ("cx_total", false, stats.cx_total.load(Relaxed)),
        ("rq_error", false, stats.rq_error.load(Relaxed)),
        ("rq_success", false, stats.rq_success.load(Relaxed)),
        ("rq_timeout", false, stats.rq_timeout.load(Relaxed)),
        ("rq_total", false, stats.rq_total.load(Relaxed)),
        ("cx_active", true, stats.cx_active.load(Relaxed)),
        ("rq_active", true, stats.rq_active.load(Relaxed)),
        (
            "rq_pending_active",
            true,
            stats.rq_pending_active.load(Relaxed),
        ),
    ]
}

/// Writing to a string cannot fail.
fn cluster_text(cluster: &ClusterStatus, added_via_api: bool, out: &mut String) {
    let name = &cluster.name;
    let _ = writeln!(
        out,
        "{name}::observability_name::{}",
        cluster.observability_name
    );
    for priority in ["default_priority", "high_priority"] {
        for (threshold, value) in THRESHOLDS {
            let _ = writeln!(out, "{name}::{priority}::{threshold}::{value}");
        }
    }
    let _ = writeln!(out, "{name}::added_via_api::{added_via_api}");
    for host in &cluster.hosts {
        let address = &host.address;
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(out, "{name}::{address}::{key}::{value}");
        };
        let mut counts = counts(host);
        counts.sort_unstable_by_key(|(key, ..)| *key);
        for (key, _, value) in counts {
            line(key, &value);
        }
        let attributes = &host.attributes;
        line("hostname", &host.host.hostname);
        line("health_flags", &host.health_flags);
        line("weight", &attributes.weight);
        line("region", &attributes.locality.region);
        line("zone", &attributes.locality.zone);
        line("sub_zone", &attributes.locality.sub_zone);
        line("canary", &attributes.is_canary());
        line("priority", &attributes.priority);
        line("success_rate", &-1);
        line("local_origin_success_rate", &-1);
    }
}

fn cluster_json(cluster: &ClusterStatus, added_via_api: bool) -> Value {
    let mut fields = Map::new();
    fields.insert("name".to_owned(), (&*cluster.name).into());
    if added_via_api {
        fields.insert("added_via_api".to_owned(), true.into());
    }
    let hosts: Vec<_> = cluster.hosts.iter().map(host_json).collect();
    if !hosts.is_empty() {
        fields.insert("host_statuses".to_owned(), hosts.into());
    }
    let thresholds = || {
        THRESHOLDS
            .into_iter()
            .map(|(name, value)| (name.to_owned(), json!(value)))
    };
    let default: Map<_, _> = thresholds().collect();
    let high: Map<_, _> = std::iter::once(("priority".to_owned(), json!("HIGH")))
        .chain(thresholds())
        .collect();
    fields.insert(
        "circuit_breakers".to_owned(),
        json!({"thresholds": [default, high]}),
    );
    fields.insert(
        "observability_name".to_owned(),
        (&*cluster.observability_name).into(),
    );
    Value::Object(fields)
}

fn host_json(host: &HostStatus) -> Value {
    let stats: Vec<Value> = counts(host)
        .into_iter()
        .map(|(name, gauge, value)| {
            let mut stat = Map::new();
            if gauge {
                stat.insert("type".to_owned(), "GAUGE".into());
            }
            if value > 0 {
                stat.insert("value".to_owned(), value.to_string().into());
            }
            stat.insert("name".to_owned(), name.into());
            Value::Object(stat)
        })
        .collect();
    let mut health = Map::new();
    for (flag, field) in [
        ("/failed_active_hc", "failed_active_health_check"),
        ("/failed_outlier_check", "failed_outlier_check"),
        ("/failed_eds_health", "failed_eds_health"),
        ("/degraded_active_hc", "failed_active_degraded_check"),
        ("/pending_dynamic_removal", "pending_dynamic_removal"),
        ("/pending_active_hc", "pending_active_hc"),
    ] {
        // `eds_health_status` tells of EDS.
        if field != "failed_eds_health" && host.health_flags.contains(flag) {
            health.insert(field.to_owned(), true.into());
        }
    }
    health.insert(
        "eds_health_status".to_owned(),
        health_name(host.eds_health).into(),
    );
    let attributes = &host.attributes;
    let mut fields = Map::new();
    fields.insert("address".to_owned(), address_json(&host.address));
    fields.insert("stats".to_owned(), stats.into());
    fields.insert("health_status".to_owned(), health.into());
    fields.insert("weight".to_owned(), attributes.weight.into());
    if !host.host.hostname.is_empty() {
        fields.insert("hostname".to_owned(), (&*host.host.hostname).into());
    }
    if attributes.priority > 0 {
        fields.insert("priority".to_owned(), attributes.priority.into());
    }
    fields.insert("locality".to_owned(), locality_json(&attributes.locality));
    Value::Object(fields)
}

/// Without what is empty.
pub(super) fn locality_json(locality: &Locality) -> Value {
    let parts = [
        ("region", &locality.region),
        ("zone", &locality.zone),
        ("sub_zone", &locality.sub_zone),
    ];
    Value::Object(
        parts
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name.to_owned(), (&**value).into()))
            .collect(),
    )
}

/// As in the API.
pub(super) fn health_name(health: HealthStatus) -> &'static str {
    match health {
        HealthStatus::Unknown => "UNKNOWN",
        HealthStatus::Healthy => "HEALTHY",
        HealthStatus::Unhealthy => "UNHEALTHY",
        HealthStatus::Draining => "DRAINING",
        HealthStatus::Timeout => "TIMEOUT",
        HealthStatus::Degraded => "DEGRADED",
    }
}
