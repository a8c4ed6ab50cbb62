//! A chain in a test: `chain![filter, …].get("/").await`, with a fake upstream at its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{HttpFilter, HttpFilterChain, Observer, Step};
use crate::cluster::ClusterMap;
use crate::config::extension::{HttpFilterConfig, PerRouteConfig};
use crate::config::header::HeaderMutations;
use crate::config::http_connection_manager::{
    EscapedSlashes, HeadersWithUnderscores, Options, ServerHeader, StripPort,
};
use crate::config::listener::TrafficDirection;
use crate::config::route::{
    Action, ClusterSpecifier, Domain, ForwardAction, HostRewrite, PathMatch, PathRewrite, Route,
    RouteConfig, RouteMatch, VirtualHost,
};
use crate::config::{ConfigError, Extensions};
use crate::http::codec::Reset;
use crate::http::{Body, BodyError, RequestHead, ResponseHead};
use crate::pb;
use crate::route::RouteTable;
use crate::stream::{ConnectionInfo, Stream, StreamConfig};

/// What a request got.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: ResponseHead,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
    /// The body's error, where it ended in one.
    pub(crate) error: Option<BodyError>,
    pub(crate) stream: Arc<Stream>,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    pub(crate) fn details(&self) -> String {
        details(&self.stream)
    }

    pub(crate) fn flags(&self) -> String {
        self.stream.info.lock().flags.to_string()
    }
}

pub(crate) fn details(stream: &Stream) -> String {
    let info = stream.info.lock();
    info.details.as_deref().unwrap_or("-").to_owned()
}

/// Counts what the manager is told.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) heads: Mutex<u32>,
    pub(crate) logs: Mutex<u32>,
}

impl Observer for Seen {
    fn head(&self, _: &Arc<Stream>) {
        *self.heads.lock() += 1;
    }

    fn log(&self, _: &Arc<Stream>) {
        *self.logs.lock() += 1;
    }
}

/// A chain under test.
pub(crate) struct TestChain {
    pub(crate) filters: Vec<(Box<str>, Arc<dyn HttpFilter>)>,
    pub(crate) options: Options,
    pub(crate) routes: Option<RouteConfig>,
    pub(crate) clusters: Arc<ClusterMap>,
    pub(crate) upstream_filters: Option<Arc<dyn std::any::Any + Send + Sync>>,
    pub(crate) seen: Arc<Seen>,
}

/// Makes a [`TestChain`] of filters; a [`FakeUpstream`] stands at its end unless the last is terminal itself.
macro_rules! chain {
    ($($filter:expr),* $(,)?) => {{
        let filters: Vec<std::sync::Arc<dyn $crate::filter::HttpFilter>> = vec![$(std::sync::Arc::new($filter)),*];
        $crate::filter::testing::TestChain::new(filters)
    }};
}
pub(crate) use chain;

impl TestChain {
    pub(crate) fn new(filters: Vec<Arc<dyn HttpFilter>>) -> Self {
        let mut filters: Vec<(Box<str>, Arc<dyn HttpFilter>)> = filters
            .into_iter()
            .enumerate()
            .map(|(index, filter)| (format!("f{index}").into(), filter))
            .collect();
        filters.push(("upstream".into(), Arc::new(FakeUpstream::default())));
        Self {
            filters,
            options: options(),
            routes: None,
            clusters: Arc::default(),
            upstream_filters: None,
            seen: Arc::default(),
        }
    }

    /// Puts another terminal filter at the end.
    pub(crate) fn terminal(mut self, terminal: Arc<dyn HttpFilter>) -> Self {
        self.filters.pop();
        self.filters.push(("terminal".into(), terminal));
        self
    }

    pub(crate) fn options(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(&mut self.options);
        self
    }

    /// Routes everything to the cluster `name`.
    pub(crate) fn forward(self, name: &str) -> Self {
        self.route(forward(name))
    }

    /// One virtual host with one route.
    pub(crate) fn route(mut self, action: Action) -> Self {
        self.routes = Some(route_config(action));
        self
    }

    /// Per-route configuration of the filter called `name`, at the route.
    pub(crate) fn per_route(mut self, name: &str, config: PerRouteConfig) -> Self {
        let routes = self
            .routes
            .get_or_insert_with(|| route_config(forward("a")));
        let host = &mut routes.virtual_hosts[0];
        let mut route = Route::clone(&host.routes[0]);
        route.per_filter.insert(name.into(), config);
        host.routes[0] = Arc::new(route);
        self
    }

    /// The stream for `head`, not begun.
    pub(crate) fn stream(&self, head: RequestHead) -> Arc<Stream> {
        let config = StreamConfig {
            routes: self
                .routes
                .clone()
                .map(|routes| Arc::new(RouteTable::new(Arc::new(routes)))),
            clusters: Arc::clone(&self.clusters),
            upstream_filters: self.upstream_filters.clone(),
            options: Arc::new(self.options.clone()),
            generation: 1,
            records: None,
        };
        Stream::new(connection(), Arc::new(config), head, self.filters.len())
    }

