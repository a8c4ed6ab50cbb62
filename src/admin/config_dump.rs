//! `/config_dump`: what was received, what is served, and what was refused.
//!
//! Sections and fields are those of `envoy.admin.v3.ConfigDump`, in Envoy's order. Beyond Envoy, `error_state` is filled
//! for every type, not for listeners alone.

use std::collections::BTreeMap;
use std::time::SystemTime;

use http::StatusCode;
use regex::Regex;
use serde_json::{Map, Value, json};

use super::Context;
use super::clusters::{health_name, locality_json};
use super::listeners::address_json;
use super::mask::Mask;
use super::request::{Request, Response};
use crate::cluster::{ClusterStatus, HostStatus};
use crate::config::endpoint::HealthStatus;
use crate::pb;
use crate::pb::envoy::config::listener::v3::{Listener, filter};
use crate::pb::envoy::config::route::v3::RouteConfiguration;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use crate::xds::ResourceType;
use crate::xds::status::{ErrorState, ResourceState, ResourceStatus};

const PREFIX: &str = "type.googleapis.com/envoy.admin.v3.";

/// The repeated fields, as `?resource=` names them, with the type of their elements.
const LISTS: [(&str, &str); 15] = [
    ("static_clusters", "ClustersConfigDump.StaticCluster"),
    (
        "dynamic_active_clusters",
        "ClustersConfigDump.DynamicCluster",
    ),
    (
        "dynamic_warming_clusters",
        "ClustersConfigDump.DynamicCluster",
    ),
    ("ecds_filters", "EcdsConfigDump.EcdsFilterConfig"),
    (
        "static_endpoint_configs",
        "EndpointsConfigDump.StaticEndpointConfig",
    ),
    (
        "dynamic_endpoint_configs",
        "EndpointsConfigDump.DynamicEndpointConfig",
    ),
    ("static_listeners", "ListenersConfigDump.StaticListener"),
    ("dynamic_listeners", "ListenersConfigDump.DynamicListener"),
    (
        "inline_scoped_route_configs",
        "ScopedRoutesConfigDump.InlineScopedRouteConfigs",
    ),
    (
        "dynamic_scoped_route_configs",
        "ScopedRoutesConfigDump.DynamicScopedRouteConfigs",
    ),
    ("static_route_configs", "RoutesConfigDump.StaticRouteConfig"),
    (
        "dynamic_route_configs",
        "RoutesConfigDump.DynamicRouteConfig",
    ),
    ("static_secrets", "SecretsConfigDump.StaticSecret"),
    ("dynamic_active_secrets", "SecretsConfigDump.DynamicSecret"),
    ("dynamic_warming_secrets", "SecretsConfigDump.DynamicSecret"),
];

/// Fields that are there once.
const SINGLE: [&str; 3] = ["bootstrap", "last_updated", "version_info"];

pub(super) fn page(context: &Context, request: &Request) -> Response {
    let names = match request.text("name_regex").map(|pattern| {
        // The whole name must match.
        super::request::regex(
            &format!("^(?:{pattern})$"),
            &format!("INVALID_ARGUMENT: Error while parsing name_regex from {pattern}"),
        )
    }) {
        None => None,
        Some(Ok(names)) => Some(names),
        Some(Err(response)) => return response.bare(),
    };
    let mask = request.text("mask").map(|text| (text, Mask::parse(text)));
    let resource = request.text("resource");
    let include_eds = request.flag("include_eds");
    // As in Envoy: what is not dumped is not found.
    if let Some(resource) = resource
        && resource.ends_with("_endpoint_configs")
        && !include_eds
    {
        return not_found(resource);
    }
    let sections = Dump { context, names }.sections(include_eds);
    match resource {
        Some(resource) => one_list(sections, resource, mask.as_ref()),
        None => all(sections, mask.as_ref()),
    }
}

/// Sections that a mask leaves nothing of are left out.
fn all(sections: Vec<Value>, mask: Option<&(&str, Mask)>) -> Response {
    let configs: Vec<Value> = match mask {
        None => sections,
        Some((text, mask)) => {
            let masked: Vec<Value> = sections
                .into_iter()
                .filter_map(|section| {
                    let type_url = section["@type"].as_str().unwrap_or_default().to_owned();
                    mask.apply(&type_url, &section)
                })
                .collect();
            if masked.is_empty() {
                return Response::bad(format!(
                    "FieldMask {text} could not be successfully applied to any configs."
                ))
                .bare();
            }
            let has_fields =
                |section: &Value| section.as_object().is_some_and(|fields| fields.len() > 1);
            masked.into_iter().filter(has_fields).collect()
        }
    };
    configs_json(configs)
}

