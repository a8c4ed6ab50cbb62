//! What a guest sees and does of heads, bodies, replies and properties.

use super::*;

#[tokio::test]
async fn a_guest_edits_heads_of_both_directions() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("add-header"), "")).await;
    let outcome = chain.get("/").await;
    assert_eq!(
        (outcome.status, outcome.body.as_deref()),
        (200, Ok("answer"))
    );
    assert_eq!(outcome.headers["x-guest"], "1");
    assert_eq!(chain.requests()[0].0.headers["x-guest"], "1");
}

#[tokio::test]
async fn the_oldest_abi_is_served() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("old-abi"), "")).await;
    assert_eq!(chain.get("/").await.status, 200);
    assert_eq!(chain.requests()[0].0.headers["x-guest"], "1");
}

#[tokio::test]
async fn a_local_reply_takes_the_course_of_its_phase() {
    let bench = Bench::new();
    // Where, what the client sees, whether the upstream was asked.
    for (place, status, asked) in [('h', 418, false), ('H', 418, true), ('o', 200, true)] {
        let chain = bench
            .chain(config(guest("fault"), &format!("r{place}")))
            .await;
        let outcome = chain.get("/").await;
        assert_eq!(outcome.status, status, "{place}");
        if status == 418 {
            assert_eq!(
                (outcome.body.as_deref(), &*outcome.details),
                (Ok("teapot"), "teapot")
            );
        }
        assert_eq!(!chain.requests().is_empty(), asked, "{place}");
    }
    let chain = bench.chain(config(guest("fault"), "rb")).await;
    assert_eq!(chain.post(&["x"], None).await.expect("a reply").status, 418);
    // Once the head is out there is no other answer: the body ends early.
    let chain = bench.chain(config(guest("fault"), "rB")).await;
    let outcome = chain.get("/").await;
    assert!(
        outcome.status == 418 || outcome.body.is_err(),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn of_two_replies_the_first_is_the_answer_and_the_last_is_logged() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("reply-twice"), "")).await;
    let outcome = chain.get("/").await;
    assert_eq!(
        (outcome.status, outcome.body.as_deref(), &*outcome.details),
        (418, Ok("first"), "second")
    );
}

#[tokio::test]
async fn a_reply_to_nobody_stops_the_callback_that_made_it() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("reply-of-none"), "")).await;
    let answer = timeout(Duration::from_millis(200), chain.get("/")).await;
    assert!(answer.is_err(), "{answer:?}");
    assert!(chain.requests().is_empty());
}

#[tokio::test]
async fn closing_the_stream_resets_it() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("fault"), "ch")).await;
    let reset = chain
        .send(RequestHead::new(Method::GET, "h", "/"), Body::empty())
        .await;
    assert!(reset.is_err());
}

#[tokio::test]
async fn paused_heads_wait_for_the_tick_and_can_be_changed_until_then() {
    let bench = Bench::new();
    for action in ['1', '3', '4', '9'] {
        let chain = bench
            .chain(config(guest("action"), &format!("{action}00000t")))
            .await;
        let outcome = chain.post(&["one", "two"], None).await.expect("no reset");
        assert_eq!(outcome.status, 200, "{action}");
        let (head, body) = &chain.requests()[0];
        assert_eq!(head.headers["x-released"], "1", "{action}");
        // The guest saw everything in one piece after it let the heads go, then perhaps the end.
        assert!(body.starts_with("onetwo"), "{action}: {body}");
    }
    let chain = bench.chain(config(guest("action"), "000100t")).await;
    assert_eq!(chain.get("/").await.status, 200);
}

#[tokio::test]
async fn continue_inside_the_callback_undoes_its_pause() {
    let bench = Bench::new();
    for config_text in ["100000n", "000100n", "111111n", "000000n"] {
        let chain = bench.chain(config(guest("action"), config_text)).await;
        let outcome = chain
            .post(&["x"], Some(trailers()))
            .await
            .expect("no reset");
        assert_eq!(outcome.status, 200, "{config_text}");
        assert_eq!(chain.requests().len(), 1, "sent once: {config_text}");
    }
}

#[tokio::test]
async fn real_stop_iteration_shows_the_body_while_the_heads_wait() {
    let bench = Bench::new();
    let mut config = config(guest("action"), "1100000");
    config.allow_on_headers_stop_iteration = Some(pb::google::protobuf::BoolValue { value: true });
    // The body callback stops too, until trailers come and go on.
    let chain = bench.chain(config.clone()).await;
    let outcome = chain
        .post(&["x", "y"], Some(trailers()))
        .await
        .expect("no reset");
    assert_eq!(outcome.status, 200);
    assert_eq!(chain.requests()[0].1, "x0;y0;+1");
}

