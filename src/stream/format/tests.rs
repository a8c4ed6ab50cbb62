//! Tests of `stream::format`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};

use super::*;
use crate::cluster::ClusterMap;
use crate::config::access_log::{BodyFormat, DEFAULT_FORMAT};
use crate::http::ResponseFlag;
use crate::pb;
use crate::stream::StreamConfig;

/// 2026-11-20T16:10:40.015304Z.
const START: Duration = Duration::from_micros(1_795_191_040_015_304);

fn stream() -> Arc<Stream> {
    let mut request = RequestHead::new(Method::GET, "example.test:26060", "/hdrs?q=1&z=%41%20b");
    for (name, value) in [
        ("user-agent", "ua/1"),
        ("x-request-id", "b4d84acf-619b-4f3e-b6f8-6a62ef7450b9"),
        ("x-quote", "a\"b\\c\u{e9}"),
        ("x-empty", ""),
    ] {
        let value = HeaderValue::from_bytes(value.as_bytes()).expect("a value");
        request.headers.append(name, value);
    }
    request
        .headers
        .append("x-many", HeaderValue::from_static("1"));
    request
        .headers
        .append("x-many", HeaderValue::from_static("2"));
    let connection = ConnectionInfo {
        id: 7,
        remote: Some(([192, 0, 2, 2], 59870).into()),
        local: Some(([127, 0, 0, 1], 26060).into()),
        listener: "alog".into(),
        ..ConnectionInfo::none()
    };
    let config = StreamConfig {
        routes: None,
        clusters: Arc::new(ClusterMap::default()),
        upstream_filters: None,
        options: Arc::default(),
        generation: 1,
        records: None,
    };
    let stream = Stream::new(Arc::new(connection), config, request, 0);
    let mut response = ResponseHead::new(StatusCode::OK);
    response.headers.insert(
        "x-envoy-upstream-service-time",
        HeaderValue::from_static("3"),
    );
    *stream.response.lock() = Some(response);
    {
        let mut info = stream.info.lock();
        info.start = SystemTime::UNIX_EPOCH + START;
        info.request_end = Some(info.begin + Duration::from_millis(2));
        info.upstream_first_tx = Some(info.begin + Duration::from_millis(3));
        info.upstream_first_rx = Some(info.begin + Duration::from_micros(5_700));
        info.response_begin = Some(info.begin + Duration::from_millis(6));
        info.end = Some(info.begin + Duration::from_micros(8_999));
        info.bytes_received = 11;
        info.bytes_sent = 405;
        info.details = Some("via upstream".into());
    }
    stream
}

fn text(stream: &Stream, format: &str) -> String {
    let format = Format::parse(format).expect("a format");
    let mut out = Vec::new();
    Scope::with(stream, LogType::DownstreamEnd, |scope| {
        write_text(&format, scope, false, &mut out);
    });
    String::from_utf8(out).expect("UTF-8")
}

fn json(stream: &Stream, template: &str, omit_empty: bool) -> String {
    let proto = pb::from_yaml(&format!(
        "{{json_format: {template}, omit_empty_values: {omit_empty}}}"
    ))
    .expect("YAML");
    let format = BodyFormat::parse(proto).expect("a format");
    let mut out = Vec::new();
    Scope::with(stream, LogType::DownstreamEnd, |scope| {
        write_record(&format.format, scope, &mut out);
    });
    String::from_utf8(out).expect("UTF-8")
}

#[tokio::test]
async fn the_default_line_is_envoys() {
    assert_eq!(
        text(&stream(), DEFAULT_FORMAT),
        "[2026-11-20T16:10:40.015Z] \"GET /hdrs?q=1&z=%41%20b HTTP/1.1\" 200 - 11 405 8 3 \"-\" \"ua/1\" \
         \"b4d84acf-619b-4f3e-b6f8-6a62ef7450b9\" \"example.test:26060\" \"-\"\n"
    );
}

