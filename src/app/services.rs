//! Plugins that run beside the traffic, from the bootstrap to life.

use crate::bootstrap;
use crate::config::ConfigError;
use crate::wasm::{Plugins, Service, ServiceSpec, StatsSink};

/// Those of a process.
#[derive(Debug)]
pub(super) struct Services {
    pub(super) running: Vec<Service>,
    /// Those of them that are told of statistics.
    pub(super) sinks: Vec<StatsSink>,
}

impl Services {
    /// Starts them one after the other; code at hand runs when this returns.
    ///
    /// # Errors
    /// Names the one that does not work.
    pub(super) async fn start(
        plugins: &Plugins,
        services: &[bootstrap::Service],
    ) -> Result<Self, ConfigError> {
        let (mut running, mut sinks) = (Vec::new(), Vec::new());
        for (place, spec) in specs(services) {
            let service = Service::start(plugins, place, &spec.plugin)
                .await
                .map_err(|error| at(error, place))?;
            if spec.is_stats_sink {
                sinks.push(StatsSink::new(&service));
            }
            running.push(service);
        }
        Ok(Self { running, sinks })
    }

    /// Tries those whose code is at hand, and starts none.
    ///
    /// # Errors
    /// As [`Services::start`].
    pub(super) async fn try_out(
        plugins: &Plugins,
        services: &[bootstrap::Service],
    ) -> Result<(), ConfigError> {
        for (place, spec) in specs(services) {
            plugins
                .canary(&spec.plugin)
                .await
                .map_err(|error| at(error, place))?;
        }
        Ok(())
    }
}

fn specs(services: &[bootstrap::Service]) -> impl Iterator<Item = (&str, &ServiceSpec)> {
    services.iter().map(|service| {
        let spec = service.config.as_any().downcast_ref();
        let spec = spec.expect("the registry makes all services");
        (&*service.place, spec)
    })
}

fn at(error: ConfigError, place: &str) -> ConfigError {
    error.at("config").at("typed_config").at(place)
}