#[tokio::test]
async fn one_call_lets_a_held_head_and_its_held_body_go_on() {
    let bench = Bench::new();
    for actions in ["110000o", "000110o"] {
        let mut config = config(guest("action"), actions);
        config.allow_on_headers_stop_iteration =
            Some(pb::google::protobuf::BoolValue { value: true });
        let chain = bench.chain(config).await;
        // From here on the tick comes when nothing else moves: all of the body is held by then.
        tokio::time::pause();
        let outcome = chain.post(&["x", "y"], None).await.expect("no reset");
        tokio::time::resume();
        assert_eq!(outcome.status, 200, "{actions}");
        assert_eq!(chain.requests()[0].1, "x0;y0;1;", "{actions}");
        assert_eq!(outcome.body.as_deref(), Ok("an0;swer0;1;"), "{actions}");
    }
}

#[tokio::test]
async fn a_buffered_body_grows_and_goes_on_at_once() {
    let bench = Bench::new();
    // Stop at data, go on at the trailers.
    let chain = bench.chain(config(guest("action"), "0100000")).await;
    let outcome = chain
        .post(&["x", "y"], Some(trailers()))
        .await
        .expect("no reset");
    assert_eq!(outcome.status, 200);
    assert_eq!(chain.requests()[0].1, "x0;y0;+1");
    // Past the buffer limit it is too large.
    let big = "z".repeat(1500);
    let outcome = chain
        .post(&[&big], Some(trailers()))
        .await
        .expect("no reset");
    assert_eq!(outcome.status, 413);
    // StopIterationNoBuffer drops.
    let chain = bench.chain(config(guest("action"), "0300000")).await;
    let outcome = chain
        .post(&["x"], Some(trailers()))
        .await
        .expect("no reset");
    assert_eq!((outcome.status, &*chain.requests()[0].1), (200, "+1"));
}

#[tokio::test]
async fn what_a_plugin_adds_is_bounded() {
    let bench = Bench::new();
    for (what, status, details) in [
        ("h", 503, "too_many_headers"),
        ("v", 503, "too_many_headers"),
        ("g", 413, "request_payload_too_large"),
        ("a", 503, "invalid_header_value"),
        ("H", 200, ""),
    ] {
        let chain = bench.chain(config(guest("excess"), what)).await;
        let outcome = chain.post(&["x"], None).await.expect("no reset");
        assert_eq!(outcome.status, status, "{what} {}", outcome.details);
        assert!(outcome.details.contains(details), "{what}: {outcome:?}");
        assert!(outcome.headers.len() <= 1000, "{what}");
        assert_eq!(chain.requests().len(), usize::from(status == 200), "{what}");
    }
    let chain = bench.chain(config(guest("excess"), "G")).await;
    let outcome = chain.get("/").await;
    assert!(
        outcome.status == 500 || outcome.body.is_err(),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_local_reply_is_http_whatever_the_plugin_says() {
    let bench = Bench::new();
    for (code, status, body) in [
        ("s200", 200, "x-much"),
        ("s599", 599, "x-much"),
        ("s204", 204, ""),
        ("s304", 304, ""),
        ("s0", 500, "x-much"),
        ("s99", 500, "x-much"),
        ("s100", 500, "x-much"),
        ("s101", 500, "x-much"),
        ("s600", 500, "x-much"),
        ("s1000", 500, "x-much"),
        ("s70000", 500, "x-much"),
    ] {
        let chain = bench.chain(config(guest("excess"), code)).await;
        let outcome = chain.get("/").await;
        assert_eq!(outcome.status, status, "{code}");
        assert_eq!(outcome.body.as_deref(), Ok(body), "{code}");
        let length = outcome.headers.get(CONTENT_LENGTH);
        let length = length.map(|value| value.to_str().expect("text").to_owned());
        let expected = (!body.is_empty()).then(|| body.len().to_string());
        assert_eq!(length, expected, "{code}");
    }
}

#[tokio::test]
async fn callbacks_come_in_envoys_order() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("order"), "")).await;
    chain.post(&["x"], None).await.expect("no reset");
    assert_eq!(shared(&bench, "order").await, "rvfcHbbiLdx");
}

#[tokio::test]
async fn a_stream_that_never_reached_the_plugin_is_logged_by_it() {
    let bench = Bench::new();
    let plugin = bench.plugin(config(guest("order"), "")).await;
    #[derive(Debug)]
    struct Refuse;
    impl HttpFilter for Refuse {
        fn request(&self, _: &Arc<Stream>, _: Body) -> Step<Body> {
            Step::reply(LocalReply::new(StatusCode::FORBIDDEN, "", "no"))
        }
    }
    let own = Choice::new(1, Arc::clone(plugin.spec()), Some(plugin), None);
    let wasm = Wasm::with(1, "wasm", own, OfRoutes::default());
    let mut chain = bench.chain(config(guest("order"), "")).await;
    chain.filters = Arc::new(HttpFilterChain::of([
        ("refuse".into(), Arc::new(Refuse) as Arc<dyn HttpFilter>),
        ("wasm".into(), Arc::new(wasm) as Arc<dyn HttpFilter>),
    ]));
    assert_eq!(chain.get("/").await.status, 403);
    assert_eq!(shared(&bench, "order").await, "rvfcLdx");
}

