//! The message to [`Bootstrap`]. Every field is named here.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{
    Admin, Bootstrap, RuntimeLayer, RuntimeLayerKind, Service, Static, StatsConfig, StatsFlush,
    StatsMatcher, StatsTag, node, proto,
};
use crate::config::cluster::{ConfigSource, SourceSpecifier};
use crate::config::endpoint::Address;
use crate::config::error::At as _;
use crate::config::field::{non_empty, required};
use crate::config::matcher::StringMatcher;
use crate::config::{
    Cluster, ConfigError, Extensions, Listener, ParseContext, Source, WasmSettings,
    ignored_extensions,
};
use crate::pb;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::metrics::v3 as metrics;
use crate::pb::plenipo::extensions::wasm::v1::WasmSettings as WasmSettingsProto;

impl Bootstrap {
    /// Validates a bootstrap.
    ///
    /// # Errors
    /// The first field that is wrong or not supported, by its path.
    pub fn parse(
        message: proto::Bootstrap,
        extensions: &dyn Extensions,
    ) -> Result<Self, ConfigError> {
        let mut message = message;
        let node = node::complete(message.node.take().unwrap_or_default());
        message.node = Some(node.clone());
        let whole = message.clone();
        #[allow(deprecated, reason = "every field is named, the deprecated ones, too")]
        let proto::Bootstrap {
            node: _,
            static_resources,
            dynamic_resources,
            admin,
            layered_runtime,
            stats_config,
            stats_flush_interval,
            stats_server_version_override,
            header_prefix,
            bootstrap_extensions,
            // Read when the log is set up, too: [`super::load::log_format`].
            application_log_config,
            // Accepted without effect; told where it is set.
            node_context_params,
            cluster_manager,
            hds_config,
            flags_path,
            stats_sinks,
            deferred_stat_options: _,
            watchdog,
            watchdogs,
            tracing,
            overload_manager,
            enable_dispatcher_stats,
            use_tcp_for_dns_lookups,
            dns_resolution_config,
            typed_dns_resolver_config,
            fatal_actions,
            config_sources,
            default_config_source,
            default_socket_interface,
            certificate_provider_instances,
            inline_headers,
            perf_tracing_file_path,
            default_regex_engine,
            xds_delegate_extension,
            xds_config_tracker_extension,
            listener_manager,
            grpc_async_client_manager_config: _,
            memory_allocator_manager,
            enable_worker_cpu_affinity,
            stats_flush,
            stats_eviction: _,
        } = message;

        let mut notes = Vec::new();
        for (set, field) in [
            (!node_context_params.is_empty(), "node_context_params"),
            (cluster_manager.is_some(), "cluster_manager"),
            (hds_config.is_some(), "hds_config"),
            (!flags_path.is_empty(), "flags_path"),
            (watchdog.is_some(), "watchdog"),
            (watchdogs.is_some(), "watchdogs"),
            (tracing.is_some(), "tracing"),
            (overload_manager.is_some(), "overload_manager"),
            (enable_dispatcher_stats, "enable_dispatcher_stats"),
            (use_tcp_for_dns_lookups, "use_tcp_for_dns_lookups"),
            (dns_resolution_config.is_some(), "dns_resolution_config"),
            (
                typed_dns_resolver_config.is_some(),
                "typed_dns_resolver_config",
            ),
            (!fatal_actions.is_empty(), "fatal_actions"),
            (!config_sources.is_empty(), "config_sources"),
            (default_config_source.is_some(), "default_config_source"),
            (
                !default_socket_interface.is_empty(),
                "default_socket_interface",
            ),
            (
                !certificate_provider_instances.is_empty(),
                "certificate_provider_instances",
            ),
            (!inline_headers.is_empty(), "inline_headers"),
            (!perf_tracing_file_path.is_empty(), "perf_tracing_file_path"),
            (default_regex_engine.is_some(), "default_regex_engine"),
            (xds_delegate_extension.is_some(), "xds_delegate_extension"),
            (
                xds_config_tracker_extension.is_some(),
                "xds_config_tracker_extension",
            ),
            (listener_manager.is_some(), "listener_manager"),
            (
                memory_allocator_manager.is_some(),
                "memory_allocator_manager",
            ),
            (enable_worker_cpu_affinity, "enable_worker_cpu_affinity"),
        ] {
            if set {
                notes.push(format!("bootstrap: {field} is accepted without effect"));
            }
        }
        if let Some(format) = application_log_config.and_then(|config| config.log_format) {
            required(format.log_format, "log_format")
                .at("log_format")
                .at("application_log_config")?;
        }
        if !header_prefix.is_empty() && header_prefix != "x-envoy" {
            return Err(ConfigError::unsupported(
                "header_prefix",
                "it is always x-envoy",
            ));
        }
        ignored_extensions::check_tracer(tracing.and_then(|tracing| tracing.http))
            .at("http")
            .at("tracing")?;
        let mut wasm = None;
        let mut services = Vec::new();
        for (index, extension) in bootstrap_extensions.into_iter().enumerate() {
            let name = non_empty(extension.name, "name").at_index("bootstrap_extensions", index)?;
            let config = required(extension.typed_config, "typed_config")
                .at_index("bootstrap_extensions", index)?;
            let config = pb::resolve_typed_struct(&config)
                .map_err(ConfigError::from)
                .at("typed_config")
                .at_index("bootstrap_extensions", index)?;
            let service = extensions
                .bootstrap_service(&config)
                .at("typed_config")
                .at_index("bootstrap_extensions", index)?;
            if let Some(config) = service {
                services.push(Service {
                    place: format!("bootstrap_extensions[{index}]").into(),
                    config,
                });
                continue;
            }
            if pb::is::<WasmSettingsProto>(&config) {
                let settings = wasm_settings(&config)
                    .at("typed_config")
                    .at_index("bootstrap_extensions", index)?;
                if wasm.replace(settings).is_some() {
                    return Err(ConfigError::invalid("a second entry of this type")
                        .at("typed_config")
                        .at_index("bootstrap_extensions", index));
                }
                continue;
            }
            ignored_extensions::check(ignored_extensions::BOOTSTRAP, &name, &config)
                .at_index("bootstrap_extensions", index)?;
            notes.push(format!(
                "bootstrap: extension {name} is accepted without effect"
            ));
        }
        for (index, sink) in stats_sinks.into_iter().enumerate() {
            let metrics::StatsSink { name, config_type } = sink;
            let config = match config_type {
                Some(metrics::stats_sink::ConfigType::TypedConfig(config)) => config,
                None => pb::Any::default(),
            };
            let sink = extensions
                .stats_sink(&config)
                .at("typed_config")
                .at_index("stats_sinks", index)?;
            match sink {
                Some(config) => services.push(Service {
                    place: format!("stats_sinks[{index}]").into(),
                    config,
                }),
                None => {
                    ignored_extensions::check(ignored_extensions::STATS_SINKS, &name, &config)
                        .at_index("stats_sinks", index)?;
                    notes.push(format!(
                        "bootstrap: statistics sink {name} is accepted without effect"
                    ));
                }
            }
        }

        let (clusters, listeners, secrets) =
            static_resources_of(static_resources.unwrap_or_default(), extensions)
                .at("static_resources")?;
        let local = cluster_manager.map_or_else(String::new, |manager| manager.local_cluster_name);
        if !local.is_empty() && !clusters.iter().any(|cluster| *cluster.value.name == *local) {
            return Err(
                ConfigError::invalid(format!("local cluster '{local}' must be defined"))
                    .at("local_cluster_name")
                    .at("cluster_manager"),
            );
        }
        let dynamic =
            Dynamic::parse(dynamic_resources.unwrap_or_default()).at("dynamic_resources")?;
        if dynamic.needs_node() && (node.id.is_empty() || node.cluster.is_empty()) {
            return Err(ConfigError::invalid(
                "node 'id' and 'cluster' are required. Set it either in 'node' config or via --service-node and \
                 --service-cluster options.",
            ));
        }
        let mut stats = stats(stats_config.unwrap_or_default(), &mut notes).at("stats_config")?;
        match (stats_flush_interval, stats_flush) {
            (None, None) => {}
            (Some(interval), None) => {
                stats.flush = StatsFlush::Every(interval_of(&interval).at("stats_flush_interval")?);
            }
            (None, Some(proto::bootstrap::StatsFlush::StatsFlushOnAdmin(true))) => {
                stats.flush = StatsFlush::OnAdmin;
            }
            (_, Some(proto::bootstrap::StatsFlush::StatsFlushOnAdmin(false))) => {
                return Err(
                    ConfigError::invalid("value must equal true").at("stats_flush_on_admin")
                );
            }
            (Some(_), Some(proto::bootstrap::StatsFlush::StatsFlushOnAdmin(true))) => {
                return Err(ConfigError::invalid(
                    "Only one of stats_flush_interval or stats_flush_on_admin should be set!",
                )
                .at("stats_flush_on_admin"));
            }
        }
        stats.server_version = stats_server_version_override.map(|value| value.value);
        Ok(Self {
            node,
            admin: match admin {
                Some(admin) => admin_of(admin, &mut notes).at("admin")?,
                None => None,
            },
            clusters,
            listeners,
            secrets,
            ads: dynamic.ads,
            cds: dynamic.cds,
            lds: dynamic.lds,
            runtime: runtime(layered_runtime.unwrap_or_default(), &mut notes)
                .at("layered_runtime")?,
            stats,
            wasm: wasm.unwrap_or_default(),
            services,
            proto: whole,
            notes,
        })
    }
}

