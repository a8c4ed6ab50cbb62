//! Can every source be reached by construction? Asked of the options before anything starts, and of every resource.

use std::path::Path;

use super::assemble::{Reference, cluster_reference, listener_references};
use super::client::Options;
use crate::config::cluster::{ConfigSource, GrpcService, SourceSpecifier};
use crate::config::error::At as _;
use crate::config::{ConfigError, Listener};

impl Options {
    /// Checks every source that is named here.
    ///
    /// # Errors
    /// Names the first that cannot be reached by construction: an unknown cluster, ADS without `ads_config`, no such
    /// file.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_but_listeners()?;
        match &self.lds {
            Some(source) => self.check_source(source).at("dynamic_resources.lds_config"),
            None => Ok(()),
        }
    }

    /// As [`Options::check`], for `--mode validate`: Envoy does not look there for the file of `lds_config`.
    ///
    /// # Errors
    /// The same.
    pub fn check_for_validation(&self) -> Result<(), ConfigError> {
        match &self.lds {
            Some(source) if !matches!(source.specifier, SourceSpecifier::Path { .. }) => {
                self.check()
            }
            _ => self.check_but_listeners(),
        }
    }

    fn check_but_listeners(&self) -> Result<(), ConfigError> {
        if let Some(ads) = &self.ads {
            self.check_ads(&ads.service)
                .at("grpc_services")
                .at("dynamic_resources.ads_config")?;
        }
        if let Some(source) = &self.cds {
            self.check_source(source)
                .at("dynamic_resources.cds_config")?;
        }
        for (index, cluster) in self.static_clusters.iter().enumerate() {
            if let Some((_, source)) = cluster_reference(cluster) {
                self.check_source(source)
                    .at("eds_cluster_config.eds_config")
                    .at_index("static_resources.clusters", index)?;
            }
        }
        for (index, listener) in self.static_listeners.iter().enumerate() {
            self.check_listener(listener)
                .at_index("static_resources.listeners", index)?;
        }
        Ok(())
    }

    pub(super) fn check_listener(&self, listener: &Listener) -> Result<(), ConfigError> {
        listener_references(listener).try_for_each(|reference| match reference {
            Reference::Route { source, .. } => self.check_source(source).at("rds.config_source"),
            Reference::Extension { source, .. } => self
                .check_source(source)
                .at("http_filters.config_discovery.config_source"),
        })
    }

    pub(super) fn check_source(&self, source: &ConfigSource) -> Result<(), ConfigError> {
        match &source.specifier {
            SourceSpecifier::Ads if self.ads.is_none() => Err(ConfigError::invalid(
                "ADS must be configured to support an ADS config source",
            )),
            SourceSpecifier::Ads => Ok(()),
            SourceSpecifier::Grpc { service, .. } => self
                .check_service(service)
                .at("grpc_services")
                .at("api_config_source"),
            SourceSpecifier::Path { path, .. } if !Path::new(&**path).exists() => {
                Err(ConfigError::invalid(format!(
                    "paths must refer to an existing path in the system: '{path}' does not exist"
                ))
                .at("path_config_source.path"))
            }
            SourceSpecifier::Path { .. } => Ok(()),
        }
    }

    /// Envoy has a text of its own for the aggregated stream.
    fn check_ads(&self, service: &GrpcService) -> Result<(), ConfigError> {
        let name = &service.cluster;
        let known = self.static_clusters.iter().any(|known| known.name == *name);
        if service.target_uri.is_none() && !known {
            return Err(ConfigError::invalid(format!(
                "Unknown gRPC client cluster '{name}'"
            )));
        }
        self.check_service(service)
    }

    /// Control planes must be reachable before there is anything that they sent.
    fn check_service(&self, service: &GrpcService) -> Result<(), ConfigError> {
        let name = &service.cluster;
        let is_static = self
            .static_clusters
            .iter()
            .any(|known| known.name == *name && cluster_reference(known).is_none());
        if service.target_uri.is_some() || is_static {
            return Ok(());
        }
        Err(ConfigError::invalid(format!(
            "envoy.config.core.v3.ApiConfigSource must have a statically defined non-EDS cluster: '{name}' does not \
             exist, was added via api, or is an EDS cluster"
        )))
    }
}
