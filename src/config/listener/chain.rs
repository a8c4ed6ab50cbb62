//! Protobuf to [`FilterChain`] and [`FilterChainMatch`].

#![allow(
    deprecated,
    reason = "Envoy still honours its deprecated fields, and control planes send them"
)]

use std::collections::HashMap;
use std::sync::Arc;

use super::{FilterChain, FilterChainMatch, IpRange, NetworkFilter, SourceType, Terminal};
use crate::config::any::{
    holds, is_no_op, resolve, type_name, unknown_extension, unpack, unsupported_extension,
};
use crate::config::error::At;
use crate::config::field::{LATER, cidr, each, enumeration, flag, non_empty, refuse, uint32};
use crate::config::http_connection_manager::HttpConnectionManager;
use crate::config::{ConfigError, ParseContext, TcpProxy};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::listener::v3 as proto;
use crate::pb::envoy::config::listener::v3::filter::ConfigType;
use crate::pb::envoy::config::listener::v3::filter_chain_match::ConnectionSourceType;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager as ManagerProto;
use crate::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy as TcpProto;
use crate::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;

/// Envoy's name of the manager, for its own words.
const MANAGER: &str = "envoy.filters.network.http_connection_manager";
/// Likewise.
const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";

/// A filter chain with more combinations of alternatives is refused: each is looked at.
const MAX_COMBINATIONS: usize = 1 << 20;

/// Validates a filter chain.
pub(super) fn parse(
    proto: proto::FilterChain,
    buffer_limit: usize,
    context: &ParseContext<'_>,
) -> Result<FilterChain, ConfigError> {
    let proto::FilterChain {
        filter_chain_match,
        filters,
        use_proxy_proto,
        metadata,
        transport_socket,
        transport_socket_connect_timeout: _,
        name,
    } = proto;
    refuse(flag(use_proxy_proto, false), "use_proxy_proto", LATER)?;
    plain_text(transport_socket).at("transport_socket")?;
    let (network, terminal) = network_filters(filters, buffer_limit, context)?;
    Ok(FilterChain {
        name: name.into(),
        matcher: filter_chain_match
            .map(matching)
            .transpose()
            .at("filter_chain_match")?
            .unwrap_or_default(),
        network,
        terminal,
        metadata: metadata.map(Arc::new),
    })
}

/// Refuses every transport socket but plain text.
pub(in crate::config) fn plain_text(
    proto: Option<core::TransportSocket>,
) -> Result<(), ConfigError> {
    use core::transport_socket::ConfigType;
    let Some(core::TransportSocket { name, config_type }) = proto else {
        return Ok(());
    };
    let name = non_empty(name, "name")?;
    let Some(ConfigType::TypedConfig(any)) = config_type else {
        return Err(unknown_extension(&name, ""));
    };
    let any = resolve(&any).at("typed_config")?;
    if holds::<RawBuffer>(&any) {
        return Ok(());
    }
    Err(unsupported_extension(&name, &any.type_url))
}

/// The network filters: a terminal one at the end, and before it those that look at bytes, or do nothing.
fn network_filters(
    filters: Vec<proto::Filter>,
    buffer_limit: usize,
    context: &ParseContext<'_>,
) -> Result<(Vec<NetworkFilter>, Terminal), ConfigError> {
    let count = filters.len();
    let mut before = Vec::new();
    let mut terminal = None;
    for (index, filter) in filters.into_iter().enumerate() {
        let last = index + 1 == count;
        match network_filter(filter, last, buffer_limit, context).at_index("filters", index)? {
            Parsed::Terminal(found) => terminal = Some(found),
            Parsed::Filter(filter) => before.push(filter),
            Parsed::Nothing => {}
        }
    }
    let terminal = terminal.ok_or_else(|| {
        ConfigError::unsupported(
            "filters",
            "a filter chain without an HTTP connection manager or a TCP proxy",
        )
    })?;
    Ok((before, terminal))
}

enum Parsed {
    Terminal(Terminal),
    Filter(NetworkFilter),
    /// Accepted without effect.
    Nothing,
}

fn network_filter(
    filter: proto::Filter,
    last: bool,
    buffer_limit: usize,
    context: &ParseContext<'_>,
) -> Result<Parsed, ConfigError> {
    let proto::Filter { name, config_type } = filter;
    let name = non_empty(name, "name")?;
    let any = match config_type {
        None => return Err(unknown_extension(&name, "")),
        Some(ConfigType::ConfigDiscovery(_)) => {
            return Err(ConfigError::unsupported("config_discovery", LATER));
        }
        Some(ConfigType::TypedConfig(any)) => any,
    };
    let any = resolve(&any).at("typed_config")?;
    let manager = holds::<ManagerProto>(&any);
    if manager || holds::<TcpProto>(&any) {
        if !last {
            let kind = if manager { MANAGER } else { TCP_PROXY };
            return Err(ConfigError::invalid(format!(
                "Error: terminal filter named {name} of type {kind} must be the last filter in a network filter chain."
            )));
        }
        let terminal = if manager {
            HttpConnectionManager::parse(unpack(&any)?, buffer_limit, context)
                .map(|manager| Terminal::Http(Arc::new(manager)))
        } else {
            TcpProxy::parse(unpack(&any)?, buffer_limit, context)
                .map(|proxy| Terminal::Tcp(Arc::new(proxy)))
        };
        return terminal.map(Parsed::Terminal).at("typed_config");
    }
    let config = context.extensions.network_filter(&name, &any);
    let parsed = match config.at("typed_config")? {
        Some(config) => Parsed::Filter(NetworkFilter {
            name: name.as_str().into(),
            config,
        }),
        None if is_no_op(&name, &any) => Parsed::Nothing,
        None => return Err(unsupported_extension(&name, &any.type_url)),
    };
    if last {
        return Err(ConfigError::invalid(format!(
            "Error: non-terminal filter named {name} of type {} is the last filter in a network filter chain.",
            type_name(&any)
        )));
    }
    Ok(parsed)
}

