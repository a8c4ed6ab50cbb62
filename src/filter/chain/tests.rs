//! Tests of `filter::chain`.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;

use crate::config::extension::PerRouteConfig;
use crate::filter::testing::{self, FakeUpstream, chain, details};
use crate::filter::{HttpFilter, Step};
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

#[tokio::test(start_paused = true)]
async fn deadlines_answer_before_the_head_and_reset_after_it() {
    let slow = |seconds| {
        Arc::new(Arc::new(FakeUpstream {
            delay: Some(Duration::from_secs(seconds)),
            ..FakeUpstream::default()
        }))
    };
    let second = Duration::from_secs(1);

    let chain = chain![]
        .terminal(slow(5))
        .options(|options| options.stream_idle_timeout = Some(second));
    let answer = chain.get("/").await;
    assert_eq!((answer.status(), answer.text()), (504, "stream timeout"));
    assert_eq!(
        (answer.flags().as_str(), answer.details().as_str()),
        ("SI", "stream_idle_timeout")
    );

    let chain = chain![]
        .terminal(slow(5))
        .options(|options| options.max_stream_duration = Some(second));
    let answer = chain.get("/").await;
    assert_eq!(
        (answer.status(), answer.text()),
        (504, "downstream duration timeout")
    );
    assert_eq!(answer.flags(), "-");

    // While the request still comes, it is the client's fault.
    let (sender, body) = testing::body();
    let chain = chain![]
        .terminal(slow(0))
        .options(|options| options.request_timeout = Some(second));
    let answer = chain.post(body).await;
    assert_eq!(
        (answer.status(), answer.details().as_str()),
        (408, "request_overall_timeout")
    );
    drop(sender);

    // After the head.
    let (sender, body) = testing::body();
    let chain = chain![]
        .terminal(Arc::new(Streaming(Mutex::new(Some(body)))))
        .options(|options| options.stream_idle_timeout = Some(second));
    sender.send(testing::data("half")).expect("read");
    let answer = chain.get("/").await;
    assert_eq!((answer.status(), answer.text()), (200, "half"));
    assert!(matches!(answer.error, Some(BodyError::Aborted(_))));
    assert_eq!(
        (answer.flags().as_str(), answer.details().as_str()),
        ("SI", "stream_idle_timeout")
    );
    assert_eq!(chain.logs(), 1);
}

/// A body without end whose frames are always there.
fn endless() -> Body {
    let frame = || Ok(http_body::Frame::data(bytes::Bytes::from_static(b"more")));
    let frames = futures_util::stream::repeat_with(frame);
    Body::new(http_body_util::StreamBody::new(frames))
}

#[tokio::test(start_paused = true)]
async fn deadlines_hold_while_nobody_takes_what_is_there() {
    let second = Duration::from_secs(1);
    for (which, flags, details) in [
        ("idle", "SI", "stream_idle_timeout"),
        ("duration", "-", "max_duration_timeout"),
        ("response", "UT", "response_timeout"),
    ] {
        // Either the codec has no room at all, or it takes a frame now and then.
        for takes in [false, true] {
            let name = format!("{which}, {takes}");
            let chain = chain![]
                .terminal(Arc::new(Streaming(Mutex::new(Some(endless())))))
                .options(|options| match which {
                    "idle" => options.stream_idle_timeout = Some(second),
                    "duration" => options.max_stream_duration = Some(second),
                    _ => {}
                });
            let stream = chain.stream(RequestHead::new(Method::GET, "a", "/"));
            let mut body = chain.run(&stream, Body::empty()).await.expect("a body");
            if which == "response" {
                stream.set_timeouts(|timeouts| timeouts.response = Some(second));
            }
            let begin = tokio::time::Instant::now();
            let error = loop {
                let room = std::future::poll_fn(|context| body.poll_deadline(context));
                // The last time, the frame is asked for first.
                if takes && begin.elapsed() >= Duration::from_millis(900) && which != "idle" {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                } else {
                    let room = tokio::time::timeout(Duration::from_millis(300), room);
                    if let Ok(error) = room.await {
                        break error;
                    }
                }
                if takes && begin.elapsed() < 3 * second {
                    match body.frame().await.expect("endless") {
                        Ok(frame) => assert_eq!(frame.into_data().expect("data"), "more"),
                        Err(error) => break error,
                    }
                }
            };
            assert!(matches!(error, BodyError::Aborted(_)), "{name}");
            // Frames that are taken are activity.
            let last = if takes && which == "idle" { 3 } else { 1 };
            assert_eq!(begin.elapsed().as_secs(), last, "{name}");
            {
                let info = stream.info.lock();
                assert_eq!(info.flags.to_string(), flags, "{name}");
                assert_eq!(info.details.as_deref(), Some(details), "{name}");
                assert!(info.reset, "{name}");
            }
            assert_eq!(chain.logs(), 1, "{name}");
            assert!(body.frame().await.is_none(), "{name}");
            drop(body);
            assert_eq!(chain.logs(), 1, "{name}");
        }
    }
}

