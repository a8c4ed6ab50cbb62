//! gRPC callouts of a plugin: what goes to the upstream, and what the plugin is told. The texts are what a running Envoy
//! 1.40 told the same guest.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::support::{Client, FakeUpstream, TestProxy, guest};

/// What the upstream saw, a line each.
type Seen = mpsc::UnboundedReceiver<String>;

/// A gRPC server whose methods are ways to answer.
async fn upstream() -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (sender, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(answer(request, respond, sender.clone()));
                }
            });
        }
    });
    (address, seen)
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    seen: mpsc::UnboundedSender<String>,
) {
    let say = |text: String| seen.send(text).expect("the test listens");
    let (parts, mut body) = request.into_parts();
    let header = |name: &str| {
        let value = parts.headers.get(name).map(HeaderValue::to_str);
        value.map_or("-", |value| value.expect("text")).to_owned()
    };
    let path = parts.uri.path().to_owned();
    say(format!(
        "{} {path} {} {} {}",
        parts.method,
        header("content-type"),
        header("te"),
        header("grpc-timeout")
    ));
    let head = || {
        Response::builder()
            .header("content-type", "application/grpc")
            .header("x-init", "i")
            .body(())
            .expect("a head")
    };
    let trailers = |status: &'static str, message: &'static str| {
        HeaderMap::from_iter(
            [
                ("grpc-status", status),
                ("grpc-message", message),
                ("x-trail", "t"),
            ]
            .map(|(name, value)| {
                (
                    http::HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            }),
        )
    };
    if path.ends_with("/echo") {
        let mut send = respond.send_response(head(), false).expect("open");
        while let Some(data) = body.data().await {
            match data {
                Ok(data) => {
                    let _ = body.flow_control().release_capacity(data.len());
                    // The end may come in an empty frame of its own.
                    if !data.is_empty() {
                        say(format!("data {:?}", String::from_utf8_lossy(&data)));
                    }
                    // Where the stream was reset, reading tells it.
                    let _ = send.send_data(data, false);
                }
                Err(error) => {
                    say(format!(
                        "reset {}",
                        error.reason().unwrap_or(Reason::NO_ERROR)
                    ));
                    return;
                }
            }
        }
        say("end".to_owned());
        let _ = send.send_trailers(trailers("0", "done"));
        return;
    }
    if path.ends_with("/broken") {
        let mut send = respond.send_response(head(), false).expect("open");
        // A message, and behind it what is none.
        let piece = Bytes::from_static(b"\0\0\0\0\x05hello\x07\0\0\0\0");
        send.send_data(piece, false).expect("open");
        let reset = std::future::poll_fn(|cx| send.poll_reset(cx)).await;
        say(format!("reset {}", reset.is_ok()));
        return;
    }
    let mut received = Vec::new();
    while let Some(data) = body.data().await {
        received.extend_from_slice(&data.expect("data"));
    }
    say(format!("data {:?}", String::from_utf8_lossy(&received)));
    if path.ends_with("/hello") {
        let mut send = respond.send_response(head(), false).expect("open");
        let frame = Bytes::from_static(b"\0\0\0\0\x05hello");
        send.send_data(frame, false).expect("open");
        send.send_trailers(trailers("0", "done")).expect("open");
    } else if path.ends_with("/refuse") {
        let mut send = respond.send_response(head(), false).expect("open");
        send.send_trailers(trailers("7", "no%20way")).expect("open");
    } else {
        let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        say(format!("reset {}", reset.is_ok()));
    }
}

struct World {
    proxy: TestProxy,
    seen: Seen,
    _upstream: FakeUpstream,
    _files: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        Self::configured("").await
    }

    /// With a configuration of the plugin.
    async fn configured(configuration: &str) -> Self {
        Self::of("grpc", configuration, "").await
    }

    /// With another guest, and quotas.
    async fn of(name: &str, configuration: &str, quotas: &str) -> Self {
        let (address, seen) = upstream().await;
        let plain = FakeUpstream::start("answer").await;
        let files = tempfile::tempdir().expect("a folder");
        let code = files.path().join("grpc.wasm");
        std::fs::write(&code, guest(name)).expect("a file");
        let bootstrap = format!(
            "
            node: {{id: test, cluster: test}}
            bootstrap_extensions: [{{name: wasm, typed_config: {{'@type': type.googleapis.com/plenipo.extensions.wasm.v1.WasmSettings, defaults: {{quotas: {{{quotas}}}}}}}}}]
            admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
            static_resources:
              listeners:
              - name: in
                address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
                filter_chains:
                - filters:
                  - name: http
                    typed_config:
                      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                      stat_prefix: s
                      route_config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: up}}}}]}}]}}
                      http_filters:
                      - name: plugin
                        typed_config:
                          '@type': type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
                          config: {{name: grpc, root_id: r, {configuration} vm_config: {{vm_id: v, code: {{local: {{filename: '{}'}}}}}}}}
                      - name: router
                        typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
              clusters:
              - name: up
                load_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: [{}]}}]}}
              - name: grpc
                typed_extension_protocol_options:
                  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
                    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
                    explicit_http_config: {{http2_protocol_options: {{}}}}
                load_assignment:
                  cluster_name: grpc
                  endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]
            ",
            code.display(),
            plain.endpoint(),
            address.port()
        );
        Self {
            proxy: TestProxy::start_on(&bootstrap, 1).await,
            seen,
            _upstream: plain,
            _files: files,
        }
    }

    /// What the plugin was told of the callout that `path` asks for; with the status of its answer.
    async fn told(&mut self, path: &str) -> (u16, String) {
        let mut client = Client::connect(self.proxy.address("in").await).await;
        let response = client.get("test", path).await;
        (response.status, response.body)
    }

    /// The next lines of what the upstream saw.
    async fn saw<const N: usize>(&mut self) -> [String; N] {
        let mut lines = std::array::from_fn(|_| String::new());
        for line in &mut lines {
            let next = tokio::time::timeout(Duration::from_secs(10), self.seen.recv()).await;
            *line = next.expect("within 10 s").expect("the upstream lives");
        }
        lines
    }

    fn callouts(&self) -> u64 {
        self.quota().0
    }

    /// Callouts under way, and how many were refused for their bytes.
    fn quota(&self) -> (u64, u64) {
        let plugins = self.proxy.running.server.plugins.status();
        let live = plugins[0].live.as_ref().expect("live");
        let named = |name| live.quotas.iter().find(|quota| quota.name == name);
        let used = named("callouts").and_then(|quota| quota.used);
        let refused = named("callout_bytes").map(|quota| quota.refused);
        (used.expect("a count"), refused.expect("listed"))
    }
}