/// The settings in `config`. Nothing in them is passed over: a field of a later version would not have its effect.
fn wasm_settings(config: &pb::Any) -> Result<WasmSettings, ConfigError> {
    if let Some(field) = pb::unknown_fields(&config.type_url, &config.value).first() {
        return Err(ConfigError::unsupported(field, "no such field"));
    }
    WasmSettings::parse(pb::unpack(config)?)
}

type Statics = (Vec<Static<Cluster>>, Vec<Static<Listener>>, Vec<pb::Any>);

fn static_resources_of(
    resources: proto::bootstrap::StaticResources,
    extensions: &dyn Extensions,
) -> Result<Statics, ConfigError> {
    let proto::bootstrap::StaticResources {
        listeners,
        clusters,
        secrets,
    } = resources;
    let context = ParseContext::new(extensions, Source::Static);
    let mut names = BTreeSet::new();
    let mut parsed_clusters = Vec::with_capacity(clusters.len());
    for (index, cluster) in clusters.into_iter().enumerate() {
        let proto = pb::pack(&cluster);
        let value = Cluster::parse(cluster, &context).at_index("clusters", index)?;
        if !names.insert(std::sync::Arc::clone(&value.name)) {
            return Err(ConfigError::invalid(format!(
                "cluster manager: duplicate cluster '{}'",
                value.name
            ))
            .at_index("clusters", index));
        }
        parsed_clusters.push(Static {
            proto,
            value: value.into(),
        });
    }
    let known = |name: &str| names.contains(name);
    let context = context.with_clusters(&known);
    let mut listener_names = BTreeSet::new();
    let mut parsed_listeners = Vec::with_capacity(listeners.len());
    for (index, listener) in listeners.into_iter().enumerate() {
        let proto = pb::pack(&listener);
        let unnamed = listener.name.is_empty();
        let mut value = Listener::parse(listener, &context).at_index("listeners", index)?;
        if unnamed && listener_names.contains(&value.name) {
            // Envoy makes names up; two without one may both ask for any free port.
            value.name = format!("{}#{index}", value.name).into();
        }
        if !listener_names.insert(std::sync::Arc::clone(&value.name)) {
            return Err(
                ConfigError::invalid(format!("duplicate listener '{}'", value.name))
                    .at_index("listeners", index),
            );
        }
        if parsed_listeners
            .iter()
            .any(|other: &Static<Listener>| Address::meet(&other.value.addresses, &value.addresses))
        {
            return Err(value.duplicate_address().at_index("listeners", index));
        }
        parsed_listeners.push(Static {
            proto,
            value: value.into(),
        });
    }
    let secrets = secrets.iter().map(pb::pack).collect();
    Ok((parsed_clusters, parsed_listeners, secrets))
}