fn configs_json(configs: Vec<Value>) -> Response {
    Response::json(&if configs.is_empty() {
        json!({})
    } else {
        json!({ "configs": configs })
    })
}

fn not_found(resource: &str) -> Response {
    Response::error(
        StatusCode::NOT_FOUND,
        format!("{resource} not found in config dump"),
    )
    .bare()
}

fn one_list(sections: Vec<Value>, resource: &str, mask: Option<&(&str, Mask)>) -> Response {
    if SINGLE.contains(&resource) {
        return Response::bad(format!(
            "{resource} is not a repeated field. Use ?mask={resource} to get only this field"
        ))
        .bare();
    }
    let Some((_, element)) = LISTS.iter().find(|(name, _)| *name == resource) else {
        return not_found(resource);
    };
    let type_url = format!("{PREFIX}{element}");
    let items = sections
        .into_iter()
        .filter_map(|mut section| section.get_mut(resource).map(Value::take))
        .flat_map(|list| match list {
            Value::Array(items) => items,
            _ => Vec::new(),
        });
    let mut configs = Vec::new();
    for item in items {
        let item = match mask {
            None => item,
            Some((text, mask)) => match mask.apply(&type_url, &item) {
                Some(item) => item,
                None => {
                    return Response::bad(format!(
                        "FieldMask paths: \"{text}\"\n could not be successfully used."
                    ))
                    .bare();
                }
            },
        };
        let mut fields = Map::new();
        fields.insert("@type".to_owned(), type_url.clone().into());
        if let Value::Object(item) = item {
            fields.extend(item);
        }
        configs.push(Value::Object(fields));
    }
    configs_json(configs)
}

struct Dump<'a> {
    context: &'a Context,
    names: Option<Regex>,
}

