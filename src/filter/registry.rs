//! ★ The one table of HTTP filters.

use std::collections::HashMap;
use std::sync::Arc;

use prost::{Message, Name};

use super::factory::{BuildContext, ChainContext, FilterFactory, PerRoute};
use super::network::NetworkFilter;
use super::{
    BoxFuture, HttpFilter, cors, fault, header_mutation, health_check, idle, no_op, router,
};
use crate::config::extension::{ExtensionConfig, HttpFilterConfig};
use crate::config::{ConfigError, Extensions};
use crate::pb;
use crate::wasm::{Plugins, ServiceSpec};

/// Every filter of this build, alphabetically.
fn table() -> Vec<Registration> {
    vec![
        register::<cors::Cors>().per_route::<cors::Cors>(),
        register::<fault::Fault>().per_route::<fault::Fault>(),
        register::<header_mutation::HeaderMutation>()
            .per_route::<header_mutation::HeaderMutation>()
            .upstream(),
        register::<health_check::HealthCheck>(),
        register::<idle::LocalRateLimit>().per_route::<idle::LocalRateLimit>(),
        register::<idle::Lua>().per_route::<idle::Lua>(),
        register::<idle::Rbac>().per_route::<idle::Rbac>(),
        register::<router::Router>(),
        #[cfg(feature = "wasm")]
        register::<super::wasm::Wasm>()
            .per_route::<super::wasm::Wasm>()
            .upstream(),
    ]
}

/// Access loggers that are plugins: in a chain they come last, and hear of ends alone.
fn loggers() -> Vec<Registration> {
    vec![
        #[cfg(feature = "wasm")]
        register::<super::wasm_log::WasmLog>(),
    ]
}

/// Network filters that are not terminal.
fn network() -> Vec<NetworkRegistration> {
    vec![
        #[cfg(feature = "wasm")]
        network_wasm(),
    ]
}

#[cfg(feature = "wasm")]
fn network_wasm() -> NetworkRegistration {
    use super::network::wasm::Wasm;
    use crate::pb::envoy::extensions::filters::network::wasm::v3 as proto;
    use crate::wasm::PluginSpec;
    fn spec(config: &HttpFilterConfig) -> Option<Arc<PluginSpec>> {
        let parsed: Arc<dyn std::any::Any + Send + Sync> = config.parsed.clone();
        parsed.downcast().ok()
    }
    NetworkRegistration {
        name: Wasm::NAME,
        message: proto::Wasm::full_name,
        parse: |bytes, _name| Ok(Arc::new(Wasm::parse(decode(bytes)?)?)),
        admit: |config, plugins| Wasm::admit(&spec(config)?, plugins),
        build: |config, context| Some(Arc::new(Wasm::build(&spec(config)?, context))),
    }
}

