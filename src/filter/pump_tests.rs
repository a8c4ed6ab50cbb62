//! What a pump does for a filter: the rules of `stream::pump`, seen through a chain.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use http_body::Frame;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;

use super::testing::{self, FakeUpstream, TestChain, chain, data};
use super::{HttpFilter, Step};
use crate::http::{Body, ReplyReason, RequestHead, ResponseHead};
use crate::stream::{Flow, Phase, PumpHandle, Side, Start, Stream, Tap, Verdict};

type Calls = Arc<Mutex<Vec<(String, bool)>>>;
type Script = Arc<Mutex<Vec<Flow>>>;

/// Pumps one side; answers each call with the next flow of a script (`Continue` once it is used up).
#[derive(Debug)]
struct Pumping {
    side: Side,
    start: Start,
    calls: Calls,
    script: Script,
    /// Replaces what is seen.
    replace: Option<&'static str>,
    add_trailers: bool,
    handle: Arc<Mutex<Option<PumpHandle>>>,
}

fn pumping(side: Side, script: &[Flow]) -> Pumping {
    Pumping {
        side,
        start: Start::Flowing,
        calls: Calls::default(),
        script: Arc::new(Mutex::new(script.iter().rev().copied().collect())),
        replace: None,
        add_trailers: false,
        handle: Arc::default(),
    }
}

struct Taps {
    side: Side,
    calls: Calls,
    script: Script,
    replace: Option<&'static str>,
    add_trailers: bool,
}

impl Tap for Taps {
    fn data(&mut self, stream: &Arc<Stream>, buffer: &mut Bytes, end: bool) -> Flow {
        let seen = String::from_utf8_lossy(buffer).into_owned();
        self.calls.lock().push((seen, end));
        if let Some(replace) = self.replace {
            *buffer = Bytes::from_static(replace.as_bytes());
        }
        if end && self.add_trailers {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-added", HeaderValue::from_static("1"));
            let cell = match self.side {
                Side::Request => &stream.request_trailers,
                Side::Response => &stream.response_trailers,
            };
            *cell.lock() = Some(trailers);
        }
        self.script.lock().pop().unwrap_or(Flow::Continue)
    }

    fn trailers(&mut self, stream: &Arc<Stream>, buffer: &mut Bytes) -> Flow {
        let held = String::from_utf8_lossy(buffer).into_owned();
        self.calls
            .lock()
            .push((format!("trailers after {held:?}"), true));
        if let Some(trailers) = &mut *stream.request_trailers.lock() {
            trailers.insert("x-changed", HeaderValue::from_static("1"));
        }
        self.script.lock().pop().unwrap_or(Flow::Continue)
    }
}

impl Pumping {
    fn body(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let taps = Taps {
            side: self.side,
            calls: Arc::clone(&self.calls),
            script: Arc::clone(&self.script),
            replace: self.replace,
            add_trailers: self.add_trailers,
        };
        let (body, handle) = stream.pump(self.side, body, self.start, Box::new(taps));
        *self.handle.lock() = Some(handle);
        Step::Next(body)
    }
}

impl HttpFilter for Pumping {
    fn request(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        match self.side {
            Side::Request => self.body(stream, body),
            Side::Response => Step::Next(body),
        }
    }

    fn response(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        match self.side {
            Side::Response => self.body(stream, body),
            Side::Request => Step::Next(body),
        }
    }
}

/// A chain of `filter` and a recording upstream; all data are there from the start.
fn recording(
    filter: Pumping,
) -> (
    TestChain,
    Arc<FakeUpstream>,
    Calls,
    Arc<Mutex<Option<PumpHandle>>>,
) {
    let upstream = Arc::new(FakeUpstream::default());
    let calls = Arc::clone(&filter.calls);
    let handle = Arc::clone(&filter.handle);
    let chain = chain![filter].terminal(Arc::new(Arc::clone(&upstream)));
    (chain, upstream, calls, handle)
}

fn frames(texts: &[&str]) -> Body {
    let (sender, body) = testing::body();
    for text in texts {
        sender.send(data(text)).expect("read");
    }
    body
}

fn calls(expected: &[(&str, bool)]) -> Vec<(String, bool)> {
    expected
        .iter()
        .map(|(text, end)| ((*text).to_owned(), *end))
        .collect()
}

