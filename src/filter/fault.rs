//! `envoy.filters.http.fault`: delays and aborts requests, to see what becomes of their senders.
//!
//! | field | |
//! |---|---|
//! | `delay.fixed_delay`, `delay.header_delay`, `delay.percentage` | honoured |
//! | `abort.http_status`, `.grpc_status`, `.header_abort`, `.percentage`, `.response_body` | honoured |
//! | `upstream_cluster`, `headers`, `downstream_nodes`, `max_active_faults`, `filter_metadata` | honoured |
//! | `disable_downstream_cluster_stats` | honoured |
//! | `*_runtime` | ignored: there is no runtime to look them up in |
//! | `response_rate_limit` | refused |
//!
//! Per route: the same message, which replaces the filter's. Header delays and aborts are asked for with
//! `x-envoy-fault-delay-request` (milliseconds), `x-envoy-fault-abort-request` (a status),
//! `x-envoy-fault-abort-grpc-request`, and lowered with `…-request-percentage`.
//!
//! Statistics: `http.<stat_prefix>.fault.{aborts_injected, active_faults, delays_injected, faults_overflow,
//! response_rl_injected}`, and `<downstream cluster>.{aborts,delays}_injected` on demand.

mod config;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::{HeaderName, StatusCode};

pub use config::Config;
use config::{Abort, Delay};

use super::factory::{BuildContext, FilterFactory, PerRoute, per_route_all};
use super::{HttpFilter, Step};
use crate::config::ConfigError;
use crate::http::{Body, LocalReply, RequestHead, ResponseFlag};
use crate::pb::envoy::extensions::filters::http::fault::v3 as proto;
use crate::route::matcher::header_matches;
use crate::stream::Stream;
use crate::telemetry::metrics::{Kind, Registry, StatSet};

const ABORT: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request");
const ABORT_GRPC: HeaderName = HeaderName::from_static("x-envoy-fault-abort-grpc-request");
const ABORT_PERCENTAGE: HeaderName =
    HeaderName::from_static("x-envoy-fault-abort-request-percentage");
const DELAY: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request");
const DELAY_PERCENTAGE: HeaderName =
    HeaderName::from_static("x-envoy-fault-delay-request-percentage");
const DOWNSTREAM_CLUSTER: HeaderName =
    HeaderName::from_static("x-envoy-downstream-service-cluster");
const DOWNSTREAM_NODE: HeaderName = HeaderName::from_static("x-envoy-downstream-service-node");

crate::stats! {
    /// `http.<stat_prefix>.fault.`
    pub mod stat {
        ABORTS_INJECTED: Counter = "aborts_injected",
        ACTIVE_FAULTS: Gauge = "active_faults",
        DELAYS_INJECTED: Counter = "delays_injected",
        FAULTS_OVERFLOW: Counter = "faults_overflow",
        RESPONSE_RL_INJECTED: Counter = "response_rl_injected",
    }
}

/// The filter.
#[derive(Clone, Debug)]
pub struct Fault(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: Box<str>,
    slot: usize,
    config: Arc<Config>,
    stats: Arc<StatSet>,
    active: AtomicU64,
    metrics: Registry,
    stat_prefix: Box<str>,
}

impl FilterFactory for Fault {
    const NAME: &'static str = "envoy.filters.http.fault";
    type Proto = proto::HttpFault;
    type Config = Config;

    fn parse(proto: proto::HttpFault, _: &str) -> Result<Config, ConfigError> {
        Config::parse(proto)
    }

    fn build(config: &Arc<Config>, context: &BuildContext<'_>) -> Arc<dyn HttpFilter> {
        Arc::new(Self(Arc::new(Inner {
            name: context.name.into(),
            slot: context.slot,
            config: Arc::clone(config),
            stats: context.stats(&stat::TABLE, "fault"),
            active: AtomicU64::new(0),
            metrics: context.chain.metrics.clone(),
            stat_prefix: context.chain.stat_prefix.into(),
        })))
    }
}

impl PerRoute for Fault {
    type RouteProto = proto::HttpFault;
    type RouteConfig = Config;

    fn parse_route(proto: proto::HttpFault, _: &str) -> Result<Config, ConfigError> {
        Config::parse(proto)
    }
}

/// In a stream's slot: it counts as an active fault.
struct Active;

