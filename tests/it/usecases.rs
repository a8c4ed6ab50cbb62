//! What plugins are for, as `xds-examples` shows it: each example as its folder has it, served by a control plane, with real
//! requests through it. `tests/usecases` holds the same plugins against a real Envoy.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use plenipo::control_plane::{Rules, ServedFolder};
use plenipo::pb;
use plenipo::pb::envoy::extensions::filters::http::wasm::v3::Wasm;
use plenipo::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

use crate::support::{Client, FakeUpstream, Response, TestProxy, any, exchange, listener_yaml};

const SECRET: &[u8] = b"plenipo-example-secret-32-bytes!";
const JSON: &str = "content-type: application/json\r\n";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("xds-examples")
}

/// An example that runs, its ports taken by upstreams of ours.
struct Example {
    proxy: TestProxy,
    address: std::net::SocketAddr,
    blue: FakeUpstream,
    green: FakeUpstream,
    _plane: ServedFolder,
}

impl Example {
    async fn start(name: &str, workers: usize) -> Self {
        Self::start_with(name, workers, FakeUpstream::start("blue").await).await
    }

    async fn start_with(name: &str, workers: usize, blue: FakeUpstream) -> Self {
        let green = FakeUpstream::start("green").await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let plane = listener.local_addr().expect("an address").port();
        let ports = [
            (10000, 0),
            (9901, 0),
            (10001, blue.address.port()),
            (10002, green.address.port()),
            (18000, plane),
        ];
        let rewrite = move |text: &str| {
            ports.iter().fold(text.to_owned(), |text, (old, new)| {
                text.replace(&format!("port_value: {old}"), &format!("port_value: {new}"))
            })
        };
        let folder = root().join(name);
        let bootstrap = std::fs::read_to_string(folder.join("bootstrap.yaml")).expect("a file");
        let bootstrap = rewrite(&bootstrap);
        let served =
            ServedFolder::start_with(&folder, listener, Rules::default(), rewrite, |line| {
                println!("{line}");
            });
        let _plane = served.expect("served");
        let proxy = TestProxy::start_on(&bootstrap, workers).await;
        let address = proxy.address("web").await;
        Self {
            proxy,
            address,
            blue,
            green,
            _plane,
        }
    }

    /// One request: its line and header lines, and a body with its length.
    async fn send(&self, line: &str, headers: &str, body: &str) -> Response {
        let length = match body.len() {
            0 => String::new(),
            length => format!("content-length: {length}\r\n"),
        };
        let request = format!("{line} HTTP/1.1\r\nhost: test\r\n{headers}{length}\r\n{body}");
        exchange(self.address, &request).await
    }

    /// One request with a chunked body, piece by piece.
    async fn send_pieces(&self, line: &str, headers: &str, pieces: &[&str]) -> Response {
        let mut client = Client::connect(self.address).await;
        let head =
            format!("{line} HTTP/1.1\r\nhost: test\r\n{headers}transfer-encoding: chunked\r\n\r\n");
        client.write(head.as_bytes()).await;
        for piece in pieces {
            let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
            client.write(chunk.as_bytes()).await;
            tokio::task::yield_now().await;
        }
        client.write(b"0\r\n\r\n").await;
        client.read().await.expect("a response")
    }
}