/// Lets a response wait.
#[derive(Debug)]
struct SlowResponse;

impl HttpFilter for SlowResponse {
    fn response(&self, _: &Arc<Stream>, body: Body) -> Step<Body> {
        Step::Wait(Box::pin(async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Step::Next(body)
        }))
    }
}

#[tokio::test(start_paused = true)]
async fn a_filter_may_hold_the_answer_to_a_deadline_back() {
    let second = Duration::from_secs(1);
    for idle in [true, false] {
        let chain = chain![SlowResponse]
            .terminal(Arc::new(Arc::new(FakeUpstream {
                delay: Some(5 * second),
                ..FakeUpstream::default()
            })))
            .options(|options| {
                let option = if idle {
                    &mut options.stream_idle_timeout
                } else {
                    &mut options.max_stream_duration
                };
                *option = Some(second);
            });
        let begin = tokio::time::Instant::now();
        let answer = chain.get("/").await;
        assert_eq!(answer.status(), 504, "{idle}");
        assert_eq!(begin.elapsed(), second + Duration::from_millis(500));
    }
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
    let answer = chain.request(Method::HEAD, "/", &[]).await;
    assert_eq!((answer.status(), answer.text()), (418, ""));
    assert_eq!(answer.header("content-length"), Some("4"));
    assert_eq!(chain.logs(), 2);
}

/// Answers before the request has ended, which a task of its own goes on to read.
#[derive(Debug)]
struct Early(tokio::sync::mpsc::UnboundedSender<Option<BodyError>>);

impl HttpFilter for Early {
    fn request(&self, _: &Arc<Stream>, body: Body) -> Step<Body> {
        let heard = self.0.clone();
        drop(crate::base::task::spawn("early", async move {
            // The test looks at what is sent.
            let _ = heard.send(body.collect().await.err());
        }));
        let head = crate::http::ResponseHead::new(StatusCode::OK);
        Step::Answer(Box::new(head), Body::full("early"))
    }
}

