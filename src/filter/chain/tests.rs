//! Tests of `filter::chain`.

mod deadlines;
mod early;

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;

use crate::config::access_log::PluginLog;
use crate::config::extension::{Extensions as _, PerRouteConfig};
use crate::filter::testing::{self, FakeUpstream, chain, details};
use crate::filter::{HttpFilter, HttpFilterChain, Registry, Step};
use crate::http::{Body, BodyError, LocalReply, RequestHead, ResponseFlag};
use crate::stream::{Flow, Phase, Side, Start, Stream, Tap, Verdict};

type Trace = Arc<Mutex<Vec<String>>>;

/// Writes down what is called, and does as told.
#[derive(Debug)]
struct Tracer {
    name: &'static str,
    trace: Trace,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Nothing,
    ReplyInRequest,
    ReplyLaterInRequest,
    ReplyInResponse,
    DecideInRequest { direct: bool },
    DecideInResponse,
    ResetInRequest,
    WaitInBoth,
    PanicInRequest,
    PanicInResponse,
    PanicInLog,
}

fn tracer(name: &'static str, trace: &Trace, at: At) -> Tracer {
    Tracer {
        name,
        trace: Arc::clone(trace),
        at,
    }
}

fn reply() -> LocalReply {
    LocalReply::new(StatusCode::IM_A_TEAPOT, "mine", "my details")
}

impl Tracer {
    fn note(&self, what: &str) {
        self.trace.lock().push(format!("{}.{what}", self.name));
    }
}

impl HttpFilter for Tracer {
    fn request(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        self.note("request");
        match self.at {
            At::ReplyInRequest => Step::reply(reply()),
            At::ReplyLaterInRequest => Step::Wait(Box::pin(async move {
                tokio::time::sleep_until(tokio::time::Instant::now() + Duration::from_secs(1))
                    .await;
                Step::reply(reply())
            })),
            At::WaitInBoth => Step::Wait(Box::pin(async move {
                tokio::task::yield_now().await;
                Step::Next(body)
            })),
            At::DecideInRequest { direct } => {
                stream.decide(Verdict::Reply {
                    reply: Box::new(reply()),
                    direct,
                });
                Step::Next(body)
            }
            At::ResetInRequest => {
                stream.decide(Verdict::Reset {
                    details: "gone".into(),
                });
                Step::Next(body)
            }
            At::PanicInRequest => panic!("as told"),
            _ => Step::Next(body),
        }
    }

    fn response(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        self.note("response");
        match self.at {
            At::ReplyInResponse => Step::reply(reply()),
            At::DecideInResponse => {
                stream.decide(Verdict::Reply {
                    reply: Box::new(reply()),
                    direct: false,
                });
                Step::Next(body)
            }
            At::WaitInBoth => Step::Wait(Box::pin(async move {
                tokio::task::yield_now().await;
                Step::Next(body)
            })),
            At::PanicInResponse => panic!("as told"),
            _ => Step::Next(body),
        }
    }

    fn log(&self, _: &Arc<Stream>) {
        self.note("log");
        if self.at == At::PanicInLog {
            panic!("as told");
        }
    }

    fn end(&self, _: &Arc<Stream>) {
        self.note("end");
    }
}

async fn run(at: [At; 3]) -> (testing::Answer, Vec<String>, u32) {
    let trace = Trace::default();
    let chain = chain![
        tracer("a", &trace, at[0]),
        tracer("b", &trace, at[1]),
        tracer("c", &trace, at[2]),
    ];
    let answer = chain.get("/").await;
    let calls = trace.lock().clone();
    (answer, calls, chain.logs())
}

const ENDS: [&str; 6] = ["a.log", "b.log", "c.log", "a.end", "b.end", "c.end"];

fn with_ends(calls: &[&str]) -> Vec<String> {
    calls.iter().chain(&ENDS).map(|s| (*s).to_owned()).collect()
}

const ALL: [&str; 6] = [
    "a.request",
    "b.request",
    "c.request",
    "c.response",
    "b.response",
    "a.response",
];

