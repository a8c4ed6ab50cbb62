//! What needs no VM: tokens, heads. Callbacks and statuses are tested with a guest, in `tests/it/grpc.rs`.

use super::*;
use crate::wasm::payload::Payloads;

fn exchange(root: u32) -> Exchange {
    let (sender, body, sent) = client::channel(MAX_MESSAGE);
    let request = Request {
        kind: Kind::Stream,
        cluster: "c".into(),
        head: Ok(RequestHead::new(Method::POST, "c", "/")),
        body,
        sent: Some(sent),
        limits: Limits::new(Duration::ZERO),
        limit: 0,
        charge: Payloads::new(0).charge(0).expect("nothing is asked for"),
    };
    Exchange {
        root,
        state: State::Waiting(Box::new(request)),
        sender: Some(sender),
        closed: false,
    }
}

#[test]
fn tokens_tell_their_kind() {
    let mut exchanges = Exchanges::default();
    let calls = [(); 3].map(|()| exchanges.fresh_token(Kind::Call));
    let streams = [(); 3].map(|()| exchanges.fresh_token(Kind::Stream));
    assert_eq!((calls, streams), ([5, 9, 13], [6, 10, 14]));
    // Once around, those in use are left out.
    exchanges.last = [u32::MAX - 2, u32::MAX - 1];
    exchanges.insert(1, exchange(1));
    assert_eq!(exchanges.fresh_token(Kind::Call), 5);
    assert_eq!(exchanges.fresh_token(Kind::Stream), 2);
}

#[test]
fn a_stream_is_known_until_both_sides_have_closed_it() {
    let mut exchanges = Exchanges::default();
    exchanges.insert(6, exchange(1));
    exchanges.insert(10, exchange(2));
    assert_eq!((exchanges.len(), exchanges.root(6)), (2, Some(1)));
    exchanges.end(6);
    exchanges.finish(6);
    // It counts no more, and nothing more is told of it.
    assert_eq!((exchanges.len(), exchanges.root(6)), (1, None));
    assert!(exchanges.open.contains_key(&6));
    exchanges.open.get_mut(&10).expect("open").closed = true;
    exchanges.end(10);
    exchanges.finish(10);
    assert!(!exchanges.open.contains_key(&10));
}

#[test]
fn a_token_is_known_to_its_root_context_alone() {
    let mut exchanges = Exchanges::default();
    exchanges.insert(6, exchange(1));
    assert!(exchanges.of(1, 6).is_ok());
    for (root, token) in [(2, 6), (0, 6), (1, 10)] {
        let unknown = exchanges.of(root, token);
        assert_eq!(unknown.err(), Some(Status::NotFound), "{root} {token}");
    }
}

#[test]
fn not_too_many_ended_streams_are_remembered() {
    let mut exchanges = Exchanges::default();
    for _ in 0..MAX_ENDED + 10 {
        let token = exchanges.fresh_token(Kind::Stream);
        exchanges.insert(token, exchange(1));
        exchanges.end(token);
        exchanges.finish(token);
    }
    assert_eq!(exchanges.open.len(), MAX_ENDED);
    assert!(!exchanges.open.contains_key(&6));
}

