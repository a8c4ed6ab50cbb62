//! Protobuf to [`HttpConnectionManager`]; its filters are in `filters`.

#![allow(
    deprecated,
    reason = "Envoy still honours its deprecated fields, and control planes send them"
)]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use super::{
    CodecType, EscapedSlashes, HttpConnectionManager, Options, RouteSource, ServerHeader, StripPort,
    filters,
};
use crate::config::access_log::{AccessLog, LocalReplyConfig, PluginLog};
use crate::config::any::{holds, resolve};
use crate::config::cluster::{ConfigSource, Http1Options, Http2Options};
use crate::config::error::At;
use crate::config::field::{
    LATER, at_least_a_millisecond, cidr, duration, each, enumeration, flag, header_text, header_value,
    non_empty, percent, refuse, required, timeout, uint32,
};
use crate::config::ignored::Ignored;
use crate::config::listener::{DEFAULT_DRAIN_TIMEOUT, IpRange};
use crate::config::protocol::{CommonOptions, scheme_to_overwrite};
use crate::config::route::RouteConfig;
use crate::config::{ConfigError, ParseContext, ignored_extensions};
use crate::pb;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType as CodecKind, ForwardClientCertDetails, HcmAccessLogOptions, InternalAddressConfig,
    PathWithEscapedSlashesAction, RouteSpecifier, ServerHeaderTransformation, StripPortMode,
    UpgradeConfig,
};
use crate::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;

/// Kibibytes of request headers.
const DEFAULT_MAX_HEADERS_KB: u32 = 60;
/// More headers than these no message has, whatever the configuration would let in: a map cannot hold many more.
const MOST_HEADERS: usize = 16 << 10;
/// How many request headers.
const DEFAULT_MAX_HEADERS_COUNT: usize = 100;
const DEFAULT_STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
const DEFAULT_DELAYED_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Accepted without effect.
pub(in crate::config) const IGNORED: &[Ignored] = &[
    Ignored(
        "access_log_flush_interval",
        "records are written at the end of a request",
    ),
    Ignored(
        "add_proxy_protocol_connection_state",
        "there is no PROXY protocol",
    ),
    Ignored("append_local_overload", "there is no overload manager"),
    Ignored("drain_timeout_jitter", "spreads the ends of connections"),
    Ignored(
        "flush_access_log_on_new_request",
        "records are written at the end of a request",
    ),
    Ignored(
        "flush_log_on_tunnel_successfully_established",
        "records are written at the end of a request",
    ),
    Ignored(
        "http1_safe_max_connection_duration",
        "connections end between requests anyway",
    ),
    Ignored("http3_protocol_options", "there is no HTTP/3"),
    Ignored("path_normalization_options", "Envoy does not use it either"),
    Ignored(
        "set_current_client_cert_details",
        "plain-text connections have no client certificate",
    ),
    Ignored(
        "stream_flush_timeout",
        "the idle timeouts hold while a response is flushed too",
    ),
    Ignored("tracing", "requests are not traced"),
];