#[tokio::test]
async fn operators_have_envoys_values() {
    let stream = stream();
    stream
        .info
        .lock()
        .flags
        .set(ResponseFlag::UpstreamRetryLimitExceeded);
    stream
        .info
        .lock()
        .flags
        .set(ResponseFlag::UpstreamConnectionTermination);
    for (format, expected) in [
        ("%REQ(NOPE)%", "-"),
        ("%REQ(NOPE?:AUTHORITY)%", "example.test:26060"),
        ("%REQ(x-empty?:path)%", ""),
        ("%REQ(x-many)%", "1"),
        ("%REQ(:PATH):5%", "/hdrs"),
        ("%REQ(:PATH):0%", ""),
        ("%REQ(NOPE):0%", "-"),
        ("%REQ(HOST)%", "example.test:26060"),
        ("%RESP(:STATUS)%", "200"),
        ("%TRAILER(X-T)%", "-"),
        ("%PROTOCOL%", "HTTP/1.1"),
        ("%UPSTREAM_PROTOCOL%", "-"),
        ("%RESPONSE_FLAGS%", "URX,UC"),
        (
            "%RESPONSE_FLAGS_LONG%",
            "UpstreamRetryLimitExceeded,UpstreamConnectionTermination",
        ),
        ("%RESPONSE_CODE_DETAILS%", "via_upstream"),
        ("%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%", "via upstream"),
        ("%PATH(NQ)%", "/hdrs"),
        ("%PATH(WQ:ORIG)%", "-"),
        ("%QUERY_PARAM(z)%", "A b"),
        ("%QUERY_PARAM(none)%", "-"),
        ("%QUERY_PARAMS%", "q=1&z=%41%20b"),
        ("%QUERY_PARAMS(DECODED)%", "q=1&z=A%20b"),
        ("%REQUEST_DURATION%", "2"),
        ("%REQUEST_TX_DURATION%", "-"),
        ("%RESPONSE_DURATION%", "5"),
        ("%RESPONSE_TX_DURATION%", "3"),
        ("%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%", "8999"),
        ("%COMMON_DURATION(US_TX_BEG:US_RX_BEG:ms)%", "2"),
        ("%COMMON_DURATION(DS_TX_END:DS_RX_BEG:ns)%", "-"),
        ("%COMMON_DURATION(foo:DS_RX_BEG)%", "-"),
        ("%START_TIME(%s.%3f)%", "1795191040.015"),
        (
            "%START_TIME(%Y/%m/%dT%H:%M:%S%z %f %6f)%",
            "2026/11/20T16:10:40+0000 015304000 015304",
        ),
        ("%START_TIME(%s%9f)%", "1795191040015304000"),
        (
            "%START_TIME(%Q %E3S %E*S %E3f %e %j %U %p %Ez %S %% %1f %y %G %V %k %l %P %r %D %R %h %C %g %u %w %W %E4Y %ET)%",
            "%Q 40.015 40.015304 015 20 324 46 PM +00:00 40 % 0 26 2026 47 16  4 pm 04:10:40 PM 11/20/26 16:10 Nov 20 26 5 5 46 2026 T",
        ),
        ("%UPSTREAM_HOST%", "-"),
        ("%UPSTREAM_CONNECTION_ID%", "0"),
        ("%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "0"),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", "192.0.2.2:59870"),
        (
            "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(16)%",
            "192.0.0.0/16",
        ),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(0)%", "0.0.0.0/0"),
        (
            "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(200)%",
            "192.0.2.2/32",
        ),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(a)%", "192.0.2.2"),
        ("%DOWNSTREAM_LOCAL_PORT%", "26060"),
        ("%CONNECTION_ID%", "7"),
        ("%STREAM_ID%", "b4d84acf-619b-4f3e-b6f8-6a62ef7450b9"),
        ("%LISTENER_NAME%", "alog"),
        ("%FILTER_CHAIN_NAME%", "-"),
        ("%ACCESS_LOG_TYPE%", "DownstreamEnd"),
        ("%CUSTOM_FLAGS%", ""),
        ("%LOCAL_REPLY_BODY%", ""),
        ("%GRPC_STATUS%", "-"),
        ("%DOWNSTREAM_TLS_VERSION%", "-"),
        ("%REQUESTED_SERVER_NAME%", "-"),
        (
            "%REQUESTED_SERVER_NAME(SNI_FIRST:HOST)%",
            "example.test:26060",
        ),
        ("%REQUESTED_SERVER_NAME(HOST_FIRST:ORIG)%", "-"),
        (
            "%COALESCE({\"operators\":[{\"command\":\"REQ\",\"param\":\"x-empty\"},\"PROTOCOL\"]})%",
            "",
        ),
        ("%ROUTE_RESOLUTION_COUNT%", "1"),
        ("%ENVIRONMENT(PLENIPO_THAT_IS_NOT_SET)%", "-"),
        (
            "%COALESCE({\"operators\":[\"REQUESTED_SERVER_NAME\",{\"command\":\"REQ\",\"param\":\":AUTHORITY\",\"max_length\":3}]})%",
            "exa",
        ),
    ] {
        assert_eq!(text(&stream, format), expected, "{format}");
    }
    assert_eq!(text(&stream, "%UNIQUE_ID%").len(), 36);
}

