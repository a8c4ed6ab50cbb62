//! Deadlines of a stream: before its head, after it, and while nobody takes what is there.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::Body as _;

use super::*;
use crate::stream::{Companion, Progress};

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

#[tokio::test(start_paused = true)]
async fn a_request_may_take_its_time_once_its_response_has_begun() {
    let (_sender, request) = testing::body();
    let (response, body) = testing::body();
    let chain = chain![]
        .terminal(Arc::new(Streaming(Mutex::new(Some(body)))))
        .options(|options| options.request_timeout = Some(Duration::from_secs(1)));
    crate::base::task::spawn("test", async move {
        for _ in 0..3 {
            response.send(testing::data("tick ")).expect("read");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let answer = chain.post(request).await;
    assert_eq!((answer.status(), answer.text()), (200, "tick tick tick "));
    assert!(answer.error.is_none(), "{:?}", answer.error);
}

/// Takes the request apart in a companion, frame by frame, and resets the stream where one says so.
struct Upload(Body);

impl Companion for Upload {
    fn poll(&mut self, stream: &Arc<Stream>, context: &mut Context<'_>) -> Progress {
        match Pin::new(&mut self.0).poll_frame(context) {
            Poll::Pending => Progress::Idle,
            Poll::Ready(Some(Ok(frame))) => {
                let data = frame.into_data().expect("data");
                stream.info.lock().bytes_received += data.len() as u64;
                if data == "reset" {
                    stream.decide(Verdict::Reset {
                        details: "given_up".into(),
                    });
                }
                Progress::Moved
            }
            Poll::Ready(_) => Progress::Done,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_the_response_may_go_on_with_the_request() {
    let (sender, request) = testing::body();
    let chain = chain![].terminal(Arc::new(Streaming(Mutex::new(Some(endless())))));
    let stream = chain.stream(RequestHead::new(Method::POST, "a", "/"));
    let mut body = chain.run(&stream, Body::empty()).await.expect("a body");
    stream.attach(Box::new(Upload(request)));
    let mut wait = async || {
        let room = std::future::poll_fn(|context| body.poll_deadline(context));
        tokio::time::timeout(Duration::from_millis(10), room).await
    };
    for sent in 1..=3 {
        sender.send(testing::data("x")).expect("read");
        assert!(wait().await.is_err(), "nothing has passed");
        assert_eq!(stream.info.lock().bytes_received, sent);
    }
    sender.send(testing::data("reset")).expect("read");
    assert!(matches!(wait().await, Ok(BodyError::Aborted(_))));
    assert_eq!(stream.info.lock().details.as_deref(), Some("given_up"));
    assert_eq!(chain.logs(), 1);
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