fn matching(proto: proto::FilterChainMatch) -> Result<FilterChainMatch, ConfigError> {
    let proto::FilterChainMatch {
        destination_port,
        prefix_ranges,
        address_suffix,
        suffix_len,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
        server_names,
        transport_protocol,
        application_protocols,
    } = proto;
    refuse(
        !address_suffix.is_empty(),
        "address_suffix",
        "Envoy does not implement it either",
    )?;
    refuse(
        suffix_len.is_some(),
        "suffix_len",
        "Envoy does not implement it either",
    )?;
    let ranges = |list, field| each(list, field, cidr);
    let port = |value: u32| {
        u16::try_from(value)
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| ConfigError::invalid("value must be inside range [1, 65535]"))
    };
    let server_names = each(server_names, "server_names", |name: String| {
        if name.strip_prefix("*.").unwrap_or(&name).contains('*') {
            return Err(ConfigError::invalid(
                r#"partial wildcards are not supported in "server_names""#,
            ));
        }
        Ok(name.to_ascii_lowercase().into_boxed_str())
    })?;
    Ok(FilterChainMatch {
        destination_port: uint32(destination_port)
            .map(port)
            .transpose()
            .at("destination_port")?,
        destination_ranges: ranges(prefix_ranges, "prefix_ranges")?,
        direct_source_ranges: ranges(direct_source_prefix_ranges, "direct_source_prefix_ranges")?,
        source_type: match enumeration::<ConnectionSourceType>(source_type, "source_type")? {
            ConnectionSourceType::Any => SourceType::Any,
            ConnectionSourceType::SameIpOrLoopback => SourceType::SameIpOrLoopback,
            ConnectionSourceType::External => SourceType::External,
        },
        source_ranges: ranges(source_prefix_ranges, "source_prefix_ranges")?,
        source_ports: each(source_ports, "source_ports", port)?,
        server_names,
        transport_protocol: transport_protocol.into(),
        application_protocols: application_protocols
            .into_iter()
            .map(String::into_boxed_str)
            .collect(),
    })
}

/// One point of the space that filter chains divide among them.
type Leaf<'a> = (
    Option<u16>,
    Option<&'a IpRange>,
    Option<&'a str>,
    &'a str,
    Option<&'a str>,
    Option<&'a IpRange>,
    SourceType,
    Option<&'a IpRange>,
    Option<u16>,
);

/// Refuses two chains that could both be chosen.
pub(super) fn unambiguous(chains: &[Arc<FilterChain>]) -> Result<(), ConfigError> {
    let mut leaves: HashMap<Leaf<'_>, usize> = HashMap::new();
    for (index, chain) in chains.iter().enumerate() {
        if combinations(&chain.matcher) > MAX_COMBINATIONS {
            return Err(ConfigError::invalid(format!(
                "more than {MAX_COMBINATIONS} combinations of alternatives"
            ))
            .at("filter_chain_match")
            .at_index("filter_chains", index));
        }
        let mut clash = None;
        for_each_leaf(&chain.matcher, &mut |leaf| {
            let earlier = *leaves.entry(leaf).or_insert(index);
            if earlier != index {
                clash.get_or_insert(earlier);
            }
        });
        let Some(earlier) = clash else { continue };
        let reason = if chains[earlier].matcher == chain.matcher {
            format!(
                "filter chain '{}' has the same matching rules defined as '{}'",
                chain.name, chains[earlier].name
            )
        } else {
            "multiple filter chains with overlapping matching rules are defined".to_owned()
        };
        return Err(ConfigError::invalid(reason)
            .at("filter_chain_match")
            .at_index("filter_chains", index));
    }
    Ok(())
}

fn combinations(matcher: &FilterChainMatch) -> usize {
    [
        matcher.destination_ranges.len(),
        matcher.server_names.len(),
        matcher.application_protocols.len(),
        matcher.direct_source_ranges.len(),
        matcher.source_ranges.len(),
        matcher.source_ports.len(),
    ]
    .iter()
    .fold(1, |product: usize, len| {
        product.saturating_mul((*len).max(1))
    })
}

/// Every combination of the match's alternatives.
fn for_each_leaf<'a>(matcher: &'a FilterChainMatch, visit: &mut dyn FnMut(Leaf<'a>)) {
    fn or_any<T>(list: &[T]) -> impl Iterator<Item = Option<&T>> {
        let any = list.is_empty().then_some(None);
        list.iter().map(Some).chain(any)
    }
    for destination in or_any(&matcher.destination_ranges) {
        for server_name in or_any(&matcher.server_names) {
            for application in or_any(&matcher.application_protocols) {
                for direct in or_any(&matcher.direct_source_ranges) {
                    for source in or_any(&matcher.source_ranges) {
                        for port in or_any(&matcher.source_ports) {
                            visit((
                                matcher.destination_port,
                                destination,
                                server_name.map(|name| &**name),
                                &matcher.transport_protocol,
                                application.map(|name| &**name),
                                direct,
                                matcher.source_type,
                                source,
                                port.copied(),
                            ));
                        }
                    }
                }
            }
        }
    }
}
