//! Clients that grant no window, or little: deadlines, and tails that the library sends by itself.

use super::*;

fn idle_after(seconds: u64) -> Options {
    Options {
        stream_idle_timeout: Some(Duration::from_secs(seconds)),
        ..Options::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_holds_without_a_window() {
    // Without any, hyper waits with the first frame; with a little, the library has one and hyper another.
    for window in [0, 1, 40_000] {
        let (mut client, mut body, served) = granting(window, idle_after(99), |_| async {
            Ok(Reply {
                body: Endless::body(Duration::from_secs(9)),
                ..reply(200, "")
            })
        })
        .await;
        let before = tokio::time::Instant::now();
        assert_eq!(
            reset_of(&mut body).await,
            Some(h2::Reason::CANCEL),
            "{window}"
        );
        assert_eq!(before.elapsed().as_secs(), 9, "{window}");
        // The connection goes on, and so do its deadlines.
        body = body_of(&mut client).await;
        reset_of(&mut body).await;
        assert_eq!(before.elapsed().as_secs(), 18, "{window}");
        drop((client, body));
        assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Remote);
    }
}

#[tokio::test(start_paused = true)]
async fn a_whole_body_without_a_window_is_an_idle_stream() {
    let (mut client, mut body, served) =
        granting(0, idle_after(5), |_| async { Ok(reply(200, "whole")) }).await;
    let before = tokio::time::Instant::now();
    assert_eq!(reset_of(&mut body).await, Some(h2::Reason::CANCEL));
    assert_eq!(before.elapsed().as_secs(), 5);
    body = body_of(&mut client).await;
    reset_of(&mut body).await;
    drop((client, body));
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Remote);
}

#[tokio::test(start_paused = true)]
async fn a_tail_without_a_window_ends_the_connection_when_the_others_are_done() {
    let answers = std::sync::atomic::AtomicU32::new(0);
    let (mut client, mut body, served) = granting(1, idle_after(5), move |_| {
        let first = answers.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        async move {
            if first {
                return Ok(reply(200, "whole"));
            }
            tokio::time::sleep(Duration::from_secs(30)).await;
            Ok(reply(204, ""))
        }
    })
    .await;
    let before = tokio::time::Instant::now();
    let data = body.data().await.expect("data").expect("data");
    assert_eq!(data, "w");
    let late = body_of(&mut client).await;
    assert!(late.is_end_stream());
    assert_eq!(before.elapsed().as_secs(), 30);
    assert!(body.data().await.expect("an end").is_err());
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Local);
    // The other response moved bytes: the drain timeout of 5 s begins after it.
    assert!((30..=40).contains(&before.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_its_tails_keeps_its_connection() {
    let (mut client, mut body, served) =
        granting(4, idle_after(5), |_| async { Ok(reply(200, "whole")) }).await;
    let before = tokio::time::Instant::now();
    for _ in 0..20 {
        // Some in each period, taken within the next.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut text = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.expect("data");
            let _ = body.flow_control().release_capacity(data.len());
            text.extend_from_slice(&data);
        }
        assert_eq!(text, b"whole");
        body = body_of(&mut client).await;
    }
    assert_eq!(before.elapsed().as_secs(), 60);
    drop((client, body));
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Remote);
}