impl HttpConnectionManager {
    /// Validates a connection manager of a listener whose `per_connection_buffer_limit_bytes` is `buffer_limit`.
    ///
    /// # Errors
    /// The first field that is wrong or not supported, by its path.
    pub fn parse(
        proto: proto::HttpConnectionManager,
        buffer_limit: usize,
        context: &ParseContext<'_>,
    ) -> Result<Self, ConfigError> {
        let proto::HttpConnectionManager {
            codec_type,
            stat_prefix,
            http_filters,
            add_user_agent,
            tracing,
            common_http_protocol_options,
            http1_safe_max_connection_duration: _,
            http_protocol_options,
            http2_protocol_options,
            http3_protocol_options: _,
            server_name,
            server_header_transformation,
            scheme_header_transformation,
            max_request_headers_kb,
            stream_idle_timeout,
            stream_flush_timeout: _,
            request_timeout,
            request_headers_timeout,
            drain_timeout,
            drain_timeout_jitter,
            delayed_close_timeout,
            mut access_log,
            access_log_flush_interval,
            flush_access_log_on_new_request: _,
            access_log_options,
            use_remote_address,
            xff_num_trusted_hops,
            original_ip_detection_extensions,
            early_header_mutation_extensions,
            internal_address_config,
            skip_xff_append,
            via,
            generate_request_id,
            preserve_external_request_id,
            always_set_request_id_in_response,
            forward_client_cert_details,
            set_current_client_cert_details: _,
            forward_client_cert_matcher,
            proxy_100_continue,
            represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
            upgrade_configs,
            normalize_path,
            merge_slashes,
            path_with_escaped_slashes_action,
            request_id_extension,
            local_reply_config,
            strip_matching_host_port,
            stream_error_on_invalid_http_message,
            path_normalization_options: _,
            strip_trailing_host_dot,
            proxy_status_config,
            typed_header_validation_config,
            append_x_forwarded_port,
            append_local_overload: _,
            add_proxy_protocol_connection_state: _,
            forward_proto_config,
            route_specifier,
            strip_port_mode,
        } = proto;
        let stat_prefix = non_empty(stat_prefix, "stat_prefix")?;
        refuse(
            !original_ip_detection_extensions.is_empty(),
            "original_ip_detection_extensions",
            LATER,
        )?;
        refuse(
            !early_header_mutation_extensions.is_empty(),
            "early_header_mutation_extensions",
            LATER,
        )?;
        refuse(
            forward_client_cert_matcher.is_some(),
            "forward_client_cert_matcher",
            LATER,
        )?;
        refuse(
            represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
            "represent_ipv4_remote_address_as_ipv4_mapped_ipv6",
            LATER,
        )?;
        refuse(proxy_status_config.is_some(), "proxy_status_config", LATER)?;
        refuse(
            typed_header_validation_config.is_some(),
            "typed_header_validation_config",
            LATER,
        )?;
        let ports = forward_proto_config.unwrap_or_default();
        refuse(
            !ports.http_destination_ports.is_empty() || !ports.https_destination_ports.is_empty(),
            "forward_proto_config",
            LATER,
        )?;
        request_id(request_id_extension).at("request_id_extension")?;
        ignored_extensions::check_tracer(tracing.and_then(|tracing| tracing.provider))
            .at("provider")
            .at("tracing")?;
        access_log_flushing(access_log_flush_interval, access_log_options)?;
        percent(drain_timeout_jitter, "drain_timeout_jitter")?;

        let routes = route_source(required(route_specifier, "route_specifier")?, context)?;
        let common = CommonOptions::parse(common_http_protocol_options.unwrap_or_default())
            .at("common_http_protocol_options")?;
        let stream_error_on_invalid_message = flag(stream_error_on_invalid_http_message, false);
        let (internal_ranges, internal_unix_sockets) = internal_addresses(internal_address_config)?;
        let options = Options {
            server_name: if server_name.is_empty() {
                HeaderValue::from_static("envoy")
            } else {
                header_value(server_name, "server_name")?
            },
            server_header: server_header(server_header_transformation)?,
            use_remote_address: flag(use_remote_address, false),
            xff_num_trusted_hops,
            skip_xff_append,
            internal_ranges,
            internal_unix_sockets,
            via: if via.is_empty() {
                None
            } else {
                Some(header_value(via, "via")?)
            },
            generate_request_id: flag(generate_request_id, true),
            preserve_external_request_id,
            always_set_request_id_in_response,
            add_user_agent: flag(add_user_agent, false),
            normalize_path: flag(normalize_path, false),
            merge_slashes,
            escaped_slashes: escaped_slashes(path_with_escaped_slashes_action)?,
            strip_port: strip_port(strip_matching_host_port, strip_port_mode)?,
            strip_trailing_host_dot,
            underscores: common.underscores,
            max_request_headers: max_headers(uint32(max_request_headers_kb))?,
            max_headers_count: common
                .max_headers_count
                .map_or(DEFAULT_MAX_HEADERS_COUNT, |count| count as usize)
                .min(MOST_HEADERS),
            stream_idle_timeout: timeout(
                stream_idle_timeout,
                Some(DEFAULT_STREAM_IDLE_TIMEOUT),
                "stream_idle_timeout",
            )?,
            request_timeout: timeout(request_timeout, None, "request_timeout")?,
            request_headers_timeout: timeout(
                request_headers_timeout,
                None,
                "request_headers_timeout",
            )?,
            idle_timeout: common.idle_timeout,
            max_connection_duration: common.max_connection_duration,
            max_stream_duration: common.max_stream_duration,
            max_requests_per_connection: common.max_requests_per_connection,
            drain_timeout: duration(drain_timeout, "drain_timeout")?
                .unwrap_or(DEFAULT_DRAIN_TIMEOUT),
            delayed_close_timeout: timeout(
                delayed_close_timeout,
                Some(DEFAULT_DELAYED_CLOSE_TIMEOUT),
                "delayed_close_timeout",
            )?,
            http1: http1(http_protocol_options, stream_error_on_invalid_message)?,
            http2: http2(http2_protocol_options, stream_error_on_invalid_http_message)?,
            stream_error_on_invalid_message,
            proxy_100_continue,
            upgrades: upgrades(upgrade_configs)?,
            local_reply: local_reply_config
                .map(|config| LocalReplyConfig::parse(config, context))
                .transpose()
                .at("local_reply_config")?,
            scheme_to_overwrite: scheme_header_transformation
                .map(scheme_to_overwrite)
                .transpose()
                .at("scheme_header_transformation")?
                .flatten(),
            keep_client_cert_header: enumeration::<ForwardClientCertDetails>(
                forward_client_cert_details,
                "forward_client_cert_details",
            )? == ForwardClientCertDetails::AlwaysForwardOnly,
            append_x_forwarded_port,
            buffer_limit,
        };
        Ok(Self {
            codec: codec(codec_type)?,
            stat_prefix: stat_prefix.into(),
            routes,
            http_filters: filters::parse(http_filters, context)?,
            options: Arc::new(options),
            plugin_logs: PluginLog::take_all(&mut access_log, context)?,
            access_log: AccessLog::parse_all(access_log, context)?,
        })
    }
}