struct Dynamic {
    ads: Option<SourceSpecifier>,
    cds: Option<ConfigSource>,
    lds: Option<ConfigSource>,
}

impl Dynamic {
    /// Whether the sources can be reached is checked where they are used.
    fn parse(resources: proto::bootstrap::DynamicResources) -> Result<Self, ConfigError> {
        let proto::bootstrap::DynamicResources {
            lds_config,
            lds_resources_locator,
            cds_config,
            cds_resources_locator,
            ads_config,
        } = resources;
        for (locator, field) in [
            (lds_resources_locator, "lds_resources_locator"),
            (cds_resources_locator, "cds_resources_locator"),
        ] {
            if !locator.is_empty() {
                return Err(ConfigError::unsupported(field, "xDS-TP resource locators"));
            }
        }
        let source =
            |config: Option<core::ConfigSource>| config.map(ConfigSource::parse).transpose();
        Ok(Self {
            lds: source(lds_config).at("lds_config")?,
            cds: source(cds_config).at("cds_config")?,
            ads: ads_config
                .map(SourceSpecifier::parse_api)
                .transpose()
                .at("ads_config")?,
        })
    }

    fn needs_node(&self) -> bool {
        let dynamic = self.cds.iter().chain(&self.lds);
        self.ads
            .iter()
            .chain(dynamic.map(|source| &source.specifier))
            .any(|source| matches!(source, SourceSpecifier::Grpc { .. }))
    }
}

