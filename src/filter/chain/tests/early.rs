//! Answers before the end of their requests.

use super::*;

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

/// Answers at once, and tells what it sees in the answer of the bytes received.
#[derive(Debug, Default)]
struct Counts(std::sync::atomic::AtomicU64);

impl HttpFilter for Arc<Counts> {
    fn request(&self, _: &Arc<Stream>, _: Body) -> Step<Body> {
        Step::reply(reply())
    }

    fn response(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let received = stream.info.lock().bytes_received;
        self.0.store(received, std::sync::atomic::Ordering::Relaxed);
        Step::Next(body)
    }
}

#[tokio::test]
async fn what_came_with_the_head_counts_in_the_answer_to_it() {
    let counts = Arc::new(Counts::default());
    let chain = chain![Arc::clone(&counts)];
    for (held, seen) in [(Some(3), 3), (None, 0)] {
        let stream = chain.stream(RequestHead::new(Method::POST, "a.test", "/"));
        stream.info.lock().held = held;
        let (_client, body) = testing::body();
        chain.run(&stream, body).await.expect("not reset");
        assert_eq!(counts.0.load(std::sync::atomic::Ordering::Relaxed), seen);
    }
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
