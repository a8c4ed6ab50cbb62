//! Envoy's log levels and components, and which component a module of ours belongs to.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// A severity, or a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Everything.
    Trace,
    /// For finding faults.
    Debug,
    /// What an operator may want to know.
    Info,
    /// Something is odd, and handled.
    Warning,
    /// Something failed.
    Error,
    /// The process cannot go on.
    Critical,
    /// As a threshold: nothing.
    Off,
}

impl Level {
    /// All, ascending.
    pub const ALL: [Self; 7] = [
        Self::Trace,
        Self::Debug,
        Self::Info,
        Self::Warning,
        Self::Error,
        Self::Critical,
        Self::Off,
    ];

    /// As in a log line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Off => "off",
        }
    }

    /// spdlog's `%L`.
    pub fn letter(self) -> char {
        match self {
            Self::Trace => 'T',
            Self::Debug => 'D',
            Self::Info => 'I',
            Self::Warning => 'W',
            Self::Error => 'E',
            Self::Critical => 'C',
            Self::Off => 'O',
        }
    }

    /// From a name, in lower case only, as Envoy; `warn` is `warning`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "warn" => Some(Self::Warning),
            _ => Self::ALL.into_iter().find(|level| level.name() == name),
        }
    }
}

/// Envoy's loggers, in the order of `/logging`.
pub const COMPONENTS: [&str; 73] = [
    "a2a",
    "admin",
    "ai_protocol_manager",
    "alternate_protocols_cache",
    "aws",
    "assert",
    "backtrace",
    "basic_auth",
    "cache_filter",
    "client",
    "config",
    "connection",
    "conn_handler",
    "compression",
    "credential_injector",
    "decompression",
    "dns",
    "dubbo",
    "envoy_bug",
    "ext_authz",
    "ext_proc",
    "rocketmq",
    "file",
    "filter",
    "forward_proxy",
    "geolocation",
    "grpc",
    "happy_eyeballs",
    "hc",
    "health_checker",
    "http",
    "http2",
    "hystrix",
    "init",
    "io",
    "jwt",
    "json_rpc",
    "kafka",
    "key_value_store",
    "lua",
    "local_rate_limit",
    "main",
    "matcher",
    "mcp",
    "misc",
    "mongo",
    "multi_connection",
    "notification",
    "oauth2",
    "quic",
    "quic_stream",
    "pool",
    "rate_limit_quota",
    "rbac",
    "rds",
    "redis",
    "router",
    "runtime",
    "stats",
    "secret",
    "sse",
    "tap",
    "testing",
    "thrift",
    "tracing",
    "upstream",
    "udp",
    "wasm",
    "websocket",
    "golang",
    "stats_sinks",
    "dynamic_modules",
    "ip_tagging",
];

/// A position in [`COMPONENTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Component(u8);

impl Component {
    /// By name.
    pub fn named(name: &str) -> Option<Self> {
        let at = COMPONENTS.iter().position(|component| *component == name)?;
        u8::try_from(at).ok().map(Self)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        COMPONENTS[usize::from(self.0)]
    }

    /// That of a tracing target: a component's name, or the path of a module.
    pub fn of_target(target: &str) -> Self {
        let name = match target.split_once("::") {
            None if Self::named(target).is_some() => target,
            None if target == "plenipo" => "main",
            Some(("plenipo", module)) => of_module(module),
            _ => match target.split("::").next().unwrap_or_default() {
                "h2" | "hyper" => "http2",
                "tonic" | "tower" => "grpc",
                "hickory_resolver" | "hickory_proto" | "hickory_net" => "dns",
                "wasmtime" | "cranelift_codegen" => "wasm",
                _ => "misc",
            },
        };
        Self::named(name).unwrap_or(Self(0))
    }
}