#[tokio::test]
async fn a_request_is_over_with_its_stream() {
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let chain = chain![].terminal(Arc::new(Early(heard)));
    // The client sends a part, and then nothing more.
    let (client, body) = testing::body();
    client.send(testing::data("begin")).expect("open");
    let answer = chain.post(body).await;
    assert_eq!(answer.text(), "early");
    let error = tokio::time::timeout(Duration::from_secs(5), hears.recv()).await;
    assert!(
        matches!(error, Ok(Some(Some(BodyError::Aborted(_))))),
        "{error:?}"
    );
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

#[test]
fn a_request_costs_few_bytes() {
    let chain = chain![];
    let stream = chain.stream(RequestHead::new(Method::GET, "a", "/"));
    let run = chain.chain().run(stream, Body::empty(), chain.seen.clone());
    let size = std::mem::size_of_val(&run);
    assert!(size < 1800, "{size}");
    assert!(std::mem::size_of::<Stream>() < 2500);
}

/// Answers at once, and holds its answer back until all of the request has come, but not for ever.
#[derive(Debug)]
struct HoldsItsReply;

impl HttpFilter for HoldsItsReply {
    fn request(&self, _: &Arc<Stream>, _: Body) -> Step<Body> {
        Step::reply(reply())
    }

    fn response(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let stream = Arc::clone(stream);
        Step::Wait(Box::pin(async move {
            for _ in 0..100 {
                if stream.info.lock().request_end.is_some() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            Step::Next(body)
        }))
    }
}

#[tokio::test]
async fn a_request_is_read_on_while_its_answer_is_held() {
    let chain = chain![HoldsItsReply];
    let stream = chain.stream(RequestHead::new(Method::POST, "a.test", "/"));
    let (sender, body) = testing::body();
    for text in ["abc", "de"] {
        sender.send(testing::data(text)).expect("a reader");
    }
    drop(sender);
    let body = chain.run(&stream, body).await.expect("not reset");
    {
        let info = stream.info.lock();
        assert_eq!((info.bytes_received, info.request_end.is_some()), (5, true));
    }
    assert!(!stream.is_cut());
    let answer = testing::read(stream, body).await;
    assert_eq!((answer.status(), answer.text()), (418, "mine"));
}

/// Answers when it sees data.
#[derive(Debug)]
struct AnswersToData;

impl Tap for AnswersToData {
    fn data(&mut self, stream: &Arc<Stream>, _: &mut bytes::Bytes, _: bool) -> Flow {
        stream.decide(Verdict::Reply {
            reply: Box::new(reply()),
            direct: false,
        });
        Flow::Drop
    }
}

impl HttpFilter for AnswersToData {
    fn request(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let tap = Box::new(AnswersToData);
        Step::Next(stream.pump(Side::Request, body, Start::Flowing, tap).0)
    }
}

#[tokio::test]
async fn an_answer_to_data_is_one_to_an_unfinished_request() {
    // All of the body is here, but of its end the filter was not told.
    let chain = chain![AnswersToData].terminal(Arc::new(Arc::new(FakeUpstream::default())));
    let stream = chain.stream(RequestHead::new(Method::POST, "a.test", "/"));
    chain
        .run(&stream, Body::full("abc"))
        .await
        .expect("not reset");
    assert!(stream.is_cut());
    // Where the answer is held, the end is seen meanwhile.
    let chain = chain![AnswersToData, HoldsItsReplyOnly]
        .terminal(Arc::new(Arc::new(FakeUpstream::default())));
    let stream = chain.stream(RequestHead::new(Method::POST, "a.test", "/"));
    chain
        .run(&stream, Body::full("abc"))
        .await
        .expect("not reset");
    assert!(!stream.is_cut());
}

/// Holds answers back for a while.
#[derive(Debug)]
struct HoldsItsReplyOnly;

impl HttpFilter for HoldsItsReplyOnly {
    fn response(&self, _: &Arc<Stream>, body: Body) -> Step<Body> {
        Step::Wait(Box::pin(async move {
            tokio::task::yield_now().await;
            Step::Next(body)
        }))
    }
}

#[tokio::test]
async fn a_head_that_a_reply_took_the_place_of_is_kept() {
    let trace = Trace::default();
    let chain = chain![tracer("a", &trace, At::ReplyInResponse)];
    let stream = chain.stream(RequestHead::new(Method::GET, "a.test", "/"));
    let body = chain.run(&stream, Body::empty()).await.expect("not reset");
    let before = stream.overwritten.lock().as_ref().map(|head| head.status);
    assert_eq!(before, Some(StatusCode::OK));
    assert_eq!(testing::read(stream, body).await.status(), 418);
}