impl Dump<'_> {
    fn wants(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.is_match(name))
    }

    fn sections(&self, include_eds: bool) -> Vec<Value> {
        let mut sections = vec![self.bootstrap(), self.clusters()];
        sections.extend(self.extensions());
        if include_eds {
            sections.push(self.endpoints());
        }
        sections.extend([
            self.listeners(),
            section("ScopedRoutesConfigDump", []),
            self.routes(),
            self.secrets(),
        ]);
        sections
    }

    fn started(&self) -> Value {
        time(self.context.started_at).into()
    }

    fn dynamic(&self, kind: ResourceType) -> Vec<ResourceStatus> {
        let mut resources = self.context.proxy.resources(kind);
        resources.retain(|resource| self.wants(&resource.name));
        resources
    }

    fn bootstrap(&self) -> Value {
        section(
            "BootstrapConfigDump",
            [
                ("bootstrap", pb::to_json(&self.context.bootstrap.proto)),
                ("last_updated", self.started()),
            ],
        )
    }

    fn clusters(&self) -> Value {
        let fixed = self.context.bootstrap.clusters.iter();
        let fixed = fixed
            .filter(|cluster| self.wants(&cluster.value.name))
            .map(|cluster| {
                json!({"cluster": pb::any_to_json(&cluster.proto), "last_updated": self.started()})
            })
            .collect();
        let (mut active, mut warming) = (Vec::new(), Vec::new());
        for resource in self.dynamic(ResourceType::Cluster) {
            let error = resource.error.as_ref().map(error_json);
            if let Some(state) = &resource.active {
                active.push(state_json("cluster", state, error.clone()));
            }
            if let Some(state) = &resource.warming {
                warming.push(state_json("cluster", state, None));
            }
            if let (None, None, Some(error)) = (&resource.active, &resource.warming, error) {
                warming.push(json!({ "error_state": error }));
            }
        }
        section(
            "ClustersConfigDump",
            [
                (
                    "version_info",
                    self.context.proxy.version(ResourceType::Cluster).into(),
                ),
                ("static_clusters", Value::Array(fixed)),
                ("dynamic_active_clusters", active.into()),
                ("dynamic_warming_clusters", warming.into()),
            ],
        )
    }

    /// Only there where there are any, as in Envoy.
    fn extensions(&self) -> Option<Value> {
        let filters: Vec<_> = self
            .dynamic(ResourceType::Extension)
            .iter()
            .filter_map(|resource| plain_entry("ecds_filter", resource))
            .collect();
        (!filters.is_empty()).then(|| section("EcdsConfigDump", [("ecds_filters", filters.into())]))
    }

    fn listeners(&self) -> Value {
        let fixed = self.context.bootstrap.listeners.iter();
        let fixed = fixed
            .filter(|listener| self.wants(&listener.value.name))
            .map(|listener| {
                json!({"listener": pb::any_to_json(&listener.proto), "last_updated": self.started()})
            })
            .collect();
        let dynamic: Vec<Value> = self
            .dynamic(ResourceType::Listener)
            .iter()
            .map(|resource| {
                let mut fields = Map::new();
                fields.insert("name".to_owned(), (&*resource.name).into());
                for (name, state) in [
                    ("active_state", &resource.active),
                    ("warming_state", &resource.warming),
                ] {
                    if let Some(state) = state {
                        fields.insert(name.to_owned(), state_json("listener", state, None));
                    }
                }
                if let Some(error) = &resource.error {
                    fields.insert("error_state".to_owned(), error_json(error));
                }
                Value::Object(fields)
            })
            .collect();
        section(
            "ListenersConfigDump",
            [
                (
                    "version_info",
                    self.context.proxy.version(ResourceType::Listener).into(),
                ),
                ("static_listeners", Value::Array(fixed)),
                ("dynamic_listeners", dynamic.into()),
            ],
        )
    }

    /// What stands inside of listeners is `static` to Envoy, even where the listener came from a control plane.
    fn routes(&self) -> Value {
        let mut fixed = Vec::new();
        let mut add = |listener: &pb::Any, updated: Value| {
            for route in inline_routes(listener) {
                if self.wants(&route.name) {
                    fixed.push(json!({
                        "route_config": pb::any_to_json(&pb::pack(&route)),
                        "last_updated": updated,
                    }));
                }
            }
        };
        for listener in &self.context.bootstrap.listeners {
            add(&listener.proto, self.started());
        }
        for listener in self.context.proxy.resources(ResourceType::Listener) {
            for state in [&listener.warming, &listener.active].into_iter().flatten() {
                add(&state.resource, time(state.last_updated).into());
            }
        }
        let dynamic: Vec<_> = self
            .dynamic(ResourceType::Route)
            .iter()
            .filter_map(|resource| plain_entry("route_config", resource))
            .collect();
        section(
            "RoutesConfigDump",
            [
                ("static_route_configs", fixed.into()),
                ("dynamic_route_configs", dynamic.into()),
            ],
        )
    }

    fn secrets(&self) -> Value {
        let secrets = self.context.bootstrap.secrets.iter().filter_map(|secret| {
            let json = pb::any_to_json(secret);
            let name = json["name"].as_str().unwrap_or_default().to_owned();
            self.wants(&name)
                .then(|| json!({"name": name, "secret": json}))
        });
        section(
            "SecretsConfigDump",
            [("static_secrets", Value::Array(secrets.collect()))],
        )
    }

    /// Made of what is in use, not of what was received, as Envoy does.
    fn endpoints(&self) -> Value {
        let fixed: Vec<&str> = self
            .context
            .bootstrap
            .clusters
            .iter()
            .map(|cluster| &*cluster.value.name)
            .collect();
        let mut clusters = self.context.proxy.clusters();
        clusters.retain(|cluster| self.wants(&cluster.name));
        clusters.sort_by(|a, b| a.name.cmp(&b.name));
        let (fixed, dynamic): (Vec<_>, Vec<_>) = clusters
            .iter()
            .partition(|cluster| fixed.contains(&&*cluster.name));
        let entries = |clusters: Vec<&ClusterStatus>| -> Value {
            clusters
                .into_iter()
                .map(|cluster| json!({ "endpoint_config": assignment_json(cluster) }))
                .collect()
        };
        section(
            "EndpointsConfigDump",
            [
                ("static_endpoint_configs", entries(fixed)),
                ("dynamic_endpoint_configs", entries(dynamic)),
            ],
        )
    }
}

/// A section without what is empty.
fn section<const N: usize>(name: &str, fields: [(&str, Value); N]) -> Value {
    let mut out = Map::new();
    out.insert("@type".to_owned(), format!("{PREFIX}{name}").into());
    for (name, value) in fields {
        let empty = match &value {
            Value::Array(items) => items.is_empty(),
            Value::String(text) => text.is_empty(),
            _ => false,
        };
        if !empty {
            out.insert(name.to_owned(), value);
        }
    }
    Value::Object(out)
}

/// Envoy's times have three digits.
fn time(time: SystemTime) -> String {
    let millis = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        });
    jiff::Timestamp::from_millisecond(millis)
        .map(|time| time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
        .unwrap_or_default()
}