fn received(upstream: &FakeUpstream) -> String {
    let requests = upstream.requests.lock();
    String::from_utf8(requests[0].1.clone()).expect("text")
}

#[tokio::test]
async fn each_frame_is_seen_and_http1_ends_apart() {
    let (chain, upstream, seen, _) = recording(pumping(Side::Request, &[]));
    assert_eq!(chain.post(frames(&["ab", "cd"])).await.status(), 200);
    assert_eq!(
        *seen.lock(),
        calls(&[("ab", false), ("cd", false), ("", true)])
    );
    assert_eq!(received(&upstream), "abcd");
    assert_eq!(chain.logs(), 1);
}

#[tokio::test]
async fn http2_marks_its_last_frame() {
    let (chain, upstream, seen, _) = recording(pumping(Side::Request, &[]));
    let mut head = RequestHead::new(Method::POST, "a", "/");
    head.version = Version::HTTP_2;
    chain.send(head, Body::full("whole")).await;
    assert_eq!(*seen.lock(), calls(&[("whole", true)]));
    assert_eq!(received(&upstream), "whole");
}

#[tokio::test]
async fn a_body_that_is_none_is_not_pumped() {
    let (chain, _, seen, _) = recording(pumping(Side::Request, &[]));
    chain.get("/").await;
    assert!(seen.lock().is_empty());
}

#[tokio::test]
async fn a_buffering_tap_sees_all_so_far_and_may_change_it() {
    let script = [Flow::Buffer, Flow::Buffer];
    let (chain, upstream, seen, _) = recording(pumping(Side::Request, &script));
    chain.post(frames(&["ab", "cd"])).await;
    assert_eq!(
        *seen.lock(),
        calls(&[("ab", false), ("abcd", false), ("abcd", true)])
    );
    assert_eq!(received(&upstream), "abcd");

    let mut filter = pumping(Side::Request, &script);
    filter.replace = Some("x");
    let (chain, upstream, seen, _) = recording(filter);
    chain.post(frames(&["ab", "cd"])).await;
    assert_eq!(
        *seen.lock(),
        calls(&[("ab", false), ("xcd", false), ("x", true)])
    );
    assert_eq!(received(&upstream), "x");
}

#[tokio::test]
async fn a_watermark_holds_what_the_tap_saw_and_drop_loses_it() {
    let (chain, upstream, seen, _) = recording(pumping(Side::Request, &[Flow::Watermark]));
    chain.post(frames(&["ab", "cd"])).await;
    assert_eq!(
        *seen.lock(),
        calls(&[("ab", false), ("cd", false), ("", true)])
    );
    assert_eq!(received(&upstream), "abcd");

    let (chain, upstream, _, _) = recording(pumping(Side::Request, &[Flow::Drop]));
    chain.post(frames(&["ab", "cd"])).await;
    assert_eq!(received(&upstream), "cd");
}

#[tokio::test]
async fn too_much_in_a_request_buffer_is_413() {
    // The limit is 16 bytes.
    let script = [Flow::Buffer; 4];
    let (chain, upstream, _, _) = recording(pumping(Side::Request, &script));
    let answer = chain.post(frames(&["0123456789", "0123456"])).await;
    assert_eq!((answer.status(), answer.text()), (413, "Payload Too Large"));
    assert_eq!(answer.details(), "request_payload_too_large");
    // The manager closes after an answer to an unfinished request.
    assert!(answer.stream.is_cut());
    assert!(upstream.requests.lock().is_empty());

    // What is added to what is held is too much even where all would go on.
    let script = [Flow::Buffer, Flow::Continue];
    let (chain, upstream, _, _) = recording(pumping(Side::Request, &script));
    let answer = chain.post(frames(&["0123456789", "0123456"])).await;
    assert_eq!(answer.status(), 413);
    assert!(upstream.requests.lock().is_empty());

    // Exactly the limit is not too much.
    let script = [Flow::Buffer; 4];
    let (chain, upstream, _, _) = recording(pumping(Side::Request, &script[..2]));
    chain.post(frames(&["0123456789", "012345"])).await;
    assert_eq!(received(&upstream).len(), 16);
}

/// Answers with the body of a test.
#[derive(Debug)]
struct Answering(Mutex<Option<Body>>);

