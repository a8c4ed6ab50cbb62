//! Filters of upstreams: when they run, whose list holds, and how they end.

use super::*;
use crate::cluster::client::{self, Call, CallError, Unanswered};
use crate::config::extension::PerRouteConfig;
use crate::config::http_connection_manager::HttpFilter as FilterEntry;
use crate::filter::testing::{body, data};
use crate::filter::upstream::UpstreamFilters;
use crate::stream::Verdict;
use crate::stream::attempt::UPSTREAM_SLOTS;

type Notes = Arc<Mutex<Vec<String>>>;

/// Writes down what it is asked, and does as told.
#[derive(Debug, Default)]
struct Spy {
    name: &'static str,
    notes: Notes,
    /// The half in which it answers by itself.
    answers_in: Option<&'static str>,
    /// The half in which it waits for good.
    waits_in: Option<&'static str>,
    /// The half in which it resets the stream.
    resets_in: Option<&'static str>,
    slot: usize,
}

impl Spy {
    fn saw(&self, what: &str, stream: &Stream, body: Body) -> Step<Body> {
        self.notes.lock().push(format!("{} {what}", self.name));
        stream.with_slot(self.slot, || 0_u32, |count| *count += 1);
        if self.answers_in == Some(what) {
            return Step::reply(LocalReply::new(StatusCode::IM_A_TEAPOT, "spy", "spy"));
        }
        if self.resets_in == Some(what) {
            let details = "spy".into();
            stream.decide(Verdict::Reset { details });
        }
        if self.waits_in == Some(what) || self.resets_in == Some(what) {
            return Step::Wait(Box::pin(std::future::pending()));
        }
        Step::Next(body)
    }
}

impl HttpFilter for Spy {
    fn request(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let value = HeaderValue::from_static(self.name);
        stream.request.lock().headers.append("x-passed", value);
        self.saw("request", stream, body)
    }

    fn response(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        self.saw("response", stream, body)
    }

    fn log(&self, _: &Arc<Stream>) {
        self.notes.lock().push(format!("{} log", self.name));
    }

    fn end(&self, stream: &Arc<Stream>) {
        let count = stream.take_slot::<u32>(self.slot).map_or(0, |count| *count);
        self.notes.lock().push(format!("{} end {count}", self.name));
    }
}

fn spy(name: &'static str, notes: &Notes) -> Spy {
    Spy {
        name,
        notes: Arc::clone(notes),
        ..Spy::default()
    }
}

fn chain_of(spies: impl IntoIterator<Item = Spy>) -> Arc<HttpFilterChain> {
    let filters = spies.into_iter().enumerate().map(|(index, spy)| {
        let spy = Spy {
            slot: UPSTREAM_SLOTS + index,
            ..spy
        };
        (spy.name.into(), Arc::new(spy) as Arc<dyn HttpFilter>)
    });
    Arc::new(HttpFilterChain::of(filters))
}

/// A configuration that says that there is a filter, and no more.
fn listed() -> Vec<FilterEntry> {
    let yaml = "upstream_http_filters: [{name: m, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation}}, {name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec}}]";
    parse::<Router>(yaml).expect("valid").upstream_filters
}

/// A listener's filter `down` and the router, before a cluster `a` with the filters `spies`.
fn filtered(upstream: &Upstream, notes: &Notes, spies: Vec<Spy>) -> TestChain {
    let mut cluster = clusters::fixed("a", upstream.address);
    cluster.upstream_filters = Some(listed());
    let mut chain = router("{}", cluster);
    let down = Arc::new(spy("down", notes));
    chain.filters.insert(0, ("down".into(), down));
    let filters = UpstreamFilters::from_iter([("a".into(), chain_of(spies))]);
    chain.upstream_filters = Arc::new(filters).pinned();
    chain
}

#[tokio::test]
async fn they_run_between_the_router_and_the_upstream_and_end_with_the_answer() {
    let upstream = upstream(OK, Then::Hang).await;
    let notes = Notes::default();
    let spies = vec![spy("one", &notes), spy("two", &notes)];
    let chain = filtered(&upstream, &notes, spies);
    let answer = chain.get("/").await;
    assert_eq!((answer.status(), answer.text()), (200, "hi"));
    assert_ne!(answer.header("x-envoy-upstream-service-time"), Some("77"));
    let heads = upstream.heads.lock().clone();
    let passed: Vec<&str> = heads[0]
        .lines()
        .filter_map(|line| line.strip_prefix("x-passed: "))
        .collect();
    assert_eq!(passed, ["down", "one", "two"]);
    assert_eq!(
        *notes.lock(),
        [
            "down request",
            "one request",
            "two request",
            "two response",
            "one response",
            "down response",
            "one end 2",
            "two end 2",
            "down log",
            "down end 2",
        ]
    );
}

