//! Request bodies: framings read strictly, at any fragmentation.

use proptest::prelude::*;

use super::super::super::testing::{describe, serve, serve_http1, talk};
use crate::config::http_connection_manager::{CodecType, Options};

const CHUNKED: &str = "POST /e HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n";

/// What the handler saw of a chunked body, or the error that its body ended in.
async fn chunked(options: Options, body: &[u8]) -> String {
    let mut served = serve(CodecType::Http1, options, describe);
    let request = [CHUNKED.as_bytes(), body].concat();
    let (heard, _) = talk(&mut served.client, &request).await;
    match heard.rsplit_once("[a] ") {
        Some((_, seen)) => {
            let seen = seen.strip_prefix("transfer-encoding=chunked ");
            seen.expect("the coding").to_owned()
        }
        None => heard,
    }
}

#[tokio::test(start_paused = true)]
async fn chunks() {
    let codec = "<malformed body: http1.codec_error>";
    let rows: &[(&str, &[u8], &str)] = &[
        ("one", b"3\r\nabc\r\n0\r\n\r\n", "<abc>"),
        (
            "many",
            b"3\r\nabc\r\n2\r\nde\r\n1\r\nf\r\n0\r\n\r\n",
            "<abcdef>",
        ),
        (
            "upper case",
            b"A\r\n0123456789\r\n00\r\n\r\n",
            "<0123456789>",
        ),
        (
            "zeros",
            b"000000000000000000003\r\nabc\r\n0\r\n\r\n",
            "<abc>",
        ),
        ("extension", b"3;a=b\r\nabc\r\n0\r\n\r\n", "<abc>"),
        (
            "space and extension",
            b"3 ;a=b\r\nabc\r\n0\r\n\r\n",
            "<abc>",
        ),
        ("quoted", b"3;a=\"x;y\"\r\nabc\r\n0\r\n\r\n", "<abc>"),
        ("space", b"3 \r\nabc\r\n0\r\n\r\n", "<abc>"),
        (
            "trailers dropped",
            b"3\r\nabc\r\n0\r\nx-t: 1\r\n\r\n",
            "<abc>",
        ),
        // Envoy forgives these; a peer that disagrees about them could be smuggled to.
        (
            "data too long (stricter)",
            b"3\r\nabcdef\r\n0\r\n\r\n",
            codec,
        ),
        ("data ended by LF (stricter)", b"3\r\nabc\n0\r\n\r\n", codec),
        ("end by LF (stricter)", b"3\r\nabc\r\n0\r\n\n", codec),
        (
            "extension without ; (stricter)",
            b"3 a=b\r\nabc\r\n0\r\n\r\n",
            codec,
        ),
        (
            "NUL in extension (stricter)",
            b"3;a\0\r\nabc\r\n0\r\n\r\n",
            codec,
        ),
        (
            "trailer ended by LF (stricter)",
            b"3\r\nabc\r\n0\r\nb: 1\n\r\n",
            codec,
        ),
        // These Envoy refuses as well.
        ("size ended by LF", b"3\nabc\r\n0\r\n\r\n", codec),
        ("CR in extension", b"3;a\rb\r\nabc\r\n0\r\n\r\n", codec),
        ("space first", b" 3\r\nabc\r\n0\r\n\r\n", codec),
        ("0x", b"0x3\r\nabc\r\n0\r\n\r\n", codec),
        ("plus", b"+3\r\nabc\r\n0\r\n\r\n", codec),
        ("minus", b"-3\r\nabc\r\n0\r\n\r\n", codec),
        ("too big", b"fffffffffffffffff\r\nabc", codec),
        ("no size", b"\r\nabc\r\n0\r\n\r\n", codec),
        ("letter", b"3g\r\nabc\r\n0\r\n\r\n", codec),
        ("CR after data", b"3\r\nabc\rx0\r\n\r\n", codec),
        ("bad trailer", b"3\r\nabc\r\n0\r\nbad\r\n\r\n", codec),
        (
            "bad trailer name",
            b"3\r\nabc\r\n0\r\nb(d: 1\r\n\r\n",
            codec,
        ),
        ("folded trailer", b"3\r\nabc\r\n0\r\n\tb: 1\r\n\r\n", codec),
        (
            "NUL in trailer",
            b"3\r\nabc\r\n0\r\nb: \0\r\n\r\n",
            "<malformed body: http1.invalid_characters>",
        ),
    ];
    for (name, body, seen) in rows {
        let seen = seen.strip_prefix("<malformed").map_or_else(
            || (*seen).to_owned(),
            |rest| format!("malformed{}", rest.trim_end_matches('>')),
        );
        assert_eq!(chunked(Options::default(), body).await, seen, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn extensions_and_trailers_are_bounded() {
    let long = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(17 << 10));
    let seen = chunked(Options::default(), long.as_bytes()).await;
    assert_eq!(seen, "malformed body: http1.codec_error");
    // Little by little, too.
    let many = format!("1;{}\r\na\r\n", "x".repeat(1 << 10)).repeat(17);
    let seen = chunked(Options::default(), many.as_bytes()).await;
    assert_eq!(seen, "malformed body: http1.codec_error");
    let endless = chunked(Options::default(), "1".repeat(20 << 10).as_bytes()).await;
    assert_eq!(endless, "malformed body: http1.codec_error");
    let trailer = format!("3\r\nabc\r\n0\r\nx: {}\r\n\r\n", "a".repeat(61 << 10));
    let seen = chunked(Options::default(), trailer.as_bytes()).await;
    assert_eq!(seen, "malformed body: http1.headers_too_large");
}

#[tokio::test(start_paused = true)]
async fn trailers_are_kept_where_enabled() {
    let mut options = Options::default();
    options.http1.enable_trailers = true;
    let body = b"3\r\nabc\r\n0\r\nX-T: 1\r\ncontent-length: 9\r\nHost: q\r\nx-u: 2\r\n\r\n";
    assert_eq!(chunked(options.clone(), body).await, "<abc> +x-t=1 +x-u=2");
    // Of those of requests Envoy knows none by name, and joins none.
    let body = b"0\r\nvia: 1\r\nvia: 2\r\ngrpc-status: 0\r\ngrpc-status: 0\r\n\r\n";
    let seen = chunked(options.clone(), body).await;
    assert_eq!(seen, "<> +via=1 +via=2 +grpc-status=0 +grpc-status=0");
    let many: String = (0..101).map(|index| format!("x-{index}: 1\r\n")).collect();
    let body = format!("0\r\n{many}\r\n");
    let seen = chunked(options, body.as_bytes()).await;
    assert_eq!(seen, "malformed body: http1.too_many_headers");
    let seen = chunked(Options::default(), body.as_bytes()).await;
    assert_eq!(seen, "<>", "not counted where they are dropped");
}

/// Writes `request` in two pieces, split at every byte.
async fn split_everywhere(request: &[u8], answer: &str) {
    for at in 0..=request.len() {
        let mut served = serve_http1(describe);
        let (early, _) = talk(&mut served.client, &request[..at]).await;
        let (late, _) = talk(&mut served.client, &request[at..]).await;
        assert_eq!(early + &late, answer, "split at {at}");
        assert!(served.refused.lock().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn fragments() {
    let reply = |body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    split_everywhere(
        b"POST /e HTTP/1.1\r\nHost: a\r\nx: 1\r\n  2\r\ncontent-length: 5\r\n\r\nhello",
        &reply("POST /e HTTP/1.1 [a] x=1  2 content-length=5 <hello>"),
    )
    .await;
    split_everywhere(
        b"\r\nPOST /e HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n3;q=1\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nx: y\r\n\r\n",
        &reply("POST /e HTTP/1.1 [a] transfer-encoding=chunked <abc0123456789abcdef>"),
    )
    .await;
    let two = reply("GET /1 HTTP/1.1 [a] <>") + &reply("GET /2 HTTP/1.1 [b] <>");
    split_everywhere(
        b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\nHost: b\n\n",
        &two,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_byte_at_a_time() {
    let mut served = serve_http1(describe);
    let mut heard = String::new();
    for byte in format!("{CHUNKED}3\r\nabc\r\n0\r\n\r\n").as_bytes() {
        heard += &talk(&mut served.client, &[*byte]).await.0;
    }
    assert!(
        heard.ends_with("[a] transfer-encoding=chunked <abc>"),
        "{heard}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any body in any chunks arrives as it was, however the bytes are cut.
    #[test]
    fn bodies_arrive_as_they_were(
        parts in prop::collection::vec("[ -~]{1,40}", 0..8),
        cuts in prop::collection::vec(1usize..60, 0..8),
    ) {
        let mut request = CHUNKED.to_owned();
        for part in &parts {
            request += &format!("{:x}\r\n{part}\r\n", part.len());
        }
        request += "0\r\n\r\n";
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let seen = runtime.block_on(async {
            let mut served = serve_http1(describe);
            let mut rest = request.as_bytes();
            let mut heard = String::new();
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                heard += &talk(&mut served.client, now).await.0;
                rest = later;
            }
            heard + &talk(&mut served.client, rest).await.0
        });
        let expected = format!("[a] transfer-encoding=chunked <{}>", parts.concat());
        prop_assert!(seen.ends_with(&expected), "{seen} {expected}");
    }

    /// No input makes the parser panic, and every input is answered, refused or waited on.
    #[test]
    fn nothing_panics(noise in prop::collection::vec(any::<u8>(), 0..200), prefix in 0usize..4) {
        let prefixes: [&[u8]; 4] = [
            b"",
            b"GET /",
            b"POST /e HTTP/1.1\r\nHost: a\r\n",
            b"POST /e HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n",
        ];
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut served = serve_http1(describe);
            talk(&mut served.client, &[prefixes[prefix], &noise].concat()).await;
            drop(served.client);
            served.task.await.expect("no panic");
            assert!(!served.refused.lock().iter().any(|details| details == "filter_panic"));
        });
    }
}