fn admin_of(admin: proto::Admin, notes: &mut Vec<String>) -> Result<Option<Admin>, ConfigError> {
    #[allow(deprecated, reason = "every field is named, the deprecated ones, too")]
    let proto::Admin {
        access_log,
        access_log_path,
        profile_path,
        address,
        socket_options,
        ignore_global_conn_limit: _,
        allow_paths,
    } = admin;
    for (set, field) in [
        (!access_log.is_empty(), "access_log"),
        // `/dev/null` is the usual value, and what we do.
        (
            !access_log_path.is_empty() && access_log_path != "/dev/null",
            "access_log_path",
        ),
        (!profile_path.is_empty(), "profile_path"),
        (!socket_options.is_empty(), "socket_options"),
    ] {
        if set {
            notes.push(format!(
                "bootstrap: admin.{field} is accepted without effect"
            ));
        }
    }
    let Some(address) = address else {
        return Ok(None);
    };
    let pipe_mode = match &address.address {
        Some(core::address::Address::Pipe(pipe)) if pipe.mode != 0 => Some(pipe.mode),
        _ => None,
    };
    let address = Address::parse(address).at("address")?;
    if let Address::Name(name, _) = &address {
        return Err(
            ConfigError::invalid(format!("malformed IP address: {name}"))
                .at("socket_address")
                .at("address"),
        );
    }
    let allow_paths = allow_paths
        .into_iter()
        .enumerate()
        .map(|(index, matcher)| StringMatcher::parse(matcher).at_index("allow_paths", index))
        .collect::<Result<_, _>>()?;
    Ok(Some(Admin {
        address,
        pipe_mode,
        allow_paths,
    }))
}

