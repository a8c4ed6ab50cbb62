//! `envoy.filters.http.health_check`: answers health checks of load balancers, from what is known of this server and of
//! its upstreams.
//!
//! | field | |
//! |---|---|
//! | `pass_through_mode`, `cache_time`, `cluster_min_healthy_percentages`, `headers` | honoured |
//!
//! Answers carry `x-envoy-upstream-healthchecked-cluster` (this node's cluster); a health check is marked as such for
//! access-log filters. After `POST /healthcheck/fail` every health check fails (503, `LH`).
//!
//! Statistics: `http.<stat_prefix>.health_check.{cached_response, degraded, failed, failed_cluster_empty,
//! failed_cluster_not_found, failed_cluster_unhealthy, ok, request_total}`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::factory::{BuildContext, FilterFactory};
use super::{HttpFilter, Step};
use crate::cluster::ClusterMap;
use crate::config::ConfigError;
use crate::config::error::At as _;
use crate::config::field::{duration, each, percent, required};
use crate::config::matcher::HeaderMatcher;
use crate::http::{Body, LocalReply, ResponseFlag};
use crate::pb::envoy::extensions::filters::http::health_check::v3 as proto;
use crate::route::matcher::header_matches;
use crate::stream::Stream;
use crate::telemetry::metrics::StatSet;

const CHECKED_CLUSTER: HeaderName =
    HeaderName::from_static("x-envoy-upstream-healthchecked-cluster");
const IMMEDIATE_FAIL: HeaderName = HeaderName::from_static("x-envoy-immediate-health-check-fail");
const DEGRADED: HeaderName = HeaderName::from_static("x-envoy-degraded");

crate::stats! {
    mod stat {
        CACHED_RESPONSE: Counter = "cached_response",
        DEGRADED: Counter = "degraded",
        FAILED: Counter = "failed",
        FAILED_CLUSTER_EMPTY: Counter = "failed_cluster_empty",
        FAILED_CLUSTER_NOT_FOUND: Counter = "failed_cluster_not_found",
        FAILED_CLUSTER_UNHEALTHY: Counter = "failed_cluster_unhealthy",
        OK: Counter = "ok",
        REQUEST_TOTAL: Counter = "request_total",
    }
}

/// Which requests are health checks, and how they are answered.
#[derive(Debug)]
pub struct Config {
    pass_through: bool,
    cache_time: Option<Duration>,
    clusters: Vec<(Box<str>, f64)>,
    headers: Vec<HeaderMatcher>,
}

/// The filter.
#[derive(Debug)]
pub struct HealthCheck {
    slot: usize,
    config: Arc<Config>,
    stats: Arc<StatSet>,
    cluster: HeaderValue,
    server_failed: Option<Arc<AtomicBool>>,
    /// The upstream's last answer to a health check. Locked for the length of a copy, by health checks alone.
    cache: Mutex<Option<Cached>>,
}

#[derive(Clone, Copy, Debug)]
struct Cached {
    status: StatusCode,
    degraded: bool,
    until: Instant,
}

/// In a stream's slot: it is a health check.
struct Checked;

impl FilterFactory for HealthCheck {
    const NAME: &'static str = "envoy.filters.http.health_check";
    type Proto = proto::HealthCheck;
    type Config = Config;

    fn parse(proto: proto::HealthCheck, _: &str) -> Result<Config, ConfigError> {
        let proto::HealthCheck {
            pass_through_mode,
            cache_time,
            cluster_min_healthy_percentages,
            headers,
        } = proto;
        let pass_through = required(pass_through_mode, "pass_through_mode")?.value;
        let cache_time = duration(cache_time, "cache_time")?.filter(|time| !time.is_zero());
        if !pass_through && cache_time.is_some() {
            return Err(ConfigError::invalid(
                "cache_time_ms must not be set when path_through_mode is disabled",
            ));
        }
        let mut clusters = cluster_min_healthy_percentages
            .into_iter()
            .map(|(name, value)| {
                let value = percent(Some(value), "cluster_min_healthy_percentages")?;
                Ok((name.into_boxed_str(), value.unwrap_or_default()))
            })
            .collect::<Result<Vec<_>, _>>()
            .at("")?;
        clusters.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Config {
            pass_through,
            cache_time,
            clusters,
            headers: each(headers, "headers", HeaderMatcher::parse)?,
        })
    }

    fn build(config: &Arc<Config>, context: &BuildContext<'_>) -> Arc<dyn HttpFilter> {
        let cluster = HeaderValue::from_str(&context.chain.node.cluster);
        Arc::new(Self {
            slot: context.slot,
            config: Arc::clone(config),
            stats: context.stats(&stat::TABLE, "health_check"),
            cluster: cluster.unwrap_or(HeaderValue::from_static("")),
            server_failed: context.chain.health_failed.cloned(),
            cache: Mutex::default(),
        })
    }
}