impl HttpFilter for Answering {
    fn request(&self, _: &Arc<Stream>, _: Body) -> Step<Body> {
        let head = ResponseHead::new(StatusCode::OK);
        Step::Answer(Box::new(head), self.0.lock().take().expect("once"))
    }
}

#[tokio::test]
async fn too_much_in_a_response_buffer_resets_once_the_head_is_sent() {
    let filter = pumping(Side::Response, &[Flow::Buffer; 4]);
    let body = frames(&["0123456789", "0123456789"]);
    let chain = chain![filter].terminal(Arc::new(Answering(Mutex::new(Some(body)))));
    let answer = chain.get("/").await;
    assert_eq!((answer.status(), answer.text()), (200, ""));
    assert!(answer.error.is_some());
    assert_eq!(answer.details(), "response_payload_too_large");
    assert_eq!(chain.logs(), 1);
}

/// Holds the response's head until its whole body was seen.
#[derive(Debug)]
struct HoldsHead;

impl HttpFilter for HoldsHead {
    fn response(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let taps = pumping(Side::Response, &[Flow::Buffer; 9]);
        let Step::Next(body) = taps.body(stream, body) else {
            return Step::Next(Body::empty());
        };
        Step::Wait(Box::pin(async move {
            std::future::pending::<()>().await;
            Step::Next(body)
        }))
    }
}

#[tokio::test]
async fn too_much_in_a_response_buffer_is_500_while_the_head_is_held() {
    let body = frames(&["0123456789", "0123456789"]);
    let chain = chain![HoldsHead].terminal(Arc::new(Answering(Mutex::new(Some(body)))));
    let answer = chain.get("/").await;
    assert_eq!(
        (answer.status(), answer.text()),
        (500, "Internal Server Error")
    );
    assert_eq!(answer.details(), "response_payload_too_large");
}

#[tokio::test(start_paused = true)]
async fn a_resume_lets_go_what_was_held_as_one_frame() {
    let script = [Flow::Buffer, Flow::Buffer, Flow::Buffer];
    let (chain, upstream, seen, handle) = recording(pumping(Side::Request, &script));
    let stream = chain.stream(RequestHead::new(Method::POST, "a", "/"));
    let run = chain.run(&stream, frames(&["ab", "cd"]));
    let resume = async {
        tokio::time::timeout(Duration::from_secs(1), std::future::pending::<()>())
            .await
            .expect_err("a second passes");
        let handle = handle.lock().clone().expect("pumped");
        assert!(handle.is_stopped());
        handle.with_held(|held| {
            assert_eq!(held, "abcd");
            *held = Bytes::from_static(b"changed");
        });
        handle.resume();
        // Harmless when nothing is stopped any more.
        handle.resume();
    };
    let (body, ()) = tokio::join!(run, resume);
    let answer = testing::read(stream, body.expect("a head")).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(
        *seen.lock(),
        calls(&[("ab", false), ("abcd", false), ("abcd", true)]),
        "the tap is not called for what it held"
    );
    assert_eq!(received(&upstream), "changed");
}

#[tokio::test(start_paused = true)]
async fn a_held_start_shows_everything_at_once() {
    for (start, texts, limit_is_hard) in [
        (Start::HeldBuffer, ["ab", "cd"], false),
        (Start::HeldWatermark, ["0123456789", "0123456789"], false),
        (Start::HeldBuffer, ["0123456789", "0123456789"], true),
    ] {
        let mut filter = pumping(Side::Request, &[]);
        filter.start = start;
        let (chain, upstream, seen, handle) = recording(filter);
        let stream = chain.stream(RequestHead::new(Method::POST, "a", "/"));
        let run = chain.run(&stream, frames(&texts));
        let resume = async {
            tokio::time::timeout(Duration::from_secs(1), std::future::pending::<()>())
                .await
                .expect_err("a second passes");
            assert!(seen.lock().is_empty());
            let handle = handle.lock().clone().expect("pumped");
            handle.resume();
        };
        let (body, ()) = tokio::join!(run, resume);
        let answer = testing::read(Arc::clone(&stream), body.expect("a head")).await;
        if limit_is_hard {
            assert_eq!(answer.status(), 413);
            continue;
        }
        assert_eq!(answer.status(), 200);
        let all = texts.concat();
        let first = seen.lock()[0].0.clone();
        assert_eq!(first, all, "{start:?}");
        assert_eq!(received(&upstream), all);
    }
}

