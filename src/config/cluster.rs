//! `envoy.config.cluster.v3.Cluster` as believed.

mod balancer;
mod discovery;
pub(super) mod parse;
pub(super) mod source;
mod upstream_protocol;

use std::sync::Arc;
use std::time::Duration;

use super::endpoint::Endpoints;
use super::http_connection_manager::HttpFilter;
use crate::pb;

/// An upstream cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// `name`.
    pub name: Arc<str>,
    /// `alt_stat_name`, else the name: what statistics and `%UPSTREAM_CLUSTER%` show.
    pub stat_name: Arc<str>,
    /// Where hosts come from.
    pub discovery: Discovery,
    /// How a host is chosen.
    pub balancer: Balancer,
    /// `connect_timeout`; default 5 s.
    pub connect_timeout: Duration,
    /// `per_connection_buffer_limit_bytes`; default 1 MiB.
    pub buffer_limit: usize,
    /// The upstream codec.
    pub protocol: UpstreamProtocol,
    /// `http_filters` of `HttpProtocolOptions`, without the codec at their end; `None`: there is no such list, and that of the
    /// router holds.
    pub upstream_filters: Option<Vec<HttpFilter>>,
    /// `common_http_protocol_options.idle_timeout`; default 1 h, `None` is none.
    pub idle_timeout: Option<Duration>,
    /// `max_requests_per_connection`.
    pub max_requests_per_connection: Option<u32>,
    /// `common_http_protocol_options.max_stream_duration`.
    pub max_stream_duration: Option<Duration>,
    /// `common_lb_config.healthy_panic_threshold` in percent; default 50.
    pub healthy_panic_threshold: f64,
    /// `locality_weighted_lb_config`, of `common_lb_config` or of the typed policy: a locality is chosen by weight first.
    /// Else the localities' weights do not count.
    pub locality_weighted: bool,
    /// `respect_dns_ttl`, `dns_refresh_rate` and the like.
    pub dns: DnsOptions,
    /// `upstream_connection_options.tcp_keepalive`.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// `upstream_bind_config.source_address`.
    pub source_address: Option<std::net::SocketAddr>,
    /// `metadata`.
    pub metadata: Option<Arc<pb::Metadata>>,
    /// `wait_for_warm_on_init` (static clusters); default true.
    pub wait_for_warm_on_init: bool,
}

impl Cluster {
    /// True where the cluster has HTTP filters of its own before the codec.
    pub fn has_filters(&self) -> bool {
        let filters = self.upstream_filters.as_ref();
        filters.is_some_and(|filters| !filters.is_empty())
    }
}

/// `discovery_type`.
#[derive(Clone, Debug, PartialEq)]
pub enum Discovery {
    /// `STATIC`: the load assignment is all.
    Static(Arc<Endpoints>),
    /// `STRICT_DNS`: every address of every name is a host.
    StrictDns(Arc<Endpoints>),
    /// `LOGICAL_DNS`: one name, one logical host; a new connection takes the first address.
    LogicalDns(Arc<Endpoints>),
    /// `EDS`.
    Eds {
        /// `service_name`, else the cluster's name: the resource to ask for.
        service_name: Arc<str>,
        /// Where from.
        source: ConfigSource,
    },
}

/// `envoy.config.core.v3.ConfigSource`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigSource {
    /// Where the resource comes from: two of one name are the same resource only where this is the same.
    pub specifier: SourceSpecifier,
    /// `initial_fetch_timeout`. Default 15 s; `None` (0 s) waits for ever.
    pub initial_fetch_timeout: Option<Duration>,
}

/// `config_source_specifier`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceSpecifier {
    /// `ads: {}` (and `self: {}`): the aggregated stream.
    Ads,
    /// `api_config_source`: a stream of its own.
    Grpc {
        /// `DELTA_GRPC`.
        delta: bool,
        /// Where the stream goes.
        service: GrpcService,
        /// `set_node_on_first_message_only`.
        node_on_first_message_only: bool,
    },
    /// `path_config_source`.
    Path {
        /// The file.
        path: Box<str>,
        /// `watched_directory`: the directory whose moves reload; else the file's own.
        watched_directory: Option<Box<str>>,
    },
}

