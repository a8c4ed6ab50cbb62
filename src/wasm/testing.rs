//! What tests of plugins share: guests as text, built plugins, configurations, a cluster to call.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::spec::PluginSpec;
use crate::cluster::ClusterMap;
use crate::config::context::Source;
use crate::config::extension::HttpFilterConfig;
use crate::config::{Cluster, ConfigError, Extensions, ParseContext, Snapshot};
use crate::pb;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::extensions::wasm::v3 as pb_wasm;
use crate::telemetry::metrics;

/// A compiled `.wat` of `tests/guests`.
pub(crate) fn guest(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/guests/{name}.wat", env!("CARGO_MANIFEST_DIR"));
    wat::parse_file(path).expect("valid text")
}

/// A built module of `plugins/bin`.
pub(crate) fn built(name: &str) -> Vec<u8> {
    let path = format!("{}/plugins/bin/{name}.wasm", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(path).expect("plugins/build.sh has made it")
}

/// A plugin called `test` of inline code, in the VM `vm`.
pub(crate) fn config(code: Vec<u8>, configuration: &str) -> pb_wasm::PluginConfig {
    pb_wasm::PluginConfig {
        name: "test".to_owned(),
        root_id: "root".to_owned(),
        configuration: Some(pb::pack(&configuration.to_owned())),
        vm: Some(pb_wasm::plugin_config::Vm::VmConfig(pb_wasm::VmConfig {
            vm_id: "vm".to_owned(),
            code: Some(core::AsyncDataSource {
                specifier: Some(core::async_data_source::Specifier::Local(
                    core::DataSource {
                        specifier: Some(core::data_source::Specifier::InlineBytes(code)),
                        watched_directory: None,
                    },
                )),
            }),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// Its validated form.
pub(crate) fn spec(config: pb_wasm::PluginConfig) -> Arc<PluginSpec> {
    Arc::new(PluginSpec::parse(config).expect("a valid configuration"))
}

/// Knows no filters.
struct NoFilters;

impl Extensions for NoFilters {
    fn http_filter(&self, _: &str, _: &pb::Any) -> Result<Option<HttpFilterConfig>, ConfigError> {
        Ok(None)
    }

    fn per_route(&self, _: &str, _: &pb::Any) -> Result<Option<HttpFilterConfig>, ConfigError> {
        Ok(None)
    }

    fn is_terminal(&self, _: &HttpFilterConfig) -> bool {
        false
    }
}

/// One static cluster called `callout`, with one host or none.
pub(crate) fn cluster_map(
    metrics: &metrics::Registry,
    address: impl Into<Option<SocketAddr>>,
) -> Arc<ClusterMap> {
    let host = address.into().map_or_else(String::new, |address| {
        format!(
            "{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}",
            address.ip(),
            address.port()
        )
    });
    let yaml = format!(
        "
        name: callout
        type: STATIC
        load_assignment:
          cluster_name: callout
          endpoints:
          - lb_endpoints: [{host}]
        "
    );
    let cluster = Cluster::parse(
        pb::from_yaml(&yaml).expect("YAML"),
        &ParseContext::new(&NoFilters, Source::Static),
    )
    .expect("a valid cluster");
    let snapshot = Snapshot {
        clusters: BTreeMap::from([("callout".into(), Arc::new(cluster))]),
        ..Snapshot::default()
    };
    Arc::new(ClusterMap::next(
        &ClusterMap::default(),
        &snapshot,
        &crate::cluster::Runtime {
            registry: metrics.clone(),
            resolver: Arc::new(crate::cluster::dns::SystemResolver::default()),
            connection_ids: Arc::default(),
        },
    ))
}