type BuildNetwork = fn(&HttpFilterConfig, &BuildContext<'_>) -> Option<Arc<dyn NetworkFilter>>;

/// One line of the table of network filters.
#[derive(Clone, Copy)]
pub struct NetworkRegistration {
    /// The name that Envoy gives the filter.
    pub name: &'static str,
    /// The full name of its message.
    pub message: fn() -> String,
    parse: Parse,
    admit: Admit,
    build: BuildNetwork,
}

type Parse = fn(&[u8], &str) -> Result<Arc<dyn ExtensionConfig>, ConfigError>;
type Admit = fn(&HttpFilterConfig, &Plugins) -> Option<BoxFuture<Result<(), ConfigError>>>;
type Build = fn(&HttpFilterConfig, &BuildContext<'_>) -> Option<Arc<dyn HttpFilter>>;

/// One line of the table.
#[derive(Clone, Copy)]
pub struct Registration {
    /// The name that Envoy gives the filter.
    pub name: &'static str,
    /// The full name of its message.
    pub message: fn() -> String,
    /// The full name of its per-route message.
    pub route_message: Option<fn() -> String>,
    /// It can run for each request to an upstream.
    pub upstream: bool,
    terminal: bool,
    parse: Parse,
    parse_route: Option<Parse>,
    admit: Admit,
    build: Build,
}

fn register<F: FilterFactory>() -> Registration {
    Registration {
        name: F::NAME,
        message: F::Proto::full_name,
        route_message: None,
        upstream: false,
        terminal: F::TERMINAL,
        parse: |bytes, name| {
            let config = F::parse(decode::<F::Proto>(bytes)?, name)?;
            Ok(Arc::new(config))
        },
        parse_route: None,
        admit: |config, plugins| {
            let parsed: Arc<dyn std::any::Any + Send + Sync> = config.parsed.clone();
            F::admit(&parsed.downcast::<F::Config>().ok()?, plugins)
        },
        build: |config, context| {
            let parsed: Arc<dyn std::any::Any + Send + Sync> = config.parsed.clone();
            let parsed = parsed.downcast::<F::Config>().ok()?;
            Some(F::build(&parsed, context))
        },
    }
}

impl Registration {
    fn per_route<F: PerRoute>(self) -> Self {
        Self {
            route_message: Some(F::RouteProto::full_name),
            parse_route: Some(|bytes, name| {
                let config = F::parse_route(decode::<F::RouteProto>(bytes)?, name)?;
                Ok(Arc::new(config))
            }),
            ..self
        }
    }

    fn upstream(self) -> Self {
        Self {
            upstream: true,
            ..self
        }
    }
}

fn decode<M: Message + Name + Default>(bytes: &[u8]) -> Result<M, ConfigError> {
    M::decode(bytes)
        .map_err(|_| ConfigError::invalid(format!("Unable to unpack as {}", M::full_name())))
}

/// The filters of this build, by type.
#[derive(Clone)]
pub struct Registry {
    entries: Vec<Registration>,
    loggers: Vec<Registration>,
    network: Vec<NetworkRegistration>,
    by_type: HashMap<String, usize>,
    by_route_type: HashMap<String, usize>,
}

impl Registry {
    /// All of them.
    pub fn new() -> Self {
        let entries = table();
        let numbered = |name: &dyn Fn(&Registration) -> Option<String>| {
            entries
                .iter()
                .enumerate()
                .filter_map(|(index, entry)| Some((name(entry)?, index)))
                .collect()
        };
        Self {
            by_type: numbered(&|entry| Some((entry.message)())),
            by_route_type: numbered(&|entry| entry.route_message.map(|name| name())),
            entries,
            loggers: loggers(),
            network: network(),
        }
    }

    /// Every filter, for documents.
    pub fn entries(&self) -> &[Registration] {
        &self.entries
    }

    /// A Markdown table of the filters: what `docs/filters.md` shows.
    pub fn markdown(&self) -> String {
        let mut text =
            String::from("| filter | message | per route | upstream |\n|---|---|---|---|\n");
        for entry in &self.entries {
            let route = entry.route_message.map(|name| format!("`{}`", name()));
            let upstream = if entry.upstream { "yes" } else { "–" };
            text.push_str(&format!(
                "| `{}` | `{}` | {} | {upstream} |\n",
                entry.name,
                (entry.message)(),
                route.as_deref().unwrap_or("–")
            ));
        }
        for ignored in no_op::ALL {
            text.push_str(&format!(
                "| `{}` | `{}` | accepted without effect: {} | – |\n",
                ignored.name, ignored.message, ignored.missing
            ));
        }
        text
    }

    /// See [`FilterFactory::admit`].
    pub fn admit(
        &self,
        config: &HttpFilterConfig,
        plugins: &Plugins,
    ) -> Option<BoxFuture<Result<(), ConfigError>>> {
        let kind = pb::type_name(&config.type_url);
        let network = self.network.iter().find(|entry| (entry.message)() == kind);
        match network {
            Some(entry) => (entry.admit)(config, plugins),
            None => (self.find(&config.type_url)?.admit)(config, plugins),
        }
    }

    /// Brings a parsed filter to life. `None` where this registry did not parse it.
    pub fn build(
        &self,
        config: &HttpFilterConfig,
        context: &BuildContext<'_>,
    ) -> Option<Arc<dyn HttpFilter>> {
        if let Some(ignored) = config.parsed.as_ref().as_any().downcast_ref() {
            return Some(no_op::build(ignored));
        }
        (self.find(&config.type_url)?.build)(config, context)
    }

    /// Brings a parsed network filter to life. `None` where this registry did not parse it.
    pub fn build_network(
        &self,
        config: &HttpFilterConfig,
        name: &str,
        slot: usize,
        chain: &ChainContext<'_>,
    ) -> Option<Arc<dyn NetworkFilter>> {
        let kind = pb::type_name(&config.type_url);
        let entry = self
            .network
            .iter()
            .find(|entry| (entry.message)() == kind)?;
        let context = BuildContext {
            slot,
            name,
            source: &config.source,
            chain,
        };
        (entry.build)(config, &context)
    }

    fn find(&self, type_url: &str) -> Option<&Registration> {
        let name = pb::type_name(type_url);
        match self.by_type.get(name) {
            Some(index) => self.entries.get(*index),
            None => self.logger(name),
        }
    }

    fn logger(&self, name: &str) -> Option<&Registration> {
        self.loggers.iter().find(|entry| (entry.message)() == name)
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.entries.iter().map(|entry| entry.name))
            .finish()
    }
}

fn resolve(any: &pb::Any) -> Result<std::borrow::Cow<'_, pb::Any>, ConfigError> {
    pb::resolve_typed_struct(any).map_err(|error| ConfigError::invalid(error.to_string()))
}

fn parsed(
    parse: Parse,
    name: &str,
    any: std::borrow::Cow<'_, pb::Any>,
) -> Result<Option<HttpFilterConfig>, ConfigError> {
    let parsed = parse(&any.value, name)?;
    Ok(Some(HttpFilterConfig {
        type_url: any.type_url.as_str().into(),
        source: any.into_owned(),
        parsed,
    }))
}

