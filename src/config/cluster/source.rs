//! `ConfigSource` and `GrpcService` to the model.

#![allow(
    deprecated,
    reason = "Envoy still honours its deprecated fields, and control planes send them"
)]

use std::time::Duration;

use super::{ConfigSource, GrpcService, SourceSpecifier};
use crate::config::ConfigError;
use crate::config::error::At;
use crate::config::field::{duration, each, enumeration, non_empty, refuse, required, timeout};
use crate::config::ignored::Ignored;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::core::v3::api_config_source::ApiType;
use crate::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use crate::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, GoogleGrpc, TargetSpecifier};

/// Envoy's default.
const DEFAULT_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// Accepted without effect.
pub(in crate::config) const IGNORED: &[Ignored] = &[
    Ignored("channel_args", "tunes Google's gRPC library"),
    Ignored(
        "max_receive_message_length",
        "responses are limited by the client itself",
    ),
    Ignored(
        "per_stream_buffer_limit_bytes",
        "tunes Google's gRPC library",
    ),
    Ignored("poll_interval", "files are watched, not polled"),
    Ignored(
        "rate_limit_settings",
        "requests follow responses; there is no burst to limit",
    ),
    Ignored("refresh_delay", "for REST, which is refused"),
    Ignored("request_timeout", "for REST, which is refused"),
    Ignored("resource_api_version", "there is one version of the API"),
    Ignored(
        "retry_policy",
        "streams of the control plane are retried with Envoy's backoff",
    ),
    Ignored(
        "skip_envoy_headers",
        "no such headers are added to calls of the control plane",
    ),
    Ignored("transport_api_version", "there is one version of the API"),
];

impl ConfigSource {
    /// Validates a `ConfigSource`.
    ///
    /// # Errors
    /// No source, or one that is not supported (REST).
    pub fn parse(proto: core::ConfigSource) -> Result<Self, ConfigError> {
        let core::ConfigSource {
            authorities,
            initial_fetch_timeout,
            resource_api_version: _,
            config_source_specifier,
        } = proto;
        refuse(
            !authorities.is_empty(),
            "authorities",
            "xdstp resource names are not implemented by this build yet",
        )?;
        let initial_fetch_timeout = timeout(
            initial_fetch_timeout,
            Some(DEFAULT_FETCH_TIMEOUT),
            "initial_fetch_timeout",
        )?;
        let specifier = match required(config_source_specifier, "config_source_specifier")? {
            ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})
            | ConfigSourceSpecifier::Self_(core::SelfConfigSource {
                transport_api_version: _,
            }) => SourceSpecifier::Ads,
            ConfigSourceSpecifier::ApiConfigSource(api) => {
                SourceSpecifier::parse_api(api).at("api_config_source")?
            }
            ConfigSourceSpecifier::Path(path) => SourceSpecifier::Path {
                path: non_empty(path, "path")?.into(),
                watched_directory: None,
            },
            ConfigSourceSpecifier::PathConfigSource(core::PathConfigSource {
                path,
                watched_directory,
                poll_interval: _,
            }) => SourceSpecifier::Path {
                path: non_empty(path, "path").at("path_config_source")?.into(),
                watched_directory: watched_directory
                    .map(watched)
                    .transpose()
                    .at("watched_directory")
                    .at("path_config_source")?,
            },
        };
        Ok(Self {
            specifier,
            initial_fetch_timeout,
        })
    }
}

impl SourceSpecifier {
    /// Validates an `ApiConfigSource`.
    ///
    /// # Errors
    /// As [`ConfigSource::parse`].
    pub fn parse_api(proto: core::ApiConfigSource) -> Result<Self, ConfigError> {
        let (api_type, service, node_on_first_message_only) = api(proto)?;
        let delta = match api_type {
            ApiType::Grpc => false,
            ApiType::DeltaGrpc => true,
            ApiType::AggregatedGrpc
            | ApiType::AggregatedDeltaGrpc
            | ApiType::Rest
            | ApiType::DeprecatedAndUnavailableDoNotUse => return Err(unsupported(api_type)),
        };
        Ok(Self::Grpc {
            delta,
            service,
            node_on_first_message_only,
        })
    }
}

fn watched(proto: core::WatchedDirectory) -> Result<Box<str>, ConfigError> {
    let core::WatchedDirectory {
        path,
        // Moves into the directory reload; a modified file does not, as by default in Envoy.
        watch_modify,
    } = proto;
    refuse(
        watch_modify,
        "watch_modify",
        "files are reloaded when they are moved into place",
    )?;
    Ok(non_empty(path, "path")?.into())
}

fn unsupported(api_type: ApiType) -> ConfigError {
    match api_type {
        ApiType::Rest => ConfigError::unsupported("api_type", "REST; use GRPC or DELTA_GRPC"),
        other => ConfigError::invalid(format!("Unsupported config source {}", other.as_str_name()))
            .at("api_type"),
    }
}