#[tokio::test]
async fn a_client_behind_a_proxy_is_the_remote_address() {
    let stream = stream();
    stream.info.lock().client = Some(SocketAddr::from(([1, 2, 3, 4], 0)));
    assert_eq!(text(&stream, "%DOWNSTREAM_REMOTE_ADDRESS%"), "1.2.3.4:0");
    assert_eq!(
        text(&stream, "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"),
        "192.0.2.2"
    );
}

#[tokio::test]
async fn grpc_streams_have_a_status() {
    let stream = stream();
    stream
        .request
        .lock()
        .headers
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    // What HTTP says, then the head, then the trailers.
    assert_eq!(text(&stream, "%GRPC_STATUS%"), "Unknown");
    if let Some(head) = stream.response.lock().as_mut() {
        head.headers
            .insert("grpc-status", HeaderValue::from_static("5"));
    }
    assert_eq!(text(&stream, "%GRPC_STATUS(SNAKE_STRING)%"), "NOT_FOUND");
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("99"));
    *stream.response_trailers.lock() = Some(trailers);
    assert_eq!(text(&stream, "%GRPC_STATUS%"), "99");
    assert_eq!(text(&stream, "%GRPC_STATUS_NUMBER%"), "99");
}

#[tokio::test]
async fn the_server_name_is_the_host_before_its_rewrite() {
    let stream = stream();
    let original = HeaderValue::from_static("before.test");
    let mut request = stream.request.lock();
    request.headers.insert("x-envoy-original-host", original);
    drop(request);
    for (choice, host) in [
        ("HOST_FIRST", "before.test"),
        ("SNI_FIRST:ORIG", "before.test"),
        ("HOST_FIRST:HOST", "example.test:26060"),
    ] {
        let format = format!("%REQUESTED_SERVER_NAME({choice})%");
        assert_eq!(text(&stream, &format), host);
    }
    stream.info.lock().refused = Some(crate::stream::Refusal::Manager);
    assert_eq!(text(&stream, "%REQUESTED_SERVER_NAME(HOST_FIRST)%"), "-");
    assert_eq!(text(&stream, "%ROUTE_RESOLUTION_COUNT%"), "1");
    stream.info.lock().refused = Some(crate::stream::Refusal::Codec);
    assert_eq!(text(&stream, "%ROUTE_RESOLUTION_COUNT%"), "0");
}

#[tokio::test]
async fn moments_that_did_not_come_are_missing() {
    let stream = stream();
    let body = "%COMMON_DURATION(US_RX_BEG:US_RX_BODY_BEG)%";
    {
        let mut info = stream.info.lock();
        info.upstream_first_rx = Some(info.begin);
        info.response_begin = Some(info.begin);
        info.upstream_last_rx = info.response_begin;
        info.request_end = Some(info.begin);
    }
    assert_eq!(text(&stream, body), "-", "the head was all");
    let later = stream.info.lock().begin + std::time::Duration::from_millis(3);
    stream.info.lock().upstream_last_rx = Some(later);
    assert_eq!(text(&stream, body), "0");
    assert_eq!(text(&stream, "%REQUEST_DURATION%"), "0");
    stream.info.lock().without_head = true;
    assert_eq!(text(&stream, "%REQUEST_DURATION%"), "-");
}

