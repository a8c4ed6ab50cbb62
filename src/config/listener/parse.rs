//! Protobuf to [`Listener`]; its filter chains are in `chain`.

#![allow(
    deprecated,
    reason = "Envoy still honours its deprecated fields, and control planes send them"
)]

use std::sync::Arc;

use super::{Listener, TrafficDirection, chain};
use crate::config::access_log::AccessLog;
use crate::config::any::{holds, resolve, unsupported_extension};
use crate::config::endpoint::Address;
use crate::config::endpoint::address::{BindAddress, malformed};
use crate::config::error::At;
use crate::config::field::{
    LATER, duration, each, enumeration, flag, non_empty, refuse, required, uint32,
};
use crate::config::ignored::Ignored;
use crate::config::{ConfigError, ParseContext};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::listener::v3 as proto;
use crate::pb::envoy::config::listener::v3::listener::DrainType;
use crate::pb::envoy::config::listener::v3::listener_filter::ConfigType;
use crate::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use crate::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;

/// Envoy's default of `per_connection_buffer_limit_bytes`.
const DEFAULT_BUFFER_LIMIT: usize = 1 << 20;

/// Accepted without effect.
pub(in crate::config) const IGNORED: &[Ignored] = &[
    Ignored("bypass_overload_manager", "there is no overload manager"),
    Ignored(
        "connection_balance_config",
        "the kernel spreads connections over the workers",
    ),
    Ignored(
        "continue_on_listener_filters_timeout",
        "no listener filter waits for bytes",
    ),
    Ignored("enable_mptcp", "socket tuning"),
    Ignored("filter_disabled", "of a listener filter that does nothing"),
    Ignored("freebind", "socket tuning"),
    Ignored(
        "ignore_global_conn_limit",
        "there is no global limit of connections",
    ),
    Ignored(
        "listener_filters_timeout",
        "no listener filter waits for bytes",
    ),
    Ignored(
        "max_connections_to_accept_per_socket_event",
        "accepting is fair without it",
    ),
    Ignored(
        "per_connection_buffer_high_watermark_timeout",
        "the idle timeouts end such connections",
    ),
    Ignored(
        "reuse_port",
        "the deprecated name of enable_reuse_port; Envoy does not use it either",
    ),
    Ignored("socket_options", "socket tuning"),
    Ignored("stats_matcher", "all statistics are kept"),
    Ignored("tcp_fast_open_queue_length", "socket tuning"),
    Ignored("tcp_keepalive", "socket tuning"),
    Ignored(
        "transport_socket_connect_timeout",
        "plain text has no handshake",
    ),
];