#[tokio::test]
async fn what_they_answer_passes_the_listeners_filters_and_charges_no_cluster() {
    for half in ["request", "response"] {
        let upstream = upstream(OK, Then::Hang).await;
        let notes = Notes::default();
        let answering = Spy {
            answers_in: Some(half),
            ..spy("two", &notes)
        };
        let spies = vec![spy("one", &notes), answering, spy("three", &notes)];
        let chain = filtered(&upstream, &notes, spies);
        let answer = chain.get("/").await;
        assert_eq!((answer.status(), answer.text()), (418, "spy"));
        assert_eq!(answer.details(), "spy");
        assert_eq!(answer.header("x-envoy-upstream-service-time"), None);
        let asked = upstream.heads.lock().len();
        assert_eq!(asked, usize::from(half == "response"));
        let notes = notes.lock().join(", ");
        let before = match half {
            "request" => {
                "down request, one request, two request, one end 1, two end 1, three end 0"
            }
            _ => {
                "down request, one request, two request, three request, three response, two response, \
                 one end 1, two end 2, three end 2"
            }
        };
        assert_eq!(
            notes,
            format!("{before}, down response, down log, down end 2")
        );
        let info = answer.stream.info.lock();
        let cluster = info.upstream.cluster.clone().expect("chosen");
        assert_eq!(cluster.stats().set.codes(), []);
        assert!(info.upstream.host.is_some());
    }
}

#[tokio::test]
async fn a_timeout_ends_them_and_an_answer_that_they_hold_back_is_not_told() {
    let upstream = upstream(OK, Then::Hang).await;
    let notes = Notes::default();
    let waiting = Spy {
        waits_in: Some("response"),
        ..spy("one", &notes)
    };
    let chain = filtered(&upstream, &notes, vec![waiting]);
    let headers = [("x-envoy-upstream-rq-timeout-ms", "30")];
    let answer = chain.get_with("/", &headers).await;
    assert_eq!(answer.status(), 504);
    assert_eq!(
        *notes.lock(),
        [
            "down request",
            "one request",
            "one response",
            "one end 2",
            "down response",
            "down log",
            "down end 2",
        ]
    );
}

#[tokio::test]
async fn a_client_that_goes_ends_them_once_and_leaves_no_answer_behind() {
    let upstream = upstream(OK, Then::Hang).await;
    let notes = Notes::default();
    let waiting = Spy {
        waits_in: Some("response"),
        ..spy("one", &notes)
    };
    let chain = filtered(&upstream, &notes, vec![waiting]);
    let stream = chain.stream(RequestHead::new(http::Method::GET, "a.test", "/"));
    let mut run = Box::pin(chain.run(&stream, Body::empty()));
    while notes.lock().len() < 3 {
        assert!(futures_util::poll!(&mut run).is_pending());
        tokio::task::yield_now().await;
    }
    assert!(stream.response.lock().is_some(), "the filter sees it");
    drop(run);
    assert!(stream.response.lock().is_none());
    assert_eq!(notes.lock()[3..], ["down log", "down end 1", "one end 2"]);
}

