//! `envoy.access_loggers.wasm`: a plugin that hears of the ends of streams, and of a TCP proxy's connections. For each that
//! its filter lets pass, `on_log` of its root context is called, which shows the stream meanwhile; as in Envoy there is no
//! context for the stream. It stands behind all filters of its chain.
//!
//! In a trial of versions a stream is of the one that logs it, which breaks it where its VM fails meanwhile.

use std::sync::Arc;

use super::wasm::{Choice, admit};
use super::{BoxFuture, BuildContext, FilterFactory, HttpFilter};
use crate::config::ConfigError;
use crate::config::error::At as _;
use crate::pb::envoy::extensions::access_loggers::wasm::v3::WasmAccessLog;
use crate::stream::Stream;
use crate::wasm::{PluginSpec, Plugins, slot};

/// The plugin of one logger.
#[derive(Debug)]
pub(super) struct WasmLog(Choice);

impl FilterFactory for WasmLog {
    const NAME: &'static str = "envoy.access_loggers.wasm";
    type Proto = WasmAccessLog;
    type Config = PluginSpec;

    fn parse(proto: WasmAccessLog, _name: &str) -> Result<PluginSpec, ConfigError> {
        let WasmAccessLog { config } = proto;
        let config = config.ok_or_else(|| ConfigError::missing("config"))?;
        PluginSpec::parse(config).at("config")
    }

    fn admit(
        config: &Arc<PluginSpec>,
        plugins: &Plugins,
    ) -> Option<BoxFuture<Result<(), ConfigError>>> {
        admit(config, plugins)
    }

    fn build(config: &Arc<PluginSpec>, context: &BuildContext<'_>) -> Arc<dyn HttpFilter> {
        // Its name is but its number.
        let slot = slot::of(&[context.chain.place, "log"], config);
        Arc::new(Self(Choice::resolve(slot, config, context)))
    }
}

impl HttpFilter for WasmLog {
    fn log(&self, stream: &Arc<Stream>) {
        // A guest is never entered from a drop.
        let now = !stream.info.lock().abandoned;
        match self.0.pick() {
            (Some((_, place)), part) => place.vm.log_in_root(place.root, stream, now, part),
            (None, _) => {
                if let Some(plugin) = self.0.plugin() {
                    plugin.count_backoff();
                }
            }
        }
    }
}