fn codec(value: i32) -> Result<CodecType, ConfigError> {
    match enumeration::<CodecKind>(value, "codec_type")? {
        CodecKind::Auto => Ok(CodecType::Auto),
        CodecKind::Http1 => Ok(CodecType::Http1),
        CodecKind::Http2 => Ok(CodecType::Http2),
        CodecKind::Http3 => Err(ConfigError::invalid(
            "HTTP/3 codec configured on non-QUIC listener.",
        )
        .at("codec_type")),
    }
}

fn route_source(
    proto: RouteSpecifier,
    context: &ParseContext<'_>,
) -> Result<RouteSource, ConfigError> {
    match proto {
        RouteSpecifier::RouteConfig(config) => Ok(RouteSource::Inline(Arc::new(
            RouteConfig::parse_inline(config, context).at("route_config")?,
        ))),
        RouteSpecifier::Rds(proto::Rds {
            config_source,
            route_config_name,
        }) => Ok(RouteSource::Rds {
            source: required(config_source, "config_source")
                .and_then(|source| ConfigSource::parse(source).at("config_source"))
                .at("rds")?,
            name: route_config_name.into(),
        }),
        RouteSpecifier::ScopedRoutes(_) => Err(ConfigError::unsupported("scoped_routes", LATER)),
    }
}

/// The UUID extension's two settings are about tracing, so that nothing is left of it.
fn request_id(proto: Option<proto::RequestIdExtension>) -> Result<(), ConfigError> {
    let Some(proto::RequestIdExtension { typed_config }) = proto else {
        return Ok(());
    };
    let Some(any) = typed_config else {
        return Ok(());
    };
    let any = resolve(&any).at("typed_config")?;
    if holds::<UuidRequestIdConfig>(&any) {
        return Ok(());
    }
    Err(ConfigError::invalid(format!(
        "Didn't find a registered implementation for type: '{}'",
        pb::type_name(&any.type_url)
    ))
    .at("typed_config"))
}

fn access_log_flushing(
    interval: Option<pb::google::protobuf::Duration>,
    options: Option<HcmAccessLogOptions>,
) -> Result<(), ConfigError> {
    let set = at_least_a_millisecond(interval, "access_log_flush_interval")?.is_some();
    let Some(HcmAccessLogOptions {
        access_log_flush_interval,
        flush_access_log_on_new_request: _,
        flush_log_on_tunnel_successfully_established: _,
    }) = options
    else {
        return Ok(());
    };
    if set {
        return Err(ConfigError::invalid(
            "Only one of access_log_flush_interval or access_log_options can be specified.",
        ));
    }
    at_least_a_millisecond(access_log_flush_interval, "access_log_flush_interval")
        .map(drop)
        .at("access_log_options")
}

fn server_header(value: i32) -> Result<ServerHeader, ConfigError> {
    Ok(
        match enumeration::<ServerHeaderTransformation>(value, "server_header_transformation")? {
            ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
            ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
            ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
        },
    )
}

fn escaped_slashes(value: i32) -> Result<EscapedSlashes, ConfigError> {
    Ok(
        match enumeration::<PathWithEscapedSlashesAction>(
            value,
            "path_with_escaped_slashes_action",
        )? {
            // Without a runtime the implementation's default is to keep them.
            PathWithEscapedSlashesAction::ImplementationSpecificDefault
            | PathWithEscapedSlashesAction::KeepUnchanged => EscapedSlashes::Keep,
            PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::Reject,
            PathWithEscapedSlashesAction::UnescapeAndRedirect => {
                EscapedSlashes::UnescapeAndRedirect
            }
            PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
        },
    )
}