#[tokio::test]
async fn the_clusters_list_comes_before_the_routers_and_a_route_switches_filters_off() {
    let upstream = upstream(OK, Then::Hang).await;
    let notes = Notes::default();
    let behind_router = |chain: TestChain| {
        chain.terminal(Arc::new(Router {
            config: Arc::default(),
            upstream_filters: Some(chain_of([spy("router", &notes)])),
        }))
    };
    let asked = async |chain: TestChain| {
        notes.lock().clear();
        let status = chain.get("/").await.status();
        let notes = notes.lock();
        let requests = notes
            .iter()
            .filter_map(|note| note.strip_suffix(" request"));
        (status, requests.collect::<Vec<_>>().join(" "))
    };
    let result = |status: u16, names: &str| (status, names.to_owned());
    let plain = || router("{}", clusters::fixed("a", upstream.address)).forward("a");
    assert_eq!(asked(plain()).await, result(200, ""));
    assert_eq!(asked(behind_router(plain())).await, result(200, "router"));

    let own = || {
        filtered(
            &upstream,
            &notes,
            vec![spy("one", &notes), spy("two", &notes)],
        )
    };
    let both = behind_router(own());
    assert_eq!(asked(both).await, result(200, "down one two"));

    let mut silent = clusters::fixed("a", upstream.address);
    silent.upstream_filters = Some(Vec::new());
    let silent = behind_router(router("{}", silent));
    assert_eq!(asked(silent).await, result(200, ""), "the codec alone");

    let off = || PerRouteConfig {
        disabled: Some(true),
        config: None,
    };
    let one_off = own().per_route("one", off());
    assert_eq!(asked(one_off).await, result(200, "down two"));
    let all_off = own().per_route("one", off()).per_route("two", off());
    assert_eq!(asked(all_off).await, result(200, "down"));

    // A request must not slip by filters that are not there.
    let mut missing = own();
    missing.upstream_filters = None;
    assert_eq!(asked(missing).await, result(500, "down"));
}

#[tokio::test]
async fn a_body_passes_both_ways() {
    let upstream = upstream(OK, Then::Hang).await;
    let notes = Notes::default();
    let chain = filtered(&upstream, &notes, vec![spy("one", &notes)]);
    let (sender, request) = body();
    sender.send(data("abc")).expect("read");
    drop(sender);
    let answer = chain.post(request).await;
    assert_eq!((answer.status(), answer.text()), (200, "hi"));
    assert!(notes.lock().contains(&"one end 2".to_owned()));
}

/// A cluster `a` with the filters `spies`, as calls of our own find it.
fn callable(upstream: &Upstream, spies: Vec<Spy>) -> ClusterMap {
    let mut cluster = clusters::fixed("a", upstream.address);
    cluster.upstream_filters = Some(listed());
    let filters = Arc::new(UpstreamFilters::from_iter([("a".into(), chain_of(spies))]));
    let cluster = Cluster::new(Arc::new(cluster), &clusters::runtime());
    ClusterMap::from_iter([cluster]).with_filters(filters.for_calls())
}

fn unlimited() -> client::Deadline {
    client::Limits::new(Duration::ZERO).begin(None)
}

fn call() -> Call {
    let head = RequestHead::new(http::Method::GET, "a.test", "/");
    Call::new(head, Duration::from_secs(20))
}

fn codes(clusters: &ClusterMap) -> Vec<(u16, u64)> {
    clusters.get("a").expect("a").stats().set.codes()
}

#[tokio::test]
async fn a_call_of_a_plugin_passes_them_both_ways() {
    let upstream = upstream(OK, Then::Hang).await;
    let notes = Notes::default();
    let clusters = callable(&upstream, vec![spy("one", &notes), spy("two", &notes)]);
    let response = client::call(&clusters, "a", call())
        .await
        .expect("answered");
    assert_eq!(
        (response.head.status, &*response.body),
        (StatusCode::OK, &b"hi"[..])
    );
    assert_ne!(response.head.headers["x-envoy-upstream-service-time"], "77");
    let heads = upstream.heads.lock().clone();
    let passed: Vec<&str> = heads[0]
        .lines()
        .filter_map(|line| line.strip_prefix("x-passed: "))
        .collect();
    assert_eq!(passed, ["one", "two"]);
    assert!(heads[0].contains("x-envoy-internal: true"));
    assert_eq!(
        *notes.lock(),
        [
            "one request",
            "two request",
            "two response",
            "one response",
            "one end 2",
            "two end 2",
        ]
    );
    assert_eq!(codes(&clusters), [(200, 1)]);

    // What we fetch ourselves does not.
    notes.lock().clear();
    let clusters = callable(&upstream, vec![spy("one", &notes)]);
    let fetched = client::download(&clusters, "a", call(), drop).await;
    assert_eq!(fetched.expect("answered").head.status, StatusCode::OK);
    assert_eq!(*notes.lock(), Vec::<String>::new());
}