/// `GrpcService.envoy_grpc` (and the tolerated `google_grpc` without credentials).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrpcService {
    /// The cluster (of the bootstrap's static ones) to call.
    pub cluster: Arc<str>,
    /// `google_grpc.target_uri`: call this plain-text address; `cluster` is then `stat_prefix`, and names no cluster.
    pub target_uri: Option<Box<str>>,
    /// `authority`; default the cluster's name.
    pub authority: Option<Box<str>>,
    /// `initial_metadata`.
    pub metadata: Vec<(Box<str>, Box<str>)>,
    /// `timeout`.
    pub timeout: Option<Duration>,
    /// `max_receive_message_length`, in bytes; `None` (0) is the client's own limit. For callouts of plugins.
    pub max_message: Option<u32>,
    /// `skip_envoy_headers`. For callouts of plugins.
    pub skip_envoy_headers: bool,
}

/// The load balancers in scope, from the old enum or the typed policy.
#[derive(Clone, Debug, PartialEq)]
pub enum Balancer {
    /// Weighted round robin.
    RoundRobin,
    /// Power of `choice_count` choices by active requests (weights equal), else weighted with `active_request_bias`.
    LeastRequest {
        /// How many hosts are compared; at least 1, default 2.
        choice_count: u32,
        /// Default 1; 0 ignores the active requests.
        active_request_bias: f64,
    },
    /// Uniform by weight.
    Random,
}

/// The upstream codec (`HttpProtocolOptions`, or the deprecated `http2_protocol_options` of the cluster).
#[derive(Clone, Debug, PartialEq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1(Http1Options),
    /// HTTP/2 with prior knowledge.
    Http2(Http2Options),
    /// `use_downstream_protocol_config`: that of the request.
    Downstream(Http1Options, Http2Options),
}

/// `Http1ProtocolOptions`, either side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Http1Options {
    /// `accept_http_10`.
    pub accept_http_10: bool,
    /// `default_host_for_http_10`.
    pub default_host_for_http_10: Option<Box<str>>,
    /// `enable_trailers`.
    pub enable_trailers: bool,
    /// `header_key_format.proper_case_words`.
    pub proper_case: bool,
    /// `allow_chunked_length`.
    pub allow_chunked_length: bool,
    /// `allow_absolute_url`; default true.
    pub refuse_absolute_url: bool,
    /// `override_stream_error_on_invalid_http_message`.
    pub keep_open_on_invalid_message: bool,
    /// `allow_custom_methods`: else a method outside the registered ones is refused with 400.
    pub allow_custom_methods: bool,
}

/// `Http2ProtocolOptions`, either side, with Envoy's defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Http2Options {
    /// `max_concurrent_streams`; default 1024 (1.40).
    pub max_concurrent_streams: u32,
    /// `initial_stream_window_size`; default 16 MiB (1.40).
    pub initial_stream_window: u32,
    /// `initial_connection_window_size`; default 24 MiB (1.40).
    pub initial_connection_window: u32,
    /// `connection_keepalive.interval` and `.timeout`.
    pub keepalive: Option<(Duration, Duration)>,
    /// `override_stream_error_on_invalid_http_message`.
    pub stream_error_on_invalid_message: bool,
    /// `allow_connect`.
    pub allow_connect: bool,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            initial_stream_window: 16 << 20,
            initial_connection_window: 24 << 20,
            keepalive: None,
            stream_error_on_invalid_message: false,
            allow_connect: false,
        }
    }
}

/// DNS behaviour of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsOptions {
    /// `dns_refresh_rate`; default 5 s.
    pub refresh: Duration,
    /// `respect_dns_ttl`.
    pub respect_ttl: bool,
    /// `dns_failure_refresh_rate`: base and cap; default as `refresh`.
    pub failure_refresh: (Duration, Duration),
    /// `dns_jitter`.
    pub jitter: Duration,
    /// `dns_lookup_family`.
    pub family: DnsFamily,
    /// `dns_resolvers` of the configuration, else the system's.
    pub resolvers: Vec<std::net::SocketAddr>,
}

/// `DnsLookupFamily`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsFamily {
    /// IPv6, and IPv4 where there is none (Envoy's default).
    Auto,
    /// IPv4 alone.
    V4Only,
    /// IPv6 alone.
    V6Only,
    /// IPv4, and IPv6 where there is none.
    V4Preferred,
    /// Both.
    All,
}

/// `TcpKeepalive`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// `keepalive_probes`.
    pub probes: Option<u32>,
    /// `keepalive_time`.
    pub time: Option<Duration>,
    /// `keepalive_interval`.
    pub interval: Option<Duration>,
}