impl Listener {
    /// Validates a message.
    ///
    /// # Errors
    /// The first field that is wrong or not supported, by its path.
    pub fn parse(proto: proto::Listener, context: &ParseContext<'_>) -> Result<Self, ConfigError> {
        let proto::Listener {
            name,
            address,
            additional_addresses,
            stat_prefix,
            stats_matcher: _,
            filter_chains,
            fcds_config,
            filter_chain_matcher,
            use_original_dst,
            default_filter_chain,
            per_connection_buffer_limit_bytes,
            per_connection_buffer_high_watermark_timeout: _,
            metadata,
            deprecated_v1,
            drain_type,
            listener_filters,
            listener_filters_timeout,
            continue_on_listener_filters_timeout: _,
            transparent,
            freebind: _,
            socket_options: _,
            tcp_fast_open_queue_length: _,
            traffic_direction,
            udp_listener_config,
            api_listener,
            connection_balance_config,
            reuse_port: _,
            enable_reuse_port,
            access_log,
            tcp_backlog_size,
            max_connections_to_accept_per_socket_event,
            bind_to_port,
            enable_mptcp: _,
            ignore_global_conn_limit: _,
            bypass_overload_manager: _,
            tcp_keepalive: _,
            listener_specifier,
        } = proto;
        refuse(api_listener.is_some(), "api_listener", LATER)?;
        refuse(listener_specifier.is_some(), "internal_listener", LATER)?;
        refuse(udp_listener_config.is_some(), "udp_listener_config", LATER)?;
        refuse(fcds_config.is_some(), "fcds_config", LATER)?;
        refuse(
            filter_chain_matcher.is_some(),
            "filter_chain_matcher",
            LATER,
        )?;
        refuse(flag(use_original_dst, false), "use_original_dst", LATER)?;
        refuse(flag(transparent, false), "transparent", LATER)?;
        if let Some(balance) = connection_balance_config {
            required(balance.balance_type, "balance_type").at("connection_balance_config")?;
        }
        if uint32(max_connections_to_accept_per_socket_event) == Some(0) {
            return Err(ConfigError::invalid("value must be greater than 0")
                .at("max_connections_to_accept_per_socket_event"));
        }
        duration(listener_filters_timeout, "listener_filters_timeout")?;

        let first =
            required(address, "address").and_then(|address| numeric(address).at("address"))?;
        let (pipe_mode, ipv4_compat) = (first.mode, first.ipv4_compat);
        let more = each(additional_addresses, "additional_addresses", |additional| {
            let proto::AdditionalAddress {
                address,
                socket_options: _,
                tcp_keepalive: _,
            } = additional;
            required(address, "address")
                .and_then(|address| numeric(address).at("address"))
                .map(|bind| bind.address)
        })?;
        let name = if name.is_empty() {
            first.address.to_string()
        } else {
            name
        };
        let addresses: Vec<Address> = std::iter::once(first.address).chain(more).collect();

        let buffer_limit = match uint32(per_connection_buffer_limit_bytes) {
            None => DEFAULT_BUFFER_LIMIT,
            // Zero is no limit.
            Some(0) => u32::MAX as usize,
            Some(limit) => limit as usize,
        };
        if filter_chains.is_empty() && default_filter_chain.is_none() {
            return Err(ConfigError::invalid("no filter chains specified").at("filter_chains"));
        }
        let filter_chains = each(filter_chains, "filter_chains", |chain| {
            chain::parse(chain, buffer_limit, context).map(Arc::new)
        })?;
        chain::unambiguous(&filter_chains)?;
        let default_filter_chain = default_filter_chain
            .map(|chain| chain::parse(chain, buffer_limit, context).map(Arc::new))
            .transpose()
            .at("default_filter_chain")?;
        let inspected = Inspected::parse(listener_filters)?;
        for (index, chain) in filter_chains.iter().enumerate() {
            inspected
                .allows(chain)
                .at("filter_chain_match")
                .at_index("filter_chains", index)?;
        }
        let bind = flag(bind_to_port, true)
            && deprecated_v1.is_none_or(|old| flag(old.bind_to_port, true));
        Ok(Self {
            name: name.into(),
            addresses,
            stat_prefix: stat_prefix.into(),
            filter_chains,
            default_filter_chain,
            buffer_limit,
            direction: match enumeration::<core::TrafficDirection>(
                traffic_direction,
                "traffic_direction",
            )? {
                core::TrafficDirection::Unspecified => TrafficDirection::Unspecified,
                core::TrafficDirection::Inbound => TrafficDirection::Inbound,
                core::TrafficDirection::Outbound => TrafficDirection::Outbound,
            },
            bind_to_port: bind,
            reuse_port: flag(enable_reuse_port, true),
            backlog: uint32(tcp_backlog_size),
            drain_modify_only: enumeration::<DrainType>(drain_type, "drain_type")?
                == DrainType::ModifyOnly,
            access_log: AccessLog::parse_all(access_log, context)?,
            metadata: metadata.map(Arc::new),
            pipe_mode,
            ipv4_compat,
        })
    }
}

/// A listener's address: nobody resolves names for it.
fn numeric(proto: core::Address) -> Result<BindAddress, ConfigError> {
    let bind = BindAddress::parse(proto)?;
    match &bind.address {
        Address::Name(name, _) => Err(malformed(name)),
        Address::Socket(_) | Address::Pipe(_) => Ok(bind),
    }
}

/// Which inspectors a listener has. They do nothing here, which is harmless as long as no filter chain goes by what
/// they would find out: without them every connection is plain text of an unknown protocol.
#[derive(Default)]
struct Inspected {
    tls: bool,
    http: bool,
}

impl Inspected {
    fn parse(filters: Vec<proto::ListenerFilter>) -> Result<Self, ConfigError> {
        let mut inspected = Self::default();
        for (index, filter) in filters.into_iter().enumerate() {
            inspected.add(filter).at_index("listener_filters", index)?;
        }
        Ok(inspected)
    }

    fn add(&mut self, filter: proto::ListenerFilter) -> Result<(), ConfigError> {
        let proto::ListenerFilter {
            name,
            filter_disabled: _,
            config_type,
        } = filter;
        let name = non_empty(name, "name")?;
        match config_type {
            None => Err(unsupported_extension(&name, "")),
            Some(ConfigType::ConfigDiscovery(_)) => {
                Err(ConfigError::unsupported("config_discovery", LATER))
            }
            Some(ConfigType::TypedConfig(any)) => {
                let any = resolve(&any).at("typed_config")?;
                if holds::<TlsInspector>(&any) {
                    self.tls = true;
                } else if holds::<HttpInspector>(&any) {
                    self.http = true;
                } else {
                    // Original destination and PROXY protocol say where the client wanted to go and who it is: they
                    // are never to be left out.
                    return Err(unsupported_extension(&name, &any.type_url).at("typed_config"));
                }
                Ok(())
            }
        }
    }

    fn allows(&self, chain: &super::FilterChain) -> Result<(), ConfigError> {
        let matcher = &chain.matcher;
        refuse(
            self.tls && !matcher.server_names.is_empty(),
            "server_names",
            "the TLS inspector is not implemented by this build yet",
        )?;
        refuse(
            self.tls && &*matcher.transport_protocol == "tls",
            "transport_protocol",
            "the TLS inspector is not implemented by this build yet",
        )?;
        refuse(
            (self.tls || self.http) && !matcher.application_protocols.is_empty(),
            "application_protocols",
            "the TLS and HTTP inspectors are not implemented by this build yet",
        )
    }
}

#[cfg(test)]
mod tests;
