//! `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager` as believed.

mod filters;
pub(super) mod parse;
pub mod upstream;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::access_log::{AccessLog, LocalReplyConfig, PluginLog};
use super::cluster::{ConfigSource, Http1Options, Http2Options};
use super::extension::HttpFilterConfig;
use super::listener::IpRange;
use super::route::RouteConfig;

/// The HTTP connection manager of a filter chain.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpConnectionManager {
    /// `codec_type`.
    pub codec: CodecType,
    /// `stat_prefix`.
    pub stat_prefix: Box<str>,
    /// `rds` or `route_config`.
    pub routes: RouteSource,
    /// In order; the last, and only the last, is terminal.
    pub http_filters: Vec<HttpFilter>,
    /// Everything that a request needs to know of the manager itself.
    pub options: Arc<Options>,
    /// `access_log`, without plugins.
    pub access_log: Vec<AccessLog>,
    /// Those of `access_log` that are plugins.
    pub plugin_logs: Vec<PluginLog>,
}

/// `CodecType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecType {
    /// HTTP/2 where the connection begins with its preface, else HTTP/1.
    Auto,
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Where the routes come from.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteSource {
    /// Inline.
    Inline(Arc<RouteConfig>),
    /// By RDS.
    Rds {
        /// `route_config_name`.
        name: Arc<str>,
        /// `config_source`.
        source: ConfigSource,
    },
}

/// One entry of `http_filters`.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpFilter {
    /// `name`: what per-route configuration refers to.
    pub name: Box<str>,
    /// Its configuration, or where that comes from.
    pub config: FilterSource,
    /// `disabled`: off unless a route switches it on.
    pub disabled: bool,
}

/// Inline or by ECDS.
#[derive(Clone, Debug, PartialEq)]
pub enum FilterSource {
    /// `typed_config`.
    Inline(HttpFilterConfig),
    /// `config_discovery`: the resource is called as the filter.
    Discovered {
        /// `config_source`.
        source: ConfigSource,
        /// `type_urls`, full; the resource must have one of them.
        type_urls: Vec<Box<str>>,
        /// `default_config`.
        default: Option<HttpFilterConfig>,
        /// `apply_default_config_without_warming`.
        apply_default_without_warming: bool,
    },
}

/// Settings of the manager that requests read.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// `server_name`; default `envoy`.
    pub server_name: http::HeaderValue,
    /// `server_header_transformation`.
    pub server_header: ServerHeader,
    /// `use_remote_address`.
    pub use_remote_address: bool,
    /// `xff_num_trusted_hops`.
    pub xff_num_trusted_hops: u32,
    /// `skip_xff_append`.
    pub skip_xff_append: bool,
    /// `internal_address_config`: CIDR ranges; empty by default (1.40).
    pub internal_ranges: Vec<IpRange>,
    /// `internal_address_config.unix_sockets`.
    pub internal_unix_sockets: bool,
    /// `via`.
    pub via: Option<http::HeaderValue>,
    /// `generate_request_id`; default true.
    pub generate_request_id: bool,
    /// `preserve_external_request_id`.
    pub preserve_external_request_id: bool,
    /// `always_set_request_id_in_response`.
    pub always_set_request_id_in_response: bool,
    /// `add_user_agent`.
    pub add_user_agent: bool,
    /// `normalize_path`.
    pub normalize_path: bool,
    /// `merge_slashes`.
    pub merge_slashes: bool,
    /// `path_with_escaped_slashes_action`.
    pub escaped_slashes: EscapedSlashes,
    /// `strip_matching_host_port` or `strip_any_host_port`.
    pub strip_port: StripPort,
    /// `strip_trailing_host_dot`.
    pub strip_trailing_host_dot: bool,
    /// `common_http_protocol_options.headers_with_underscores_action`.
    pub underscores: HeadersWithUnderscores,
    /// `max_request_headers_kb`, in bytes; default 60 KiB.
    pub max_request_headers: usize,
    /// `common_http_protocol_options.max_headers_count`; default 100.
    pub max_headers_count: usize,
    /// `stream_idle_timeout`; default 5 min.
    pub stream_idle_timeout: Option<Duration>,
    /// `request_timeout`; default none.
    pub request_timeout: Option<Duration>,
    /// `request_headers_timeout`; default none.
    pub request_headers_timeout: Option<Duration>,
    /// `common_http_protocol_options.idle_timeout`; default 1 h.
    pub idle_timeout: Option<Duration>,
    /// `common_http_protocol_options.max_connection_duration`.
    pub max_connection_duration: Option<Duration>,
    /// `common_http_protocol_options.max_stream_duration`.
    pub max_stream_duration: Option<Duration>,
    /// `common_http_protocol_options.max_requests_per_connection`.
    pub max_requests_per_connection: Option<u32>,
    /// `drain_timeout`; default 5 s.
    pub drain_timeout: Duration,
    /// `delayed_close_timeout`; default 1 s.
    pub delayed_close_timeout: Option<Duration>,
    /// `http_protocol_options`.
    pub http1: Http1Options,
    /// `http2_protocol_options`.
    pub http2: Http2Options,
    /// `stream_error_on_invalid_http_message`.
    pub stream_error_on_invalid_message: bool,
    /// `proxy_100_continue`.
    pub proxy_100_continue: bool,
    /// `upgrade_configs`, lower case, with their `enabled`.
    pub upgrades: Vec<(Box<str>, bool)>,
    /// `local_reply_config`.
    pub local_reply: Option<LocalReplyConfig>,
    /// `scheme_header_transformation.scheme_to_overwrite`.
    pub scheme_to_overwrite: Option<Box<str>>,
    /// `forward_client_cert_details: ALWAYS_FORWARD_ONLY`: `x-forwarded-client-cert` of the request is kept. All other
    /// values remove it from plain-text requests.
    pub keep_client_cert_header: bool,
    /// `append_x_forwarded_port`.
    pub append_x_forwarded_port: bool,
    /// The listener's `per_connection_buffer_limit_bytes`, copied here for filters.
    pub buffer_limit: usize,
}