fn runtime(
    runtime: proto::LayeredRuntime,
    notes: &mut Vec<String>,
) -> Result<Vec<RuntimeLayer>, ConfigError> {
    use proto::runtime_layer::LayerSpecifier;
    let proto::LayeredRuntime { layers } = runtime;
    let (mut names, mut admin) = (BTreeSet::new(), false);
    let layers = layers.into_iter().enumerate().map(|(index, layer)| {
        let proto::RuntimeLayer {
            name,
            layer_specifier,
        } = layer;
        let name = non_empty(name, "name").at_index("layers", index)?;
        if !names.insert(name.clone()) {
            return Err(
                ConfigError::invalid(format!("Duplicate layer name: {name}"))
                    .at_index("layers", index),
            );
        }
        let kind = match layer_specifier {
            Some(LayerSpecifier::StaticLayer(values)) => RuntimeLayerKind::Static(values),
            Some(LayerSpecifier::AdminLayer(_)) if admin => {
                return Err(ConfigError::invalid(
                    "Too many admin layers specified in LayeredRuntime, at most one may be specified",
                )
                .at_index("layers", index));
            }
            Some(LayerSpecifier::AdminLayer(_)) => {
                admin = true;
                RuntimeLayerKind::Admin
            }
            None => {
                return Err(
                    ConfigError::missing("layer_specifier").at_index("layers", index)
                );
            }
            Some(LayerSpecifier::DiskLayer(_) | LayerSpecifier::RtdsLayer(_)) => {
                notes.push(format!(
                    "bootstrap: runtime layer {name} is accepted without effect"
                ));
                RuntimeLayerKind::Empty
            }
        };
        Ok(RuntimeLayer { name, kind })
    });
    layers.collect()
}

fn stats(
    config: metrics::StatsConfig,
    notes: &mut Vec<String>,
) -> Result<StatsConfig, ConfigError> {
    use metrics::stats_matcher::StatsMatcher as Matcher;
    use metrics::tag_specifier::TagValue;
    let metrics::StatsConfig {
        stats_tags,
        use_all_default_tags,
        stats_matcher,
        histogram_bucket_settings,
        allow_default_tag_overrides: _,
    } = config;
    if !histogram_bucket_settings.is_empty() {
        notes.push(
            "bootstrap: stats_config.histogram_bucket_settings is accepted without effect"
                .to_owned(),
        );
    }
    let tags = stats_tags
        .into_iter()
        .map(
            |metrics::TagSpecifier {
                 tag_name: name,
                 tag_value,
             }| match tag_value {
                Some(TagValue::FixedValue(value)) => StatsTag::Fixed { name, value },
                Some(TagValue::Regex(regex)) if !regex.is_empty() => StatsTag::Extracted {
                    name,
                    regex: Some(regex),
                },
                Some(TagValue::Regex(_)) | None => StatsTag::Extracted { name, regex: None },
            },
        )
        .collect();
    let list = |list: pb::envoy::r#type::matcher::v3::ListStringMatcher| {
        list.patterns
            .into_iter()
            .enumerate()
            .map(|(index, matcher)| StringMatcher::parse(matcher).at_index("patterns", index))
            .collect::<Result<Vec<_>, _>>()
    };
    let matcher = stats_matcher
        .map(|matcher| required(matcher.stats_matcher, "stats_matcher").at("stats_matcher"))
        .transpose()?;
    let matcher = match matcher {
        None | Some(Matcher::RejectAll(false)) => StatsMatcher::All,
        Some(Matcher::RejectAll(true)) => StatsMatcher::None,
        Some(Matcher::ExclusionList(matchers)) => {
            StatsMatcher::Except(list(matchers).at("exclusion_list").at("stats_matcher")?)
        }
        Some(Matcher::InclusionList(matchers)) => {
            StatsMatcher::Only(list(matchers).at("inclusion_list").at("stats_matcher")?)
        }
    };
    Ok(StatsConfig {
        tags,
        use_default_tags: use_all_default_tags.is_none_or(|value| value.value),
        matcher,
        flush: StatsFlush::Every(Duration::from_secs(5)),
        server_version: None,
    })
}

fn interval_of(interval: &pb::google::protobuf::Duration) -> Result<Duration, ConfigError> {
    let seconds = u64::try_from(interval.seconds).ok();
    let nanos = u32::try_from(interval.nanos).ok();
    match (seconds, nanos) {
        (Some(seconds), Some(nanos))
            if nanos < 1_000_000_000 && seconds < 300 && (seconds > 0 || nanos >= 1_000_000) =>
        {
            Ok(Duration::new(seconds, nanos))
        }
        _ => Err(ConfigError::invalid(
            "value must be inside range [1ms, 5m0s)",
        )),
    }
}
