//! Clients that take nothing and go on, that reset what they ask, or are gone without a word that anyone reads.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::io::AsyncReadExt as _;

use super::super::super::Ending;
use super::*;

/// A preface that grants all the windows there are.
const PREFACE: &[u8] =
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff\
    \0\0\x04\x08\0\0\0\0\0\x7f\0\0\0";
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0testping";
const WINDOW_UPDATE: &[u8] = b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short frame");
    let mut frame = vec![0, 0, length, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn get(stream: u32) -> Vec<u8> {
    frame(1, 5, stream, b"\x82\x86\x84\x41\x01a")
}

fn reset(stream: u32) -> Vec<u8> {
    frame(3, 0, stream, &[0, 0, 0, 8])
}

async fn settled() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

fn endless() -> Reply {
    Reply {
        body: Endless::body(Duration::from_secs(10_000)),
        ..reply(200, "")
    }
}

/// A client whose first request is answered without end, which it does not read.
async fn full<F, A>(options: Options, answer: F) -> Served
where
    F: Fn(Exchange) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Reply, Reset>> + Send + 'static,
{
    let mut served = serve(CodecType::Http2, options, answer);
    send(&mut served, PREFACE).await;
    send(&mut served, &get(1)).await;
    served
}

async fn send(served: &mut Served, bytes: &[u8]) {
    served.client.write_all(bytes).await.expect("not closed");
    settled().await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_stream_lets_go_of_all_though_nothing_is_taken() {
    let kept = Arc::new(());
    let asked = AtomicUsize::new(0);
    let hold = Arc::clone(&kept);
    let mut served = full(Options::default(), move |_| {
        let (number, held) = (asked.fetch_add(1, Relaxed), Arc::clone(&hold));
        async move {
            if number % 2 == 1 {
                let _held = held;
                return std::future::pending().await;
            }
            let data = futures_util::stream::repeat_with(move || {
                let _held = &held;
                Ok(Frame::data(Bytes::from_static(&[b'x'; 16 << 10])))
            });
            Ok(Reply {
                body: Body::new(StreamBody::new(data)),
                ..reply(200, "")
            })
        }
    })
    .await;
    let streams = (3..43).step_by(2);
    for stream in streams.clone() {
        send(&mut served, &get(stream)).await;
    }
    assert_eq!(Arc::strong_count(&kept), 2 + 21);
    for stream in streams {
        send(&mut served, &reset(stream)).await;
    }
    assert_eq!(Arc::strong_count(&kept), 2 + 1);
}

#[tokio::test(start_paused = true)]
async fn not_many_streams_begin_while_nothing_is_taken() {
    paced(endless).await;
    // Where nothing more is written after what the client had not taken, nothing but that tells that it has.
    paced(|| reply(200, "x".repeat(300 << 10))).await;
}

async fn paced(first: fn() -> Reply) {
    const ALL: u32 = 8_000;
    let asked = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&asked);
    let served = full(Options::default(), move |_| {
        let number = count.fetch_add(1, Relaxed);
        async move {
            match number {
                0 => Ok(first()),
                _ => Ok(reply(204, "")),
            }
        }
    })
    .await;
    let (mut reads, mut writes) = tokio::io::split(served.client);
    let writer = crate::base::task::spawn("client", async move {
        for first in (0..ALL).step_by(100) {
            let mut bytes = Vec::new();
            for number in first..first + 100 {
                bytes.extend(get(3 + 2 * number));
                bytes.extend(reset(3 + 2 * number));
            }
            writes.write_all(&bytes).await.expect("not closed");
            settled().await;
        }
        writes
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!writer.is_finished());
    let before = asked.load(Relaxed);
    assert!((1_000..1_300).contains(&before), "{before}");

    // It goes on with who takes something again.
    crate::base::task::spawn("reader", async move {
        let mut buffer = vec![0; 64 << 10];
        while reads.read(&mut buffer).await.is_ok_and(|count| count > 0) {
            settled().await;
        }
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(writer.is_finished());
    assert_eq!(asked.load(Relaxed), 1 + ALL as usize);
    assert!(!served.task.is_finished());
}

#[tokio::test(start_paused = true)]
async fn it_reads_on_where_its_last_write_lets_it() {
    // Of some of these bodies the last write is also the one that makes up a round.
    for size in [80, 96, 112, 128] {
        let asked = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&asked);
        let served = full(Options::default(), move |_| {
            let number = count.fetch_add(1, Relaxed);
            async move {
                match number {
                    0 => Ok(Reply {
                        body: Body::full(vec![b'x'; size << 10]),
                        ..reply(200, "")
                    }),
                    _ => Ok(reply(204, "")),
                }
            }
        })
        .await;
        let (mut reads, mut writes) = tokio::io::split(served.client);
        let writer = crate::base::task::spawn("client", async move {
            for number in 0..8_000 {
                let mut bytes = get(3 + 2 * number);
                bytes.extend(reset(3 + 2 * number));
                writes.write_all(&bytes).await.expect("not closed");
                if number % 100 == 0 {
                    settled().await;
                }
            }
            writes
        });
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(!writer.is_finished());
        crate::base::task::spawn("reader", async move {
            let mut buffer = vec![0; 64 << 10];
            while reads.read(&mut buffer).await.is_ok_and(|count| count > 0) {
                settled().await;
            }
        });
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(writer.is_finished(), "{size}: {}", asked.load(Relaxed));
        assert_eq!(asked.load(Relaxed), 8_001, "{size}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_client_that_takes_nothing_is_seen_at_once() {
    // With a PING, the library reads nothing before it has answered it.
    for ping in [false, true] {
        let mut served = full(Options::default(), |_| async { Ok(endless()) }).await;
        send(&mut served, &get(3)).await;
        if ping {
            send(&mut served, PING).await;
            send(&mut served, WINDOW_UPDATE).await;
        }
        assert!(!served.task.is_finished());
        served.client.shutdown().await.expect("a FIN");
        settled().await;
        assert!(served.task.is_finished(), "{ping}");
        assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Remote);
        assert_eq!(served.meter.ending(), Ending::Peer);
    }
}

#[tokio::test(start_paused = true)]
async fn who_resets_what_is_not_answered_is_given_up() {
    for (at_once, answered) in [(1, false), (250, false), (1, true), (50, true)] {
        let mut served = serve(CodecType::Http2, Options::default(), move |_| async move {
            match answered {
                true => Ok(reply(204, "")),
                false => std::future::pending().await,
            }
        });
        send(&mut served, PREFACE).await;
        let mut stream = 1;
        for _ in 0..250 / at_once {
            assert!(!served.task.is_finished());
            let mut bytes = Vec::new();
            for _ in 0..at_once {
                bytes.extend(get(stream));
                bytes.extend(reset(stream));
                stream += 2;
            }
            send(&mut served, &bytes).await;
        }
        assert_eq!(served.task.is_finished(), !answered, "{at_once}");
        if !answered {
            let end = served.task.await.expect("an end");
            assert_eq!(end, ConnectionEnd::PrematureResets);
            assert_eq!(served.meter.ending(), Ending::PrematureResets);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_with_a_full_socket_is_given_up() {
    let begin = tokio::time::Instant::now();
    let served = full(asking(10, 3), |_| async { Ok(endless()) }).await;
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Local);
    assert_eq!(begin.elapsed().as_secs(), 13);
}

#[tokio::test(start_paused = true)]
async fn other_frames_stand_for_the_answer_to_a_ping() {
    let begin = tokio::time::Instant::now();
    let mut served = deaf(asking(10, 3), 0).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let sent = served.client.write_all(WINDOW_UPDATE).await;
        sent.expect("not closed");
    }
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Local);
    assert_eq!(begin.elapsed().as_secs(), 23);
}

#[tokio::test(start_paused = true)]
async fn small_frames_may_wait_to_be_read() {
    let mut options = Options::default();
    options.http2.initial_connection_window = 65_535;
    let mut served = serve(CodecType::Http2, options, |exchange| async {
        // All has come by then.
        settled().await;
        describe(exchange).await
    });
    let mut request = PREFACE.to_vec();
    request.extend(frame(1, 4, 1, b"\x83\x86\x84\x41\x01a"));
    for _ in 0..999 {
        request.extend(frame(0, 0, 1, b"y"));
    }
    request.extend(frame(0, 1, 1, b"y"));
    let (heard, ended) = talk(&mut served.client, &request).await;
    assert!(
        heard.contains(&format!("<{}>", "y".repeat(1_000))),
        "{heard}"
    );
    assert!(!ended);
}

#[tokio::test(start_paused = true)]
async fn headers_of_a_connection_are_dropped_from_trailers() {
    let (client, _served) = connected(CodecType::Http2, Options::default(), |_| async {
        let mut trailers = HeaderMap::new();
        for (name, text) in [
            ("connection", "close"),
            ("keep-alive", "1"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "x"),
            ("x-a", "1"),
        ] {
            trailers.insert(name, value(text));
        }
        let frames = [
            Ok(Frame::data(Bytes::from_static(b"data"))),
            Ok(Frame::trailers(trailers)),
        ];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        Ok(Reply {
            body: Body::new(body),
            ..reply(200, "")
        })
    })
    .await;
    let head = RequestHead::new(Method::GET, "a", "/");
    let (_, body) = client.send(head, Body::empty()).await.expect("an answer");
    let body = body.collect().await.expect("a body");
    let mut expected = HeaderMap::new();
    expected.insert("x-a", value("1"));
    assert_eq!(body.trailers(), Some(&expected));
    assert_eq!(body.to_bytes(), "data");
}

#[tokio::test(start_paused = true)]
async fn the_length_of_a_connect_is_not_for_anyone() {
    let (mut client, _, _served) = granting(
        65_535,
        Options::default(),
        |exchange: Exchange| async move {
            let length = exchange.head.headers.contains_key("content-length");
            let connect = exchange.head.method == Method::CONNECT;
            let status = if connect && !length { 403 } else { 200 };
            Ok(reply(status, ""))
        },
    )
    .await;
    let request = http::Request::builder()
        .method(Method::CONNECT)
        .uri("a.test:1")
        .header("content-length", "5")
        .body(())
        .expect("a request");
    let (answer, _body) = client.send_request(request, false).expect("a stream");
    assert_eq!(answer.await.expect("an answer").status(), 403);
}