#[test]
fn a_head_is_what_envoy_sends() {
    let service = GrpcService {
        cluster: "c".into(),
        target_uri: None,
        authority: None,
        metadata: vec![("x-s".into(), "1".into()), ("s-bin".into(), "\u{1}".into())],
        timeout: None,
        max_message: None,
        skip_envoy_headers: false,
    };
    let metadata: [(&[u8], &[u8]); 6] = [
        (b"x-s", b"2"),
        (b"g-bin", b"AQI="),
        (b":authority", b"other"),
        (b":path", b"/more"),
        (b"content-type", b"application/grpc+proto"),
        (b"bad name", b"x"),
    ];
    let timeout = Some(Duration::from_millis(1500));
    let (made, limits) = head(&service, b"a.B", b"m", &metadata, timeout);
    let made = made.expect("a path");
    assert_eq!(limits, Limits::new(Duration::from_millis(1500)));
    assert_eq!(made.method, Method::POST);
    assert_eq!(made.path, "/a.B/m,/more");
    assert_eq!(made.authority, "c,other");
    let mut fields: Vec<_> = made
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
        .collect();
    fields.sort();
    assert_eq!(
        fields,
        [
            "content-type: application/grpc,application/grpc+proto",
            "g-bin: QVFJPQ==",
            "grpc-timeout: 1500m",
            "s-bin: AQ==",
            "te: trailers",
            "x-envoy-expected-rq-timeout-ms: 1500",
            "x-envoy-internal: true",
            "x-s: 1",
            "x-s: 2",
        ]
    );

    let plain = GrpcService {
        authority: Some("a.test".into()),
        skip_envoy_headers: true,
        ..service
    };
    let made = head(&plain, b"a.B", b"m", &[], None).0.expect("a path");
    assert_eq!(made.authority, "a.test");
    assert!(!made.headers.contains_key("x-envoy-internal"));
    assert!(!made.headers.contains_key(grpc::TIMEOUT));

    // It would end the path in a request line.
    let reply = head(&plain, b"a B", b"m", &[], None)
        .0
        .expect_err("no path");
    assert_eq!(reply.body, "invalid header value for: :path");
    let spaced: [(&[u8], &[u8]); 1] = [(b":authority", b"a b")];
    let reply = head(&plain, b"a.B", b"m", &spaced, None);
    assert_eq!(
        reply.0.expect_err("no header").body,
        "invalid header value for: :authority"
    );
    let reply = head(&plain, b"a.B", b"m\r\n", &[], None)
        .0
        .expect_err("no path");
    let events = replied(reply, Kind::Call, true);
    let [Event::Close(grpc::UNAVAILABLE, message)] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(
        message,
        "invalid header value for: :path{filter_removed_required_request_headers{invalid_header_value_for:_:path}}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_next_is_told_when_the_guest_has_heard_the_last() {
    let (mailbox, mut inbox) = tokio::sync::mpsc::unbounded_channel();
    let task = OwnedTask::spawn("teller", async move {
        let teller = Teller { token: 6, mailbox };
        for text in ["one", "two"] {
            teller.tell(vec![Event::Message(text.into())]).await;
        }
    });
    for expected in ["one", "two"] {
        let Some(Message::Grpc {
            token: 6,
            events,
            handled,
        }) = inbox.recv().await
        else {
            panic!("nothing of the call");
        };
        let [Event::Message(message)] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(message, expected);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(inbox.is_empty() && !task.is_finished());
        drop(handled);
    }
    assert!(inbox.recv().await.is_none());
}

/// Envoy answers such a request with text, and an answer of another status than 200 shows nothing.
#[test]
fn a_request_that_metadata_has_made_another_one_is_not_answered_as_grpc() {
    let service = GrpcService {
        cluster: "c".into(),
        target_uri: None,
        authority: None,
        metadata: Vec::new(),
        timeout: None,
        max_message: None,
        skip_envoy_headers: false,
    };
    for (content_type, expected) in [("+proto", false), ("x", false)] {
        let metadata: [(&[u8], &[u8]); 1] = [(b"content-type", content_type.as_bytes())];
        let made = head(&service, b"a.B", b"m", &metadata, None);
        assert_eq!(is_grpc(&made.0), expected, "{content_type}");
    }
    assert!(is_grpc(&head(&service, b"a.B", b"m", &[], None).0));
    let counts = |is_grpc| {
        let reply = LocalReply::from(ReplyReason::NoHealthyUpstream);
        let events = replied(reply, Kind::Stream, is_grpc);
        let [
            Event::Initial(initial),
            Event::Trailing(trailing),
            Event::Close(status, _),
        ] = &events[..]
        else {
            panic!("{events:?}");
        };
        (initial.count(), trailing.count(), *status)
    };
    assert_eq!(counts(true), (0, 4, grpc::UNAVAILABLE));
    assert_eq!(counts(false), (0, 0, grpc::UNAVAILABLE));
}

#[test]
fn a_service_has_only_so_much_metadata() {
    let service = |count: usize, len: usize| core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
            core::grpc_service::EnvoyGrpc {
                cluster_name: "c".to_owned(),
                ..Default::default()
            },
        )),
        initial_metadata: (0..count)
            .map(|number| core::HeaderValue {
                key: format!("k{number:05}"),
                value: "v".repeat(len),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    for (count, len) in [(1025, 0), (33_000, 1), (1024, 1024)] {
        let error = GrpcService::parse(service(count, len)).expect_err("too much");
        assert!(
            error.to_string().starts_with("initial_metadata: more than"),
            "{error}"
        );
    }
    let most = GrpcService::parse(service(1024, 1000)).expect("it fits");
    let made = head(&most, b"a.B", b"m", &[], None).0.expect("a path");
    assert!(made.headers.len() > 1024);
}