/// Holds answers back for a while.
#[derive(Debug)]
struct HoldsAnswers;

impl HttpFilter for HoldsAnswers {
    fn response(&self, _: &Arc<Stream>, body: Body) -> Step<Body> {
        Step::Wait(Box::pin(async move {
            tokio::task::yield_now().await;
            Step::Next(body)
        }))
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_watermark_kept_from_being_read_is_not_read_for_an_answer() {
    // The limit is 16 bytes.
    for (text, ends) in [("0123456789", false), ("01234", true)] {
        let mut filter = pumping(Side::Request, &[]);
        filter.start = Start::HeldWatermark;
        let upstream = Arc::new(Arc::new(FakeUpstream::default()));
        let chain = chain![filter, HoldsAnswers].terminal(upstream);
        let stream = chain.stream(RequestHead::new(Method::POST, "a", "/"));
        let run = chain.run(&stream, frames(&[text, text]));
        let reply = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            stream.decide(Verdict::Reply {
                reply: Box::new(ReplyReason::RequestPayloadTooLarge.into()),
                direct: false,
            });
        };
        let (body, ()) = tokio::join!(run, reply);
        let ended = stream.info.lock().request_end.is_some();
        assert_eq!(ended, ends, "{text}");
        let answer = testing::read(stream, body.expect("a head")).await;
        assert_eq!(answer.status(), 413);
    }
}

#[tokio::test]
async fn trailers_end_a_body_and_may_be_changed() {
    let (sender, body) = testing::body();
    sender.send(data("ab")).expect("read");
    let mut trailers = HeaderMap::new();
    trailers.insert("x-t", HeaderValue::from_static("1"));
    sender.send(Ok(Frame::trailers(trailers))).expect("read");
    drop(sender);
    let (chain, upstream, seen, _) = recording(pumping(Side::Request, &[Flow::Buffer]));
    chain.post(body).await;
    assert_eq!(
        *seen.lock(),
        calls(&[("ab", false), ("trailers after \"ab\"", true)]),
        "no data call is marked as the end"
    );
    let requests = upstream.requests.lock();
    assert_eq!(requests[0].1, b"ab");
    let trailers = requests[0].2.as_ref().expect("trailers");
    assert_eq!(trailers.len(), 2);
    assert!(trailers.contains_key("x-changed"));
}

#[tokio::test]
async fn a_tap_may_add_trailers_at_the_end() {
    let mut filter = pumping(Side::Response, &[]);
    filter.add_trailers = true;
    let chain = chain![filter];
    let answer = chain.get("/").await;
    assert_eq!(answer.text(), "upstream");
    assert!(answer.trailers.expect("added").contains_key("x-added"));
}

#[tokio::test]
async fn callbacks_do_not_wait_for_a_reader_and_the_queue_is_bounded() {
    // Nobody reads the response's body while the head waits; the limit is 16 bytes.
    let (sender, body) = testing::body();
    for _ in 0..10 {
        sender.send(data("0123456789")).expect("read");
    }
    drop(sender);
    let filter = pumping(Side::Response, &[]);
    let seen = Arc::clone(&filter.calls);
    let chain = chain![filter].terminal(Arc::new(Answering(Mutex::new(Some(body)))));
    let stream = chain.stream(RequestHead::new(Method::GET, "a", "/"));
    let mut body = chain.run(&stream, Body::empty()).await.expect("a head");
    let first = body.frame().await.expect("a frame").expect("no error");
    assert_eq!(first.into_data().expect("data").len(), 10);
    assert_eq!(seen.lock().len(), 2, "two frames fill the queue");
    let answer = testing::read(stream, body).await;
    assert_eq!(answer.body.len(), 90);
    assert_eq!(answer.stream.phase(), Phase::Ended);
}

#[tokio::test]
async fn two_pumps_follow_each_other() {
    let mut first = pumping(Side::Request, &[]);
    first.replace = Some("1");
    let second = pumping(Side::Request, &[]);
    let seen = Arc::clone(&second.calls);
    let upstream = Arc::new(FakeUpstream::default());
    let chain = chain![first, second].terminal(Arc::new(Arc::clone(&upstream)));
    chain.post(frames(&["ab", "cd"])).await;
    // The end of the first is no frame of its own any more, but for what the filter put there.
    assert_eq!(
        *seen.lock(),
        calls(&[("1", false), ("1", false), ("1", true)])
    );
    assert_eq!(received(&upstream), "111");
}

#[tokio::test]
async fn a_frame_passes_all_taps_before_the_next_one_is_read() {
    for side in [Side::Request, Side::Response] {
        let mut first = pumping(side, &[]);
        first.replace = Some("1");
        let mut second = pumping(side, &[]);
        second.calls = Arc::clone(&first.calls);
        let seen = Arc::clone(&first.calls);
        let (sender, body) = testing::body();
        sender.send(data("ab")).expect("read");
        sender.send(data("cd")).expect("read");
        let mut trailers = HeaderMap::new();
        trailers.insert("x-t", HeaderValue::from_static("1"));
        sender.send(Ok(Frame::trailers(trailers))).expect("read");
        drop(sender);
        if side == Side::Request {
            let upstream = Arc::new(Arc::<FakeUpstream>::default());
            chain![first, second].terminal(upstream).post(body).await;
        } else {
            // The response passes them in reverse.
            let terminal = Arc::new(Answering(Mutex::new(Some(body))));
            chain![second, first].terminal(terminal).get("/").await;
        }
        assert_eq!(
            *seen.lock(),
            calls(&[
                ("ab", false),
                ("1", false),
                ("cd", false),
                ("1", false),
                ("trailers after \"\"", true),
                ("trailers after \"\"", true),
            ]),
            "{side:?}"
        );
    }
}

#[tokio::test]
async fn what_a_watermark_held_goes_on_as_one_frame_with_the_end_on_it() {
    for (script, expected) in [
        (
            &[Flow::Watermark][..],
            &[("abcd", false), ("", true)] as &[(&str, bool)],
        ),
        (&[Flow::Watermark, Flow::Watermark], &[("abcd", true)]),
    ] {
        let first = pumping(Side::Request, script);
        let second = pumping(Side::Request, &[]);
        let seen = Arc::clone(&second.calls);
        let upstream = Arc::new(Arc::<FakeUpstream>::default());
        let chain = chain![first, second].terminal(upstream);
        chain.post(frames(&["ab", "cd"])).await;
        assert_eq!(*seen.lock(), calls(expected));
    }
}

/// Resets the stream at the second frame of its response.
#[derive(Debug)]
struct ResetsLate;

struct ResetsAt(u32);

impl Tap for ResetsAt {
    fn data(&mut self, stream: &Arc<Stream>, _: &mut Bytes, _: bool) -> Flow {
        self.0 -= 1;
        if self.0 > 0 {
            return Flow::Continue;
        }
        stream.decide(Verdict::Reset {
            details: "late".into(),
        });
        Flow::Drop
    }
}

impl HttpFilter for ResetsLate {
    fn response(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let tap = Box::new(ResetsAt(2));
        let (body, _) = stream.pump(Side::Response, body, Start::Flowing, tap);
        Step::Next(body)
    }
}

#[tokio::test]
async fn what_was_let_go_before_a_reset_is_sent() {
    let body = frames(&["ab", "cd"]);
    let chain = chain![ResetsLate].terminal(Arc::new(Answering(Mutex::new(Some(body)))));
    let answer = chain.get("/").await;
    assert_eq!((answer.status(), answer.text()), (200, "ab"));
    assert!(answer.error.is_some());
    assert_eq!(answer.details(), "late");
}

#[tokio::test]
async fn a_stream_that_ends_breaks_what_was_pumped() {
    let (sender, body) = testing::body();
    sender.send(data("ab")).expect("read");
    let filter = pumping(Side::Request, &[Flow::Buffer]);
    let handle = Arc::clone(&filter.handle);
    let chain = chain![filter].terminal(Arc::new(Answering(Mutex::new(Some(Body::empty())))));
    let answer = chain.post(body).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(chain.logs(), 1);
    // Late: nothing to resume.
    handle.lock().clone().expect("pumped").resume();
    assert!(sender.send(data("cd")).is_err(), "the source was given up");
}