#[tokio::test]
async fn a_stream_passes_down_up_and_ends_in_order() {
    for at in [At::Nothing, At::WaitInBoth] {
        let (answer, calls, logs) = run([At::Nothing, at, At::Nothing]).await;
        assert_eq!((answer.status(), answer.text()), (200, "upstream"));
        assert_eq!(calls, with_ends(&ALL));
        assert_eq!(logs, 1);
        assert_eq!(answer.stream.phase(), Phase::Ended);
        assert_eq!(answer.flags(), "-");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_on_the_way_down_passes_every_response_half_once() {
    let cases = [At::ReplyInRequest, At::ReplyLaterInRequest];
    for at in cases {
        let (answer, calls, logs) = run([At::Nothing, at, At::Nothing]).await;
        assert_eq!((answer.status(), answer.text()), (418, "mine"), "{at:?}");
        assert_eq!(answer.header("content-type"), Some("text/plain"));
        assert_eq!(answer.header("content-length"), Some("4"));
        assert_eq!(answer.details(), "my_details");
        assert_eq!(
            calls,
            with_ends(&[
                "a.request",
                "b.request",
                "c.response",
                "b.response",
                "a.response",
            ]),
            "also of the filter that the request never reached"
        );
        assert_eq!(logs, 1);
    }
}

#[tokio::test]
async fn a_verdict_stands_above_the_step_that_was_taken() {
    let (answer, calls, _) = run([
        At::Nothing,
        At::DecideInRequest { direct: false },
        At::Nothing,
    ])
    .await;
    assert_eq!(answer.text(), "mine");
    assert_eq!(
        calls,
        with_ends(&[
            "a.request",
            "b.request",
            "c.response",
            "b.response",
            "a.response",
        ])
    );

    let trace = Trace::default();
    let chain = chain![
        tracer("a", &trace, At::Nothing),
        tracer("b", &trace, At::DecideInRequest { direct: true }),
        tracer("c", &trace, At::WaitInBoth),
    ];
    let answer = chain.get("/").await;
    assert_eq!(answer.text(), "mine");
    assert_eq!(
        *trace.lock(),
        with_ends(&["a.request", "b.request"]),
        "direct: past the filters"
    );
}

#[tokio::test]
async fn a_reply_on_the_way_up_goes_past_the_filters() {
    for at in [At::ReplyInResponse, At::DecideInResponse] {
        let (answer, calls, logs) = run([At::Nothing, at, At::Nothing]).await;
        assert_eq!((answer.status(), answer.text()), (418, "mine"));
        let expected = [
            "a.request",
            "b.request",
            "c.request",
            "c.response",
            "b.response",
        ];
        assert_eq!(calls, with_ends(&expected), "{at:?}");
        assert_eq!(logs, 1);
    }
}

#[tokio::test]
async fn a_second_reply_during_the_first_is_direct() {
    let (answer, calls, _) = run([At::Nothing, At::ReplyInResponse, At::ReplyInRequest]).await;
    assert_eq!(answer.status(), 418);
    assert_eq!(
        calls,
        with_ends(&[
            "a.request",
            "b.request",
            "c.request",
            "c.response",
            "b.response"
        ])
    );
}

#[tokio::test]
async fn a_reset_before_the_head_has_no_answer_but_an_end() {
    let trace = Trace::default();
    let chain = chain![
        tracer("a", &trace, At::ResetInRequest),
        tracer("b", &trace, At::WaitInBoth),
    ];
    let stream = chain.stream(RequestHead::new(Method::GET, "a", "/"));
    assert!(chain.run(&stream, Body::empty()).await.is_err());
    assert_eq!(details(&stream), "gone");
    assert_eq!(chain.logs(), 1);
    assert_eq!(
        *trace.lock(),
        ["a.request", "a.log", "b.log", "a.end", "b.end"],
        "also of the filter that was never reached"
    );
}

#[tokio::test]
async fn a_panic_costs_one_stream() {
    let (answer, _, logs) = run([At::Nothing, At::PanicInRequest, At::Nothing]).await;
    assert_eq!(
        (answer.status(), answer.details().as_str()),
        (500, "filter_panic")
    );
    assert_eq!(logs, 1);
    let (answer, _, logs) = run([At::Nothing, At::Nothing, At::PanicInResponse]).await;
    assert_eq!(
        (answer.status(), answer.details().as_str()),
        (500, "filter_panic")
    );
    assert_eq!(logs, 1);
    let (answer, calls, logs) = run([At::Nothing, At::PanicInLog, At::Nothing]).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(calls, with_ends(&ALL), "the others still log and end");
    assert_eq!(logs, 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_is_logged_once() {
    // Before the head.
    let trace = Trace::default();
    let chain = chain![tracer("a", &trace, At::ReplyLaterInRequest)];
    let stream = chain.stream(RequestHead::new(Method::GET, "a", "/"));
    {
        let run = chain.run(&stream, Body::empty());
        let polled = tokio::time::timeout(Duration::from_millis(1), run).await;
        assert!(polled.is_err(), "it waits");
    }
    assert_eq!(chain.logs(), 1);
    assert_eq!(details(&stream), "downstream_remote_disconnect");
    assert_eq!(stream.info.lock().flags.to_string(), "DC");
    assert_eq!(*trace.lock(), ["a.request", "a.log", "a.end"]);

    // In the body.
    let chain = chain![];
    let stream = chain.stream(RequestHead::new(Method::GET, "a", "/"));
    let body = chain.run(&stream, Body::empty()).await.expect("a head");
    assert_eq!(chain.logs(), 0);
    drop(body);
    assert_eq!(chain.logs(), 1);
    assert_eq!(stream.info.lock().flags.to_string(), "DC");
    assert_eq!(stream.response.lock().as_ref().expect("sent").status, 200);
}

#[tokio::test]
async fn a_codec_that_stops_at_content_length_has_everything() {
    let upstream = FakeUpstream {
        headers: &[("content-length", "8")],
        ..FakeUpstream::default()
    };
    let chain = chain![].terminal(Arc::new(upstream));
    let stream = chain.stream(RequestHead::new(Method::GET, "a", "/"));
    let mut body = chain.run(&stream, Body::empty()).await.expect("a head");
    let frame = body.frame().await.expect("a frame").expect("no error");
    assert_eq!(frame.into_data().expect("data"), "upstream");
    drop(body);
    assert_eq!(stream.info.lock().flags.to_string(), "-");
    assert_eq!(stream.info.lock().bytes_sent, 8);
    assert_eq!(chain.logs(), 1);
}

#[tokio::test]
async fn a_route_switches_filters_off_and_on() {
    let off = PerRouteConfig {
        disabled: Some(true),
        config: None,
    };
    let trace = Trace::default();
    let chain = chain![
        tracer("a", &trace, At::Nothing),
        tracer("b", &trace, At::Nothing),
    ]
    .per_route("f0", off);
    chain.get("/").await;
    assert_eq!(*trace.lock(), ["b.request", "b.response", "b.log", "b.end"]);
}

/// Answers with a body of the test's.
#[derive(Debug)]
struct Streaming(Mutex<Option<Body>>);

impl HttpFilter for Streaming {
    fn request(&self, _: &Arc<Stream>, _: Body) -> Step<Body> {
        let head = crate::http::ResponseHead::new(StatusCode::OK);
        Step::Answer(Box::new(head), self.0.lock().take().expect("once"))
    }
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_told_to_the_log() {
    for (error, flags, details) in [
        (
            BodyError::Reset,
            "UC",
            "upstream_reset_after_response_started{connection_termination}",
        ),
        (
            BodyError::Malformed("x".into()),
            "UPE",
            "upstream_reset_after_response_started{protocol_error}",
        ),
    ] {
        let (sender, body) = testing::body();
        sender.send(testing::data("half")).expect("read");
        sender.send(Err(error.clone())).expect("read");
        let chain = chain![].terminal(Arc::new(Streaming(Mutex::new(Some(body)))));
        let answer = chain.get("/").await;
        assert_eq!(answer.error, Some(error));
        assert_eq!(
            (answer.flags(), answer.details()),
            (flags.into(), details.into())
        );
        assert_eq!(chain.logs(), 1);
    }
}

#[tokio::test]
async fn a_malformed_request_body_is_answered() {
    let (sender, body) = testing::body();
    sender
        .send(Err(BodyError::Malformed("chunk".into())))
        .expect("read");
    let chain = chain![].terminal(Arc::new(Arc::new(FakeUpstream::default())));
    let answer = chain.post(body).await;
    assert_eq!((answer.status(), answer.text()), (400, "Bad Request"));
    assert_eq!(answer.flags(), "DPE");
    assert!(answer.stream.info.lock().close);
}

#[tokio::test]
async fn a_verdict_after_the_head_resets() {
    let (sender, body) = testing::body();
    sender.send(testing::data("half")).expect("read");
    let chain = chain![].terminal(Arc::new(Streaming(Mutex::new(Some(body)))));
    let stream = chain.stream(RequestHead::new(Method::GET, "a", "/"));
    let body = chain.run(&stream, Body::empty()).await.expect("a head");
    stream.decide(Verdict::Reply {
        reply: Box::new(reply().flag(ResponseFlag::LocalReset)),
        direct: false,
    });
    let answer = testing::read(stream, body).await;
    assert_eq!(answer.text(), "");
    assert!(answer.error.is_some());
    assert_eq!((answer.status(), answer.flags().as_str()), (200, "LR"));
    assert_eq!(chain.logs(), 1);
}

#[tokio::test]
async fn local_replies_have_envoys_form() {
    let trace = Trace::default();
    let chain = chain![tracer("a", &trace, At::ReplyInRequest)];
    let answer = chain
        .request(
            Method::POST,
            "/",
            &[("content-type", "application/grpc+proto")],
        )
        .await;
    assert_eq!((answer.status(), answer.text()), (200, ""));
    assert_eq!(answer.header("content-type"), Some("application/grpc"));
    assert_eq!(answer.header("grpc-status"), Some("2"));
    assert_eq!(answer.header("grpc-message"), Some("mine"));
    let headers = [("content-type", "application/grpc")];
    let answer = chain.request(Method::HEAD, "/", &headers).await;
    assert_eq!(answer.header("grpc-status"), Some("2"));
    assert_eq!(answer.header("grpc-message"), None);
    let answer = chain.request(Method::HEAD, "/", &[]).await;
    assert_eq!((answer.status(), answer.text()), (418, ""));
    assert_eq!(answer.header("content-length"), Some("4"));
    assert_eq!(chain.logs(), 3);
}

#[derive(Debug)]
struct Wordy(StatusCode);

impl HttpFilter for Wordy {
    fn request(&self, _: &Arc<Stream>, _: Body) -> Step<Body> {
        Step::reply(LocalReply::new(self.0, "hello", "wordy"))
    }
}

#[tokio::test]
async fn a_status_without_a_body_is_complete_at_its_head() {
    for status in [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED] {
        let chain = chain![].terminal(Arc::new(Wordy(status)));
        let stream = chain.stream(RequestHead::new(Method::GET, "a", "/"));
        let body = chain.run(&stream, Body::empty()).await.expect("no reset");
        // Codecs drop such a body unread.
        drop(body);
        let info = stream.info.lock();
        assert_eq!(info.details.as_deref(), Some("wordy"));
        assert!(!info.abandoned && info.flags.is_empty(), "{:?}", info.flags);
    }
}

#[tokio::test]
async fn an_upgrade_needs_leave() {
    let wish = |chain: testing::TestChain| async move {
        let mut head = RequestHead::new(Method::GET, "a", "/");
        head.upgrade = Some(http::HeaderValue::from_static("websocket"));
        chain.send(head, Body::empty()).await
    };
    let answer = wish(chain![]).await;
    assert_eq!(
        (answer.status(), answer.details().as_str()),
        (403, "upgrade_failed")
    );
    let allowed = vec![("websocket".into(), true)];
    let answer = wish(chain![].options(|options| options.upgrades = allowed)).await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn the_answer_is_the_terminal_filter_s_whatever_logs_it() {
    let metrics = testing::metrics();
    let mutation = "mutations: {response_mutations: [{append: {header: {key: x-code, value: '%RESPONSE_CODE%'}}}]}";
    let mutation =
        testing::build::<crate::filter::header_mutation::HeaderMutation>(0, mutation, &metrics);
    let test = testing::TestChain::new(vec![mutation]);
    let registry = Registry::new();
    // A filter that does nothing stands for a logger.
    let any = crate::pb::Any {
        type_url: "type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"
            .into(),
        value: Vec::new(),
    };
    let config = registry.http_filter("log", &any).expect("accepted");
    let log = PluginLog {
        index: 0,
        config: config.expect("known"),
        filter: None,
    };
    for logs in [vec![], vec![log]] {
        let chain = HttpFilterChain::of(test.filters.iter().cloned());
        let chain = testing::with_context(&metrics, |context| {
            chain.with_logs(&registry, &logs, context)
        });
        assert_eq!(chain.len(), 2 + logs.len());
        let stream = test.stream(RequestHead::new(Method::GET, "a", "/"));
        let run = Arc::new(chain).run(Arc::clone(&stream), Body::empty(), test.seen.clone());
        let body = run.await.expect("not reset");
        let answer = testing::read(stream, body).await;
        assert_eq!(answer.header("x-code"), Some("200"));
    }
}

#[tokio::test]
async fn what_is_refused_already_upgrades_nothing() {
    let allowed = vec![("websocket".into(), true)];
    let chain = chain![].options(|options| options.upgrades = allowed);
    for refused in [false, true] {
        let mut head = RequestHead::new(Method::GET, "a", "/");
        head.upgrade = Some(http::HeaderValue::from_static("websocket"));
        let stream = chain.stream(head);
        if refused {
            stream.decide(Verdict::Reply {
                reply: Box::new(reply()),
                direct: false,
            });
        }
        chain.run(&stream, Body::empty()).await.expect("not reset");
        assert_eq!(stream.info.lock().upgrade, !refused);
    }
}

#[test]
fn a_request_costs_few_bytes() {
    let chain = chain![];
    let stream = chain.stream(RequestHead::new(Method::GET, "a", "/"));
    let run = chain.chain().run(stream, Body::empty(), chain.seen.clone());
    let size = std::mem::size_of_val(&run);
    assert!(size < 1800, "{size}");
    assert!(std::mem::size_of::<Stream>() < 2500);
}