    pub(crate) fn chain(&self) -> Arc<HttpFilterChain> {
        Arc::new(HttpFilterChain::of(self.filters.iter().cloned()))
    }

    /// Runs a stream to its head.
    pub(crate) async fn run(&self, stream: &Arc<Stream>, body: Body) -> Result<Body, Reset> {
        let observer: Arc<dyn Observer> = self.seen.clone();
        self.chain().run(Arc::clone(stream), body, observer).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(RequestHead::new(Method::GET, "a.test", path), Body::empty())
            .await
    }

    pub(crate) async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.request(Method::GET, path, headers).await
    }

    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut head = RequestHead::new(method, "a.test", path);
        for (name, value) in headers {
            head.headers.append(
                HeaderName::try_from(*name).expect("a name"),
                HeaderValue::try_from(*value).expect("a value"),
            );
        }
        self.send(head, Body::empty()).await
    }

    pub(crate) async fn post(&self, body: Body) -> Answer {
        self.send(RequestHead::new(Method::POST, "a.test", "/"), body)
            .await
    }

    pub(crate) async fn send(&self, head: RequestHead, body: Body) -> Answer {
        let stream = self.stream(head);
        let body = self.run(&stream, body).await.expect("not reset");
        read(stream, body).await
    }

    pub(crate) fn logs(&self) -> u32 {
        *self.seen.logs.lock()
    }
}

/// Reads a response to its end.
pub(crate) async fn read(stream: Arc<Stream>, mut body: Body) -> Answer {
    let head = stream.response.lock().clone().expect("a head");
    let mut answer = Answer {
        head,
        body: Vec::new(),
        trailers: None,
        error: None,
        stream,
    };
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => match frame.into_data() {
                Ok(data) => answer.body.extend_from_slice(&data),
                Err(frame) => answer.trailers = frame.into_trailers().ok(),
            },
            Err(error) => {
                answer.error = Some(error);
                break;
            }
        }
    }
    answer
}

/// Reads the request to its end, remembers it, and answers.
#[derive(Debug)]
pub(crate) struct FakeUpstream {
    pub(crate) status: StatusCode,
    pub(crate) body: &'static str,
    pub(crate) headers: &'static [(&'static str, &'static str)],
    /// Method, path, body and trailers of each request.
    pub(crate) requests: Mutex<Vec<(RequestHead, Vec<u8>, Option<HeaderMap>)>>,
    pub(crate) delay: Option<Duration>,
}

impl Default for FakeUpstream {
    fn default() -> Self {
        Self {
            status: StatusCode::OK,
            body: "upstream",
            headers: &[],
            requests: Mutex::default(),
            delay: None,
        }
    }
}

impl HttpFilter for Arc<FakeUpstream> {
    fn request(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let this = Arc::clone(self);
        let head = stream.request.lock().clone();
        let stream = Arc::clone(stream);
        Step::Wait(Box::pin(async move {
            let Ok(body) = body.collect().await else {
                // As a connection that breaks: no answer comes of it.
                std::future::pending::<()>().await;
                unreachable!("never ready");
            };
            let trailers = body.trailers().cloned();
            let bytes = body.to_bytes().to_vec();
            this.requests.lock().push((head, bytes, trailers));
            if let Some(delay) = this.delay {
                tokio::time::sleep_until(Instant::now() + delay).await;
            }
            let mut head = ResponseHead::new(this.status);
            for (name, value) in this.headers {
                head.headers.append(
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                );
            }
            let now = Instant::now();
            let mut info = stream.info.lock();
            info.details = Some("via_upstream".into());
            info.upstream_first_rx = Some(now);
            Step::Answer(Box::new(head), Body::full(this.body))
        }))
    }
}

impl HttpFilter for FakeUpstream {
    fn request(&self, _: &Arc<Stream>, _: Body) -> Step<Body> {
        let mut head = ResponseHead::new(self.status);
        for (name, value) in self.headers {
            head.headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        Step::Answer(Box::new(head), Body::full(self.body))
    }
}

/// A body that a test feeds.
pub(crate) fn body() -> (mpsc::UnboundedSender<Result<Frame<Bytes>, BodyError>>, Body) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let stream = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
    (sender, Body::new(StreamBody::new(stream)))
}

/// A data frame.
pub(crate) fn data(text: &str) -> Result<Frame<Bytes>, BodyError> {
    Ok(Frame::data(Bytes::copy_from_slice(text.as_bytes())))
}

pub(crate) fn connection() -> Arc<ConnectionInfo> {
    Arc::new(ConnectionInfo {
        id: 0,
        remote: Some(([127, 0, 0, 1], 4000).into()),
        local: Some(([127, 0, 0, 1], 80).into()),
        listener: "l".into(),
        ..ConnectionInfo::none()
    })
}

pub(crate) fn forward(cluster: &str) -> Action {
    Action::Forward(Box::new(ForwardAction {
        cluster: ClusterSpecifier::Cluster(cluster.into()),
        cluster_not_found_status: StatusCode::SERVICE_UNAVAILABLE,
        timeout: Some(Duration::from_secs(15)),
        idle_timeout: None,
        path_rewrite: PathRewrite::None,
        host_rewrite: HostRewrite::None,
        append_x_forwarded_host: false,
        priority_high: false,
        upgrades: Vec::new(),
        grpc_timeout: Default::default(),
        stream_duration: None,
    }))
}

