//! Which filter chain takes a connection: `FilterChainMatch`, as Envoy evaluates it.
//!
//! The criteria are asked in Envoy's fixed order; at each the most specific value that fits wins, and there is no way
//! back: a chain that lost at one criterion is out even if no other survives the next
//! (<https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/listener/v3/listener_components.proto#config-listener-v3-filterchainmatch>).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::config::listener::{FilterChain, FilterChainMatch, IpRange, SourceType};

/// What is known of a connection before a chain takes it.
#[derive(Clone, Debug)]
pub struct ConnectionFacts<'a> {
    /// Where the client wanted to go (our end).
    pub destination: Option<SocketAddr>,
    /// Where it came from.
    pub source: Option<SocketAddr>,
    /// The server name of the TLS hello, lower case; empty for plain text.
    pub server_name: &'a str,
    /// `raw_buffer` or `tls`.
    pub transport_protocol: &'a str,
    /// What ALPN or a look at the first bytes offers.
    pub application_protocols: &'a [&'a str],
}

/// The index of the chain that takes the connection; `None`: the default chain, or none.
pub fn select(chains: &[Arc<FilterChain>], facts: &ConnectionFacts<'_>) -> Option<usize> {
    let mut left: SmallVec<[usize; 16]> = (0..chains.len()).collect();
    let criteria: [&dyn Fn(&FilterChainMatch) -> Option<u32>; 8] = [
        &|m| match (m.destination_port, facts.destination) {
            (None, _) => Some(0),
            (Some(port), Some(destination)) => (port == destination.port()).then_some(1),
            (Some(_), None) => None,
        },
        &|m| longest_prefix(&m.destination_ranges, facts.destination.map(|a| a.ip())),
        &|m| server_name(&m.server_names, facts.server_name),
        &|m| {
            if m.transport_protocol.is_empty() {
                Some(0)
            } else {
                (*m.transport_protocol == *facts.transport_protocol).then_some(1)
            }
        },
        &|m| {
            if m.application_protocols.is_empty() {
                Some(0)
            } else {
                m.application_protocols
                    .iter()
                    .any(|offered| facts.application_protocols.contains(&&**offered))
                    .then_some(1)
            }
        },
        &|m| longest_prefix(&m.direct_source_ranges, facts.source.map(|a| a.ip())),
        &|m| source_type(m.source_type, facts),
        &|m| longest_prefix(&m.source_ranges, facts.source.map(|a| a.ip())),
    ];
    for fit in criteria {
        keep_best(&mut left, |index| fit(&chains[index].matcher));
    }
    keep_best(&mut left, |index| {
        let ports = &chains[index].matcher.source_ports;
        if ports.is_empty() {
            Some(0)
        } else {
            facts
                .source
                .is_some_and(|source| ports.contains(&source.port()))
                .then_some(1)
        }
    });
    left.first().copied()
}

/// Keeps the indices whose fit is the greatest; drops those that do not fit.
fn keep_best(left: &mut SmallVec<[usize; 16]>, fit: impl Fn(usize) -> Option<u32>) {
    let best = left.iter().filter_map(|index| fit(*index)).max();
    left.retain(|index| best.is_some() && fit(*index) == best);
}

fn longest_prefix(ranges: &[IpRange], address: Option<IpAddr>) -> Option<u32> {
    if ranges.is_empty() {
        return Some(0);
    }
    let address = address?;
    ranges
        .iter()
        .filter(|range| range.contains(address))
        .map(|range| u32::from(range.prefix_len) + 1)
        .max()
}

/// Exact names before wildcards, longer wildcards before shorter, no name last.
fn server_name(names: &[Box<str>], offered: &str) -> Option<u32> {
    if names.is_empty() {
        return Some(0);
    }
    names
        .iter()
        .filter_map(|name| match name.strip_prefix('*') {
            Some(suffix) => (offered.len() > suffix.len() && offered.ends_with(suffix))
                .then(|| u32::try_from(suffix.len()).unwrap_or(u32::MAX - 1)),
            None => (**name == *offered).then_some(u32::MAX),
        })
        .max()
}

fn source_type(wanted: SourceType, facts: &ConnectionFacts<'_>) -> Option<u32> {
    let local = match (facts.source, facts.destination) {
        (Some(source), Some(destination)) => {
            source.ip().to_canonical().is_loopback() || source.ip() == destination.ip()
        }
        // A unix socket's peer is on this host.
        _ => true,
    };
    match wanted {
        SourceType::Any => Some(0),
        SourceType::SameIpOrLoopback => local.then_some(1),
        SourceType::External => (!local).then_some(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> IpRange {
        let (address, len) = text.split_once('/').expect("a range");
        IpRange {
            address: address.parse().expect("an address"),
            prefix_len: len.parse().expect("a length"),
        }
    }

    fn best(matchers: &[FilterChainMatch], facts: &ConnectionFacts<'_>) -> Option<usize> {
        let mut left: SmallVec<[usize; 16]> = (0..matchers.len()).collect();
        keep_best(&mut left, |index| {
            longest_prefix(
                &matchers[index].destination_ranges,
                facts.destination.map(|a| a.ip()),
            )
        });
        keep_best(&mut left, |index| {
            source_type(matchers[index].source_type, facts)
        });
        left.first().copied()
    }

    #[test]
    fn the_longest_prefix_wins_and_there_is_no_way_back() {
        let wide = FilterChainMatch {
            destination_ranges: vec![range("10.0.0.0/8")],
            ..Default::default()
        };
        let narrow = FilterChainMatch {
            destination_ranges: vec![range("10.1.0.0/16")],
            source_type: SourceType::SameIpOrLoopback,
            ..Default::default()
        };
        let facts = |source: &str| ConnectionFacts {
            destination: Some("10.1.2.3:80".parse().expect("an address")),
            source: Some(source.parse().expect("an address")),
            server_name: "",
            transport_protocol: "raw_buffer",
            application_protocols: &[],
        };
        let chains = [wide, narrow];
        assert_eq!(best(&chains, &facts("127.0.0.1:9")), Some(1));
        assert_eq!(
            best(&chains, &facts("192.0.2.1:9")),
            None,
            "the wide range lost before"
        );
    }

    #[test]
    fn server_names_prefer_exact_then_longer_wildcards() {
        let fit = |name: &str| server_name(&[name.into()], "a.b.test");
        assert!(fit("a.b.test") > fit("*.b.test"));
        assert!(fit("*.b.test") > fit("*.test"));
        assert_eq!(fit("b.test"), None);
        assert_eq!(server_name(&[], "a.b.test"), Some(0));
        assert_eq!(
            server_name(&["x".into()], ""),
            None,
            "plain text has no name"
        );
    }
}