impl HttpFilter for Fault {
    fn request(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let route = stream.route();
        let of_route = route
            .as_ref()
            .and_then(|route| per_route_all::<Config>(route, &self.0.name).next());
        let config = of_route.unwrap_or(&self.0.config);
        let cluster = route.as_ref().and_then(|route| route.cluster.as_deref());
        let delay = {
            let request = stream.request.lock();
            if !config.concerns(&request, cluster) {
                return Step::Next(body);
            }
            config.delay.as_ref().and_then(|delay| delay.of(&request))
        };
        if self.0.active.load(Relaxed) >= config.max_active.unwrap_or(u64::MAX) {
            self.0.stats.inc(stat::FAULTS_OVERFLOW);
            return Step::Next(body);
        }
        let Some(delay) = delay else {
            return match self.abort(stream, config) {
                Some(reply) => Step::reply(reply),
                None => Step::Next(body),
            };
        };
        self.inject(stream, config, stat::DELAYS_INJECTED, "delays_injected");
        stream.info.lock().flags.set(ResponseFlag::DelayInjected);
        let this = self.clone();
        let stream = Arc::clone(stream);
        Step::Wait(Box::pin(async move {
            tokio::time::sleep(delay).await;
            let of_route = route
                .as_ref()
                .and_then(|route| per_route_all::<Config>(route, &this.0.name).next());
            let config = of_route.unwrap_or(&this.0.config);
            match this.abort(&stream, config) {
                Some(reply) => Step::reply(reply),
                None => Step::Next(body),
            }
        }))
    }

    fn end(&self, stream: &Arc<Stream>) {
        if stream.take_slot::<Active>(self.0.slot).is_some() {
            self.0.active.fetch_sub(1, Relaxed);
            self.0.stats.dec(stat::ACTIVE_FAULTS);
        }
    }
}

impl Fault {
    fn abort(&self, stream: &Stream, config: &Config) -> Option<LocalReply> {
        let abort = config.abort.as_ref()?;
        let (status, grpc_status) = abort.of(&stream.request.lock())?;
        self.inject(stream, config, stat::ABORTS_INJECTED, "aborts_injected");
        let mut reply = LocalReply::new(status, abort.body.clone(), "fault_filter_abort")
            .flag(ResponseFlag::FaultInjected);
        reply.grpc_status = grpc_status;
        Some(reply)
    }

    /// Counts a fault, and the stream as one with a fault.
    fn inject(
        &self,
        stream: &Stream,
        config: &Config,
        stat: crate::telemetry::metrics::Stat,
        name: &str,
    ) {
        let inner = &self.0;
        inner.stats.inc(stat);
        if stream.peek_slot(inner.slot, |_: &mut Active| ()).is_none() {
            stream.with_slot(inner.slot, || Active, |_| ());
            inner.active.fetch_add(1, Relaxed);
            inner.stats.inc(stat::ACTIVE_FAULTS);
        }
        if !config.no_downstream_stats {
            let of = stream
                .request
                .lock()
                .headers
                .get(DOWNSTREAM_CLUSTER)
                .and_then(|value| value.to_str().ok().map(str::to_owned));
            if let Some(of) = of.filter(|of| !of.is_empty()) {
                let name = format!("http.{}.fault.{of}.{name}", inner.stat_prefix);
                inner.metrics.metric(&name, Kind::Counter).add(1);
            }
        }
        // Under the filter's name in the chain, and there even where it is empty, as in Envoy.
        let metadata = config.metadata.clone().unwrap_or_default();
        stream
            .info
            .lock()
            .dynamic_metadata
            .get_or_insert_default()
            .filter_metadata
            .insert(inner.name.to_string(), metadata);
    }
}

impl Config {
    /// Whether the filter has anything to do with the request.
    fn concerns(&self, request: &RequestHead, cluster: Option<&str>) -> bool {
        let cluster_fits = match &self.upstream_cluster {
            Some(wanted) => cluster == Some(wanted),
            None => true,
        };
        let node_fits = self.downstream_nodes.is_empty()
            || request.headers.get(DOWNSTREAM_NODE).is_some_and(|node| {
                self.downstream_nodes
                    .iter()
                    .any(|known| known.as_bytes() == node.as_bytes())
            });
        cluster_fits
            && node_fits
            && self
                .headers
                .iter()
                .all(|matcher| header_matches(matcher, request))
    }
}

fn number(request: &RequestHead, name: &HeaderName) -> Option<u64> {
    request.headers.get(name)?.to_str().ok()?.parse().ok()
}