fn state_json(field: &str, state: &ResourceState, error: Option<Value>) -> Value {
    let mut fields = Map::new();
    if !state.version.is_empty() {
        fields.insert("version_info".to_owned(), (&*state.version).into());
    }
    fields.insert(field.to_owned(), pb::any_to_json(&state.resource));
    fields.insert("last_updated".to_owned(), time(state.last_updated).into());
    if let Some(error) = error {
        fields.insert("error_state".to_owned(), error);
    }
    Value::Object(fields)
}

/// `UpdateFailureState`.
fn error_json(error: &ErrorState) -> Value {
    let mut fields = Map::new();
    if let Some(config) = &error.failed_configuration {
        fields.insert("failed_configuration".to_owned(), pb::any_to_json(config));
    }
    fields.insert(
        "last_update_attempt".to_owned(),
        time(error.last_update_attempt).into(),
    );
    fields.insert("details".to_owned(), error.details.as_str().into());
    if !error.version.is_empty() {
        fields.insert("version_info".to_owned(), (&*error.version).into());
    }
    Value::Object(fields)
}

/// A type with one list for all states.
fn plain_entry(field: &str, resource: &ResourceStatus) -> Option<Value> {
    let error = resource.error.as_ref().map(error_json);
    match resource.active.as_ref().or(resource.warming.as_ref()) {
        Some(state) => Some(state_json(field, state, error)),
        None => error.map(|error| json!({ "error_state": error })),
    }
}

/// Route configurations inside of a listener.
fn inline_routes(listener: &pb::Any) -> Vec<RouteConfiguration> {
    let Ok(listener) = pb::unpack::<Listener>(listener) else {
        return Vec::new();
    };
    listener
        .filter_chains
        .into_iter()
        .chain(listener.default_filter_chain)
        .flat_map(|chain| chain.filters)
        .filter_map(|filter| match filter.config_type {
            Some(filter::ConfigType::TypedConfig(any)) => {
                pb::unpack::<HttpConnectionManager>(&any).ok()
            }
            _ => None,
        })
        .filter_map(|manager| match manager.route_specifier {
            Some(RouteSpecifier::RouteConfig(routes)) => Some(routes),
            _ => None,
        })
        .collect()
}

fn assignment_json(cluster: &ClusterStatus) -> Value {
    let mut localities: BTreeMap<_, Vec<&HostStatus>> = BTreeMap::new();
    for host in &cluster.hosts {
        let attributes = &host.attributes;
        let key = (attributes.priority, (*attributes.locality).clone());
        localities.entry(key).or_default().push(host);
    }
    let endpoints: Vec<Value> = localities
        .into_iter()
        .map(|((priority, locality), hosts)| {
            let weight = hosts
                .first()
                .map_or(0, |host| host.attributes.locality_weight);
            let mut fields = Map::new();
            fields.insert("locality".to_owned(), locality_json(&locality));
            fields.insert(
                "lb_endpoints".to_owned(),
                hosts.into_iter().map(endpoint_json).collect(),
            );
            fields.insert("load_balancing_weight".to_owned(), weight.into());
            if priority > 0 {
                fields.insert("priority".to_owned(), priority.into());
            }
            Value::Object(fields)
        })
        .collect();
    let mut fields = Map::new();
    fields.insert(
        "@type".to_owned(),
        "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment".into(),
    );
    fields.insert("cluster_name".to_owned(), (&*cluster.name).into());
    if !endpoints.is_empty() {
        fields.insert("endpoints".to_owned(), endpoints.into());
    }
    fields.insert("policy".to_owned(), json!({"overprovisioning_factor": 140}));
    Value::Object(fields)
}

fn endpoint_json(host: &HostStatus) -> Value {
    let mut endpoint = Map::new();
    endpoint.insert("address".to_owned(), address_json(&host.address));
    endpoint.insert("health_check_config".to_owned(), json!({}));
    if !host.host.hostname.is_empty() {
        endpoint.insert("hostname".to_owned(), (&*host.host.hostname).into());
    }
    // Whether it may be chosen, in the words of EDS.
    let health = match host.eds_health {
        HealthStatus::Draining | HealthStatus::Timeout | HealthStatus::Unhealthy => {
            HealthStatus::Unhealthy
        }
        other => other,
    };
    let mut fields = Map::new();
    fields.insert("endpoint".to_owned(), endpoint.into());
    fields.insert("health_status".to_owned(), health_name(health).into());
    if let Some(metadata) = &host.attributes.metadata {
        fields.insert("metadata".to_owned(), pb::to_json(&**metadata));
    }
    fields.insert(
        "load_balancing_weight".to_owned(),
        host.attributes.weight.into(),
    );
    Value::Object(fields)
}