/// HMAC-SHA256 (RFC 2104) with a secret of at most a block.
fn hmac(secret: &[u8], text: &str) -> Vec<u8> {
    let pad = |mask: u8| -> Vec<u8> {
        let mut block = secret.to_vec();
        block.resize(64, 0);
        block.iter().map(|byte| byte ^ mask).collect()
    };
    let inner = Sha256::digest([&pad(0x36)[..], text.as_bytes()].concat());
    Sha256::digest([&pad(0x5c)[..], &inner[..]].concat()).to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn token(header: &str, claims: &str) -> String {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let signed = format!(
        "{}.{}",
        encode(header.as_bytes()),
        encode(claims.as_bytes())
    );
    let signature = encode(&hmac(SECRET, &signed));
    format!("{signed}.{signature}")
}

fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

#[tokio::test]
async fn tokens_are_checked_and_their_claims_are_told() {
    let example = Example::start("jwt-auth", 2).await;
    let hs256 = r#"{"alg":"HS256"}"#;
    let claims =
        |expires: u64| format!(r#"{{"iss":"https://issuer.example","sub":"ada","exp":{expires}}}"#);
    let now = unix_now();
    let good = token(hs256, &claims(now + 60));
    let (signed, signature) = good.rsplit_once('.').expect("a signature");
    let other = token(hs256, &claims(now + 61));
    let (_, signature_of_other) = other.rsplit_once('.').expect("a signature");
    let none = token(r#"{"alg":"none"}"#, &claims(now + 60));
    let (unsigned, _) = none.rsplit_once('.').expect("a signature");
    let refused = [
        (String::new(), "no bearer token"),
        (
            "authorization: Basic YTpi\r\n".to_owned(),
            "no bearer token",
        ),
        (token(hs256, &claims(now - 1)), "expired"),
        (
            token(hs256, r#"{"iss":"https://issuer.example"}"#),
            "no expiry",
        ),
        (
            token(hs256, &claims(now + 60).replace("issuer.", "other.")),
            "wrong issuer",
        ),
        (none.clone(), "algorithm not allowed"),
        (format!("{unsigned}."), "algorithm not allowed"),
        (
            token(r#"{"alg":"HS512"}"#, &claims(now + 60)),
            "algorithm not allowed",
        ),
        (format!("{signed}.{signature_of_other}"), "wrong signature"),
        (format!("{signed}."), "wrong signature"),
        // 41 characters are no base64 of anything, 42 may be.
        (format!("{signed}.{}", &signature[2..]), "malformed token"),
        (format!("{good}="), "malformed token"),
        (signed.to_owned(), "malformed token"),
    ];
    for (text, reason) in refused {
        let headers = match &*text {
            "" => String::new(),
            text if text.contains(' ') => text.to_owned(),
            token => format!("authorization: Bearer {token}\r\n"),
        };
        let response = example.send("GET /", &headers, "").await;
        assert_eq!(
            (response.status, response.body.trim()),
            (401, reason),
            "{text}"
        );
        assert!(
            response.header("www-authenticate").starts_with("Bearer"),
            "{text}"
        );
    }
    assert!(example.blue.seen().is_empty(), "nothing of these gets on");

    let headers =
        format!("x-jwt-sub: root\r\nX-Jwt-Role: root\r\nauthorization: bearer {good}\r\n");
    let response = example.send("POST /", &headers, "body").await;
    assert_eq!((response.status, &*response.body), (200, "blue"));
    let seen = &example.blue.seen()[0];
    assert_eq!((seen.header("x-jwt-sub"), &*seen.body), ("ada", "body"));
    assert_eq!(seen.header("x-jwt-role"), "", "there is no such claim");
    assert_eq!(seen.header("authorization"), "");
}

#[tokio::test]
async fn signed_requests_wait_for_the_body_that_was_signed() {
    let example = Example::start("hmac-auth", 2).await;
    let date = |at: SystemTime| {
        let at = jiff::Timestamp::try_from(at).expect("a date");
        at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
    };
    let signed = |method: &str, body: &str, at: SystemTime| {
        let (date, digest) = (date(at), hex(&Sha256::digest(body)));
        let mac = hmac(SECRET, &format!("{method}\n/orders?a=1\n{date}\n{digest}"));
        format!(
            "date: {date}\r\nx-content-sha256: {digest}\r\nauthorization: HMAC-SHA256 example:{}\r\n",
            STANDARD.encode(mac)
        )
    };
    let (post, now) = ("POST /orders?a=1", SystemTime::now());
    let order = signed("POST", "order", now);
    let spoofed = format!("x-signed-by: root\r\n{order}");
    assert_eq!(example.send(post, &spoofed, "order").await.status, 200);
    assert_eq!(
        example
            .send_pieces(post, &order, &["o", "rd", "er"])
            .await
            .status,
        200
    );
    let seen = example.blue.seen();
    assert_eq!(seen.len(), 2);
    for seen in &seen {
        assert_eq!(
            (seen.header("x-signed-by"), &*seen.body),
            ("example", "order")
        );
    }
    // What came without its length goes on without it, though all of it is there.
    assert_eq!(seen[1].header("transfer-encoding"), "chunked");
    let empty = signed("POST", "", now);
    assert_eq!(example.send_pieces(post, &empty, &[]).await.status, 200);
    let get = signed("GET", "", now);
    assert_eq!(example.send("GET /orders?a=1", &get, "").await.status, 200);
    example.blue.seen();

    let age = Duration::from_secs(600);
    let cases = [
        (post, order.clone(), "other", "wrong digest of the body"),
        (post, order.clone(), "", "wrong digest of the body"),
        (post, empty, "order", "wrong digest of the body"),
        (
            "POST /orders?a=2",
            order.clone(),
            "order",
            "wrong signature",
        ),
        ("PUT /orders?a=1", order.clone(), "order", "wrong signature"),
        (
            post,
            order.replace("example:", "other:"),
            "order",
            "unknown key",
        ),
        (post, String::new(), "order", "no signature"),
        (
            post,
            signed("POST", "order", now - age),
            "order",
            "date too far from now",
        ),
        (
            post,
            signed("POST", "order", now + age),
            "order",
            "date too far from now",
        ),
    ];
    for (line, headers, body, reason) in cases {
        let response = example.send(line, &headers, body).await;
        assert_eq!(
            (response.status, response.body.trim()),
            (401, reason),
            "{line}"
        );
        assert_eq!(response.header("www-authenticate"), "HMAC-SHA256");
    }
    let response = example.send_pieces(post, &order, &["ord", "eR"]).await;
    assert_eq!(response.status, 401);
    assert!(
        example.blue.seen().is_empty(),
        "not even the head of one gets on"
    );
}

#[tokio::test]
async fn responses_are_redacted_and_have_their_length() {
    let example = Example::start("redact-json", 1).await;
    let response = example.send("GET /customer", "", "").await;
    let wanted =
        r#"{"name": "Ada", "mail": "[email]", "card": "[card]", "order": 4111111111111112}"#;
    assert_eq!((response.status, &*response.body), (200, wanted));
    assert_eq!(response.header("content-length"), wanted.len().to_string());
    // No JSON: as it is.
    assert_eq!(example.send("GET /", "", "").await.body, "blue");
    example.blue.seen();
    example
        .send("GET /", "accept-encoding: gzip\r\nrange: bytes=1-2\r\n", "")
        .await;
    let seen = &example.blue.seen()[0];
    assert_eq!(
        (seen.header("accept-encoding"), seen.header("range")),
        ("", "")
    );

    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let chunked = "transfer-encoding: chunked\r\n\r\n";
    let long = "x".repeat(70_000);
    let cases = [
        (
            format!("{chunked}6\r\n[\"a@b.\r\n4\r\ncc\"]\r\n0\r\n\r\n"),
            200,
            r#"["[email]"]"#,
        ),
        (format!("{chunked}0\r\n\r\n"), 200, ""),
        ("content-length: 0\r\n\r\n".to_owned(), 200, ""),
        (
            "content-length: 11\r\n\r\nno, a@b.cc!".to_owned(),
            200,
            "no, [email]!",
        ),
        (
            "content-encoding: gzip\r\ncontent-length: 2\r\n\r\n[]".to_owned(),
            502,
            "the response cannot be redacted: it is encoded\n",
        ),
        (
            format!("content-length: 70000\r\n\r\n{long}"),
            502,
            "the response cannot be redacted: it is too long\n",
        ),
        (
            format!("{chunked}{:x}\r\n{long}\r\n0\r\n\r\n", long.len()),
            502,
            "the response cannot be redacted: it is too long\n",
        ),
    ];
    for (answer, status, body) in cases {
        let upstream = FakeUpstream::answering(format!("{head}{answer}")).await;
        let example = Example::start_with("redact-json", 1, upstream).await;
        let response = example.send("GET /", "", "").await;
        assert_eq!((response.status, &*response.body), (status, body));
    }
}

#[tokio::test]
async fn graphql_operations_choose_the_route() {
    let example = Example::start("graphql-route", 2).await;
    let post = "POST /graphql";
    let two = r#"query A { a } mutation B { b } query YearlyReport { c }"#;
    let named = |name: &str| format!(r#"{{"query": "{two}", "operationName": "{name}"}}"#);
    let mutation = r#"{"query": "mutation { a(b: \"}\") { c } }"}"#;
    let cases = [
        (JSON, r#"{"query": "{ a }"}"#.to_owned(), "blue"),
        (JSON, mutation.to_owned(), "green"),
        (JSON, named("A"), "blue"),
        (JSON, named("B"), "green"),
        (JSON, named("YearlyReport"), "green"),
        (JSON, named("C"), "blue"),
        (
            JSON,
            r#"{"operationName": "YearlyReport"}"#.to_owned(),
            "green",
        ),
        (JSON, "mutation { a }".to_owned(), "blue"),
        (JSON, String::new(), "blue"),
        ("", mutation.to_owned(), "blue"),
    ];
    for (headers, body, upstream) in cases {
        let response = example.send(post, headers, &body).await;
        assert_eq!(
            (response.status, &*response.body),
            (200, upstream),
            "{body}"
        );
    }
    let spoofed = format!("{JSON}x-graphql-type: mutation\r\n");
    let response = example.send(post, &spoofed, r#"{"query": "{ a }"}"#).await;
    assert_eq!(response.body, "blue");
    example.green.seen();
    let pieces = [&mutation[..9], &mutation[9..20], &mutation[20..]];
    assert_eq!(example.send_pieces(post, JSON, &pieces).await.body, "green");
    let seen = &example.green.seen()[0];
    assert_eq!(
        (seen.header("x-graphql-type"), &*seen.body),
        ("mutation", mutation)
    );
    assert_eq!(example.send_pieces(post, JSON, &[]).await.body, "blue");
    let long = format!(
        r#"{{"query": "mutation {{ a }}", "x": "{}"}}"#,
        "y".repeat(300_000)
    );
    assert_eq!(example.send(post, JSON, &long).await.status, 413);
}

#[tokio::test]
async fn tenants_are_limited_over_all_workers() {
    let example = Example::start("tenant-rate-limit", 4).await;
    let started = Instant::now();
    let ask = async |tenant: &str, times: usize| {
        let headers = match tenant {
            "" => String::new(),
            tenant => format!("x-tenant: {tenant}\r\n"),
        };
        let mut responses = Vec::new();
        for _ in 0..times {
            // A connection each: the workers share them out.
            responses.push(example.send("GET /", &headers, "").await);
        }
        responses
    };
    // Three at once, and one every ten seconds, whatever workers they come to.
    let responses = ask("free", 40).await;
    let passed = responses
        .iter()
        .filter(|response| response.status == 200)
        .count();
    let refilled = usize::try_from(started.elapsed().as_secs() / 10).expect("a number");
    assert!((3..=3 + refilled).contains(&passed), "{passed} passed");
    let refused = responses.iter().find(|response| response.status != 200);
    let refused = refused.expect("one too many");
    assert_eq!(
        (refused.status, &*refused.body),
        (429, "too many requests\n")
    );
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=10).contains(&wait), "{wait}");
    let plugins = example.proxy.running.server.plugins.status();
    let at_work = plugins[0].vms.iter().filter(|vm| vm.calls > 20).count();
    assert!(at_work > 1, "several workers counted: {:?}", plugins[0].vms);

    // Who is not in the configuration shares one bucket with all the others.
    let mut others = ask("one", 1).await;
    others.extend(ask("two", 1).await);
    others.extend(ask("", 1).await);
    others.extend(ask("three", 1).await);
    let passed = others
        .iter()
        .filter(|response| response.status == 200)
        .count();
    let refilled = usize::try_from(started.elapsed().as_secs() / 20).expect("a number");
    assert!((2..=2 + refilled).contains(&passed), "{passed} passed");
    let gold = ask("gold", 40).await;
    assert!(gold.iter().all(|response| response.status == 200));
}

#[tokio::test]
async fn a_reply_after_an_edit_has_the_headers_of_the_route_before() {
    let module = root().join("../plugins/bin/request-auth.wasm");
    let filter = format!(
        "- {{name: plugin, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm, config: \
         {{name: p, configuration: {{'@type': type.googleapis.com/google.protobuf.StringValue, value: '{}'}}, \
         vm_config: {{code: {{local: {{filename: '{}'}}}}}}}}}}}}",
        format_args!(
            r#"{{"jwt": {{"issuer": "i", "keys": {{"k": "{}"}}, "claim_headers": {{"sub": "x-sub"}}}}}}"#,
            URL_SAFE_NO_PAD.encode(SECRET)
        ),
        module.display()
    );
    let routes = "route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, \
                  route: {cluster_header: x-cluster}, response_headers_to_add: [{header: {key: x-route, value: of-it}}]}]}]}";
    let listener = listener_yaml("web", routes, &filter);
    let lines = listener
        .lines()
        .filter(|line| !line.starts_with("\"@type\""));
    let listener: String = lines.map(|line| format!("\n    {line}")).collect();
    let bootstrap = format!("static_resources:\n  listeners:\n  -{listener}\n");
    let proxy = TestProxy::start_on(&bootstrap, 1).await;
    let mut client = Client::connect(proxy.address("web").await).await;
    let response = client.get("test", "/").await;
    assert_eq!(
        (response.status, response.header("x-route")),
        (401, "of-it")
    );
}

/// The plugin and the inline routes of the only chain of a listener.
fn plugin_and_routes(listener: &pb::Any) -> (Wasm, hcm::HttpConnectionManager) {
    let listener: pb::envoy::config::listener::v3::Listener = pb::unpack(listener).expect("one");
    let chains = listener.filter_chains.into_iter();
    let chain = chains.chain(listener.default_filter_chain).next();
    let filter = chain.expect("a chain").filters.remove(0);
    let typed = |config: Option<pb::Any>| config.expect("a configuration");
    let Some(pb::envoy::config::listener::v3::filter::ConfigType::TypedConfig(config)) =
        filter.config_type
    else {
        panic!("no configuration");
    };
    let manager: hcm::HttpConnectionManager = pb::unpack(&config).expect("a manager");
    let plugin = match &manager.http_filters[0].config_type {
        Some(hcm::http_filter::ConfigType::TypedConfig(config)) => Some(config.clone()),
        _ => None,
    };
    (pb::unpack(&typed(plugin)).expect("a plugin"), manager)
}

#[test]
fn what_is_compared_with_envoy_is_what_the_examples_show() {
    let suite = root().join("../tests/usecases/envoy.yaml");
    let text = std::fs::read_to_string(suite).expect("the suite");
    let token = regex::Regex::new("@([a-z_]+)@").expect("a pattern");
    let text = token.replace_all(&text, |found: &regex::Captures<'_>| match &found[1] {
        "root" => env!("CARGO_MANIFEST_DIR").to_owned(),
        "log" => "log".to_owned(),
        _ => "1".to_owned(),
    });
    let bootstrap =
        pb::from_text::<pb::envoy::config::bootstrap::v3::Bootstrap>(&text, pb::Format::Yaml)
            .and_then(pb::Parsed::strict)
            .expect("a bootstrap");
    let listeners = bootstrap.static_resources.expect("listeners").listeners;
    for name in [
        "graphql-route",
        "hmac-auth",
        "jwt-auth",
        "redact-json",
        "tenant-rate-limit",
    ] {
        let compared = listeners.iter().find(|listener| listener.name == name);
        let (plugin, manager) = plugin_and_routes(&pb::pack(compared.expect("a listener")));
        let file = |file: &str| {
            let text = std::fs::read_to_string(root().join(name).join(file));
            any(&text.expect("a file"))
        };
        let (shown, _) = plugin_and_routes(&file("listener.yaml"));
        let (plugin, shown) = (plugin.config.expect("one"), shown.config.expect("one"));
        assert_eq!(plugin.configuration, shown.configuration, "{name}");
        assert_eq!(
            plugin.allow_on_headers_stop_iteration, shown.allow_on_headers_stop_iteration,
            "{name}"
        );
        let Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes)) =
            manager.route_specifier
        else {
            panic!("{name}: no routes");
        };
        assert_eq!(
            routes,
            pb::unpack(&file("routes.yaml")).expect("routes"),
            "{name}"
        );
    }
}
