//! Reading and writing of one side.

use std::future::Future as _;

use super::*;

#[test]
fn what_is_there_is_read_up_to_the_room_and_with_its_end() {
    // What one read gives; nothing is the end, and after the last nothing is there yet.
    let read = |pieces: &[&'static str], room: usize| {
        let mut pieces = pieces.iter().copied();
        let mut data = Vec::new();
        let end = poll_read_all(
            room,
            |buffer| match pieces.next() {
                Some("reset") => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                Some(piece) => {
                    buffer.put_slice(piece.as_bytes());
                    Poll::Ready(Ok(()))
                }
                None => Poll::Pending,
            },
            |piece| data.extend_from_slice(piece),
        );
        let end = match end {
            Poll::Pending => "pending".to_owned(),
            Poll::Ready(Ok(After {
                failure: Some(error),
                ..
            })) => format!("then {}", error.kind()),
            Poll::Ready(Ok(after)) => after.end.to_string(),
            Poll::Ready(Err(error)) => error.kind().to_string(),
        };
        (String::from_utf8(data).expect("text"), end)
    };
    for (pieces, room, data, end) in [
        (&[][..], 9, "", "pending"),
        (&["ab", "c"][..], 9, "abc", "false"),
        (&["ab", ""][..], 9, "ab", "true"),
        (&[""][..], 9, "", "true"),
        // The rest stays where it is.
        (&["ab", "c"][..], 2, "ab", "false"),
        (&["ab", "reset"][..], 9, "ab", "then connection reset"),
        (&["reset"][..], 9, "", "connection reset"),
    ] {
        assert_eq!(
            read(pieces, room),
            (data.to_owned(), end.to_owned()),
            "{pieces:?}"
        );
    }
}

#[test]
fn what_is_on_its_way_leaves_in_order_and_in_parts() {
    let mut out = Outgoing::default();
    out.push(Bytes::from_static(b"abc"));
    out.push(Bytes::new());
    out.push(Bytes::from_static(b"de"));
    assert_eq!((out.len, out.queue.len()), (5, 2));
    let mut taken = Vec::new();
    let mut room = 4;
    let blocked = out.poll(|data| {
        let written = data.len().min(2).min(room);
        if written == 0 {
            return Poll::Pending;
        }
        room -= written;
        taken.extend_from_slice(&data[..written]);
        Poll::Ready(Ok(written))
    });
    assert!(blocked.is_pending());
    assert_eq!((&*taken, out.len), (&b"abcd"[..], 1));
    let stuck = out.poll(|_| Poll::Ready(Ok(0)));
    assert!(matches!(stuck, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::WriteZero));
    assert!(matches!(
        out.poll(|data| Poll::Ready(Ok(data.len()))),
        Poll::Ready(Ok(()))
    ));
    assert_eq!(out.len, 0);
}

/// How long a flush of five bytes took, where the peer takes one each `pause` seconds; what was left of them.
async fn flushed(pause: u64) -> (u64, usize) {
    let begin = tokio::time::Instant::now();
    let mut out = Outgoing::default();
    out.push("bytes".into());
    let mut next = Box::pin(tokio::time::sleep(Duration::from_secs(pause)));
    flush(&mut out, Duration::from_secs(5), |cx, _| {
        std::task::ready!(next.as_mut().poll(cx));
        next.as_mut()
            .reset(tokio::time::Instant::now() + Duration::from_secs(pause));
        std::task::Poll::Ready(Ok(1))
    })
    .await;
    (begin.elapsed().as_secs(), out.len)
}

#[tokio::test(start_paused = true)]
async fn who_takes_some_now_and_then_is_given_the_rest() {
    assert_eq!(flushed(4).await, (20, 0));
    assert_eq!(flushed(6).await, (5, 5));
}
