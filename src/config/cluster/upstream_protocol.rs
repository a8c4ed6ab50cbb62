//! The upstream codec and its filters: `HttpProtocolOptions`, else the cluster's deprecated fields.

#![allow(
    deprecated,
    reason = "Envoy still honours its deprecated fields, and control planes send them"
)]

use std::collections::HashMap;

use super::{Http1Options, Http2Options, UpstreamProtocol};
use crate::config::ConfigError;
use crate::config::any::{resolve, unpack};
use crate::config::error::At;
use crate::config::extension::Extensions;
use crate::config::field::{LATER, enumeration, refuse, required};
use crate::config::http_connection_manager::{HttpFilter, upstream};
use crate::config::protocol::CommonOptions;
use crate::pb::Any;
use crate::pb::envoy::config::cluster::v3::cluster::ClusterProtocolSelection;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use crate::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use crate::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
};

/// The key of HTTP's own options.
const HTTP: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Options of protocols that this build does not speak upstream begin so; they cannot have an effect.
const OTHERS: &[&str] = &["envoy.filters.network.", "envoy.extensions.upstreams.tcp."];

/// What the fields of the cluster itself say.
pub(super) struct Deprecated {
    pub(super) common: Option<core::HttpProtocolOptions>,
    pub(super) http1: Option<core::Http1ProtocolOptions>,
    pub(super) http2: Option<core::Http2ProtocolOptions>,
    pub(super) selection: i32,
}

pub(super) struct Upstream {
    pub(super) protocol: UpstreamProtocol,
    pub(super) common: CommonOptions,
    pub(super) filters: Option<Vec<HttpFilter>>,
}

/// The protocol of a cluster.
pub(super) fn parse(
    extensions: HashMap<String, Any>,
    deprecated: Deprecated,
    known: &dyn Extensions,
) -> Result<Upstream, ConfigError> {
    let mut http = None;
    for (name, any) in extensions {
        if name == HTTP {
            let options = resolve(&any)
                .and_then(|any| unpack(&any))
                .and_then(|options| typed(options, known));
            http = Some(options.at(&format!("typed_extension_protocol_options[{HTTP}]"))?);
        } else if !OTHERS.iter().any(|prefix| name.starts_with(prefix)) {
            return Err(ConfigError::invalid(format!(
                "Didn't find a registered network or http filter or protocol options implementation for name: '{name}'"
            ))
            .at("typed_extension_protocol_options"));
        }
    }
    match http {
        Some(http) => Ok(http),
        None => untyped(deprecated),
    }
}

fn untyped(deprecated: Deprecated) -> Result<Upstream, ConfigError> {
    let Deprecated {
        common,
        http1,
        http2,
        selection,
    } = deprecated;
    let is_http2 = http2.is_some();
    let http1 = Http1Options::parse(http1.unwrap_or_default()).at("http_protocol_options")?;
    let http2 = Http2Options::parse(http2.unwrap_or_default()).at("http2_protocol_options")?;
    let selection = enumeration::<ClusterProtocolSelection>(selection, "protocol_selection")?;
    let protocol = match selection {
        ClusterProtocolSelection::UseDownstreamProtocol => {
            UpstreamProtocol::Downstream(http1, http2)
        }
        ClusterProtocolSelection::UseConfiguredProtocol if is_http2 => {
            UpstreamProtocol::Http2(http2)
        }
        ClusterProtocolSelection::UseConfiguredProtocol => UpstreamProtocol::Http1(http1),
    };
    Ok(Upstream {
        protocol,
        common: CommonOptions::parse(common.unwrap_or_default())
            .at("common_http_protocol_options")?,
        filters: None,
    })
}

fn typed(proto: HttpProtocolOptions, known: &dyn Extensions) -> Result<Upstream, ConfigError> {
    let HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options: _,
        http_filters,
        header_validation_config,
        outlier_detection: _,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = proto;
    let filters = upstream::of_cluster(http_filters, known)?;
    refuse(
        header_validation_config.is_some(),
        "header_validation_config",
        LATER,
    )?;
    refuse(
        !request_mirror_policies.is_empty(),
        "request_mirror_policies",
        LATER,
    )?;
    refuse(!hash_policy.is_empty(), "hash_policy", LATER)?;
    refuse(
        retry_policy.is_some_and(|policy| !policy.retry_on.is_empty()),
        "retry_policy",
        "retries are not implemented by this build yet",
    )?;
    let protocol = match required(upstream_protocol_options, "upstream_protocol_options")? {
        UpstreamProtocolOptions::ExplicitHttpConfig(explicit) => {
            explicit_protocol(explicit).at("explicit_http_config")?
        }
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options,
            http2_protocol_options,
            // There is no HTTP/3 downstream.
            http3_protocol_options: _,
        }) => UpstreamProtocol::Downstream(
            Http1Options::parse(http_protocol_options.unwrap_or_default())
                .at("http_protocol_options")
                .at("use_downstream_protocol_config")?,
            Http2Options::parse(http2_protocol_options.unwrap_or_default())
                .at("http2_protocol_options")
                .at("use_downstream_protocol_config")?,
        ),
        UpstreamProtocolOptions::AutoConfig(_) => {
            return Err(ConfigError::unsupported(
                "auto_config",
                "it needs ALPN, and upstream TLS is not implemented by this build yet",
            ));
        }
    };
    Ok(Upstream {
        protocol,
        common: CommonOptions::parse(common_http_protocol_options.unwrap_or_default())
            .at("common_http_protocol_options")?,
        filters,
    })
}

fn explicit_protocol(proto: ExplicitHttpConfig) -> Result<UpstreamProtocol, ConfigError> {
    let ExplicitHttpConfig { protocol_config } = proto;
    match required(protocol_config, "protocol_config")? {
        ProtocolConfig::HttpProtocolOptions(options) => {
            let options = Http1Options::parse(options).at("http_protocol_options")?;
            Ok(UpstreamProtocol::Http1(options))
        }
        ProtocolConfig::Http2ProtocolOptions(options) => {
            let options = Http2Options::parse(options).at("http2_protocol_options")?;
            Ok(UpstreamProtocol::Http2(options))
        }
        ProtocolConfig::Http3ProtocolOptions(_) => {
            Err(ConfigError::unsupported("http3_protocol_options", LATER))
        }
    }
}