fn api(proto: core::ApiConfigSource) -> Result<(ApiType, GrpcService, bool), ConfigError> {
    let core::ApiConfigSource {
        api_type,
        transport_api_version: _,
        cluster_names,
        grpc_services,
        refresh_delay: _,
        request_timeout: _,
        rate_limit_settings: _,
        set_node_on_first_message_only,
        config_validators,
    } = proto;
    let api_type = enumeration::<ApiType>(api_type, "api_type")?;
    if api_type == ApiType::Rest {
        return Err(unsupported(api_type));
    }
    refuse(
        !config_validators.is_empty(),
        "config_validators",
        "not implemented by this build yet",
    )?;
    if !cluster_names.is_empty() {
        return Err(ConfigError::invalid(
            "envoy.config.core.v3.ApiConfigSource::(AGGREGATED_)(DELTA_)GRPC must not have a cluster name specified",
        )
        .at("cluster_names"));
    }
    let mut services = each(grpc_services, "grpc_services", GrpcService::parse)?.into_iter();
    let service = services.next().ok_or_else(|| {
        ConfigError::invalid(
            "API configs must have either a gRPC service or a cluster name defined",
        )
        .at("grpc_services")
    })?;
    if services.next().is_some() {
        return Err(ConfigError::invalid(
            "envoy.config.core.v3.ApiConfigSource::(AGGREGATED_)(DELTA_)GRPC must have no more than 1 gRPC services specified",
        )
        .at("grpc_services"));
    }
    Ok((api_type, service, set_node_on_first_message_only))
}

/// Most entries of `initial_metadata`: what a request can hold, and a server would take.
const MAX_METADATA: usize = 1024;
/// Most bytes of their keys and values.
const MAX_METADATA_BYTES: usize = 1 << 20;

impl GrpcService {
    /// Validates a `GrpcService`.
    ///
    /// # Errors
    /// No target, or credentials that are not supported.
    pub fn parse(proto: core::GrpcService) -> Result<Self, ConfigError> {
        let core::GrpcService {
            timeout,
            initial_metadata,
            retry_policy: _,
            target_specifier,
        } = proto;
        if initial_metadata.len() > MAX_METADATA {
            let reason = format!("more than {MAX_METADATA} entries");
            return Err(ConfigError::invalid(reason).at("initial_metadata"));
        }
        let metadata = each(initial_metadata, "initial_metadata", |header| {
            let core::HeaderValue {
                key,
                value,
                raw_value,
            } = header;
            let key = non_empty(key, "key")?.to_ascii_lowercase();
            let value = if value.is_empty() {
                String::from_utf8(raw_value).map_err(|_| {
                    ConfigError::unsupported("raw_value", "a value that is not UTF-8")
                })?
            } else {
                value
            };
            Ok((key.into_boxed_str(), value.into_boxed_str()))
        })?;
        let bytes: usize = metadata
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        if bytes > MAX_METADATA_BYTES {
            let reason = format!("more than {MAX_METADATA_BYTES} bytes");
            return Err(ConfigError::invalid(reason).at("initial_metadata"));
        }
        let timeout = duration(timeout, "timeout")?;
        match required(target_specifier, "target_specifier")? {
            TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                cluster_name,
                authority,
                retry_policy: _,
                max_receive_message_length,
                skip_envoy_headers,
            }) => Ok(Self {
                cluster: non_empty(cluster_name, "cluster_name")
                    .at("envoy_grpc")?
                    .into(),
                target_uri: None,
                authority: (!authority.is_empty()).then(|| authority.into()),
                metadata,
                timeout,
                max_message: max_receive_message_length
                    .map(|limit| limit.value)
                    .filter(|limit| *limit > 0),
                skip_envoy_headers,
            }),
            TargetSpecifier::GoogleGrpc(google) => {
                let (target_uri, stat_prefix) = google_grpc(google).at("google_grpc")?;
                Ok(Self {
                    cluster: stat_prefix.into(),
                    target_uri: Some(target_uri.into()),
                    authority: None,
                    metadata,
                    timeout,
                    max_message: None,
                    skip_envoy_headers: false,
                })
            }
        }
    }
}