#[tokio::test]
async fn what_they_answer_to_a_call_charges_no_cluster() {
    for half in ["request", "response"] {
        let upstream = upstream(OK, Then::Hang).await;
        let notes = Notes::default();
        let answering = || Spy {
            answers_in: Some(half),
            ..spy("one", &notes)
        };
        let clusters = callable(&upstream, vec![answering()]);
        let response = client::call(&clusters, "a", call())
            .await
            .expect("answered");
        assert_eq!(response.head.status, StatusCode::IM_A_TEAPOT);
        assert_eq!(response.body, "spy");
        assert!(
            !response
                .head
                .headers
                .contains_key("x-envoy-upstream-service-time")
        );
        assert_eq!(codes(&clusters), []);
        assert_eq!(upstream.heads.lock().len(), usize::from(half == "response"));
        let ends = notes
            .lock()
            .iter()
            .filter(|note| note.contains("end"))
            .count();
        assert_eq!(ends, 1);

        // Of a call whose answer is read as it comes.
        let clusters = callable(&upstream, vec![answering()]);
        let cluster = Arc::clone(clusters.get("a").expect("a"));
        let host = cluster.pick(&PickContext::default()).expect("a host");
        let to = (&cluster, &host);
        let opened =
            client::open(&clusters, to, call().head, Body::empty(), None, unlimited()).await;
        let answer = opened.expect("answered");
        assert_eq!(answer.details.as_deref(), Some("spy"));
        drop(answer);
        assert_eq!(codes(&clusters), []);
    }
}

#[tokio::test]
async fn a_call_that_they_hold_back_ends_in_time_and_they_with_it() {
    for half in ["request", "response"] {
        let upstream = upstream(OK, Then::Hang).await;
        let notes = Notes::default();
        let waiting = Spy {
            waits_in: Some(half),
            ..spy("one", &notes)
        };
        let clusters = callable(&upstream, vec![waiting]);
        let mut call = call();
        call.timeout = Duration::from_millis(30);
        let response = client::call(&clusters, "a", call).await.expect("answered");
        assert_eq!(response.head.status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(codes(&clusters), [(504, 1)]);
        let last = notes.lock().last().cloned();
        let count = if half == "request" { 1 } else { 2 };
        assert_eq!(last, Some(format!("one end {count}")));
    }
}

#[tokio::test]
async fn a_call_that_they_reset_has_no_answer() {
    for (half, details) in [("request", ""), ("response", "via_upstream")] {
        let upstream = upstream(OK, Then::Close).await;
        let notes = Notes::default();
        let resetting = Spy {
            resets_in: Some(half),
            ..spy("one", &notes)
        };
        let clusters = callable(&upstream, vec![resetting]);
        let response = client::call(&clusters, "a", call()).await;
        assert!(matches!(response, Err(CallError::Reset(_))), "{response:?}");
        let cluster = Arc::clone(clusters.get("a").expect("a"));
        let host = cluster.pick(&PickContext::default()).expect("a host");
        let to = (&cluster, &host);
        let opened =
            client::open(&clusters, to, call().head, Body::empty(), None, unlimited()).await;
        assert!(matches!(opened, Err(Unanswered::Reset(told)) if told == details));
        assert_eq!(codes(&clusters), []);
        let ends = notes
            .lock()
            .iter()
            .filter(|note| note.contains("end"))
            .count();
        assert_eq!(ends, 2);
    }
}

#[tokio::test]
async fn a_call_does_not_slip_by_filters_that_are_not_there() {
    let upstream = upstream(OK, Then::Hang).await;
    let clusters = callable(&upstream, Vec::new()).with_filters(None);
    let response = client::call(&clusters, "a", call())
        .await
        .expect("answered");
    assert_eq!(response.head.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(upstream.heads.lock().is_empty());
    // None of them may be left on.
    let clusters = callable(&upstream, Vec::new());
    let response = client::call(&clusters, "a", call())
        .await
        .expect("answered");
    assert_eq!(response.head.status, StatusCode::OK);
}

#[tokio::test]
async fn a_call_to_a_host_that_is_not_there_counts_once() {
    let upstream = upstream(OK, Then::Hang).await;
    let address = upstream.address;
    drop(upstream);
    let notes = Notes::default();
    let gone = Upstream {
        address,
        heads: Arc::default(),
        _task: OwnedTask::spawn("nobody", async {}),
    };
    let clusters = callable(&gone, vec![spy("one", &notes)]);
    let response = client::call(&clusters, "a", call())
        .await
        .expect("answered");
    assert_eq!(response.head.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.body.ends_with(b"remote connection failure"));
    assert_eq!(codes(&clusters), [(503, 1)]);
    assert_eq!(*notes.lock(), ["one request", "one end 1"]);
}
