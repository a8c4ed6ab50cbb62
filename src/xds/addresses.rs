//! No two listeners have one address: which of a response's cannot be beside the others.
//!
//! What counts is how things stand when the whole response is applied, where Envoy takes listener by listener: two that
//! trade places, or one that takes what another leaves, are good in any order.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::ResourceType;
use super::cache::{Cache, Judgement};
use crate::config::endpoint::Address;
use crate::config::{ConfigError, Listener};

/// Who has an address.
type Holders<'a> = FxHashMap<&'a Address, &'a str>;

/// The fresh listeners of a response that meet one that stays as it is, or one before them.
pub(super) fn duplicates(
    judgement: &Judgement,
    cache: &Cache,
    statics: &BTreeMap<Arc<str>, Arc<Listener>>,
) -> Vec<(Arc<str>, ConfigError)> {
    let fresh: FxHashMap<&str, &Listener> = judgement
        .fresh
        .iter()
        // A listener of the bootstrap is not changed by a discovered one of its name.
        .filter(|fresh| !statics.contains_key(&fresh.name))
        .filter_map(|fresh| Some((&*fresh.name, fresh.value.listener()?)))
        .collect();
    if fresh.is_empty() {
        return Vec::new();
    }
    let stays = judgement.stays();
    let current: Vec<(&str, &Listener)> = cache
        .entries(ResourceType::Listener)
        .filter(|(name, _)| !statics.contains_key(*name))
        .filter_map(|(name, entry)| Some((&**name, entry.current.as_ref()?.value.listener()?)))
        .collect();
    let mut refused: FxHashSet<&str> = FxHashSet::default();
    // One that is refused stays where it was, which may be where another wants to be.
    loop {
        let mut holders = Holders::default();
        for (name, listener) in statics {
            hold(&mut holders, name, listener);
        }
        for (name, listener) in &current {
            if refused.contains(name) || !fresh.contains_key(name) && stays(name) {
                hold(&mut holders, name, listener);
            }
        }
        // Who has an address and keeps it comes before who is new to it.
        for (name, listener) in &current {
            if let Some(next) = fresh.get(name).filter(|_| !refused.contains(name)) {
                let kept = next.addresses.iter().filter(|place| place.is_fixed());
                for address in kept.filter(|place| listener.addresses.contains(place)) {
                    holders.entry(address).or_insert(name);
                }
            }
        }
        let before = refused.len();
        for resource in &judgement.fresh {
            let name = &*resource.name;
            let Some(listener) = fresh.get(name).filter(|_| !refused.contains(name)) else {
                continue;
            };
            let met = |address: &Address| holders.get(address).is_some_and(|other| *other != name);
            if listener.addresses.iter().any(met) {
                refused.insert(name);
            } else {
                hold(&mut holders, name, listener);
            }
        }
        if refused.len() == before {
            break;
        }
    }
    let names = judgement.fresh.iter().map(|fresh| &fresh.name);
    names
        .filter(|name| refused.contains(&***name))
        .filter_map(|name| Some((Arc::clone(name), fresh.get(&**name)?.duplicate_address())))
        .collect()
}

fn hold<'a>(holders: &mut Holders<'a>, name: &'a str, listener: &'a Listener) {
    let fixed = listener
        .addresses
        .iter()
        .filter(|address| address.is_fixed());
    holders.extend(fixed.map(|address| (address, name)));
}