impl HealthCheck {
    fn server_failed(&self) -> bool {
        self.server_failed
            .as_ref()
            .is_some_and(|failed| failed.load(Relaxed))
    }

    fn cached(&self) -> Option<Cached> {
        let cached = (*self.cache.lock())?;
        (Instant::now() < cached.until).then_some(cached)
    }

    fn reply(&self, clusters: &ClusterMap) -> LocalReply {
        self.stats.inc(stat::REQUEST_TOTAL);
        let mut degraded = false;
        let (status, details) = if self.server_failed() {
            (StatusCode::SERVICE_UNAVAILABLE, "health_check_failed")
        } else if let Some(cached) = self.cached() {
            self.stats.inc(stat::CACHED_RESPONSE);
            degraded = cached.degraded;
            (cached.status, "health_check_cached")
        } else if let Some(failed) = self.unhealthy(clusters) {
            (StatusCode::SERVICE_UNAVAILABLE, failed)
        } else if self.config.clusters.is_empty() {
            (StatusCode::OK, "health_check_ok")
        } else {
            (StatusCode::OK, "health_check_ok_cluster_healthy")
        };
        let mut reply = LocalReply::new(status, "", details);
        if status.is_success() {
            self.stats.inc(stat::OK);
        } else {
            self.stats.inc(stat::FAILED);
            reply = reply.flag(ResponseFlag::FailedLocalHealthCheck);
        }
        if degraded {
            self.stats.inc(stat::DEGRADED);
            reply.headers.insert(DEGRADED, HeaderValue::from_static(""));
        }
        reply
    }

    /// The first cluster with too few hosts that can serve.
    fn unhealthy(&self, clusters: &ClusterMap) -> Option<&'static str> {
        for (name, least) in &self.config.clusters {
            let Some(cluster) = clusters.get(name) else {
                self.stats.inc(stat::FAILED_CLUSTER_NOT_FOUND);
                return Some("health_check_failed_no_cluster_found");
            };
            let hosts = cluster.endpoints().membership();
            if hosts.total == 0 {
                if *least == 0.0 {
                    continue;
                }
                self.stats.inc(stat::FAILED_CLUSTER_EMPTY);
                return Some("health_check_failed_cluster_empty");
            }
            let serving = (hosts.healthy + hosts.degraded) as f64;
            if 100.0 * serving < hosts.total as f64 * least {
                self.stats.inc(stat::FAILED_CLUSTER_UNHEALTHY);
                return Some("health_check_failed_cluster_unhealthy");
            }
        }
        None
    }
}

impl HttpFilter for HealthCheck {
    fn request(&self, stream: &Arc<Stream>, mut body: Body) -> Step<Body> {
        let is_check = {
            let request = stream.request.lock();
            self.config
                .headers
                .iter()
                .all(|matcher| header_matches(matcher, &request))
        };
        if !is_check {
            return Step::Next(body);
        }
        stream.info.lock().health_check = true;
        stream.with_slot(self.slot, || Checked, |_| ());
        if self.config.pass_through && !self.server_failed() && self.cached().is_none() {
            return Step::Next(body);
        }
        if http_body::Body::is_end_stream(&body) {
            return Step::reply(self.reply(&stream.config.clusters));
        }
        // The answer waits for the whole request.
        let reply = self.reply(&stream.config.clusters);
        Step::Wait(Box::pin(async move {
            while let Some(Ok(_)) = body.frame().await {}
            Step::reply(reply)
        }))
    }