fn head(method: &str, timeout: &str) -> String {
    format!("POST /test.Service/{method} application/grpc trailers {timeout}")
}

#[tokio::test]
async fn a_call_tells_its_message_or_its_failure() {
    let mut world = World::new().await;
    for what in ["c", "n"] {
        let told = world.told(&format!("/{what}/hello")).await;
        assert_eq!(told, (200, "message hello\n".to_owned()));
        let data = "data \"\\0\\0\\0\\0\\u{3}one\"".to_owned();
        assert_eq!(world.saw().await, [head("hello", "400m"), data]);
    }
    let told = world.told("/c/refuse").await;
    assert_eq!(told, (200, "close 7 no%20way{via_upstream}\n".to_owned()));
    world.saw::<2>().await;
    assert_eq!(world.callouts(), 0);
}

/// It fails on its connection: at once where there is one.
#[tokio::test]
async fn a_call_with_a_path_that_none_is_fails_later() {
    let mut world = World::new().await;
    let told = world.told("/b/hello").await;
    let failed = "close 14 invalid header value for: :path{filter_removed_required_request_headers{invalid_header_value_for:_:path}}\n";
    assert_eq!(told, (200, failed.to_owned()));
    let told = world.told("/b/hello").await;
    assert_eq!(told, (200, format!("status 10\n{failed}")));
    assert_eq!(world.callouts(), 0);
    // Nothing of them was sent.
    assert_eq!(world.told("/c/hello").await.0, 200);
    assert_eq!(world.saw::<1>().await, [head("hello", "400m")]);
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_given_up() {
    let mut world = World::new().await;
    let mut client = Client::connect(world.proxy.address("in").await).await;
    client
        .write(b"GET /c/hang HTTP/1.1\r\nhost: test\r\n\r\n")
        .await;
    world.saw::<2>().await;
    assert_eq!(world.callouts(), 1);
    let response = client.read().await.expect("an answer");
    let timeout = "close 14 upstream request timeout{response_timeout}\n";
    assert_eq!(response.body, timeout);
    assert_eq!(world.saw().await, ["reset true"]);
    assert_eq!(world.callouts(), 0);
}

#[tokio::test]
async fn a_cluster_that_there_is_not_is_told_twice_or_once() {
    let mut world = World::new().await;
    let told = world.told("/u/hello").await;
    let twice = "status 10\nclose 14 Cluster not available\n";
    assert_eq!(told, (200, twice.to_owned()));
    let told = world.told("/p/hello").await;
    assert_eq!(told, (200, "status 4\n".to_owned()));
    assert_eq!(world.callouts(), 0);
}

/// What a VM calls then starts when it goes to work.
#[tokio::test]
async fn what_is_called_while_a_vm_is_configured_starts_with_it() {
    let configuration = "configuration: {'@type': type.googleapis.com/google.protobuf.StringValue, value: /c/hello},";
    let mut world = World::configured(configuration).await;
    let data = "data \"\\0\\0\\0\\0\\u{3}one\"".to_owned();
    assert_eq!(world.saw().await, [head("hello", "400m"), data]);
}

#[tokio::test]
async fn the_name_of_no_cluster_is_refused_while_a_vm_is_configured_too() {
    let configuration = "configuration: {'@type': type.googleapis.com/google.protobuf.StringValue, value: /p/hello},";
    let mut world = World::configured(configuration).await;
    // Else the configuration would be refused.
    assert_eq!(world.told("/p/hello").await, (200, "status 4\n".to_owned()));
}

#[tokio::test]
async fn a_stream_goes_both_ways() {
    let mut world = World::new().await;
    let told = world.told("/s/echo").await;
    let expected =
        "initial 3 i\nmessage one\nmessage two\ntrailing 3 t\nclose 0 done{via_upstream}\n";
    assert_eq!(told, (200, expected.to_owned()));
    let one = "data \"\\0\\0\\0\\0\\u{3}one\"".to_owned();
    let two = "data \"\\0\\0\\0\\0\\u{3}two\"".to_owned();
    let saw: [String; 4] = world.saw().await;
    assert_eq!(saw, [head("echo", "-"), one, two, "end".to_owned()]);
    assert_eq!(world.callouts(), 0);
}

#[tokio::test]
async fn of_a_piece_that_cannot_be_read_whole_nothing_is_told() {
    let mut world = World::new().await;
    let expected = "initial 3 i\ntrailing 0 \nclose 13 via_upstream\n";
    assert_eq!(world.told("/s/broken").await, (200, expected.to_owned()));
    let saw: [String; 2] = world.saw().await;
    assert_eq!(saw, [head("broken", "-"), "reset true".to_owned()]);
}

#[tokio::test]
async fn a_stream_that_is_cancelled_tells_nothing_more() {
    let mut world = World::new().await;
    let told = world.told("/x/echo").await;
    assert_eq!(told, (200, "initial 3 i\ncancel 0 1\n".to_owned()));
    // What it sent before leaves before the reset.
    let saw: [String; 4] = world.saw().await;
    let one = "data \"\\0\\0\\0\\0\\u{3}one\"".to_owned();
    let two = "data \"\\0\\0\\0\\0\\u{3}two\"".to_owned();
    assert_eq!(saw[..3], [head("echo", "-"), one, two]);
    assert!(saw[3].starts_with("reset"), "{saw:?}");
    assert_eq!(world.callouts(), 0);
}

#[tokio::test]
async fn a_trap_ends_open_calls_and_the_next_vm_makes_its_own() {
    let mut world = World::new().await;
    let (status, _) = world.told("/t/echo").await;
    assert_eq!(status, 503);
    loop {
        let [line] = world.saw().await;
        if line.starts_with("reset") {
            break;
        }
        assert_ne!(line, "end");
    }
    let told = async {
        loop {
            let (status, told) = world.told("/c/hello").await;
            if status == 200 {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(10), told).await;
    assert_eq!(told.expect("a new VM"), "message hello\n");
}

/// A loop without an end where each failure is told as soon as the last has been.
#[tokio::test]
async fn who_calls_again_whenever_a_call_fails_keeps_no_worker() {
    let world = World::of("retry", "", "").await;
    let mut client = Client::connect(world.proxy.address("in").await).await;
    let calls = || {
        let plugins = world.proxy.running.server.plugins.status();
        plugins[0].vms[0].calls
    };
    for _ in 0..3 {
        assert_eq!(client.get("test", "/").await.status, 200);
    }
    // They go on, and ever more slowly.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let told = calls();
    assert!((3 * 17..3 * 60).contains(&told), "{told}");
    assert_eq!(client.get("test", "/").await.status, 200);
    assert!(world.callouts() >= 4);
}

/// A call of the guest is of 28 bytes, its answer of ten.
#[tokio::test]
async fn what_callouts_hold_is_bounded() {
    let world = World::of("grpc", "", "callout_bytes: 27").await;
    let mut client = Client::connect(world.proxy.address("in").await).await;
    client
        .write(b"GET /c/hello HTTP/1.1\r\nhost: test\r\n\r\n")
        .await;
    let refused = async {
        while world.quota() != (0, 1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(10), refused).await;
    refused.expect("it is refused");
    for (bytes, answer) in [(37, "close 8 via_upstream"), (38, "message hello")] {
        let mut world = World::of("grpc", "", &format!("callout_bytes: {bytes}")).await;
        // What was held comes back.
        for round in 1..=2 {
            let told = world.told("/c/hello").await;
            assert_eq!(told, (200, format!("{answer}\n")));
            let refused = u64::from(bytes == 37) * round;
            assert_eq!(world.quota(), (0, refused));
        }
    }
}