fn strip_port(matching: bool, mode: Option<StripPortMode>) -> Result<StripPort, ConfigError> {
    let any = matches!(mode, Some(StripPortMode::StripAnyHostPort(true)));
    match (matching, any) {
        (false, false) => Ok(StripPort::No),
        (true, false) => Ok(StripPort::Matching),
        (false, true) => Ok(StripPort::Any),
        (true, true) => Err(ConfigError::invalid(
            "Error: Only one of `strip_matching_host_port` or `strip_any_host_port` can be set.",
        )),
    }
}

fn max_headers(kilobytes: Option<u32>) -> Result<usize, ConfigError> {
    match kilobytes.unwrap_or(DEFAULT_MAX_HEADERS_KB) {
        kb @ 1..=8192 => Ok(kb as usize * 1024),
        _ => Err(ConfigError::invalid("value must be inside range (0, 8192]")
            .at("max_request_headers_kb")),
    }
}

/// No address is internal without a configuration, those of private networks and of this machine with an empty one.
fn internal_addresses(
    proto: Option<InternalAddressConfig>,
) -> Result<(Vec<IpRange>, bool), ConfigError> {
    let Some(InternalAddressConfig {
        unix_sockets,
        cidr_ranges,
    }) = proto
    else {
        return Ok((Vec::new(), false));
    };
    let mut ranges = each(cidr_ranges, "cidr_ranges", cidr).at("internal_address_config")?;
    if ranges.is_empty() {
        let v4 = |a, b, prefix_len| IpRange {
            address: Ipv4Addr::new(a, b, 0, 0).into(),
            prefix_len,
        };
        let v6 = |first, prefix_len| IpRange {
            address: Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0).into(),
            prefix_len,
        };
        ranges.extend([
            v4(10, 0, 8),
            v4(172, 16, 12),
            v4(192, 168, 16),
            v6(0xfd00, 8),
        ]);
        ranges.push(IpRange {
            address: Ipv4Addr::LOCALHOST.into(),
            prefix_len: 32,
        });
        ranges.push(IpRange {
            address: Ipv6Addr::LOCALHOST.into(),
            prefix_len: 128,
        });
    }
    Ok((ranges, unix_sockets))
}

/// The manager's `stream_error_on_invalid_http_message` holds where the protocol's own says nothing.
fn http1(
    proto: Option<pb::envoy::config::core::v3::Http1ProtocolOptions>,
    keep_open: bool,
) -> Result<Http1Options, ConfigError> {
    let proto = proto.unwrap_or_default();
    let own = proto
        .override_stream_error_on_invalid_http_message
        .is_some();
    let mut options = Http1Options::parse(proto).at("http_protocol_options")?;
    if !own {
        options.keep_open_on_invalid_message = keep_open;
    }
    Ok(options)
}

/// As [`http1`].
fn http2(
    proto: Option<pb::envoy::config::core::v3::Http2ProtocolOptions>,
    keep_open: Option<pb::google::protobuf::BoolValue>,
) -> Result<Http2Options, ConfigError> {
    let proto = proto.unwrap_or_default();
    let own = proto
        .override_stream_error_on_invalid_http_message
        .is_some();
    let mut options = Http2Options::parse(proto).at("http2_protocol_options")?;
    if let (false, Some(keep_open)) = (own, keep_open) {
        options.stream_error_on_invalid_message = keep_open.value;
    }
    Ok(options)
}

fn upgrades(protos: Vec<UpgradeConfig>) -> Result<Vec<(Box<str>, bool)>, ConfigError> {
    let mut upgrades: Vec<(Box<str>, bool)> = Vec::new();
    for (index, proto) in protos.into_iter().enumerate() {
        let UpgradeConfig {
            upgrade_type,
            filters,
            enabled,
        } = proto;
        let at = |error: ConfigError| error.at_index("upgrade_configs", index);
        refuse(!filters.is_empty(), "filters", LATER).map_err(at)?;
        let kind = header_text(upgrade_type, "upgrade_type").map_err(at)?;
        let lower = kind.to_ascii_lowercase();
        if upgrades.iter().any(|(known, _)| **known == *lower) {
            return Err(at(ConfigError::invalid(format!(
                "Error: multiple upgrade configs with the same name: '{kind}'"
            ))));
        }
        upgrades.push((lower.into(), flag(enabled, true)));
    }
    Ok(upgrades)
}

#[cfg(test)]
mod tests;
