//! Where a chain of a listener stands, for its plugins.
//!
//! A chain is its match, which no other of its listener has: it tells whose connections those are. A name does not, since
//! chains may lack one, share one, or be numbered by it.

use crate::config::Listener;
use crate::config::listener::FilterChainMatch;
use crate::generation::ChainIdentity;
use crate::wasm::slot;

/// The beginning of the names of its slots.
pub(super) fn of(listener: &Listener, chain: &ChainIdentity) -> String {
    let chain = match &chain.matcher {
        None => "default".to_owned(),
        Some(matcher) if *matcher == FilterChainMatch::default() => "any".to_owned(),
        Some(matcher) => slot::sum(matcher),
    };
    format!("{}/{chain}", slot::part(&listener.name))
}