impl Delay {
    fn of(&self, request: &RequestHead) -> Option<Duration> {
        let (delay, percentage) = match self.fixed {
            Some(delay) => (delay, self.percentage),
            None => (
                Duration::from_millis(number(request, &DELAY)?),
                self.percentage.lowered(number(request, &DELAY_PERCENTAGE)),
            ),
        };
        (!delay.is_zero() && percentage.happens()).then_some(delay)
    }
}

impl Abort {
    /// The status, and the gRPC status where one was asked for.
    fn of(&self, request: &RequestHead) -> Option<(StatusCode, Option<u32>)> {
        let status = match self.status {
            config::Status::Http(status) => (status, None),
            config::Status::Grpc(status) => (StatusCode::OK, Some(status)),
            config::Status::Header => {
                let asked = number(request, &ABORT)
                    .and_then(|status| StatusCode::from_u16(u16::try_from(status).ok()?).ok())
                    .filter(|status| (200..600).contains(&status.as_u16()));
                match asked {
                    Some(status) => (status, None),
                    None => {
                        let grpc = number(request, &ABORT_GRPC)?;
                        (StatusCode::OK, Some(u32::try_from(grpc).ok()?))
                    }
                }
            }
        };
        let percentage = match self.status {
            config::Status::Header => self.percentage.lowered(number(request, &ABORT_PERCENTAGE)),
            _ => self.percentage,
        };
        percentage.happens().then_some(status)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::config::extension::PerRouteConfig;
    use crate::filter::testing::{TestChain, build, metrics, parse, per_route_config};

    fn chain(yaml: &str) -> (TestChain, Registry) {
        let registry = metrics();
        let chain = TestChain::new(vec![build::<Fault>(0, yaml, &registry)]);
        (chain, registry)
    }

    fn stats(registry: &Registry) -> Arc<StatSet> {
        let set = registry.sets().pop().expect("the filter's");
        assert_eq!(set.prefix(), "http.p.fault.");
        set
    }

    #[tokio::test(start_paused = true)]
    async fn delays_then_aborts() {
        let (chain, registry) = chain(
            "delay: {fixed_delay: 2s, percentage: {numerator: 100}}
abort: {http_status: 418, percentage: {numerator: 100}, response_body: teapot}",
        );
        let begin = Instant::now();
        let answer = chain.get("/").await;
        assert_eq!(begin.elapsed().as_secs(), 2);
        assert_eq!((answer.status(), answer.text()), (418, "teapot"));
        assert_eq!(answer.flags(), "DI,FI");
        assert_eq!(answer.details(), "fault_filter_abort");
        let stats = stats(&registry);
        assert_eq!(stats.value(stat::DELAYS_INJECTED), 1);
        assert_eq!(stats.value(stat::ABORTS_INJECTED), 1);
        assert_eq!(stats.value(stat::ACTIVE_FAULTS), 0, "the stream has ended");
        assert!(stats.is_used(stat::ACTIVE_FAULTS));
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_alone_goes_on() {
        let (chain, _) = chain("delay: {fixed_delay: 1s, percentage: {numerator: 100}}");
        let answer = chain.get("/").await;
        assert_eq!((answer.status(), answer.text()), (200, "upstream"));
        assert_eq!(answer.flags(), "DI");
    }

    #[tokio::test]
    async fn metadata_stands_under_the_filters_name_in_the_chain() {
        let (chain, _) = chain(
            "abort: {http_status: 503, percentage: {numerator: 100}}
filter_metadata: {k: v}",
        );
        let answer = chain.get("/").await;
        let info = answer.stream.info.lock();
        let metadata = info.dynamic_metadata.as_deref().expect("set");
        let names: Vec<_> = metadata.filter_metadata.keys().collect();
        assert_eq!(names, ["f0"]);
        drop(info);
        let (chain, _) = self::chain("abort: {http_status: 503, percentage: {numerator: 100}}");
        let answer = chain.get("/").await;
        let info = answer.stream.info.lock();
        let metadata = info.dynamic_metadata.as_deref().expect("set");
        assert_eq!(metadata.filter_metadata["f0"], Default::default());
    }

    #[tokio::test]
    async fn a_grpc_abort_is_an_answer_of_its_kind() {
        let (chain, _) = chain("abort: {grpc_status: 5, percentage: {numerator: 100}}");
        let answer = chain.get("/").await;
        assert_eq!(
            (answer.status(), answer.text()),
            (200, "fault filter abort")
        );
        let answer = chain
            .get_with("/", &[("content-type", "application/grpc")])
            .await;
        assert_eq!(answer.header("grpc-status"), Some("5"));
        assert_eq!(answer.header("grpc-message"), Some("fault filter abort"));
    }

    #[tokio::test(start_paused = true)]
    async fn headers_ask_for_faults() {
        let (chain, _) = chain(
            "abort: {header_abort: {}, percentage: {numerator: 100}}
delay: {header_delay: {}, percentage: {numerator: 100}}",
        );
        for (headers, status, flags) in [
            (&[][..], 200, "-"),
            (&[("x-envoy-fault-abort-request", "503")][..], 503, "FI"),
            (&[("x-envoy-fault-abort-request", "99")][..], 200, "-"),
            (&[("x-envoy-fault-abort-grpc-request", "7")][..], 200, "FI"),
            (&[("x-envoy-fault-delay-request", "50")][..], 200, "DI"),
            (
                &[
                    ("x-envoy-fault-abort-request", "503"),
                    ("x-envoy-fault-abort-request-percentage", "0"),
                ][..],
                200,
                "-",
            ),
        ] {
            let answer = chain.get_with("/", headers).await;
            assert_eq!(
                (answer.status(), answer.flags().as_str()),
                (status, flags),
                "{headers:?}"
            );
        }
    }

    #[tokio::test]
    async fn only_what_it_concerns() {
        let abort = "abort: {http_status: 503, percentage: {numerator: 100}}";
        for (more, headers, status) in [
            ("upstream_cluster: a", &[][..], 503),
            ("upstream_cluster: b", &[][..], 200),
            (
                "headers: [{name: x, string_match: {exact: y}}]",
                &[("x", "y")][..],
                503,
            ),
            (
                "headers: [{name: x, string_match: {exact: y}}]",
                &[][..],
                200,
            ),
            (
                "downstream_nodes: [n]",
                &[("x-envoy-downstream-service-node", "n")][..],
                503,
            ),
            ("downstream_nodes: [n]", &[][..], 200),
        ] {
            let (chain, _) = chain(&format!("{abort}\n{more}"));
            let answer = chain.forward("a").get_with("/", headers).await;
            assert_eq!(answer.status(), status, "{more} {headers:?}");
        }
        let (chain, _) = chain("abort: {http_status: 503}");
        assert_eq!(chain.get("/").await.status(), 200, "no percentage is none");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_so_many_at_once() {
        let (chain, registry) = chain(
            "delay: {fixed_delay: 1s, percentage: {numerator: 100}}
max_active_faults: 1",
        );
        let (first, second) = tokio::join!(chain.get("/"), chain.get("/"));
        assert_eq!(
            (first.flags().as_str(), second.flags().as_str()),
            ("DI", "-")
        );
        assert_eq!(stats(&registry).value(stat::FAULTS_OVERFLOW), 1);
        assert_eq!(chain.get("/").await.flags(), "DI", "the first has ended");
    }

    #[tokio::test]
    async fn a_route_has_its_own() {
        let (chain, _) = chain("abort: {http_status: 503, percentage: {numerator: 100}}");
        let chain = chain.per_route(
            "f0",
            per_route_config::<proto::HttpFault>(
                "abort: {http_status: 404, percentage: {numerator: 100}}",
            ),
        );
        assert_eq!(chain.get("/").await.status(), 404);
        let chain = chain.per_route(
            "f0",
            PerRouteConfig {
                disabled: Some(true),
                config: None,
            },
        );
        assert_eq!(chain.get("/").await.status(), 200);
    }

    #[test]
    fn refuses_what_it_cannot_do() {
        for (yaml, error) in [
            (
                "response_rate_limit: {fixed_limit: {limit_kbps: 1}}",
                "response_rate_limit: not supported",
            ),
            (
                "abort: {http_status: 100}",
                "abort.http_status: value must be",
            ),
            (
                "abort: {percentage: {numerator: 1}}",
                "abort.error_type: value is required",
            ),
            ("delay: {fixed_delay: 0s}", "delay.fixed_delay: "),
        ] {
            let text = parse::<Fault>(yaml).expect_err("refused").to_string();
            assert!(text.starts_with(error), "{text}");
        }
    }
}