fn of_module(module: &str) -> &'static str {
    let starts = |prefix: &str| {
        module
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    let rules = [
        ("admin", "admin"),
        ("app", "main"),
        ("cli", "main"),
        ("bootstrap", "config"),
        ("config", "config"),
        ("xds", "config"),
        ("control_plane", "config"),
        ("generation", "config"),
        ("cluster::pool", "pool"),
        ("cluster::dns", "dns"),
        ("cluster", "upstream"),
        ("route", "router"),
        ("filter::router", "router"),
        ("filter::wasm", "wasm"),
        ("filter", "filter"),
        ("wasm", "wasm"),
        ("http::codec::h2", "http2"),
        ("http::codec", "connection"),
        ("http", "http"),
        ("stream", "http"),
        ("listener::http", "http"),
        ("listener", "conn_handler"),
        ("telemetry", "stats"),
    ];
    rules
        .into_iter()
        .find(|(prefix, _)| starts(prefix))
        .map_or("misc", |(_, component)| component)
}

/// The threshold of every component; changed at run time by `/logging`.
#[derive(Debug)]
pub struct Levels([AtomicU8; COMPONENTS.len()]);

impl Levels {
    /// All at `level`, but for `exceptions`.
    pub fn new(level: Level, exceptions: &[(Component, Level)]) -> Self {
        let levels = Self(std::array::from_fn(|_| AtomicU8::new(level as u8)));
        for (component, level) in exceptions {
            levels.0[usize::from(component.0)].store(*level as u8, Relaxed);
        }
        levels
    }

    /// The threshold of `component`.
    pub fn get(&self, component: Component) -> Level {
        Level::ALL[usize::from(self.0[usize::from(component.0)].load(Relaxed)).min(6)]
    }

    /// Sets one threshold.
    pub fn set(&self, component: Component, level: Level) {
        self.0[usize::from(component.0)].store(level as u8, Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Sets all thresholds.
    pub fn set_all(&self, level: Level) {
        for threshold in &self.0 {
            threshold.store(level as u8, Relaxed);
        }
        tracing::callsite::rebuild_interest_cache();
    }

    /// Name and threshold of every component.
    pub fn list(&self) -> Vec<(&'static str, Level)> {
        (0..)
            .zip(COMPONENTS)
            .map(|(index, name)| (name, self.get(Component(index))))
            .collect()
    }

    /// The lowest threshold.
    pub fn lowest(&self) -> Level {
        let lowest = self.0.iter().map(|level| level.load(Relaxed)).min();
        Level::ALL[usize::from(lowest.unwrap_or(6)).min(6)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_spelt_as_envoy_spells_them() {
        assert_eq!(Level::parse("warn"), Some(Level::Warning));
        assert_eq!(Level::parse("critical"), Some(Level::Critical));
        assert_eq!(Level::parse("INFO"), None);
    }

    #[test]
    fn targets_have_components() {
        for (target, name) in [
            ("plenipo", "main"),
            ("plenipo::xds::client", "config"),
            ("plenipo::cluster::pool", "pool"),
            ("plenipo::clusterish", "misc"),
            ("plenipo::filter::router", "router"),
            ("plenipo::listener::http", "http"),
            ("upstream", "upstream"),
            ("h2::proto", "http2"),
            ("mystery", "misc"),
        ] {
            assert_eq!(Component::of_target(target).name(), name, "{target}");
        }
    }

    #[test]
    fn thresholds_change_one_by_one_and_all_at_once() {
        let upstream = Component::named("upstream").unwrap();
        let levels = Levels::new(Level::Info, &[(upstream, Level::Debug)]);
        assert_eq!(levels.get(upstream), Level::Debug);
        assert_eq!(levels.lowest(), Level::Debug);
        levels.set_all(Level::Error);
        levels.set(upstream, Level::Off);
        assert_eq!(levels.lowest(), Level::Error);
        assert_eq!(levels.list()[0], ("a2a", Level::Error));
        assert_eq!(levels.list().len(), 73);
    }
}