#[tokio::test]
async fn a_head_that_was_not_understood_has_no_headers() {
    let stream = stream();
    stream.info.lock().without_head = true;
    assert_eq!(text(&stream, "%REQ(:METHOD)% %REQ(x-many)%"), "- -");
}

#[tokio::test]
async fn objects_of_the_filter_state_are_text_or_messages() {
    use crate::stream::state::{LifeSpan, StateKind, StateObject, set_object};
    let stream = stream();
    let address = "127.0.0.1:80".parse().expect("an address");
    let locality = StateKind::Message {
        type_url: "type.googleapis.com/envoy.config.core.v3.Locality".into(),
        descriptor: None,
    };
    for (name, value, kind, span) in [
        ("bytes", "a", StateKind::Bytes, LifeSpan::FilterChain),
        ("text", "a\"b", StateKind::Text, LifeSpan::Connection),
        ("message", "\n\x01r", locality, LifeSpan::FilterChain),
        ("string", "a\"b", StateKind::String, LifeSpan::Request),
        ("object", "a", StateKind::Object, LifeSpan::FilterChain),
        ("opaque", "a", StateKind::Opaque, LifeSpan::FilterChain),
        (
            "address",
            "",
            StateKind::Address(address),
            LifeSpan::FilterChain,
        ),
    ] {
        let object = StateObject {
            value: value.into(),
            kind,
            span,
            read_only: false,
        };
        let state = &mut stream.info.lock().filter_state;
        set_object(state, &stream.connection.filter_state, name, object);
    }
    let any = "type.googleapis.com/google.protobuf.BytesValue";
    let locality = "type.googleapis.com/envoy.config.core.v3.Locality";
    for (choice, written) in [
        ("bytes:PLAIN", "a".to_owned()),
        (
            "bytes",
            format!("{{\"@type\":\"{any}\",\"value\":\"YQ==\"}}"),
        ),
        ("text:PLAIN", "a\"b".to_owned()),
        (
            "text:TYPED",
            format!("{{\"@type\":\"{any}\",\"value\":\"YSJi\"}}"),
        ),
        (
            "message",
            format!("{{\"@type\":\"{locality}\",\"region\":\"r\"}}"),
        ),
        ("string:PLAIN", "a\"b".to_owned()),
        ("string:TYPED", "\"a\\\"b\"".to_owned()),
        ("object:PLAIN", "a".to_owned()),
        ("object:TYPED", "-".to_owned()),
        ("opaque:PLAIN", "-".to_owned()),
        ("address:PLAIN", "127.0.0.1:80".to_owned()),
        ("address:FIELD:ip", "127.0.0.1".to_owned()),
        ("address:FIELD:port", "80".to_owned()),
        ("bytes:FIELD:ip", "-".to_owned()),
        ("none:PLAIN", "-".to_owned()),
    ] {
        assert_eq!(
            text(&stream, &format!("%FILTER_STATE({choice})%")),
            written,
            "{choice}"
        );
    }
    let in_json = json(&stream, "{s: '%FILTER_STATE(bytes)%'}", false);
    assert_eq!(
        in_json,
        format!("{{\"s\":{{\"@type\":\"{any}\",\"value\":\"YQ==\"}}}}\n")
    );
}

