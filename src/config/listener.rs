//! `envoy.config.listener.v3.Listener` as believed.

pub(super) mod chain;
pub(super) mod parse;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::access_log::AccessLog;
use super::endpoint::Address;
use super::error::ConfigError;
use super::extension::HttpFilterConfig;
use super::http_connection_manager::HttpConnectionManager;
use super::tcp_proxy::TcpProxy;
use crate::pb;

/// A listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// `name`; made up from the address where it is empty.
    pub name: Arc<str>,
    /// `address`, and after it `additional_addresses`.
    pub addresses: Vec<Address>,
    /// `stat_prefix`, else empty: statistics use the address.
    pub stat_prefix: Box<str>,
    /// In the order given; the match decides, not the order.
    pub filter_chains: Vec<Arc<FilterChain>>,
    /// `default_filter_chain`.
    pub default_filter_chain: Option<Arc<FilterChain>>,
    /// `per_connection_buffer_limit_bytes`; default 1 MiB.
    pub buffer_limit: usize,
    /// `traffic_direction`.
    pub direction: TrafficDirection,
    /// `bind_to_port`; default true.
    pub bind_to_port: bool,
    /// `enable_reuse_port`; default true.
    pub reuse_port: bool,
    /// `tcp_backlog_size`.
    pub backlog: Option<u32>,
    /// `drain_type: MODIFY_ONLY`.
    pub drain_modify_only: bool,
    /// `access_log` of the listener (connections).
    pub access_log: Vec<AccessLog>,
    /// `metadata`.
    pub metadata: Option<Arc<pb::Metadata>>,
    /// Unix socket mode, where an address is a pipe.
    pub pipe_mode: Option<u32>,
    /// `ipv4_compat` of an IPv6 `address`: it serves IPv4 too.
    pub ipv4_compat: bool,
}

impl Listener {
    /// Why this one cannot be beside one whose addresses it meets. Worded as Envoy's.
    pub fn duplicate_address(&self) -> ConfigError {
        let addresses: Vec<_> = self.addresses.iter().map(Address::to_string).collect();
        ConfigError::invalid(format!(
            "error adding listener: '{}' has duplicate address '{}' as existing listener, to check if the listener has \
             duplicated addresses with other listeners or 'enable_reuse_port' is set to 'false' for the listener",
            self.name,
            addresses.join(","),
        ))
    }

    /// True where the two differ in their filter chains alone: Envoy keeps the connections of chains that did not change.
    pub fn differs_in_chains_alone(&self, other: &Self) -> bool {
        let Self {
            name,
            addresses,
            stat_prefix,
            filter_chains: _chains,
            default_filter_chain: _default_chain,
            buffer_limit,
            direction,
            bind_to_port,
            reuse_port,
            backlog,
            drain_modify_only,
            access_log,
            metadata,
            pipe_mode,
            ipv4_compat,
        } = self;
        *name == other.name
            && *addresses == other.addresses
            && *stat_prefix == other.stat_prefix
            && *buffer_limit == other.buffer_limit
            && *direction == other.direction
            && *bind_to_port == other.bind_to_port
            && *reuse_port == other.reuse_port
            && *backlog == other.backlog
            && *drain_modify_only == other.drain_modify_only
            && *access_log == other.access_log
            && *metadata == other.metadata
            && *pipe_mode == other.pipe_mode
            && *ipv4_compat == other.ipv4_compat
    }
}

/// `TrafficDirection`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficDirection {
    /// Neither.
    #[default]
    Unspecified,
    /// Into the workload.
    Inbound,
    /// Out of it.
    Outbound,
}

/// `FilterChain`, in scope: no transport socket but plain text.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterChain {
    /// `name`; may be empty.
    pub name: Box<str>,
    /// `filter_chain_match`.
    pub matcher: FilterChainMatch,
    /// The network filters before the terminal one.
    pub network: Vec<NetworkFilter>,
    /// The terminal network filter.
    pub terminal: Terminal,
    /// `metadata`.
    pub metadata: Option<Arc<pb::Metadata>>,
}

/// A network filter that is not terminal.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkFilter {
    /// `name`.
    pub name: Box<str>,
    /// Its configuration, as its factory made it.
    pub config: HttpFilterConfig,
}

/// What serves the connections of a chain.
#[derive(Clone, Debug, PartialEq)]
pub enum Terminal {
    /// HTTP.
    Http(Arc<HttpConnectionManager>),
    /// The bytes go to a cluster.
    Tcp(Arc<TcpProxy>),
}

impl Listener {
    /// The access logs of all its filter chains.
    pub fn access_logs(&self) -> impl Iterator<Item = &AccessLog> {
        self.filter_chains
            .iter()
            .chain(&self.default_filter_chain)
            .flat_map(|chain| match &chain.terminal {
                Terminal::Http(manager) => &manager.access_log,
                Terminal::Tcp(proxy) => &proxy.access_log,
            })
    }
}

impl FilterChain {
    /// The connection manager, where the chain ends in one.
    pub fn http(&self) -> Option<&HttpConnectionManager> {
        match &self.terminal {
            Terminal::Http(manager) => Some(manager),
            Terminal::Tcp(_) => None,
        }
    }
}

/// `FilterChainMatch`. Empty lists match everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FilterChainMatch {
    /// `destination_port`.
    pub destination_port: Option<u16>,
    /// `prefix_ranges`: of the destination.
    pub destination_ranges: Vec<IpRange>,
    /// `direct_source_prefix_ranges`.
    pub direct_source_ranges: Vec<IpRange>,
    /// `source_type`.
    pub source_type: SourceType,
    /// `source_prefix_ranges`.
    pub source_ranges: Vec<IpRange>,
    /// `source_ports`.
    pub source_ports: Vec<u16>,
    /// `server_names`, lower case, with a leading `*.` for wildcards. Never match a plain-text connection.
    pub server_names: Vec<Box<str>>,
    /// `transport_protocol`: `raw_buffer` or `tls`; empty matches both.
    pub transport_protocol: Box<str>,
    /// `application_protocols`.
    pub application_protocols: Vec<Box<str>>,
}

/// `CidrRange`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpRange {
    /// Masked to `prefix_len`.
    pub address: IpAddr,
    /// In bits.
    pub prefix_len: u8,
}

/// `ConnectionSourceType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SourceType {
    /// Any.
    #[default]
    Any,
    /// From this host.
    SameIpOrLoopback,
    /// From elsewhere.
    External,
}

/// A default kept in one place: Envoy closes a drained connection after this long.
pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