pub(crate) fn route_config(action: Action) -> RouteConfig {
    let route = Route {
        name: "".into(),
        matcher: RouteMatch {
            path: PathMatch::Prefix("/".into()),
            ignore_case: false,
            fraction_per_million: None,
            headers: Vec::new(),
            query_parameters: Vec::new(),
            grpc: false,
        },
        action,
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        per_filter: Default::default(),
        metadata: None,
        decorator: None,
    };
    let host = VirtualHost {
        name: "v".into(),
        domains: vec![Domain::Any],
        routes: vec![Arc::new(route)],
        require_tls: Default::default(),
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        per_filter: Default::default(),
        include_request_attempt_count: false,
        include_attempt_count_in_response: false,
        metadata: None,
    };
    RouteConfig {
        name: "r".into(),
        virtual_hosts: vec![host],
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        internal_only_headers: Vec::new(),
        most_specific_header_mutations_wins: false,
        validate_clusters: None,
        ignore_port_in_host_matching: false,
        max_direct_response_body_size: 4096,
        per_filter: Default::default(),
        metadata: None,
    }
}

/// Envoy's defaults, with a small buffer limit.
pub(crate) fn options() -> Options {
    Options {
        server_name: HeaderValue::from_static("envoy"),
        server_header: ServerHeader::Overwrite,
        use_remote_address: false,
        xff_num_trusted_hops: 0,
        skip_xff_append: false,
        internal_ranges: Vec::new(),
        internal_unix_sockets: false,
        via: None,
        generate_request_id: true,
        preserve_external_request_id: false,
        always_set_request_id_in_response: false,
        add_user_agent: false,
        normalize_path: false,
        merge_slashes: false,
        escaped_slashes: EscapedSlashes::Keep,
        strip_port: StripPort::No,
        strip_trailing_host_dot: false,
        underscores: HeadersWithUnderscores::Allow,
        max_request_headers: 60 << 10,
        max_headers_count: 100,
        stream_idle_timeout: None,
        request_timeout: None,
        request_headers_timeout: None,
        idle_timeout: None,
        max_connection_duration: None,
        max_stream_duration: None,
        max_requests_per_connection: None,
        drain_timeout: Duration::from_secs(5),
        delayed_close_timeout: None,
        http1: Default::default(),
        http2: Default::default(),
        stream_error_on_invalid_message: false,
        proxy_100_continue: false,
        upgrades: Vec::new(),
        local_reply: None,
        scheme_to_overwrite: None,
        keep_client_cert_header: false,
        append_x_forwarded_port: false,
        buffer_limit: 16,
    }
}

/// Parses a filter's YAML as a resource does.
pub(crate) fn parse<F: super::FilterFactory>(yaml: &str) -> Result<F::Config, ConfigError> {
    F::parse(pb::from_yaml(yaml).expect("fits the message"), "f0")
}

/// A filter made of YAML, at `slot`, called `name`.
pub(crate) fn build<F: super::FilterFactory>(
    slot: usize,
    yaml: &str,
    metrics: &crate::telemetry::metrics::Registry,
) -> Arc<dyn HttpFilter> {
    let config = Arc::new(parse::<F>(yaml).expect("a valid configuration"));
    let source = pb::Any::default();
    let name = format!("f{slot}");
    with_context(metrics, |chain| {
        F::build(
            &config,
            &super::BuildContext {
                slot,
                name: &name,
                source: &source,
                chain,
            },
        )
    })
}

/// What chains are built in.
pub(crate) fn with_context<R>(
    metrics: &crate::telemetry::metrics::Registry,
    f: impl FnOnce(&super::ChainContext<'_>) -> R,
) -> R {
    let node = pb::Node {
        cluster: "here".into(),
        ..Default::default()
    };
    let warmth = super::factory::Warmth::default();
    f(&super::ChainContext {
        stat_prefix: "p",
        place: "l",
        direction: TrafficDirection::Unspecified,
        listener_metadata: None,
        metrics,
        node: &node,
        plugins: None,
        warmth: &warmth,
        routes: None,
        health_failed: None,
    })
}

pub(crate) fn metrics() -> crate::telemetry::metrics::Registry {
    crate::telemetry::metrics::Registry::new(crate::base::Shards::for_workers(1))
}

/// What `typed_per_filter_config` holds for a filter.
pub(crate) fn per_route_config<M: prost::Message + prost::Name + Default>(
    yaml: &str,
) -> PerRouteConfig {
    let any = pb::pack(&pb::from_yaml::<M>(yaml).expect("fits the message"));
    let config: Option<HttpFilterConfig> = super::Registry::new()
        .per_route("f0", &any)
        .expect("a valid configuration");
    assert!(config.is_some(), "the type is registered");
    PerRouteConfig {
        disabled: None,
        config,
    }
}