#[tokio::test]
async fn dynamic_metadata_keeps_its_types() {
    let stream = stream();
    let metadata: pb::Metadata = pb::from_yaml(
        "{filter_metadata: {m: {s: 'str\"q', n: 3, f: 1.25, b: true, nil: null, o: {p: {q: deep}}, l: [1, a, null, true]}}}",
    )
    .expect("YAML");
    stream.info.lock().dynamic_metadata = Some(Box::new(metadata));
    for (path, in_text, in_json) in [
        ("m:s", "str\"q", "\"str\\\"q\""),
        ("m:s):2", "st", "\"st\""),
        ("m:n", "3", "3"),
        ("m:f", "1.25", "1.25"),
        ("m:b", "true", "true"),
        ("m:nil", "-", "null"),
        (
            "m:o",
            "{\"p\":{\"q\":\"deep\"}}",
            "{\"p\":{\"q\":\"deep\"}}",
        ),
        ("m:o:p:q", "deep", "\"deep\""),
        ("m:l", "[1,\"a\",null,true]", "[1,\"a\",null,true]"),
        ("m:l:0", "-", "null"),
        ("other", "-", "null"),
    ] {
        let operator = match path.strip_suffix("):2") {
            Some(path) => format!("%DYNAMIC_METADATA({path}):2%"),
            None => format!("%DYNAMIC_METADATA({path})%"),
        };
        assert_eq!(text(&stream, &operator), in_text, "{operator}");
        assert_eq!(
            json(&stream, &format!("{{v: '{operator}'}}"), false),
            format!("{{\"v\":{in_json}}}\n"),
            "{operator}"
        );
    }
}

#[tokio::test]
async fn json_is_sorted_and_typed() {
    let stream = stream();
    assert_eq!(
        json(
            &stream,
            "{z: '%RESPONSE_CODE%', a: 'code %RESPONSE_CODE%', m: '%REQ(nope)%', x: 'a%REQ(nope)%b', n: 1, f: 1.5, b: true, l: ['%PROTOCOL%', '%REQ(nope)%', {k: '%BYTES_SENT%'}], q: '%REQ(x-quote)%', p: '%%', flags: '%RESPONSE_FLAGS%', time: '%START_TIME%'}",
            false
        ),
        "{\"a\":\"code 200\",\"b\":true,\"f\":1.5,\"flags\":\"-\",\"l\":[\"HTTP/1.1\",null,{\"k\":405}],\"m\":null,\"n\":1,\"p\":\"%\",\"q\":\"a\\\"b\\\\cé\",\"time\":\"2026-11-20T16:10:40.015Z\",\"x\":\"a-b\",\"z\":200}\n"
    );
}

#[tokio::test]
async fn omitted_values_leave_no_trace() {
    let stream = stream();
    assert_eq!(
        json(
            &stream,
            "{a: '%REQ(nope)%', b: {c: '%REQ(nope)%'}, d: ['%REQ(nope)%'], e: 'x%REQ(nope)%', f: '%REQ(x-empty)%', g: ['%REQ(nope)%', '%PROTOCOL%']}",
            true
        ),
        "{\"d\":[],\"e\":\"x\",\"f\":\"\",\"g\":[\"HTTP/1.1\"]}\n"
    );
    assert_eq!(json(&stream, "{a: '%REQ(nope)%'}", true), "{}\n");
    let nulls = "{a: null, b: [1, null], c: {d: null}}";
    assert_eq!(json(&stream, nulls, true), "{\"b\":[1]}\n");
    assert_eq!(
        json(&stream, nulls, false),
        "{\"a\":null,\"b\":[1,null],\"c\":{\"d\":null}}\n"
    );
}

#[tokio::test]
async fn bytes_that_are_no_text_make_no_broken_json() {
    let stream = stream();
    let value = HeaderValue::from_bytes(b"h\xff\x09").expect("a value");
    stream.request.lock().headers.insert("x-raw", value);
    let line = json(&stream, "{a: '%REQ(x-raw)%'}", false);
    assert_eq!(line, "{\"a\":\"h\u{fffd}\\t\"}\n");
    serde_json::from_str::<serde_json::Value>(&line).expect("JSON");
}

#[tokio::test]
async fn versions_have_their_names() {
    let stream = stream();
    for (version, name) in [
        (Version::HTTP_10, "HTTP/1.0"),
        (Version::HTTP_2, "HTTP/2"),
        (Version::HTTP_3, "HTTP/3"),
    ] {
        stream.request.lock().version = version;
        assert_eq!(text(&stream, "%PROTOCOL%"), name);
    }
}
