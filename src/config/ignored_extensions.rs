//! Extensions that are accepted without effect: of what an extension point takes in Envoy 1.40, nothing is run here, but
//! what it does not take is a mistake all the same, and refused with Envoy's words.

use super::ConfigError;
use super::any::{resolve, unknown_extension};
use crate::pb;

/// The types that `envoy.tracers` takes.
pub const TRACERS: &[&str] = &[
    "envoy.config.trace.v3.DatadogConfig",
    "envoy.config.trace.v3.OpenTelemetryConfig",
    "envoy.config.trace.v3.SkyWalkingConfig",
    "envoy.config.trace.v3.XRayConfig",
    "envoy.config.trace.v3.ZipkinConfig",
    "envoy.extensions.tracers.dynamic_modules.v3.DynamicModuleTracer",
    "envoy.extensions.tracers.fluentd.v3.FluentdConfig",
];

/// The types that `envoy.stats_sinks` takes; Wasm's is run.
pub const STATS_SINKS: &[&str] = &[
    "envoy.config.metrics.v3.DogStatsdSink",
    "envoy.config.metrics.v3.HystrixSink",
    "envoy.config.metrics.v3.MetricsServiceConfig",
    "envoy.config.metrics.v3.StatsdSink",
    "envoy.extensions.stat_sinks.dynamic_modules.v3.DynamicModuleStatsSink",
    "envoy.extensions.stat_sinks.graphite_statsd.v3.GraphiteStatsdSink",
    "envoy.extensions.stat_sinks.open_telemetry.v3.SinkConfig",
    "envoy.extensions.stat_sinks.wasm.v3.Wasm",
];

/// The types that `envoy.bootstrap` takes; Wasm's is run.
pub const BOOTSTRAP: &[&str] = &[
    "envoy.extensions.bootstrap.dynamic_modules.v3.DynamicModuleBootstrapExtension",
    "envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
    "envoy.extensions.bootstrap.reverse_tunnel.downstream_socket_interface.v3.DownstreamReverseConnectionSocketInterface",
    "envoy.extensions.bootstrap.reverse_tunnel.upstream_socket_interface.v3.UpstreamReverseConnectionSocketInterface",
    "envoy.extensions.network.socket_interface.sockmap.v3.Sockmap",
    "envoy.extensions.network.socket_interface.v3.DefaultSocketInterface",
    "envoy.extensions.wasm.v3.WasmService",
];

/// Whether an extension point that takes `types` takes this.
///
/// # Errors
/// It does not; worded as Envoy does.
pub fn check(types: &[&str], name: &str, config: &pb::Any) -> Result<(), ConfigError> {
    let config = resolve(config)?;
    if types.contains(&pb::type_name(&config.type_url)) {
        return Ok(());
    }
    Err(unknown_extension(name, &config.type_url))
}

/// Checks `tracing.provider` of a connection manager, or the bootstrap's `tracing.http`.
///
/// # Errors
/// As [`check`].
pub fn check_tracer(
    tracer: Option<pb::envoy::config::trace::v3::tracing::Http>,
) -> Result<(), ConfigError> {
    use pb::envoy::config::trace::v3::tracing::{Http, http::ConfigType};
    let Some(Http { name, config_type }) = tracer else {
        return Ok(());
    };
    let config = config_type.map(|ConfigType::TypedConfig(config)| config);
    check(TRACERS, &name, &config.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_extension_point_does_not_take_is_refused() {
        let any = |kind: &str| pb::Any {
            type_url: format!("type.googleapis.com/{kind}"),
            value: Vec::new(),
        };
        for types in [TRACERS, STATS_SINKS, BOOTSTRAP] {
            for kind in types {
                assert!(pb::is_message(kind), "{kind}");
                assert_eq!(check(types, "a", &any(kind)), Ok(()));
            }
            for (config, kind) in [
                (any("google.protobuf.Struct"), "google.protobuf.Struct"),
                (pb::Any::default(), ""),
            ] {
                let error = check(types, "a", &config).expect_err("refused");
                assert_eq!(
                    error.to_string(),
                    format!(
                        "Didn't find a registered implementation for 'a' with type URL: '{kind}'"
                    )
                );
            }
        }
    }
}
