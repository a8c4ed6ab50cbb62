//! `envoy.filters.http.router`, the terminal filter: route, cluster, host, attempt, timeouts, and what becomes of
//! failures.
//!
//! | field | |
//! |---|---|
//! | `dynamic_stats` | honoured |
//! | `suppress_envoy_headers` | honoured |
//! | `strict_check_headers` | honoured |
//! | `respect_expected_rq_timeout` | honoured |
//! | `start_child_span`, `reject_connect_request_early_data` | ignored: there is no tracing; early data are not read |
//! | `suppress_grpc_request_failure_code_stats` | honoured |
//! | `upstream_log`, `upstream_log_options` | refused |
//! | `upstream_http_filters` | honoured, for clusters without `http_filters`; see [`super::upstream`] |
//!
//! One attempt is made; retries, hedging and mirroring belong between [`Router::forward`] and [`attempt`]. The route's
//! timeout is one of the stream's deadlines, which the root driver watches, before and after the response's head.

mod config;
mod direct;
pub(super) mod timeout;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode, Version};
use tokio::time::Instant;

pub use config::Config;

use super::factory::{BuildContext, FilterFactory};
use super::upstream::{self, Filters, Unanswered};
use super::{BoxFuture, HttpFilter, HttpFilterChain, Step};
use crate::cluster::{
    self, Cluster, DropOverload, Host, Origin, Parties, PickContext, SendOptions,
    UpstreamConnection, UpstreamError, UpstreamErrorKind, UpstreamResponse,
};
use crate::config::ConfigError;
use crate::config::route::{Action, ForwardAction, HostRewrite};
use crate::http::order::take_out;
use crate::http::router_headers::{self, EXPECTED_RQ_TIMEOUT};
use crate::http::{
    Body, BodyError, LocalReply, ReplyReason, RequestHead, ResponseFlag, ResponseHead,
};
use crate::pb::envoy::extensions::filters::http::router::v3 as proto;
use crate::route::{SelectedRoute, rewrite};
use crate::stream::{Stream, Timeout, finalize};
use crate::wasm::Plugins;

const CANARY: HeaderName = HeaderName::from_static("x-envoy-upstream-canary");
const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
const INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");

/// The router.
#[derive(Debug)]
pub struct Router {
    config: Arc<Config>,
    /// Of clusters that have no list of their own.
    upstream_filters: Option<Arc<HttpFilterChain>>,
}

impl FilterFactory for Router {
    const NAME: &'static str = "envoy.filters.http.router";
    const TERMINAL: bool = true;
    type Proto = proto::Router;
    type Config = Config;

    fn parse(proto: proto::Router, _: &str) -> Result<Config, ConfigError> {
        Config::parse(proto)
    }

    fn admit(
        config: &Arc<Config>,
        plugins: &Plugins,
    ) -> Option<BoxFuture<Result<(), ConfigError>>> {
        upstream::admit(&config.upstream_filters, "upstream_http_filters", plugins)
    }

    fn build(config: &Arc<Config>, context: &BuildContext<'_>) -> Arc<dyn HttpFilter> {
        Arc::new(Self {
            upstream_filters: upstream::build(&config.upstream_filters, context.chain),
            config: Arc::clone(config),
        })
    }
}

impl HttpFilter for Router {
    fn request(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        {
            let mut info = stream.info.lock();
            info.reached_router = true;
            // A filter may have had another route chosen, which has none.
            info.upstream.cluster = None;
        }
        let Some(route) = stream.route() else {
            return Step::reply(ReplyReason::RouteNotFound.into());
        };
        match &route.route.action {
            Action::Forward(action) => match self.forward(stream, &route, action) {
                Ok(attempt) => {
                    let of_router = self.upstream_filters.as_ref();
                    match upstream::begin(stream, &attempt.cluster, of_router) {
                        Ok(None) => Step::Wait(Box::pin(attempt.run(body))),
                        Ok(Some(filters)) => Step::Wait(Box::pin(attempt.filtered(filters, body))),
                        Err(reply) => Step::Reply(reply),
                    }
                }
                Err(reply) => Step::Reply(reply),
            },
            Action::Redirect(action) => {
                let keep_original = !self.config.suppress_envoy_headers;
                Step::reply(direct::redirect(stream, &route, action, keep_original))
            }
            Action::DirectResponse(response) => Step::reply(direct::response(stream, response)),
            // It has no cluster: that is what Envoy says of it.
            Action::NonForwarding => {
                Step::reply(ReplyReason::ClusterNotFound(StatusCode::SERVICE_UNAVAILABLE).into())
            }
        }
    }

