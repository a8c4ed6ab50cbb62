//! A client, scripted filters, and whoever reads and writes in the codec's place.

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;
use crate::filter::network::testing::{Seen, chain, handle, seen};
use crate::filter::testing::connection;
use crate::stream::StreamConfig;

/// A connection whose filters have these scripts (`network/tests.rs` explains them).
fn begin(scripts: &[&[&'static str]]) -> (Filtered, DuplexStream, Seen) {
    begin_narrow(scripts, 1 << 20)
}

/// As [`begin`], with so much room for what the client has not read, in bytes.
fn begin_narrow(scripts: &[&[&'static str]], room: usize) -> (Filtered, DuplexStream, Seen) {
    let (client, server) = duplex(room);
    let (filters, log) = chain(scripts);
    let head = crate::http::RequestHead::new(::http::Method::GET, "", "");
    let config = Arc::new(StreamConfig {
        routes: None,
        clusters: Arc::default(),
        upstream_filters: None,
        options: Arc::default(),
        generation: 1,
        records: None,
    });
    let stream = Stream::new(connection(), config, head, 0);
    (Filtered::new(server.into(), stream, filters), client, log)
}

/// Answers each read with its length, until the client ends.
async fn codec(filtered: Filtered) -> ConnectionEnd {
    let mut io = filtered.io();
    let mut buffer = [0; 64];
    loop {
        match io.read(&mut buffer).await {
            Ok(0) => return ConnectionEnd::Remote,
            Ok(_) if buffer.starts_with(b"bye") => {
                let _ = io.shutdown().await;
                return ConnectionEnd::Local;
            }
            Ok(count) => io
                .write_all(format!("{count}.").as_bytes())
                .await
                .expect("written"),
            Err(_) => return ConnectionEnd::Remote,
        }
    }
}

async fn play(
    scripts: &[&[&'static str]],
    sent: &[&str],
    close: bool,
) -> (String, ConnectionEnd, String) {
    let (filtered, mut client, log) = begin(scripts);
    let served = Box::pin(codec(filtered.clone()));
    let talk = async {
        for part in sent {
            client.write_all(part.as_bytes()).await.expect("sent");
            // What separates two things that must not arrive together; time is paused.
            tokio::time::timeout(Duration::from_millis(1), std::future::pending::<()>())
                .await
                .expect_err("nothing comes of it");
        }
        if close {
            client.shutdown().await.expect("ended");
        }
        let mut all = String::new();
        client.read_to_string(&mut all).await.expect("an end");
        all
    };
    let (end, all) = tokio::join!(serve(filtered, served, None), talk);
    (all, end, seen(&log))
}

#[tokio::test(start_paused = true)]
async fn what_the_codec_reads_and_writes_walks_through_the_filters() {
    let (all, end, seen) = play(&[&[], &[]], &["abc", "d"], true).await;
    assert_eq!((&*all, end), ("3.1.", ConnectionEnd::Remote));
    assert_eq!(
        seen,
        "a new, b new, a down 3 false, b down 3 false, b up 2 false, a up 2 false, a down 1 false, b down 1 false, b up 2 false, \
         a up 2 false, a closed Remote, b closed Remote"
    );
}

#[tokio::test(start_paused = true)]
async fn the_codec_sees_what_filters_make_of_the_data() {
    let (all, _, seen) = play(&[&["continue", "replaced"]], &["x"], true).await;
    assert_eq!(all, "8.");
    assert_eq!(seen, "a new, a down 1 false, a up 2 false, a closed Remote");
}

#[tokio::test(start_paused = true)]
async fn what_is_stopped_waits_and_an_end_still_ends() {
    let script: &[&str] = &["continue", "stop", "continue"];
    let (all, _, seen) = play(&[script], &["ab", "c"], true).await;
    assert_eq!(all, "3.");
    assert_eq!(
        seen,
        "a new, a down 2 false, a down 3 false, a up 2 false, a closed Remote"
    );
    let (all, end, seen) = play(&[&["continue", "stop"]], &["ab"], true).await;
    assert_eq!((&*all, end), ("", ConnectionEnd::Remote));
    assert_eq!(seen, "a new, a down 2 false, a closed Remote");
}

#[tokio::test(start_paused = true)]
async fn a_filter_closes_the_connection_and_nothing_of_its_callback_passes() {
    for (script, log) in [
        (&["close"][..], "a new, a closed Local"),
        (
            &["continue", "close"],
            "a new, a down 1 false, a closed Local",
        ),
        (
            &["continue", "continue", "close"],
            "a new, a down 1 false, a up 2 false, a closed Local",
        ),
    ] {
        let sent: &[&str] = if script.len() == 1 { &[] } else { &["x"] };
        let (all, end, seen) = play(&[script], sent, false).await;
        assert_eq!((&*all, end, &*seen), ("", ConnectionEnd::Local, log));
    }
}

#[tokio::test(start_paused = true)]
async fn the_codec_closes() {
    let (all, end, seen) = play(&[&[]], &["x", "bye"], false).await;
    assert_eq!((&*all, end), ("1.", ConnectionEnd::Local));
    assert_eq!(
        seen,
        "a new, a down 1 false, a up 2 false, a down 3 false, a closed Local"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_between_callbacks_is_done() {
    for close in [false, true] {
        let (filtered, mut client, log) = begin(&[&["continue", "stop"]]);
        let served = Box::pin(codec(filtered.clone()));
        let handle = handle(&filtered.0.lock().filters, 0);
        let talk = async {
            client.write_all(b"abcd").await.expect("sent");
            tokio::time::timeout(Duration::from_millis(1), client.read(&mut [0]))
                .await
                .expect_err("it is held");
            if close {
                handle.close("because");
            } else {
                handle.go_on();
            }
            let mut buffer = [0; 2];
            let read = client.read(&mut buffer).await.expect("read");
            drop(client);
            String::from_utf8_lossy(&buffer[..read]).into_owned()
        };
        let (end, got) = tokio::join!(serve(filtered, served, None), talk);
        if close {
            assert_eq!((&*got, end), ("", ConnectionEnd::Local));
            assert_eq!(seen(&log), "a new, a down 4 false, a closed Local");
        } else {
            assert_eq!((&*got, end), ("4.", ConnectionEnd::Remote));
            assert_eq!(
                seen(&log),
                "a new, a down 4 false, a up 2 false, a closed Remote"
            );
        }
    }
}

/// A codec that says `text` and closes its side when that has left; polled by a waker of its own, as one task of several.
async fn say(filtered: Filtered, text: String) -> ConnectionEnd {
    let speak = async {
        let mut io = filtered.io();
        io.write_all(text.as_bytes()).await.expect("written");
        io.shutdown().await.expect("closed");
    };
    FuturesUnordered::from_iter([speak]).next().await;
    ConnectionEnd::Local
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_bytes_to_leave_is_woken_when_they_have() {
    let (filtered, mut client, _) = begin_narrow(&[&[]], 4);
    let text = "abcdefghij".repeat(10);
    let served = Box::pin(say(filtered.clone(), text.clone()));
    let read = async {
        let mut all = String::new();
        client.read_to_string(&mut all).await.expect("an end");
        all
    };
    let both = async { tokio::join!(serve(filtered, served, None), read) };
    let (end, all) = tokio::time::timeout(Duration::from_secs(1), both)
        .await
        .expect("nobody waits for a timer");
    assert_eq!((all, end), (text, ConnectionEnd::Local));
}

#[tokio::test(start_paused = true)]
async fn last_bytes_wait_for_a_client_that_takes_some_of_them_and_no_longer() {
    const PATIENCE: Duration = Duration::from_secs(5);
    for (takes, lasts) in [(0, 5), (3, 17), (25, 100)] {
        let (filtered, mut client, _) = begin_narrow(&[&[]], 4);
        let served = Box::pin(say(filtered.clone(), "x".repeat(104)));
        let begun = Instant::now();
        let read = async {
            for _ in 0..takes {
                tokio::time::sleep(Duration::from_secs(4)).await;
                client.read_exact(&mut [0; 4]).await.expect("more");
            }
            std::future::pending::<()>().await;
        };
        let end = tokio::select! {
            end = serve(filtered, served, Some(PATIENCE)) => end,
            () = read => unreachable!("the connection outlives what its client reads"),
        };
        assert_eq!(end, ConnectionEnd::Local);
        assert_eq!(begun.elapsed().as_secs(), lasts, "after {takes} readings");
    }
}
