//! `envoy.filters.http.router`, the terminal filter: route, cluster, attempt, timeouts.

use std::sync::Arc;

use super::factory::{BuildContext, FilterFactory};
use super::{HttpFilter, Step};
use crate::config::ConfigError;
use crate::http::{Body, ReplyReason};
use crate::pb::envoy::extensions::filters::http::router::v3 as proto;
use crate::stream::Stream;

/// The router's settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// `suppress_envoy_headers`.
    pub suppress_envoy_headers: bool,
}

/// The router.
#[derive(Debug)]
pub struct Router {
    #[allow(dead_code, reason = "read once requests are forwarded")]
    config: Arc<Config>,
}

impl FilterFactory for Router {
    const NAME: &'static str = "envoy.filters.http.router";
    const TERMINAL: bool = true;
    type Proto = proto::Router;
    type Config = Config;

    fn parse(proto: proto::Router, _: &str) -> Result<Config, ConfigError> {
        Ok(Config {
            suppress_envoy_headers: proto.suppress_envoy_headers,
        })
    }

    fn build(config: &Arc<Config>, _: &BuildContext<'_>) -> Arc<dyn HttpFilter> {
        Arc::new(Self {
            config: Arc::clone(config),
        })
    }
}

impl HttpFilter for Router {
    fn request(&self, _: &Arc<Stream>, _: Body) -> Step<Body> {
        Step::Reply(ReplyReason::RouteNotFound.into())
    }
}
