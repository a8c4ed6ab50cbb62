//! Requests byte by byte: what is served, what is refused and how. Answers were measured on Envoy 1.40; where ours
//! differ on purpose the row says so.

use super::super::super::testing::{describe, serve, serve_http1, talk};
use crate::config::http_connection_manager::{CodecType, Options};

/// What a row expects.
enum Expect {
    /// Served; the handler's description.
    Served(&'static str),
    /// Refused with this status and these details; the connection ends.
    Refused(u16, &'static str),
}
use Expect::{Refused, Served};

async fn check(rows: &[(&str, &[u8], Expect)]) {
    for (name, bytes, expect) in rows {
        let mut served = serve_http1(describe);
        let (heard, ended) = talk(&mut served.client, bytes).await;
        match expect {
            Served(body) => {
                let length = body.len();
                assert_eq!(
                    heard,
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}"),
                    "{name}"
                );
                assert!(served.refused.lock().is_empty(), "{name}");
            }
            Refused(status, details) => {
                let line = format!("HTTP/1.1 {status} ");
                assert!(heard.starts_with(&line), "{name}: {heard:?}");
                assert!(heard.contains("connection: close\r\n"), "{name}: {heard:?}");
                assert_eq!(*served.refused.lock(), [*details], "{name}");
                assert!(ended, "{name}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn syntax_of_heads() {
    check(&[
        ("plain", b"GET /e HTTP/1.1\r\nHost: a\r\n\r\n", Served("GET /e HTTP/1.1 [a] <>")),
        ("bare LF", b"GET /e HTTP/1.1\nHost: a\n\n", Served("GET /e HTTP/1.1 [a] <>")),
        ("leading CRLF", b"\r\n\r\nGET /e HTTP/1.1\r\nHost: a\r\n\r\n", Served("GET /e HTTP/1.1 [a] <>")),
        ("leading LF", b"\n\nGET /e HTTP/1.1\r\nHost: a\r\n\r\n", Served("GET /e HTTP/1.1 [a] <>")),
        ("leading CR (stricter)", b"\r\rGET /e HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.codec_error")),
        ("leading space", b" GET /e HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.codec_error")),
        ("two spaces", b"GET  /e  HTTP/1.1\r\nHost: a\r\n\r\n", Served("GET /e HTTP/1.1 [a] <>")),
        ("tabs", b"GET\t/e\tHTTP/1.1\r\nHost: a\r\n\r\n", Served("GET /e HTTP/1.1 [a] <>")),
        ("trailing space", b"GET /e HTTP/1.1 \r\nHost: a\r\n\r\n", Served("GET /e HTTP/1.1 [a] <>")),
        ("garbage", b"garbage\r\n\r\n", Refused(400, "http1.codec_error")),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Refused(400, "http1.invalid_characters")),
        ("lower-case method", b"get /e HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.codec_error")),
        ("unknown method", b"FOO /e HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.codec_error")),
        ("M-SEARCH", b"M-SEARCH /e HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.codec_error")),
        ("PURGE", b"PURGE /e HTTP/1.1\r\nHost: a\r\n\r\n", Served("PURGE /e HTTP/1.1 [a] <>")),
        ("preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Refused(400, "http1.codec_error")),
        ("no colon", b"GET /e HTTP/1.1\r\nHost: a\r\nbad\r\n\r\n", Refused(400, "http1.codec_error")),
        ("name (", b"GET /e HTTP/1.1\r\nHost: a\r\nfo(o: 1\r\n\r\n", Refused(400, "http1.codec_error")),
        ("space in name", b"GET /e HTTP/1.1\r\nHost: a\r\nx y: b\r\n\r\n", Refused(400, "http1.codec_error")),
        ("space before colon", b"GET /e HTTP/1.1\r\nHost: a\r\nx : b\r\n\r\n", Refused(400, "http1.codec_error")),
        ("empty name", b"GET /e HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", Refused(400, "http1.codec_error")),
        ("high name", b"GET /e HTTP/1.1\r\nHost: a\r\nx\xe9: b\r\n\r\n", Refused(400, "http1.codec_error")),
        ("NUL in name", b"GET /e HTTP/1.1\r\nHost: a\r\nx\0y: b\r\n\r\n", Refused(400, "http1.invalid_characters")),
        ("NUL", b"GET /e HTTP/1.1\r\nHost: a\r\nx: a\0b\r\n\r\n", Refused(400, "http1.invalid_characters")),
        ("CTL", b"GET /e HTTP/1.1\r\nHost: a\r\nx: a\x01b\r\n\r\n", Refused(400, "http1.invalid_characters")),
        ("DEL", b"GET /e HTTP/1.1\r\nHost: a\r\nx: a\x7fb\r\n\r\n", Refused(400, "http1.invalid_characters")),
        ("tab", b"GET /e HTTP/1.1\r\nHost: a\r\nx: a\tb\r\n\r\n", Served("GET /e HTTP/1.1 [a] x=a\tb <>")),
        ("bare CR (stricter)", b"GET /e HTTP/1.1\r\nHost: a\r\nx: a\rb\r\n\r\n", Refused(400, "http1.invalid_characters")),
        ("empty value", b"GET /e HTTP/1.1\r\nHost: a\r\nx:\r\n\r\n", Served("GET /e HTTP/1.1 [a] x= <>")),
        ("fold", b"GET /e HTTP/1.1\r\nHost: a\r\nx: 1\r\n  cont\r\n\r\n", Served("GET /e HTTP/1.1 [a] x=1  cont <>")),
        ("fold by tab", b"GET /e HTTP/1.1\r\nHost: a\r\nx: a\r\n\tb\r\n\r\n", Served("GET /e HTTP/1.1 [a] x=a\tb <>")),
        ("empty fold", b"GET /e HTTP/1.1\r\nHost: a\r\nx: a\r\n \r\n\r\n", Served("GET /e HTTP/1.1 [a] x=a <>")),
        ("fold of nothing", b"GET /e HTTP/1.1\r\nHost: a\r\nx:\r\n b\r\n\r\n", Served("GET /e HTTP/1.1 [a] x=b <>")),
        ("fold first", b"GET /e HTTP/1.1\r\n Host: a\r\n\r\n", Refused(400, "http1.codec_error")),
        ("folded host", b"GET /e HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", Refused(400, "http.invalid_authority")),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn versions() {
    check(&[
        ("1.0", b"GET /e HTTP/1.0\r\nHost: a\r\n\r\n", Refused(426, "low_version")),
        ("0.9", b"GET /e\r\n\r\n", Refused(426, "low_version")),
        ("1.2", b"GET /e HTTP/1.2\r\nHost: a\r\n\r\n", Refused(426, "low_version")),
        ("2.0", b"GET /e HTTP/2.0\r\nHost: a\r\n\r\n", Refused(426, "low_version")),
        ("lower", b"GET /e http/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.codec_error")),
        ("tail", b"GET /e HTTP/1.1x\r\nHost: a\r\n\r\n", Refused(400, "http1.codec_error")),
        ("other", b"GET /e FOO\r\nHost: a\r\n\r\n", Refused(400, "http1.codec_error")),
        ("1.", b"GET /e HTTP/1.\r\nHost: a\r\n\r\n", Refused(400, "http1.codec_error")),
        ("space in path", b"GET /e c HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.codec_error")),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_secure_target_belongs_to_a_proxy_before_us() {
    for (hops, answer) in [(0, "HTTP/1.1 403 "), (1, "HTTP/1.1 200 ")] {
        let options = Options {
            use_remote_address: true,
            xff_num_trusted_hops: hops,
            ..Options::default()
        };
        let mut served = serve(CodecType::Http1, options, describe);
        let request = b"GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n";
        let (heard, _) = talk(&mut served.client, request).await;
        assert!(heard.starts_with(answer), "{hops}: {heard:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn targets() {
    check(&[
        ("no path", b"GET  HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.codec_error")),
        ("no slash", b"GET echo HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.codec_error")),
        ("star", b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.invalid_url")),
        ("options star", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Served("OPTIONS * HTTP/1.1 [a] <>")),
        ("NUL", b"GET /e\0 HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.invalid_characters")),
        ("high", b"GET /\xe9 HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.codec_error")),
        ("CR", b"GET /e\rx HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.codec_error")),
        ("unwise", b"GET /e\"<>\\^`{|} HTTP/1.1\r\nHost: a\r\n\r\n", Served("GET /e\"<>\\^`{|} HTTP/1.1 [a] <>")),
        ("fragment", b"GET /e#f HTTP/1.1\r\nHost: a\r\n\r\n", Served("GET /e#f HTTP/1.1 [a] <>")),
        ("absolute", b"GET http://b.test/e?x HTTP/1.1\r\nHost: a\r\n\r\n", Served("GET /e?x HTTP/1.1 [b.test] <>")),
        ("absolute without path", b"GET http://b.test HTTP/1.1\r\nHost: a\r\n\r\n", Served("GET / HTTP/1.1 [b.test] <>")),
        ("absolute with query alone", b"GET http://b.test?x=1 HTTP/1.1\r\nHost: a\r\n\r\n", Served("GET ?x=1 HTTP/1.1 [b.test] <>")),
        ("absolute with user", b"GET http://u:p@b.test/e HTTP/1.1\r\nHost: a\r\n\r\n", Served("GET /e HTTP/1.1 [b.test] <>")),
        ("absolute ftp", b"GET ftp://b.test/e HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.invalid_scheme")),
        ("absolute upper", b"GET HTTP://B.Test/e HTTP/1.1\r\nHost: a\r\n\r\n", Served("GET /e HTTP/1.1 [B.Test] <>")),
        ("absolute https", b"GET https://b.test/e HTTP/1.1\r\nHost: a\r\n\r\n", Served("GET /e HTTP/1.1 [b.test] <>")),
        ("absolute, empty host", b"GET http:///e HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.invalid_url")),
        ("absolute, no Host", b"GET http://b.test/e HTTP/1.1\r\n\r\n", Served("GET /e HTTP/1.1 [b.test] <>")),
        ("absolute, empty port", b"GET http://b.test:/e HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.invalid_url")),
        ("absolute, bad port", b"GET http://b.test:99999/e HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.invalid_url")),
        ("absolute v6", b"GET http://[::1]:80/e HTTP/1.1\r\nHost: a\r\n\r\n", Served("GET /e HTTP/1.1 [[::1]:80] <>")),
        ("absolute, bad host", b"GET http://b<t/e HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400, "http1.codec_error")),
        ("connect without port", b"CONNECT a HTTP/1.1\r\nHost: b\r\n\r\n", Refused(400, "http1.invalid_url")),
        ("connect to a path", b"CONNECT /e HTTP/1.1\r\nHost: b\r\n\r\n", Refused(400, "http1.invalid_url")),
        ("connect to a URL", b"CONNECT http://a:443 HTTP/1.1\r\nHost: b\r\n\r\n", Refused(400, "http1.invalid_url")),
        ("connect with length", b"CONNECT a:443 HTTP/1.1\r\nHost: b\r\ncontent-length: 1\r\n\r\nx", Refused(400, "http1.body_disallowed")),
        ("connect chunked", b"CONNECT a:443 HTTP/1.1\r\nHost: b\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", Refused(501, "http1.invalid_transfer_encoding")),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_target_may_be_https_where_a_proxy_in_front_is_trusted() {
    for (use_remote_address, xff_num_trusted_hops, status) in
        [(true, 0, 403), (true, 1, 200), (false, 0, 200), (false, 1, 200)]
    {
        let options = Options {
            use_remote_address,
            xff_num_trusted_hops,
            ..Options::default()
        };
        let mut served = serve(CodecType::Http1, options, describe);
        let request = b"GET https://a/ HTTP/1.1\r\nhost: a\r\n\r\n";
        let (heard, _) = talk(&mut served.client, request).await;
        let line = format!("HTTP/1.1 {status} ");
        assert!(heard.starts_with(&line), "{use_remote_address} {xff_num_trusted_hops}: {heard}");
    }
}

#[tokio::test(start_paused = true)]
async fn hosts() {
    check(&[
        ("none", b"GET /e HTTP/1.1\r\n\r\n", Served("GET /e HTTP/1.1 [] nohost <>")),
        ("empty", b"GET /e HTTP/1.1\r\nHost:\r\n\r\n", Served("GET /e HTTP/1.1 [] <>")),
        ("two", b"GET /e HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Served("GET /e HTTP/1.1 [a,b] <>")),
        ("user", b"GET /e HTTP/1.1\r\nHost: u@a\r\n\r\n", Served("GET /e HTTP/1.1 [u@a] <>")),
        ("port", b"GET /e HTTP/1.1\r\nHost: a:8080\r\n\r\n", Served("GET /e HTTP/1.1 [a:8080] <>")),
        ("percent", b"GET /e HTTP/1.1\r\nHost: a%41\r\n\r\n", Served("GET /e HTTP/1.1 [a%41] <>")),
        ("space", b"GET /e HTTP/1.1\r\nHost: a b\r\n\r\n", Refused(400, "http.invalid_authority")),
        ("/", b"GET /e HTTP/1.1\r\nHost: a/b\r\n\r\n", Refused(400, "http.invalid_authority")),
        ("#", b"GET /e HTTP/1.1\r\nHost: a#b\r\n\r\n", Refused(400, "http.invalid_authority")),
        ("?", b"GET /e HTTP/1.1\r\nHost: a?b\r\n\r\n", Refused(400, "http.invalid_authority")),
        ("\\", b"GET /e HTTP/1.1\r\nHost: a\\b\r\n\r\n", Refused(400, "http.invalid_authority")),
        ("<", b"GET /e HTTP/1.1\r\nHost: a<b\r\n\r\n", Refused(400, "http.invalid_authority")),
        ("high", b"GET /e HTTP/1.1\r\nHost: \xe9\r\n\r\n", Refused(400, "http.invalid_authority")),
        ("|", b"GET /e HTTP/1.1\r\nHost: a|b\r\n\r\n", Refused(400, "http.invalid_authority")),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn framing() {
    check(&[
        ("length", b"POST /e HTTP/1.1\r\nHost: a\r\ncontent-length: 5\r\n\r\nhello", Served("POST /e HTTP/1.1 [a] content-length=5 <hello>")),
        ("length 0", b"POST /e HTTP/1.1\r\nHost: a\r\ncontent-length: 0\r\n\r\n", Served("POST /e HTTP/1.1 [a] content-length=0 <>")),
        ("leading zeros", b"POST /e HTTP/1.1\r\nHost: a\r\ncontent-length: 0001\r\n\r\nx", Served("POST /e HTTP/1.1 [a] content-length=0001 <x>")),
        ("GET with body", b"GET /e HTTP/1.1\r\nHost: a\r\ncontent-length: 2\r\n\r\nhi", Served("GET /e HTTP/1.1 [a] content-length=2 <hi>")),
        ("letters", b"POST /e HTTP/1.1\r\nHost: a\r\ncontent-length: abc\r\n\r\n", Refused(400, "http1.codec_error")),
        ("negative", b"POST /e HTTP/1.1\r\nHost: a\r\ncontent-length: -1\r\n\r\n", Refused(400, "http1.codec_error")),
        ("plus", b"POST /e HTTP/1.1\r\nHost: a\r\ncontent-length: +1\r\n\r\nx", Refused(400, "http1.codec_error")),
        ("hex", b"POST /e HTTP/1.1\r\nHost: a\r\ncontent-length: 0x1\r\n\r\nx", Refused(400, "http1.codec_error")),
        ("list", b"POST /e HTTP/1.1\r\nHost: a\r\ncontent-length: 1, 1\r\n\r\nx", Refused(400, "http1.codec_error")),
        ("twice the same", b"POST /e HTTP/1.1\r\nHost: a\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx", Refused(400, "http1.codec_error")),
        ("two", b"POST /e HTTP/1.1\r\nHost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx", Refused(400, "http1.codec_error")),
        ("2^64", b"POST /e HTTP/1.1\r\nHost: a\r\ncontent-length: 18446744073709551616\r\n\r\nx", Refused(400, "http1.codec_error")),
        ("empty length", b"POST /e HTTP/1.1\r\nHost: a\r\ncontent-length:\r\n\r\nx", Refused(400, "http1.codec_error")),
        ("space in length", b"POST /e HTTP/1.1\r\nHost: a\r\ncontent-length: 1 1\r\n\r\nx", Refused(400, "http1.codec_error")),
        ("CL and TE", b"POST /e HTTP/1.1\r\nHost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400, "http1.content_length_and_chunked_not_allowed")),
        ("TE and CL", b"POST /e HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n", Refused(400, "http1.content_length_and_chunked_not_allowed")),
        ("identity and CL", b"POST /e HTTP/1.1\r\nHost: a\r\ntransfer-encoding: identity\r\ncontent-length: 1\r\n\r\nx", Refused(400, "http1.content_length_and_chunked_not_allowed")),
        ("chunked", b"POST /e HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Served("POST /e HTTP/1.1 [a] transfer-encoding=chunked <hello>")),
        ("Chunked", b"POST /e HTTP/1.1\r\nHost: a\r\ntransfer-encoding: Chunked\r\n\r\n0\r\n\r\n", Served("POST /e HTTP/1.1 [a] transfer-encoding=Chunked <>")),
        ("space around", b"POST /e HTTP/1.1\r\nHost: a\r\ntransfer-encoding: \tchunked \r\n\r\n0\r\n\r\n", Served("POST /e HTTP/1.1 [a] transfer-encoding=chunked <>")),
        ("gzip", b"POST /e HTTP/1.1\r\nHost: a\r\ntransfer-encoding: gzip\r\n\r\n", Refused(501, "http1.invalid_transfer_encoding")),
        ("gzip, chunked", b"POST /e HTTP/1.1\r\nHost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Refused(501, "http1.invalid_transfer_encoding")),
        ("twice chunked", b"POST /e HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", Refused(501, "http1.invalid_transfer_encoding")),
        ("chunked,", b"POST /e HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked,\r\n\r\n0\r\n\r\n", Refused(501, "http1.invalid_transfer_encoding")),
        ("identity", b"POST /e HTTP/1.1\r\nHost: a\r\ntransfer-encoding: identity\r\n\r\n", Refused(501, "http1.invalid_transfer_encoding")),
        ("empty coding", b"POST /e HTTP/1.1\r\nHost: a\r\ntransfer-encoding:\r\n\r\n", Refused(501, "http1.invalid_transfer_encoding")),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn repeated_fields() {
    check(&[
        ("known", b"GET /e HTTP/1.1\r\nHost: a\r\nAccept: a\r\nX-B: 2\r\naccept: b\r\n\r\n", Served("GET /e HTTP/1.1 [a] accept=a,b x-b=2 <>")),
        ("unknown", b"GET /e HTTP/1.1\r\nHost: a\r\nX-B: 2\r\nx-b: 3\r\n\r\n", Served("GET /e HTTP/1.1 [a] x-b=2 x-b=3 <>")),
        ("cookie", b"GET /e HTTP/1.1\r\nHost: a\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n", Served("GET /e HTTP/1.1 [a] cookie=a=1 cookie=b=2 <>")),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn nominated_fields() {
    check(&[
        ("gone", b"GET /e HTTP/1.1\r\nHost: a\r\nConnection: x-a, keep-alive\r\nX-A: 1\r\n\r\n", Served("GET /e HTTP/1.1 [a] connection=keep-alive <>")),
        ("forwarded", b"GET /e HTTP/1.1\r\nHost: a\r\nConnection: x-forwarded-for\r\n\r\n", Refused(400, "http1.connection_header_rejected")),
        ("pseudo", b"GET /e HTTP/1.1\r\nHost: a\r\nConnection: :path\r\n\r\n", Refused(400, "http1.connection_header_rejected")),
        ("host", b"GET /e HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n", Served("GET /e HTTP/1.1 [] nohost <>")),
        ("length", b"GET /e HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\ncontent-length: 1\r\n\r\nx", Served("GET /e HTTP/1.1 [a] <x>")),
        ("te", b"GET /e HTTP/1.1\r\nHost: a\r\nConnection: te\r\nte: gzip, trailers\r\n\r\n", Served("GET /e HTTP/1.1 [a] connection=te te=trailers <>")),
        ("no te", b"GET /e HTTP/1.1\r\nHost: a\r\nConnection: te, connection, Keep-Alive ,  keep-alive,\r\nte: gzip\r\n\r\n", Served("GET /e HTTP/1.1 [a] connection=Keep-Alive,keep-alive <>")),
        ("kept as it is", b"GET /e HTTP/1.1\r\nHost: a\r\nConnection: ,keep-alive,, te\r\nte: trailers\r\n\r\n", Served("GET /e HTTP/1.1 [a] connection=,keep-alive,, te te=trailers <>")),
        ("coding", b"POST /e HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding, keep-alive\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", Served("POST /e HTTP/1.1 [a] connection=keep-alive <x>")),
        ("ten", b"GET /e HTTP/1.1\r\nHost: a\r\nConnection: a,b,c,d,e,f,g,h,i,j\r\n\r\n", Refused(400, "http1.connection_header_rejected")),
        ("nine", b"GET /e HTTP/1.1\r\nHost: a\r\nConnection: a,b,c,d,e,f,g,h,i\r\n\r\n", Served("GET /e HTTP/1.1 [a] <>")),
        ("h2c", b"GET /e HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n", Served("GET /e HTTP/1.1 [a] connection=Upgrade, HTTP2-Settings <>")),
    ])
    .await;
}
