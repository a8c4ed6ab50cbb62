//! Plugins without streams: `envoy.bootstrap.wasm` and `envoy.stat_sinks.wasm`.
//!
//! A service is one more slot of the host, held for as long as the service lives, whatever Generations have: its versions
//! are loaded, replaced and revived as those of filters are. A singleton has one VM, on the first worker: that is where
//! guest code is bounded, and the control side stays free of it. Envoy's is on its main thread.

use std::sync::Arc;
#[cfg(feature = "wasm")]
use std::time::Duration;

use super::options::Resolution;
use super::spec::Code;
use super::{PluginSpec, Plugins};
use crate::base::task::OwnedTask;
use crate::config::ConfigError;
use crate::config::error::At as _;
use crate::pb;
use crate::pb::envoy::extensions::stat_sinks::wasm::v3::Wasm as SinkProto;
use crate::pb::envoy::extensions::wasm::v3 as wasm;

/// What is configured.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// The plugin.
    pub plugin: Arc<PluginSpec>,
    /// It is told of statistics: see [`StatsSink`](super::StatsSink).
    pub is_stats_sink: bool,
}

impl ServiceSpec {
    /// The `WasmService` in an entry of `bootstrap_extensions`; `None` where it is of another type.
    ///
    /// # Errors
    /// Names the field.
    pub fn of_bootstrap(config: &pb::Any) -> Result<Option<Self>, ConfigError> {
        if !pb::is::<wasm::WasmService>(config) {
            return Ok(None);
        }
        let wasm::WasmService { config, singleton } = pb::unpack(config)?;
        let spec = plugin(config)?;
        Ok(Some(Self {
            plugin: Arc::new(if singleton {
                spec.into_singleton()
            } else {
                spec
            }),
            is_stats_sink: false,
        }))
    }

    /// The `Wasm` in an entry of `stats_sinks`, which always is a singleton; `None` where it is of another type.
    ///
    /// # Errors
    /// Names the field.
    pub fn of_stats_sink(config: &pb::Any) -> Result<Option<Self>, ConfigError> {
        if !pb::is::<SinkProto>(config) {
            return Ok(None);
        }
        let SinkProto { config } = pb::unpack(config)?;
        Ok(Some(Self {
            plugin: Arc::new(plugin(config)?.into_singleton()),
            is_stats_sink: true,
        }))
    }
}

fn plugin(config: Option<wasm::PluginConfig>) -> Result<PluginSpec, ConfigError> {
    config
        .ok_or_else(|| ConfigError::missing("config"))
        .and_then(|config| PluginSpec::parse(config).at("config"))
}

/// A plugin that runs until this is dropped.
#[derive(Debug)]
pub struct Service {
    plugins: Plugins,
    slot: Arc<str>,
    _follow: OwnedTask,
}

/// How long a VM may take to deal with what comes before its goodbye, and with that.
#[cfg(feature = "wasm")]
pub(super) const GOODBYE: Duration = Duration::from_secs(1);

impl Service {
    /// Starts the plugin under the name `slot`. One whose code is at hand is configured and in its place when this
    /// returns; remote code comes by itself, and listeners wait for the first attempts at it.
    ///
    /// # Errors
    /// Where code at hand does not work: Envoy does not start with it, whatever the failure policy.
    pub async fn start(
        plugins: &Plugins,
        slot: &str,
        spec: &Arc<PluginSpec>,
    ) -> Result<Self, ConfigError> {
        plugins.canary(spec).await?;
        let mut changed = plugins.changed();
        let here = matches!(spec.code, Code::Local { .. });
        loop {
            match plugins.hold(slot, spec) {
                Resolution::Pending if here => {
                    // Whoever rings lives as long as `plugins`.
                    let _ = changed.changed().await;
                }
                Resolution::Failed(reason) if here => {
                    plugins.release(slot);
                    return Err(ConfigError::invalid(format!(
                        "Unable to create Wasm plugin {}: {reason}",
                        spec.name
                    )));
                }
                _ => break,
            }
        }
        let follow = {
            let (plugins, slot, spec) = (plugins.clone(), Arc::<str>::from(slot), Arc::clone(spec));
            async move {
                // A version becomes live, or its source gives another code.
                while changed.changed().await.is_ok() {
                    plugins.hold(&slot, &spec);
                }
            }
        };
        Ok(Self {
            plugins: plugins.clone(),
            slot: slot.into(),
            _follow: OwnedTask::spawn("wasm service", follow),
        })
    }

    /// Ends it, and returns when its root contexts have heard of that (`on_done`, `on_delete`), or take too long.
    pub async fn stop(self) {
        #[cfg(feature = "wasm")]
        let vms = self.plugins.serving(&self.slot).map(|plugin| plugin.vms());
        drop(self);
        #[cfg(feature = "wasm")]
        for vm in vms.into_iter().flatten() {
            if let Some(settled) = vm.upgrade().map(|vm| vm.settled()) {
                // Either way it is over.
                let _ = tokio::time::timeout(GOODBYE, settled).await;
            }
        }
    }

    /// Where its plugin is found, and by what name.
    pub(super) fn slot(&self) -> (&Plugins, &Arc<str>) {
        (&self.plugins, &self.slot)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.plugins.release(&self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(yaml: &str) -> pb::Any {
        pb::from_yaml(yaml).expect("YAML")
    }

    const PLUGIN: &str = "config: {name: p, vm_config: {code: {local: {inline_string: x}}}}";

    #[test]
    fn a_singleton_is_another_version_in_other_vms() {
        let of = |rest: &str| {
            let any = any(&format!(
                "'@type': type.googleapis.com/envoy.extensions.wasm.v3.WasmService\n{PLUGIN}\n{rest}"
            ));
            let spec = ServiceSpec::of_bootstrap(&any).expect("valid");
            spec.expect("a service").plugin
        };
        let (plain, single) = (of(""), of("singleton: true"));
        assert!(!plain.singleton && single.singleton);
        assert_ne!(plain.key(), single.key());
        assert_ne!(plain.vm_key(), single.vm_key());
        let sink = any(&format!(
            "'@type': type.googleapis.com/envoy.extensions.stat_sinks.wasm.v3.Wasm\n{PLUGIN}"
        ));
        let spec = ServiceSpec::of_stats_sink(&sink).expect("valid");
        let spec = spec.expect("a sink");
        assert!(spec.is_stats_sink);
        assert_eq!(spec.plugin.vm_key(), single.vm_key());
    }

    #[test]
    fn the_type_decides_and_the_plugin_is_required() {
        let service = any("'@type': type.googleapis.com/envoy.extensions.wasm.v3.WasmService");
        let sink = any("'@type': type.googleapis.com/envoy.extensions.stat_sinks.wasm.v3.Wasm");
        assert!(
            ServiceSpec::of_bootstrap(&sink)
                .expect("not ours")
                .is_none()
        );
        assert!(
            ServiceSpec::of_stats_sink(&service)
                .expect("not ours")
                .is_none()
        );
        for result in [
            ServiceSpec::of_bootstrap(&service),
            ServiceSpec::of_stats_sink(&sink),
        ] {
            let error = result.expect_err("no plugin").to_string();
            assert!(error.starts_with("config"), "{error}");
        }
    }
}
