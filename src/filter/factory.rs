//! From a filter's message to its instance: what the file of a filter implements.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use parking_lot::Mutex;
use prost::{Message, Name};

use super::{BoxFuture, HttpFilter};
use crate::config::extension::HttpFilterConfig;
use crate::config::listener::TrafficDirection;
use crate::config::{ConfigError, RouteConfig};
use crate::pb;
use crate::route::SelectedRoute;
use crate::telemetry::metrics::{self, StatSet, StatTable};
use crate::wasm::spec::Digest;
use crate::wasm::{PluginSpec, Plugins};

/// Makes a filter of its configuration. The type URL comes from `Proto`'s name: there is no string to mistype.
pub trait FilterFactory: 'static {
    /// The name that Envoy gives the filter (`envoy.filters.http.cors`); for documents, not for look-ups.
    const NAME: &'static str;
    /// True for the terminal filter.
    const TERMINAL: bool = false;
    /// The message in `typed_config`.
    type Proto: Message + Name + Default;
    /// What it means.
    type Config: Debug + Send + Sync + 'static;

    /// Validates the message of the filter called `name`: every field is used, refused, or knowingly ignored. A pure
    /// function.
    ///
    /// # Errors
    /// With the path of the field that this build cannot honour.
    fn parse(proto: Self::Proto, name: &str) -> Result<Self::Config, ConfigError>;

    /// Tries what only trying can tell, before the resource that holds the configuration is acknowledged (Envoy does so
    /// with Wasm code that is at hand). `None`: there is nothing to try. The future ends by itself.
    fn admit(
        config: &Arc<Self::Config>,
        plugins: &Plugins,
    ) -> Option<BoxFuture<Result<(), ConfigError>>> {
        let _ = (config, plugins);
        None
    }

    /// Brings the filter to life for one chain. On the control side.
    fn build(config: &Arc<Self::Config>, context: &BuildContext<'_>) -> Arc<dyn HttpFilter>;
}

/// A filter that routes, virtual hosts and weighted clusters may configure (`typed_per_filter_config`).
pub trait PerRoute: FilterFactory {
    /// The message; it may be the filter's own.
    type RouteProto: Message + Name + Default;
    /// What it means. Read at use with `filter::factory::per_route`.
    type RouteConfig: Debug + Send + Sync + 'static;

    /// As [`FilterFactory::parse`].
    ///
    /// # Errors
    /// As [`FilterFactory::parse`].
    fn parse_route(proto: Self::RouteProto, name: &str) -> Result<Self::RouteConfig, ConfigError>;
}

/// What the filters of a chain are told of their surroundings.
#[derive(Clone, Copy, Debug)]
pub struct ChainContext<'a> {
    /// The connection manager's `stat_prefix`: filters' statistics are `http.<stat_prefix>.…`.
    pub stat_prefix: &'a str,
    /// Where the chain stands, across updates: the beginning of the names of its plugins' [slots](crate::wasm::slot).
    pub place: &'a str,
    /// The listener's direction.
    pub direction: TrafficDirection,
    /// The listener's metadata.
    pub listener_metadata: Option<&'a Arc<pb::Metadata>>,
    /// Where statistics are registered.
    pub metrics: &'a metrics::Registry,
    /// Who we are.
    pub node: &'a pb::Node,
    /// The Wasm host; `None` in tests of other filters.
    pub plugins: Option<&'a Plugins>,
    /// Where filters tell that they wait for a plugin.
    pub warmth: &'a Warmth,
    /// The routes that the chain serves; `None` where they have not come, and in tests.
    pub routes: Option<&'a RouteConfig>,
    /// True while the server's own health check is failed by hand; `None` in tests.
    pub health_failed: Option<&'a Arc<std::sync::atomic::AtomicBool>>,
}

/// What the filters of a chain said of their plugins while they were built.
///
/// A filter that runs a plugin names the slot that it asked the Wasm host for, and says so where no version of it is
/// ready: the chain's listener then waits, and its predecessor serves.
#[derive(Debug, Default)]
pub struct Warmth(Mutex<WarmthState>);