    /// Statistics of the cluster that are known at the end alone.
    fn log(&self, stream: &Arc<Stream>) {
        let info = stream.info.lock();
        let Some(cluster) = &info.upstream.cluster else {
            return;
        };
        let origin = origin(&stream.request.lock());
        let host = info.upstream.host.as_deref();
        if info.flags.contains(ResponseFlag::UpstreamRequestTimeout) {
            cluster.timed_out(host);
            if info.local_reply && self.config.dynamic_stats {
                cluster.answered(host, StatusCode::GATEWAY_TIMEOUT.as_u16(), origin);
            }
        }
        if self.config.dynamic_stats
            && !info.health_check
            && let (Some(from), Some(to)) = (info.request_end, info.upstream_last_rx)
        {
            let canary = info.upstream.canary;
            cluster.answer_time(
                to.saturating_duration_since(from),
                Parties { origin, canary },
            );
        }
    }
}

impl Router {
    /// Everything that comes before an attempt; the reply where it does not come to one.
    fn forward(
        &self,
        stream: &Arc<Stream>,
        route: &Arc<SelectedRoute>,
        action: &ForwardAction,
    ) -> Result<Attempt, Box<LocalReply>> {
        let cluster = route
            .cluster
            .as_deref()
            .and_then(|name| stream.config.clusters.get(name))
            .ok_or_else(|| {
                let status = action.cluster_not_found_status;
                Box::new(ReplyReason::ClusterNotFound(status).into())
            })?;
        stream.info.lock().upstream.cluster = Some(Arc::clone(cluster));
        let origin = {
            let mut request = stream.request.lock();
            let origin = origin(&request);
            config::strict_check(&self.config.strict_check_headers, &request.headers)?;
            let timeout = self.timeout(&mut request, action);
            if route.virtual_host().include_request_attempt_count {
                request
                    .headers
                    .insert(ATTEMPT_COUNT, HeaderValue::from_static("1"));
            }
            let options = &stream.config.options;
            let max_duration =
                timeout::max_duration(&request.headers, action, options.max_stream_duration);
            if let Some(rule) = &action.stream_duration
                && request.is_grpc()
            {
                timeout::tell(&mut request.headers, rule, max_duration);
            }
            drop(request);
            // Anew, since a filter may have cleared the first route.
            stream.set_timeouts(|timeouts| {
                timeouts.response = timeout;
                timeouts.idle = action.idle_timeout.unwrap_or(options.stream_idle_timeout);
                timeouts.max_duration = max_duration;
            });
            origin
        };
        if let Some(dropped) = cluster.drop_overload() {
            if self.config.dynamic_stats {
                cluster.answered(None, StatusCode::SERVICE_UNAVAILABLE.as_u16(), origin);
            }
            return Err(Box::new(self.dropped(&dropped)));
        }
        // An attempt for which there is no host counts, too, and header rules can tell.
        stream.info.lock().attempts += 1;
        finalize::finalize_request(stream, route, !self.config.suppress_envoy_headers);
        let Some(host) = cluster.pick(&PickContext::default()) else {
            if self.config.dynamic_stats {
                cluster.answered(None, StatusCode::SERVICE_UNAVAILABLE.as_u16(), origin);
            }
            let mut reply: LocalReply = ReplyReason::NoHealthyUpstream.into();
            if route.virtual_host().include_attempt_count_in_response {
                reply.headers.insert(ATTEMPT_COUNT, number(1));
            }
            return Err(Box::new(reply));
        };
        let authority = match action.host_rewrite {
            HostRewrite::Auto if !host.hostname.is_empty() => {
                HeaderValue::from_str(&host.hostname).ok()
            }
            _ => None,
        };
        let attempts = {
            let mut info = stream.info.lock();
            info.upstream.host = Some(Arc::clone(&host));
            info.attempts
        };
        Ok(Attempt {
            stream: Arc::clone(stream),
            route: Arc::clone(route),
            cluster: Arc::clone(cluster),
            host,
            authority,
            config: Arc::clone(&self.config),
            origin,
            attempts,
        })
    }