/// The target and the statistics' name of a plain-text `google_grpc`.
fn google_grpc(proto: GoogleGrpc) -> Result<(String, String), ConfigError> {
    let GoogleGrpc {
        target_uri,
        channel_credentials,
        channel_credentials_plugin,
        call_credentials,
        call_credentials_plugin,
        stat_prefix,
        credentials_factory_name,
        config,
        per_stream_buffer_limit_bytes: _,
        channel_args: _,
    } = proto;
    let why = "credentials are not implemented by this build yet";
    refuse(channel_credentials.is_some(), "channel_credentials", why)?;
    refuse(
        !channel_credentials_plugin.is_empty(),
        "channel_credentials_plugin",
        why,
    )?;
    refuse(!call_credentials.is_empty(), "call_credentials", why)?;
    refuse(
        !call_credentials_plugin.is_empty(),
        "call_credentials_plugin",
        why,
    )?;
    refuse(
        !credentials_factory_name.is_empty(),
        "credentials_factory_name",
        why,
    )?;
    refuse(config.is_some(), "config", why)?;
    Ok((
        non_empty(target_uri, "target_uri")?,
        non_empty(stat_prefix, "stat_prefix")?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb;

    fn source(yaml: &str) -> Result<ConfigSource, String> {
        let proto = pb::from_yaml::<core::ConfigSource>(yaml).expect("a ConfigSource");
        ConfigSource::parse(proto).map_err(|error| error.to_string())
    }

    #[test]
    fn the_aggregated_stream_is_found_by_both_names() {
        let ads = Ok(ConfigSource {
            specifier: SourceSpecifier::Ads,
            initial_fetch_timeout: Some(Duration::from_secs(15)),
        });
        assert_eq!(source("{ads: {}, resource_api_version: V3}"), ads);
        assert_eq!(source("{self: {transport_api_version: V3}}"), ads);
        // As Istio, Envoy Gateway and Consul send it.
        assert_eq!(
            source("{ads: {}, initial_fetch_timeout: 0s}"),
            Ok(ConfigSource {
                specifier: SourceSpecifier::Ads,
                initial_fetch_timeout: None
            })
        );
    }

    #[test]
    fn streams_of_their_own_are_read() {
        let read = source(
            "{api_config_source: {api_type: DELTA_GRPC, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [{envoy_grpc: {cluster_name: xds, authority: a.test}, initial_metadata: [{key: X-Token, value: t}], timeout: 3s}]}}",
        );
        assert_eq!(
            read,
            Ok(ConfigSource {
                specifier: SourceSpecifier::Grpc {
                    delta: true,
                    service: GrpcService {
                        cluster: "xds".into(),
                        target_uri: None,
                        authority: Some("a.test".into()),
                        metadata: vec![("x-token".into(), "t".into())],
                        timeout: Some(Duration::from_secs(3)),
                        max_message: None,
                        skip_envoy_headers: false,
                    },
                    node_on_first_message_only: true,
                },
                initial_fetch_timeout: Some(Duration::from_secs(15)),
            })
        );
    }

    #[test]
    fn files_are_found_by_both_names() {
        for yaml in ["path: /a", "path_config_source: {path: /a}"] {
            assert!(
                source(yaml).is_ok_and(|s| matches!(s.specifier, SourceSpecifier::Path { path, watched_directory: None } if &*path == "/a"))
            );
        }
        assert!(
            source("path_config_source: {path: /a, watched_directory: {path: /b}}").is_ok_and(
                |s| matches!(s.specifier, SourceSpecifier::Path { watched_directory: Some(d), .. } if &*d == "/b")
            )
        );
    }

    #[test]
    fn a_plain_google_grpc_names_its_target() {
        let proto = pb::from_yaml::<core::GrpcService>(
            "google_grpc: {target_uri: '127.0.0.1:1', stat_prefix: g}",
        )
        .expect("a GrpcService");
        let service = GrpcService::parse(proto).expect("valid");
        assert_eq!(service.target_uri.as_deref(), Some("127.0.0.1:1"));
    }

    #[test]
    fn wrong_sources_are_refused_by_field() {
        for (yaml, error) in [
            ("{}", "config_source_specifier: value is required"),
            (
                "api_config_source: {api_type: GRPC}",
                "api_config_source.grpc_services: API configs must have either a gRPC service or a cluster name defined",
            ),
            (
                "api_config_source: {api_type: REST, cluster_names: [x]}",
                "api_config_source.api_type: not supported: REST; use GRPC or DELTA_GRPC",
            ),
            (
                "api_config_source: {api_type: AGGREGATED_GRPC, grpc_services: [{envoy_grpc: {cluster_name: c}}]}",
                "api_config_source.api_type: Unsupported config source AGGREGATED_GRPC",
            ),
            (
                "api_config_source: {api_type: GRPC, grpc_services: [{envoy_grpc: {cluster_name: ''}}]}",
                "api_config_source.grpc_services[0].envoy_grpc.cluster_name: value length must be at least 1 characters",
            ),
            (
                "api_config_source: {api_type: GRPC, grpc_services: [{}]}",
                "api_config_source.grpc_services[0].target_specifier: value is required",
            ),
            (
                "api_config_source: {api_type: GRPC, grpc_services: [{google_grpc: {target_uri: a, stat_prefix: b, channel_credentials: {ssl_credentials: {}}}}]}",
                "api_config_source.grpc_services[0].google_grpc.channel_credentials: not supported: credentials are not implemented by this build yet",
            ),
        ] {
            assert_eq!(source(yaml), Err(error.to_owned()), "{yaml}");
        }
    }
}