    fn response(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        if self.server_failed()
            && let Some(head) = &mut *stream.response.lock()
        {
            // Whoever balances load over this server needs no health check to know.
            head.headers
                .insert(IMMEDIATE_FAIL, HeaderValue::from_static("true"));
        }
        if stream.take_slot::<Checked>(self.slot).is_none() {
            return Step::Next(body);
        }
        let own = stream.info.lock().local_reply;
        if let Some(head) = &mut *stream.response.lock() {
            if let Some(cache_time) = self.config.cache_time
                && !own
            {
                *self.cache.lock() = Some(Cached {
                    status: head.status,
                    degraded: head.headers.contains_key(DEGRADED),
                    until: Instant::now() + cache_time,
                });
            }
            head.headers.insert(CHECKED_CLUSTER, self.cluster.clone());
        }
        Step::Next(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::testing::{FakeUpstream, TestChain, build, metrics, parse};
    use crate::telemetry::metrics::Registry;

    const PATH: &str = "headers: [{name: ':path', string_match: {exact: /healthz}}]";

    fn chain(yaml: &str) -> (TestChain, Registry) {
        let registry = metrics();
        let filter = build::<HealthCheck>(0, &format!("{PATH}\n{yaml}"), &registry);
        (TestChain::new(vec![filter]), registry)
    }

    fn value(registry: &Registry, stat: crate::telemetry::metrics::Stat) -> u64 {
        registry.sets().pop().expect("the filter's").value(stat)
    }

    #[tokio::test]
    async fn answers_for_this_server() {
        let (chain, registry) = chain("pass_through_mode: false");
        let answer = chain.get("/healthz").await;
        assert_eq!((answer.status(), answer.text()), (200, ""));
        assert_eq!(answer.details(), "health_check_ok");
        assert_eq!(
            answer.header("x-envoy-upstream-healthchecked-cluster"),
            Some("here")
        );
        assert!(answer.stream.info.lock().health_check);
        assert_eq!(value(&registry, stat::OK), 1);
        assert_eq!(value(&registry, stat::REQUEST_TOTAL), 1);
        let other = chain.get("/").await;
        assert_eq!(other.text(), "upstream");
        assert!(!other.stream.info.lock().health_check);
        assert_eq!(other.header("x-envoy-upstream-healthchecked-cluster"), None);
    }

    #[tokio::test]
    async fn a_cluster_that_is_not_there_fails() {
        let (chain, registry) = chain(
            "pass_through_mode: false
cluster_min_healthy_percentages: {gone: {value: 50}}",
        );
        let answer = chain.get("/healthz").await;
        assert_eq!((answer.status(), answer.flags().as_str()), (503, "LH"));
        assert_eq!(answer.details(), "health_check_failed_no_cluster_found");
        assert_eq!(value(&registry, stat::FAILED_CLUSTER_NOT_FOUND), 1);
        assert_eq!(value(&registry, stat::FAILED), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_upstream_said_is_remembered_for_a_while() {
        let (chain, registry) = chain("pass_through_mode: true\ncache_time: 2s");
        let upstream = FakeUpstream {
            status: StatusCode::IM_A_TEAPOT,
            ..FakeUpstream::default()
        };
        let chain = chain.terminal(Arc::new(upstream));
        let answer = chain.get("/healthz").await;
        assert_eq!((answer.status(), answer.text()), (418, "upstream"));
        let answer = chain.get("/healthz").await;
        assert_eq!((answer.status(), answer.text()), (418, ""));
        assert_eq!(answer.details(), "health_check_cached");
        assert_eq!(value(&registry, stat::CACHED_RESPONSE), 1);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(chain.get("/healthz").await.text(), "upstream");
    }

    #[tokio::test]
    async fn every_answer_tells_that_the_server_fails() {
        let switch = Arc::<AtomicBool>::default();
        let registry = metrics();
        let filter = HealthCheck {
            slot: 0,
            config: Arc::new(
                parse::<HealthCheck>(&format!("{PATH}\npass_through_mode: false")).expect("valid"),
            ),
            stats: registry.set(&stat::TABLE, "health_check.", "health_check", []),
            cluster: HeaderValue::from_static("here"),
            server_failed: Some(Arc::clone(&switch)),
            cache: Mutex::default(),
        };
        let chain = TestChain::new(vec![Arc::new(filter)]);
        let told = "x-envoy-immediate-health-check-fail";
        assert_eq!(chain.get("/").await.header(told), None);
        switch.store(true, Relaxed);
        assert_eq!(chain.get("/").await.header(told), Some("true"));
        let answer = chain.get("/healthz").await;
        assert_eq!((answer.status(), answer.header(told)), (503, Some("true")));
    }

    #[test]
    fn refuses_a_cache_without_an_upstream() {
        assert!(parse::<HealthCheck>("pass_through_mode: false\ncache_time: 1s").is_err());
        let error = parse::<HealthCheck>("{}").expect_err("refused").to_string();
        assert!(error.starts_with("pass_through_mode"), "{error}");
    }
}