    /// The route's timeout, which a trusted client may replace; told to the upstream.
    fn timeout(&self, request: &mut RequestHead, action: &ForwardAction) -> Option<Duration> {
        let grpc = action
            .grpc_timeout
            .filter(|_| action.stream_duration.is_none() && request.is_grpc());
        let headers = &mut request.headers;
        let mut timeout = match (action.stream_duration, grpc) {
            (None, None) => action.timeout,
            (None, Some(grpc)) => timeout::of_grpc(headers, &grpc),
            // A route with `max_stream_duration` has no timeout of the old kind.
            (Some(_), _) => None,
        };
        let told = self
            .config
            .respect_expected_rq_timeout
            .then(|| headers.get(EXPECTED_RQ_TIMEOUT))
            .flatten();
        if let Some(told) = told {
            timeout = router_headers::duration(told).unwrap_or(timeout);
        } else if let Some(asked) = router_headers::take_timeout(headers) {
            timeout = asked;
        }
        // Meant for this router; the upstream does not see them, as little as Envoy's does. Those of external clients
        // are gone already.
        if headers.contains_key(INTERNAL) {
            router_headers::take_wishes(headers);
        }
        if let Some(timeout) = timeout
            && !self.config.suppress_envoy_headers
        {
            let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            headers.insert(EXPECTED_RQ_TIMEOUT, number(millis));
        }
        if grpc.is_some()
            && let Some(timeout) = timeout
        {
            headers.insert(timeout::GRPC_TIMEOUT, timeout::to_grpc(timeout));
        }
        timeout
    }

    fn dropped(&self, dropped: &DropOverload) -> LocalReply {
        let (flag, details, name) = if dropped.unconditional {
            (
                ResponseFlag::UnconditionalDropOverload,
                "unconditional_drop_overload",
                "x-envoy-unconditional-drop-overload",
            )
        } else {
            (
                ResponseFlag::DropOverload,
                "drop_overload",
                "x-envoy-drop-overload",
            )
        };
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let mut reply = LocalReply::new(status, "drop overload", details).flag(flag);
        if !self.config.suppress_envoy_headers {
            reply.headers.insert(name, HeaderValue::from_static("true"));
        }
        reply
    }
}

fn origin(request: &RequestHead) -> Origin {
    match request.headers.get(INTERNAL) {
        Some(value) if value == "true" => Origin::Internal,
        _ => Origin::External,
    }
}

fn number(number: u64) -> HeaderValue {
    // The usual route timeout, without formatting.
    match number {
        0 => HeaderValue::from_static("0"),
        1 => HeaderValue::from_static("1"),
        15000 => HeaderValue::from_static("15000"),
        number => HeaderValue::from(number),
    }
}

/// One request to one host.
struct Attempt {
    stream: Arc<Stream>,
    route: Arc<SelectedRoute>,
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    /// Of `auto_host_rewrite`.
    authority: Option<HeaderValue>,
    config: Arc<Config>,
    origin: Origin,
    attempts: u32,
}

/// What is done once there is a connection.
struct Connected {
    stream: Arc<Stream>,
    /// Of `auto_host_rewrite`: a request that never reaches the host keeps its own.
    authority: Option<HeaderValue>,
    append_forwarded_host: bool,
    keep_original: bool,
}

impl cluster::Observer for Connected {
    /// Notes it while there is no answer yet: a log of a timeout shows it.
    fn connected(&mut self, connection: &UpstreamConnection) {
        note(&self.stream, connection);
        if let Some(authority) = self.authority.take() {
            rewrite::set_authority(
                &mut self.stream.request.lock(),
                authority,
                self.append_forwarded_host,
                self.keep_original,
            );
        }
    }
}