#[derive(Debug, Default)]
struct WarmthState {
    /// With the keys of the versions that they were asked for.
    slots: BTreeMap<Box<str>, Digest>,
    cold: usize,
}

impl Warmth {
    /// The slot of the Wasm host that the filter is to ask for `spec`: this one, or where the chain has that already, one of
    /// its own. Filters that are alike are told apart by their order.
    pub fn slot(&self, slot: String, spec: &PluginSpec) -> Box<str> {
        let slots = &mut self.0.lock().slots;
        let mut own = Box::<str>::from(slot.as_str());
        let mut number = 1;
        while slots.contains_key(&own) {
            number += 1;
            own = format!("{slot}#{number}").into();
        }
        slots.insert(own.clone(), spec.key());
        own
    }

    /// A plugin has no version that could serve, and one is still loading.
    pub fn wait(&self) {
        self.0.lock().cold += 1;
    }

    /// True where a plugin is waited for.
    pub fn is_cold(&self) -> bool {
        self.waiting() > 0
    }

    /// How many plugins are waited for.
    pub fn waiting(&self) -> usize {
        self.0.lock().cold
    }

    /// The filters serve although a plugin of theirs is not there: those before them did, too.
    pub fn go_without(&self) {
        self.0.lock().cold = 0;
    }

    /// True where no filter runs a plugin: nothing that the Wasm host does changes the chain.
    pub fn is_still(&self) -> bool {
        self.0.lock().slots.is_empty()
    }

    /// What the filters asked the Wasm host for: it is to [settle](Plugins::settle) it where they serve.
    pub fn asked(&self) -> BTreeMap<Box<str>, Digest> {
        self.0.lock().slots.clone()
    }
}

/// What one filter of a chain is told.
#[derive(Clone, Copy, Debug)]
pub struct BuildContext<'a> {
    /// Its place: the number of its slot in [`Stream::with_slot`](crate::stream::Stream::with_slot).
    pub slot: usize,
    /// Its name in the chain: what per-route configuration refers to.
    pub name: &'a str,
    /// The message that it was parsed from.
    pub source: &'a pb::Any,
    /// The chain's surroundings.
    pub chain: &'a ChainContext<'a>,
}

/// The most specific configuration that the stream's route has for the filter called `name`, as type `T`.
pub fn per_route<T: Debug + Send + Sync + 'static, R>(
    stream: &crate::stream::Stream,
    name: &str,
    f: impl FnOnce(Option<&T>) -> R,
) -> R {
    let route = stream.route();
    f(route
        .as_ref()
        .and_then(|route| route.per_filter(name))
        .and_then(|config| config.config.as_ref())
        .and_then(|config| config.parsed.as_ref().as_any().downcast_ref::<T>()))
}

/// The configurations that `route` has for the filter called `name`, most specific first: weighted cluster, route,
/// virtual host, table.
pub fn per_route_all<'a, T: Debug + Send + Sync + 'static>(
    route: &'a SelectedRoute,
    name: &str,
) -> impl Iterator<Item = &'a T> {
    route
        .per_filter_all(name)
        .filter_map(|config| config.config.as_ref())
        .filter_map(|config| config.parsed.as_ref().as_any().downcast_ref::<T>())
}

/// True where a configuration, of a filter or of a route, is a plugin's.
pub fn runs_plugin(config: &HttpFilterConfig) -> bool {
    config.parsed.as_ref().as_any().is::<PluginSpec>()
}

impl BuildContext<'_> {
    /// The filter's statistics, `http.<stat_prefix>.<part>.…`.
    pub fn stats(&self, table: &'static StatTable, part: &str) -> Arc<StatSet> {
        let prefix = self.chain.stat_prefix;
        self.chain.metrics.set(
            table,
            format!("http.{prefix}.{part}."),
            match part {
                "cors" => "http_cors",
                "fault" => "http_fault",
                "health_check" => "http_health_check",
                _ => "http",
            },
            [("envoy_http_conn_manager_prefix", prefix.into())],
        )
    }
}
