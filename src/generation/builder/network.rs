//! The live network filters of a chain, before a TCP proxy and before an HTTP connection manager alike.

use std::sync::Arc;

use super::{Builder, Predecessor, World};
use crate::config::Listener;
use crate::config::http_connection_manager::Options;
use crate::config::listener::FilterChain;
use crate::filter::factory::Warmth;
use crate::filter::network::NetworkFilters;
use crate::generation::LiveNetwork;
use crate::stream::StreamConfig;

impl Builder {
    /// Those of the chain at this place: the predecessor's, where nothing that they were built with has changed. The terminal filter has
    /// this statistics' prefix and buffer limit, in bytes.
    pub(super) fn network(
        &self,
        listener: &Listener,
        (chain, place): (&FilterChain, &str),
        (stat_prefix, buffer_limit): (&str, usize),
        predecessor: Option<&Predecessor<'_>>,
        world: &World<'_>,
    ) -> Arc<LiveNetwork> {
        if let Some(known) = predecessor
            && known.same_listener
        {
            let network = &known.chain.network;
            if network.config == chain.network
                && *network.stat_prefix == *stat_prefix
                && network.stream.options.buffer_limit == buffer_limit
                && (network.warmth.is_still() || network.plugins == world.plugins)
            {
                return Arc::clone(network);
            }
        }
        let warmth = Warmth::default();
        let context = self.chain_context(listener, place, stat_prefix, &warmth);
        let filters = NetworkFilters::build(&self.parts.filters, &chain.network, &context);
        let stream = Arc::new(StreamConfig {
            routes: None,
            clusters: Arc::default(),
            upstream_filters: None,
            options: Arc::new(Options {
                buffer_limit,
                ..Options::default()
            }),
            generation: self.number,
            records: None,
        });
        Arc::new(LiveNetwork {
            config: chain.network.clone(),
            stat_prefix: stat_prefix.into(),
            filters,
            stream,
            warmth,
            plugins: world.plugins,
        })
    }
}

impl LiveNetwork {
    /// True where a connection that these filters have admitted may be served by a chain that begins with `other`.
    /// Filters are told of their listener.
    pub(super) fn admits_as(&self, other: &Self, same_listener: bool) -> bool {
        self.config == other.config && (same_listener || self.config.is_empty())
    }
}