/// Notes a connection for a request that is about to be written.
pub(super) fn note(stream: &Stream, connection: &UpstreamConnection) {
    let now = Instant::now();
    let mut info = stream.info.lock();
    info.upstream_first_tx.get_or_insert(now);
    info.upstream.pool_ready = Some(now);
    info.upstream.connection_id = Some(connection.id);
    info.upstream.local = connection.local;
    info.upstream.remote = connection.remote;
    info.upstream.protocol = Some(connection.protocol);
}

/// Notes what the head of an answer tells, which came at `now`.
pub(super) fn note_answer(stream: &Stream, host: &Host, response: &UpstreamResponse, now: Instant) {
    let connection = &response.connection;
    let mut info = stream.info.lock();
    if info.upstream.connection_id != Some(connection.id) {
        drop(info);
        note(stream, connection);
        info = stream.info.lock();
    }
    let canary = response.head.headers.get(CANARY);
    info.upstream.canary = host.is_canary() || canary.is_some_and(|value| value == "true");
    info.upstream_first_rx = Some(now);
    // A request that had ended before it was sent on was sent whole at the first moment.
    let first = info.upstream_first_tx;
    info.upstream_last_tx = info
        .request_end
        .map(|end| first.map_or(end, |f| f.max(end)));
    info.details = Some(Cow::Borrowed("via_upstream"));
}

impl Attempt {
    async fn run(mut self, body: Body) -> Step<Body> {
        let options = self.options();
        match self
            .cluster
            .send(&self.host, &*self.stream, body, options)
            .await
        {
            Ok(response) => self.answered(response),
            Err(error) => self.failed(&error),
        }
    }

    /// The same, through upstream filters.
    async fn filtered(mut self, filters: Filters, body: Body) -> Step<Body> {
        let options = self.options();
        let mut refused = false;
        let sent = filters
            .exchange(
                &self.stream,
                (&self.cluster, &self.host),
                body,
                options,
                |response| {
                    refused = self.received(response, Instant::now());
                    // The answer to a handshake that failed is our own.
                    !refused
                },
            )
            .await;
        match sent {
            Ok(response) => self.pass_on(response, refused, Instant::now()),
            Err(Unanswered::Step(step)) => step,
            Err(Unanswered::Failed(error)) => self.failed(&error),
        }
    }

    fn options(&mut self) -> SendOptions<Connected> {
        let append = self
            .route
            .forward()
            .is_some_and(|to| to.append_x_forwarded_host);
        SendOptions {
            observer: Connected {
                stream: Arc::clone(&self.stream),
                authority: self.authority.take(),
                append_forwarded_host: append,
                keep_original: !self.config.suppress_envoy_headers,
            },
        }
    }

    fn answered(self, mut response: UpstreamResponse) -> Step<Body> {
        let now = Instant::now();
        let refused = self.received(&mut response, now);
        self.pass_on(response, refused, now)
    }

    /// Notes what is known with the head of an answer. True where an upgrade was asked for and is none.
    fn received(&self, response: &mut UpstreamResponse, now: Instant) -> bool {
        note_answer(&self.stream, &self.host, response, now);
        let head = &mut response.head;
        // HTTP/1: an answer that does not switch ends the connection; one that says "fine" without is no handshake.
        let unswitched = head.status != StatusCode::SWITCHING_PROTOCOLS
            && head.version < Version::HTTP_2
            && self.stream.request.lock().is_upgrade();
        let refused = unswitched && head.status.is_success();
        let mut info = self.stream.info.lock();
        if refused {
            info.details = Some(Cow::Borrowed("websocket_handshake_unsuccessful"));
            // The body is not passed on, so its type goes, too.
            take_out(&mut head.headers, &http::header::CONTENT_TYPE);
        }
        info.close |= unswitched;
        refused
    }