impl Extensions for Registry {
    fn http_filter(
        &self,
        name: &str,
        config: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError> {
        let any = resolve(config)?;
        if let Some(ignored) = no_op::find(pb::type_name(&any.type_url)) {
            return Ok(Some(HttpFilterConfig {
                type_url: any.type_url.as_str().into(),
                source: any.into_owned(),
                parsed: Arc::new(*ignored),
            }));
        }
        match self.by_type.get(pb::type_name(&any.type_url)) {
            Some(index) => parsed(self.entries[*index].parse, name, any),
            None => Ok(None),
        }
    }

    fn upstream_filter(
        &self,
        name: &str,
        config: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError> {
        let any = resolve(config)?;
        let index = self.by_type.get(pb::type_name(&any.type_url));
        match index.map(|index| &self.entries[*index]) {
            Some(entry) if entry.upstream => parsed(entry.parse, name, any),
            Some(_) | None => Ok(None),
        }
    }

    fn per_route(
        &self,
        name: &str,
        config: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError> {
        let any = resolve(config)?;
        let type_name = pb::type_name(&any.type_url);
        match self.by_route_type.get(type_name) {
            Some(index) => match self.entries[*index].parse_route {
                Some(parse) => parsed(parse, name, any),
                None => Ok(None),
            },
            None if self.by_type.contains_key(type_name) => Err(ConfigError::invalid(format!(
                "The filter {name} doesn't support virtual host or route specific configurations"
            ))),
            None => Ok(None),
        }
    }

    fn network_filter(
        &self,
        name: &str,
        config: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError> {
        let any = resolve(config)?;
        let kind = pb::type_name(&any.type_url);
        match self.network.iter().find(|entry| (entry.message)() == kind) {
            Some(entry) => parsed(entry.parse, name, any),
            None => Ok(None),
        }
    }

    fn access_logger(
        &self,
        name: &str,
        config: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError> {
        let any = resolve(config)?;
        match self.logger(pb::type_name(&any.type_url)) {
            Some(entry) => parsed(entry.parse, name, any),
            None => Ok(None),
        }
    }

    fn bootstrap_service(
        &self,
        config: &pb::Any,
    ) -> Result<Option<Arc<dyn ExtensionConfig>>, ConfigError> {
        let spec = ServiceSpec::of_bootstrap(&*resolve(config)?)?;
        Ok(spec.map(|spec| Arc::new(spec) as _))
    }

    fn stats_sink(
        &self,
        config: &pb::Any,
    ) -> Result<Option<Arc<dyn ExtensionConfig>>, ConfigError> {
        let spec = ServiceSpec::of_stats_sink(&*resolve(config)?)?;
        Ok(spec.map(|spec| Arc::new(spec) as _))
    }

    fn is_terminal(&self, config: &HttpFilterConfig) -> bool {
        self.by_type
            .get(pb::type_name(&config.type_url))
            .is_some_and(|index| self.entries[*index].terminal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_one_filter_and_the_table_is_in_order() {
        let registry = Registry::new();
        let names: Vec<_> = registry.entries().iter().map(|entry| entry.name).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(names, sorted);
        assert_eq!(registry.by_type.len(), names.len());
        for ignored in no_op::ALL {
            assert!(!registry.by_type.contains_key(ignored.message));
            assert!(registry.markdown().contains(ignored.name));
        }
    }

    #[test]
    fn an_unknown_type_is_left_to_the_caller() {
        let any = pb::Any {
            type_url: "type.googleapis.com/envoy.extensions.filters.http.nobody.v3.Nobody".into(),
            value: Vec::new(),
        };
        let registry = Registry::new();
        assert_eq!(registry.http_filter("n", &any), Ok(None));
        assert_eq!(registry.per_route("n", &any), Ok(None));
    }

    #[test]
    fn the_router_has_no_per_route_configuration() {
        let any = pb::pack(&pb::envoy::extensions::filters::http::router::v3::Router::default());
        let registry = Registry::new();
        let config = registry.http_filter("r", &any).expect("valid");
        assert!(registry.is_terminal(&config.expect("known")));
        let error = registry.per_route("r", &any).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "The filter r doesn't support virtual host or route specific configurations"
        );
    }

    #[test]
    fn a_known_type_must_decode() {
        let any = pb::Any {
            type_url: "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router".into(),
            value: vec![0xff],
        };
        assert!(Registry::new().http_filter("r", &any).is_err());
    }

    #[test]
    fn istios_filters_are_accepted_without_effect() {
        let any = pb::Any {
            type_url:
                "type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"
                    .into(),
            value: vec![8, 1],
        };
        let config = Registry::new().http_filter("istio.alpn", &any);
        let config = config.expect("accepted").expect("known");
        assert!(!Registry::new().is_terminal(&config));
    }
}