#[tokio::test]
async fn a_pumped_body_is_as_long_as_its_head_says() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("add-header"), "")).await;
    let stream = chain.stream(RequestHead::new(Method::POST, "h", "/"));
    let frames = |text: &'static str| Body::full(text);
    let exact = |body: Body| body.size_hint().exact();
    let declare = |body, pumped| exact(declared(&stream, Direction::Request, body, pumped));
    let unknown = || Body::new(StreamBody::new(tokio_stream::iter(Vec::new())));
    assert_eq!(declare(unknown(), true), None, "the head says nothing");
    stream
        .request
        .lock()
        .headers
        .insert(CONTENT_LENGTH, HeaderValue::from_static("6"));
    assert_eq!(declare(unknown(), true), Some(6));
    assert_eq!(declare(frames("x"), false), Some(1), "not pumped: as it is");
    let mut body = declared(&stream, Direction::Request, frames("four"), true);
    body.frame().await.expect("a frame").expect("data");
    assert_eq!(exact(body), Some(2));
}

#[tokio::test]
async fn headers_that_are_none_fail_the_request_and_never_reach_the_wire() {
    let bench = Bench::new();
    let cases: [(&str, u16, &str); 18] = [
        ("ax-a=b", 200, ""),
        ("ax-a=b\r\nset-cookie: c", 503, "invalid_header_value"),
        ("a=v", 503, "invalid_header_name"),
        ("abad name=v", 503, "invalid_header_name"),
        ("p:path=/a b", 503, "invalid_path"),
        ("p:path=", 503, "invalid_path"),
        ("p:authority=a b", 503, "invalid_authority"),
        ("phost=a\tb", 503, "invalid_authority"),
        (
            "p:authority=a\r\nset-cookie: c",
            503,
            "invalid_header_value",
        ),
        ("p:authority=", 200, ""),
        ("p:method=GE T", 503, "invalid_method"),
        ("p:method=CONNECT", 503, "invalid_method"),
        ("r:path=", 503, "missing_required_header:_:path"),
        ("r:method=", 503, "missing_required_header:_:method"),
        ("r:authority=", 200, ""),
        ("p:path=/new", 200, ""),
        ("rx-none=", 200, ""),
        ("sgarbage", 503, "missing_required_header:_:method"),
    ];
    for (edit, status, detail) in cases {
        let chain = bench.chain(config(guest("edit"), edit)).await;
        let outcome = chain.get("/").await;
        assert_eq!(outcome.status, status, "{edit:?} {outcome:?}");
        assert!(
            outcome.details.contains(detail),
            "{edit:?}: {}",
            outcome.details
        );
        assert!(!outcome.headers.contains_key("set-cookie"), "{edit:?}");
        let missing = detail.starts_with("missing");
        assert_eq!(outcome.flags, if missing { "DPE" } else { "-" }, "{edit:?}");
    }
}

#[tokio::test]
async fn properties_have_envoys_names_and_forms() {
    let bench = Bench::new();
    let cases: [(&str, Result<&[u8], u8>); 17] = [
        ("plugin_name", Ok(b"test")),
        ("plugin_root_id", Ok(b"root")),
        ("plugin_vm_id", Ok(b"vm")),
        ("request.path", Ok(b"/a?b=c")),
        ("request.url_path", Ok(b"/a")),
        ("request.query", Ok(b"b=c")),
        ("request.host", Ok(b"host")),
        ("request.method", Ok(b"GET")),
        ("request.scheme", Ok(b"http")),
        ("request.protocol", Ok(b"HTTP/1.1")),
        ("request.headers.x-two", Ok(b"1,2")),
        ("source.address", Ok(b"127.0.0.1:1234")),
        ("xds.filter_chain_name", Ok(b"fc")),
        ("request.headers.none", Err(1)),
        ("request", Err(3)),
        ("nonsense", Err(1)),
        ("xds.node", Err(1)),
    ];
    for (path, expected) in cases {
        let chain = bench.chain(config(guest("property"), path)).await;
        let mut head = RequestHead::new(Method::GET, "host", "/a?b=c");
        for value in ["1", "2"] {
            head.headers
                .append("x-two", HeaderValue::from_static(value));
        }
        let outcome = chain.send(head, Body::empty()).await.expect("no reset");
        let seen = &chain.requests()[0].0.headers;
        match expected {
            Ok(value) => {
                let property = seen.get("x-property").expect(path);
                assert_eq!(property.as_bytes(), value, "{path}");
            }
            Err(status) => {
                assert_eq!(seen["x-status"].as_bytes(), [b'a' + status], "{path}");
            }
        }
        // In the response phase the request's headers are out of reach.
        if path == "request.path" {
            assert_eq!(outcome.headers["x-status"], "b", "{path}");
        }
    }
}