    /// Finishes the head of an answer, at `now`, and gives it to the filters.
    fn pass_on(self, response: UpstreamResponse, refused: bool, now: Instant) -> Step<Body> {
        let UpstreamResponse {
            mut head,
            body,
            connection: _,
        } = response;
        let (request_end, canary) = {
            let info = self.stream.info.lock();
            (info.request_end, info.upstream.canary)
        };
        if self.config.dynamic_stats {
            let code = self.counted_code(&head);
            let origin = self.origin;
            self.cluster
                .answered_by(Some(&self.host), code, Parties { origin, canary });
        }
        if !self.config.suppress_envoy_headers
            && let Some(request_end) = request_end
        {
            let took = now.saturating_duration_since(request_end).as_millis();
            let took = u64::try_from(took).unwrap_or(u64::MAX);
            head.headers.insert(SERVICE_TIME, number(took));
        }
        *self.stream.response.lock() = Some(head);
        finalize::finalize_response(&self.stream, &self.route);
        let head = self.stream.response.lock().take();
        let mut head = head.unwrap_or_else(|| ResponseHead::new(StatusCode::BAD_GATEWAY));
        self.count_attempts(&mut head.headers);
        if refused {
            // Neither side knows any more what the connection's bytes are.
            take_out(&mut head.headers, &http::header::CONTENT_LENGTH);
            return Step::Answer(Box::new(head), Body::empty());
        }
        Step::Answer(Box::new(head), body)
    }

    /// A gRPC failure counts as the HTTP status that it stands for.
    fn counted_code(&self, head: &ResponseHead) -> u16 {
        let status = head.status.as_u16();
        if self.config.suppress_grpc_failure_stats {
            return status;
        }
        if !self.stream.request.lock().is_grpc() {
            return status;
        }
        let Some(grpc) = head.headers.get("grpc-status") else {
            return status;
        };
        let code = grpc.to_str().ok().and_then(|code| code.parse().ok());
        code.map_or(status, http_status_of)
    }

    fn failed(self, error: &UpstreamError) -> Step<Body> {
        let mut flag = None;
        {
            let mut info = self.stream.info.lock();
            info.upstream.transport_failure = error.transport_failure();
            // Envoy counts the wait for a connection that could not be made, too.
            if info.upstream.transport_failure.is_some() && info.upstream.pool_ready.is_none() {
                info.upstream.pool_ready = Some(Instant::now());
            }
            if let Some(connection) = &error.connection {
                info.upstream.connection_id = Some(connection.id);
                info.upstream.protocol = Some(connection.protocol);
                info.upstream.local = connection.local;
                info.upstream.remote = connection.remote;
            }
        }
        let mut reply: LocalReply = match &error.kind {
            // The client broke off: its side of the stream knows what to do about it.
            UpstreamErrorKind::RequestBody(BodyError::Malformed(details)) => {
                return Step::reply(LocalReply::malformed_body(details));
            }
            _ => error.reason().into(),
        };
        if let UpstreamErrorKind::RequestBody(BodyError::Reset | BodyError::StreamReset) =
            &error.kind
        {
            flag = Some(ResponseFlag::DownstreamConnectionTermination);
        }
        if let Some(flag) = flag {
            self.stream.info.lock().flags.set(flag);
        }
        if self.config.dynamic_stats {
            self.cluster
                .answered(Some(&self.host), reply.status.as_u16(), self.origin);
        }
        if self.config.suppress_envoy_headers {
            take_out(&mut reply.headers, &OVERLOADED);
        }
        self.count_attempts(&mut reply.headers);
        Step::reply(reply)
    }

    fn count_attempts(&self, headers: &mut http::HeaderMap) {
        if self.route.virtual_host().include_attempt_count_in_response {
            headers.insert(ATTEMPT_COUNT, number(u64::from(self.attempts)));
        }
    }
}

/// The reply to a request that took too long.
pub(super) fn timed_out(stream: &Stream, timeout: Timeout) -> LocalReply {
    stream.strike(timeout);
    let (ended, attempts) = {
        let mut info = stream.info.lock();
        if let Some(flag) = timeout.flag() {
            info.flags.set(flag);
        }
        (info.request_end.is_some(), info.attempts)
    };
    let mut reply = timeout.reply(ended);
    if timeout == Timeout::Response
        && let Some(route) = stream.resolved_route()
        && route.virtual_host().include_attempt_count_in_response
    {
        reply
            .headers
            .insert(ATTEMPT_COUNT, number(u64::from(attempts)));
    }
    reply
}

/// The HTTP status that stands for a gRPC status, for statistics.
fn http_status_of(grpc: u32) -> u16 {
    match grpc {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

#[cfg(test)]
mod tests;
