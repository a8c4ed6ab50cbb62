//! From a host to its virtual host, in Envoy's precedence: exact, longest suffix, longest prefix, `*`.

use std::collections::HashMap;

use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;

use crate::config::route::{Domain, VirtualHost};

type ByName = HashMap<Box<[u8]>, u32, FxBuildHasher>;

/// The domains of a table.
#[derive(Debug, Default)]
pub(super) struct Domains {
    exact: ByName,
    /// By length, longest first.
    suffixes: Vec<(usize, ByName)>,
    /// By length, longest first.
    prefixes: Vec<(usize, ByName)>,
    any: Option<u32>,
}

impl Domains {
    pub(super) fn new(virtual_hosts: &[VirtualHost]) -> Self {
        let mut domains = Self::default();
        for (index, host) in (0u32..).zip(virtual_hosts) {
            for domain in &host.domains {
                match domain {
                    Domain::Exact(name) => {
                        domains.exact.entry(name.as_bytes().into()).or_insert(index);
                    }
                    Domain::Suffix(rest) => insert_by_length(&mut domains.suffixes, rest, index),
                    Domain::Prefix(rest) => insert_by_length(&mut domains.prefixes, rest, index),
                    Domain::Any => domains.any = domains.any.or(Some(index)),
                }
            }
        }
        domains
            .suffixes
            .sort_unstable_by_key(|(length, _)| std::cmp::Reverse(*length));
        domains
            .prefixes
            .sort_unstable_by_key(|(length, _)| std::cmp::Reverse(*length));
        domains
    }

    /// The index of the virtual host for `authority`.
    pub(super) fn find(&self, authority: &[u8], ignore_port: bool) -> Option<u32> {
        if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            return self.any;
        }
        let mut host = authority;
        if ignore_port && let Some(at) = port_start(host) {
            host = &host[..at];
        }
        let lower: SmallVec<[u8; 128]>;
        if host.iter().any(u8::is_ascii_uppercase) {
            lower = host.iter().map(u8::to_ascii_lowercase).collect();
            host = &lower;
        }
        self.exact
            .get(host)
            .or_else(|| {
                by_length(&self.suffixes, host.len())
                    .find_map(|(length, names)| names.get(&host[host.len() - length..]))
            })
            .or_else(|| {
                by_length(&self.prefixes, host.len())
                    .find_map(|(length, names)| names.get(&host[..length]))
            })
            .copied()
            .or(self.any)
    }
}

fn insert_by_length(tables: &mut Vec<(usize, ByName)>, text: &str, index: u32) {
    let length = text.len();
    let at = match tables.iter().position(|(other, _)| *other == length) {
        Some(at) => at,
        None => {
            tables.push((length, ByName::default()));
            tables.len() - 1
        }
    };
    tables[at].1.entry(text.as_bytes().into()).or_insert(index);
}

/// The tables whose text is shorter than the host: a star stands for at least one character.
fn by_length(tables: &[(usize, ByName)], host: usize) -> impl Iterator<Item = (usize, &ByName)> {
    tables
        .iter()
        .filter(move |(length, _)| *length < host)
        .map(|(length, names)| (*length, names))
}

/// Where the `:port` of an authority begins. Envoy's rule: the last colon that is no part of `[an IPv6 address]`,
/// whatever follows it.
pub fn port_start(authority: &[u8]) -> Option<usize> {
    let colon = memchr::memrchr(b':', authority)?;
    match memchr::memrchr(b']', authority) {
        Some(bracket) if bracket > colon => None,
        _ => Some(colon),
    }
}
