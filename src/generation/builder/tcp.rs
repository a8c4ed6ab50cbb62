//! The live part of chains that end in a TCP proxy. It belongs to no Generation: a connection that lasts for days pins
//! none.

use std::sync::Arc;

use super::{Builder, Predecessor, World, place, stats};
use crate::config::Listener;
use crate::config::extension::HttpFilterConfig;
use crate::config::listener::FilterChain;
use crate::config::tcp_proxy::TcpProxy as Config;
use crate::filter::HttpFilterChain;
use crate::filter::factory::Warmth;
use crate::generation::{ChainDrain, ChainIdentity, LiveChain, LiveTerminal, TcpProxy};
use crate::telemetry::metrics::StatSet;

impl Builder {
    pub(super) fn tcp_chain(
        &mut self,
        listener: &Listener,
        chain: &FilterChain,
        config: &Arc<Config>,
        identity: ChainIdentity,
        predecessor: Option<Predecessor<'_>>,
        world: &World<'_>,
    ) -> Arc<LiveChain> {
        let known = predecessor
            .as_ref()
            .and_then(|known| match &known.chain.terminal {
                LiveTerminal::Tcp(proxy) => Some((known, proxy)),
                LiveTerminal::Http(_) => None,
            });
        // What a connection was admitted with: with another one, those of before drain, as in Envoy.
        let same = known.filter(|(known, proxy)| {
            known.same_listener && (Arc::ptr_eq(&proxy.config, config) || *proxy.config == **config)
        });
        let place = place::of(listener, &identity);
        let network = self.network(
            listener,
            (chain, &place),
            (&config.stat_prefix, config.buffer_limit),
            same.map(|(known, _)| known),
            world,
        );
        let same = same.filter(|(known, _)| known.chain.network.admits_as(&network, true));
        if let Some((known, _)) = same
            && Arc::ptr_eq(&known.chain.network, &network)
            && (known.chain.warmth.is_still() || known.chain.plugins == world.plugins)
        {
            return Arc::clone(known.chain);
        }
        let access_log = match known {
            Some((_, proxy)) if proxy.config.access_log == config.access_log => {
                Arc::clone(&proxy.access_log)
            }
            _ => self.access_log(listener, &config.access_log),
        };
        let warmth = Arc::new(Warmth::default());
        let context = self.chain_context(listener, &place, &config.stat_prefix, &warmth);
        let plugin_logs = HttpFilterChain::default().with_logs(
            &self.parts.filters,
            &config.plugin_logs,
            &context,
        );
        let proxy = TcpProxy {
            config: Arc::clone(config),
            access_log,
            plugin_logs,
            stats: self.tcp_stats(&config.stat_prefix),
        };
        let drain = same.map_or_else(
            || Arc::new(ChainDrain::new()),
            |(known, _)| Arc::clone(&known.chain.drain),
        );
        Arc::new(LiveChain {
            identity,
            drain,
            network,
            terminal: LiveTerminal::Tcp(Arc::new(proxy)),
            warmth,
            discovered: Vec::<Option<Arc<HttpFilterConfig>>>::new(),
            plugins: world.plugins,
        })
    }

    fn tcp_stats(&mut self, prefix: &str) -> Arc<StatSet> {
        if let Some(set) = self
            .tcp_stats
            .get(prefix)
            .and_then(std::sync::Weak::upgrade)
        {
            return set;
        }
        let set = self.parts.metrics.set(
            &stats::tcp::TABLE,
            format!("tcp.{prefix}."),
            "tcp",
            [("envoy_tcp_prefix", prefix.into())],
        );
        self.tcp_stats.insert(prefix.into(), Arc::downgrade(&set));
        set
    }
}