impl Default for Options {
    /// What Envoy believes of an empty configuration.
    fn default() -> Self {
        Self {
            server_name: http::HeaderValue::from_static("envoy"),
            server_header: ServerHeader::Overwrite,
            use_remote_address: false,
            xff_num_trusted_hops: 0,
            skip_xff_append: false,
            internal_ranges: Vec::new(),
            internal_unix_sockets: false,
            via: None,
            generate_request_id: true,
            preserve_external_request_id: false,
            always_set_request_id_in_response: false,
            add_user_agent: false,
            normalize_path: false,
            merge_slashes: false,
            escaped_slashes: EscapedSlashes::Keep,
            strip_port: StripPort::No,
            strip_trailing_host_dot: false,
            underscores: HeadersWithUnderscores::Allow,
            max_request_headers: 60 << 10,
            max_headers_count: 100,
            stream_idle_timeout: Some(Duration::from_secs(300)),
            request_timeout: None,
            request_headers_timeout: None,
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_stream_duration: None,
            max_requests_per_connection: None,
            drain_timeout: Duration::from_secs(5),
            delayed_close_timeout: Some(Duration::from_secs(1)),
            http1: Http1Options::default(),
            http2: Http2Options::default(),
            stream_error_on_invalid_message: false,
            proxy_100_continue: false,
            upgrades: Vec::new(),
            local_reply: None,
            scheme_to_overwrite: None,
            keep_client_cert_header: false,
            append_x_forwarded_port: false,
            buffer_limit: 1 << 20,
        }
    }
}

impl Options {
    /// True where `address` counts as internal.
    pub fn is_internal(&self, address: IpAddr) -> bool {
        self.internal_ranges
            .iter()
            .any(|range| range.contains(address))
    }
}

/// `ServerHeaderTransformation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerHeader {
    /// Replaces the upstream's.
    Overwrite,
    /// Only where the upstream sent none.
    AppendIfAbsent,
    /// Never.
    PassThrough,
}

/// `PathWithEscapedSlashesAction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// As is (Envoy's default).
    Keep,
    /// 400.
    Reject,
    /// 307 to the unescaped path.
    UnescapeAndRedirect,
    /// Unescaped in place.
    UnescapeAndForward,
}

/// Host port stripping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StripPort {
    /// None.
    No,
    /// Where it equals the listener's.
    Matching,
    /// Any.
    Any,
}

/// `HeadersWithUnderscoresAction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadersWithUnderscores {
    /// Kept.
    Allow,
    /// 400 (h1) or stream reset (h2).
    Reject,
    /// Dropped.
    Drop,
}

impl IpRange {
    /// True where `address` lies in the range; an IPv4-mapped address counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let shift = 32u32.saturating_sub(u32::from(self.prefix_len));
                shift == 32 || (u32::from(net) ^ u32::from(ip)) >> shift == 0
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let shift = 128u32.saturating_sub(u32::from(self.prefix_len));
                shift == 128 || (u128::from(net) ^ u128::from(ip)) >> shift == 0
            }
            _ => false,
        }
    }
}
