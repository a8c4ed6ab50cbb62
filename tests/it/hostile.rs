//! Hostile plugins and hostile code servers against whole proxies: what misbehaves costs itself, and says so in `/wasm` and in
//! a statistic.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use plenipo::control_plane::ControlPlane;
use plenipo::pb;
use plenipo::wasm::PluginStatus;
use plenipo::wasm::spec::Digest;
use plenipo::wasm::status::State;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::guests::marker;
use crate::support::registry::read_head;
use crate::support::{Client, FakeUpstream, TestProxy, ads_bootstrap, any, guest, listener_yaml};

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
const WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";

/// What a VM may take by default.
const MEMORY_LIMIT: u64 = 256 << 20;

/// All of `/` passes the plugin, all of `/free` does not.
const ROUTES: &str = r#"route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /free}, route: {cluster: up}, typed_per_filter_config: {plugin: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true, config: {}}}}, {match: {prefix: /}, route: {cluster: up}}]}]}"#;

const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

/// Polls until `look` finds something.
async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found)
        .await
        .unwrap_or_else(|_| panic!("not within 30 s: {what}"))
}

/// A module of its own: `body` and what every guest needs.
fn module(body: &str) -> Vec<u8> {
    wat::parse_str(format!(
        "(module {body} (memory (export \"memory\") 1) (func (export \"proxy_abi_version_0_2_1\"))
           (func (export \"malloc\") (param i32) (result i32) (i32.const 1024)))"
    ))
    .expect("valid text")
}

/// The filter's configuration: a plugin called `name` of this code.
fn plugin(name: &str, code: &str, configuration: &str) -> String {
    plugin_with(name, code, configuration, "")
}

/// Likewise, with more fields, each behind a comma.
fn plugin_with(name: &str, code: &str, configuration: &str, fields: &str) -> String {
    format!(
        r#"{{"@type": {WASM}, config: {{name: {name}, vm_config: {{vm_id: {name}, code: {code}}}, configuration: {{"@type": type.googleapis.com/google.protobuf.StringValue, value: "{configuration}"}}{fields}}}}}"#
    )
}

/// Code in files that live as long as this.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// As `code: …` in YAML.
    fn local(&self, name: &str, code: &[u8]) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, code).expect("a file");
        format!("{{local: {{filename: '{}'}}}}", path.display())
    }
}

fn static_cluster(name: &str, port: u16) -> pb::Any {
    any(&format!(
        "'@type': {CLUSTER}\nname: {name}\ntype: STATIC\nconnect_timeout: 1s\nload_assignment: {{cluster_name: {name}, \
         endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}\n"
    ))
}

fn bootstrap(plane: &ControlPlane) -> String {
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n{}",
        ads_bootstrap(plane.address(), false)
    )
}

async fn plane() -> ControlPlane {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    ControlPlane::start(listener).expect("the control plane starts")
}

/// A proxy with a listener for each plugin, all on one worker.
struct World {
    _plane: ControlPlane,
    _upstream: FakeUpstream,
    _files: Files,
    proxy: TestProxy,
}

impl World {
    /// `plugins`: name, module, configuration. The listener `calm` has a plugin that behaves.
    async fn new(plugins: &[(&str, Vec<u8>, &str)]) -> Self {
        Self::with(plugins, "").await
    }

    /// As [`World::new`], with more fields in the configuration of each plugin.
    async fn with(plugins: &[(&str, Vec<u8>, &str)], fields: &str) -> Self {
        let upstream = FakeUpstream::start("answer").await;
        let plane = plane().await;
        let files = Files::new();
        let calm = ("calm", guest("add-header"), "");
        let listeners = plugins.iter().chain([&calm]);
        let listeners = listeners
            .map(|(name, code, configuration)| {
                let code = files.local(name, code);
                let config = plugin_with(name, &code, configuration, fields);
                let filter = format!("- {{name: plugin, typed_config: {config}}}");
                any(&listener_yaml(name, ROUTES, &filter))
            })
            .collect();
        plane.set_resources(
            CLUSTER,
            vec![static_cluster("up", upstream.address.port())],
            "1",
        );
        plane.set_resources(LISTENER, listeners, "1");
        let proxy = TestProxy::start_on(&bootstrap(&plane), 1).await;
        Self {
            _plane: plane,
            _upstream: upstream,
            _files: files,
            proxy,
        }
    }

    async fn client(&self, listener: &str) -> Client {
        Client::connect(self.proxy.address(listener).await).await
    }

    fn status(&self, name: &str) -> PluginStatus {
        let plugins = self.proxy.running.server.plugins.status();
        plugins
            .into_iter()
            .find(|plugin| plugin.name == name)
            .expect("a plugin of that name")
    }

    /// Another plugin's requests, and requests without plugin, are as good as ever.
    async fn calm(&self) {
        let mut calm = self.client("calm").await;
        let response = calm.send(GET).await;
        assert_eq!((response.status, response.header("x-guest")), (200, "1"));
        let response = calm.get("test", "/free").await;
        assert_eq!((response.status, response.header("x-guest")), (200, ""));
    }
}

/// One page of the admin interface.
async fn admin(proxy: &TestProxy, path: &str) -> String {
    let response = Client::connect(proxy.admin())
        .await
        .get("admin", path)
        .await;
    assert_eq!(response.status, 200, "{path}");
    response.body
}

/// A counter as `/stats` prints it.
async fn stat(proxy: &TestProxy, name: &str) -> u64 {
    let page = admin(proxy, "/stats").await;
    let prefix = format!("{name}: ");
    let value = page.lines().find_map(|line| line.strip_prefix(&prefix));
    value
        .unwrap_or_else(|| panic!("no statistic {name} in\n{page}"))
        .parse()
        .expect("a number")
}

fn faulty(how: char, place: char) -> String {
    format!(
        "POST / HTTP/1.1\r\nhost: test\r\nx-fault: {how}{place}\r\ncontent-length: 4\r\n\r\nbody"
    )
}

/// Asks until a fresh VM serves; until then the policy answers.
async fn serves_again(world: &World, listener: &str) {
    let address = world.proxy.address(listener).await;
    let again = async {
        let mut client = Client::connect(address).await;
        loop {
            let response = client.send(GET).await;
            match response.status {
                200 => return assert_eq!(response.header("x-guest"), "1"),
                status => assert_eq!(status, 503),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again)
        .await
        .expect("a fresh VM takes new streams");
}

#[tokio::test]
async fn a_loop_delays_its_worker_by_its_budget_and_no_more() {
    // How long somebody waits is also up to who else uses the machine: one calm moment of three will do.
    let mut longest = Vec::new();
    for _ in 0..3 {
        let world = World::new(&[("looping", guest("hostile"), "")]).await;
        let mut other = world.client("looping").await;
        assert_eq!(other.get("test", "/free").await.status, 200);
        let mut looping = world.client("looping").await;
        looping.write(faulty('l', 'h').as_bytes()).await;
        let begin = Instant::now();
        let ended = AtomicBool::new(false);
        let looped = async {
            let answer = looping.read().await;
            ended.store(true, Relaxed);
            (answer.expect("an answer").status, begin.elapsed())
        };
        let others = async {
            let mut waited = Duration::ZERO;
            while !ended.load(Relaxed) {
                let sent = Instant::now();
                let response = other.get("test", "/free").await;
                assert_eq!((response.status, &*response.body), (200, "answer"));
                waited = waited.max(sent.elapsed());
            }
            waited
        };
        let ((code, took), waited) = tokio::join!(looped, others);
        assert_eq!(code, 503);
        let status = world.status("looping");
        let error = status.error.expect("told");
        assert!(error.contains("time budget"), "{error}");
        assert_eq!(status.vms[0].traps, 1);
        assert_eq!(stat(&world.proxy, "wasm.vm_failures").await, 1);
        serves_again(&world, "looping").await;
        world.calm().await;
        longest.push((waited, took));
        // Somebody was behind the loop: it is the same worker.
        assert!(waited > Duration::from_millis(10), "{longest:?}");
        if waited < Duration::from_secs(1) && took < Duration::from_secs(1) {
            return;
        }
    }
    panic!("others waited, the loop took: {longest:?}");
}

#[tokio::test]
async fn who_loops_again_and_again_is_held_back_and_others_are_served() {
    let world = World::new(&[("looping", guest("fault"), "lh")]).await;
    let mut looping = world.client("looping").await;
    let mut calm = world.client("calm").await;
    for _ in 0..200 {
        assert_eq!(looping.get("test", "/").await.status, 503);
        assert_eq!(calm.get("test", "/").await.header("x-guest"), "1");
    }
    let vms = world.status("looping").vms;
    // One at the start, one at once, and then one in 0.5 s, 1 s, … : each VM loops once.
    assert!(vms[0].created >= 2 && vms[0].created <= 6, "{vms:?}");
    assert!(vms[0].traps <= vms[0].created, "{vms:?}");
}

#[tokio::test]
async fn a_memory_bomb_ends_at_the_cap_and_hurts_nobody() {
    let world = World::new(&[("bomb", guest("hostile"), "")]).await;
    let mut client = world.client("bomb").await;
    let response = client.send(&faulty('m', 'h')).await;
    assert_eq!(
        response.status, 200,
        "growth fails softly: the guest goes on"
    );
    let memory = until("the memory is told", || {
        let memory = world.status("bomb").vms[0].memory;
        (memory > MEMORY_LIMIT / 2).then_some(memory)
    })
    .await;
    assert!(memory <= MEMORY_LIMIT, "{memory}");
    assert!(
        admin(&world.proxy, "/wasm")
            .await
            .contains(&format!("worker_0::memory::{memory}"))
    );
    // Its memory is its own: what it does next still works, and what others do.
    assert_eq!(client.send(GET).await.status, 200);
    world.calm().await;
    assert_eq!(stat(&world.proxy, "wasm.wasm_vm_count").await, 2);
    assert_eq!(stat(&world.proxy, "wasm.vm_failures").await, 0);
}

#[tokio::test]
async fn a_trap_in_any_callback_of_a_stream_costs_that_stream_alone() {
    #[derive(Debug, PartialEq)]
    enum Seen {
        Status(u16),
        Cut,
    }
    let cases = [
        ('h', Seen::Status(503)),
        ('b', Seen::Status(503)),
        ('H', Seen::Status(503)),
        ('B', Seen::Cut),
        ('o', Seen::Status(200)),
        ('d', Seen::Status(200)),
        ('e', Seen::Status(200)),
    ];
    let names: Vec<String> = cases
        .iter()
        .map(|(place, _)| format!("at_{}{place}", u8::from(place.is_uppercase())))
        .collect();
    let plugins: Vec<_> = names
        .iter()
        .map(|name| (&**name, guest("hostile"), ""))
        .collect();
    let world = World::new(&plugins).await;
    let mut failed = 0;
    for ((place, expected), name) in cases.into_iter().zip(&names) {
        // On the way through another plugin on the same worker, and through none.
        let mut open = [world.client("calm").await, world.client(name).await];
        for (client, path) in open.iter_mut().zip(["/", "/free"]) {
            let half = format!("POST {path} HTTP/1.1\r\nhost: t\r\ncontent-length: 8\r\n\r\nhalf");
            client.write(half.as_bytes()).await;
        }
        let mut client = world.client(name).await;
        client.write(faulty('t', place).as_bytes()).await;
        let seen = match client.read().await {
            Some(response) => Seen::Status(response.status),
            None => Seen::Cut,
        };
        assert_eq!(seen, expected, "{place}");
        until("the trap is counted", || {
            (world.status(name).vms[0].traps == 1).then_some(())
        })
        .await;
        let error = world.status(name).error.expect("told");
        assert!(error.contains("unreachable"), "{error}");
        failed += 1;
        assert_eq!(stat(&world.proxy, "wasm.vm_failures").await, failed);
        serves_again(&world, name).await;
        for client in &mut open {
            client.write(b"half").await;
            let response = client.read().await.expect("an answer");
            assert_eq!(
                (response.status, &*response.body),
                (200, "answer"),
                "{place}"
            );
        }
        assert_eq!(world.status(name).vms[0].created, 2, "{place}");
    }
    world.calm().await;
    let reloaded = stat(&world.proxy, "wasm.at_0h.vm_reload_success").await;
    assert_eq!(reloaded, 1);
    let page = admin(&world.proxy, "/wasm").await;
    let line = page
        .lines()
        .find(|line| line.starts_with("at_0h::") && line.contains("::error::"));
    assert!(line.expect("told").contains("unreachable"), "{page}");
}

#[tokio::test]
async fn a_trap_outside_of_streams_hurts_no_other_plugin() {
    let world = World::new(&[
        ("ticking", guest("fault"), "tt"),
        ("creating", guest("fault"), "tn"),
    ])
    .await;
    // The tick traps without any request.
    until("the tick traps", || {
        (world.status("ticking").vms[0].traps > 0).then_some(())
    })
    .await;
    world.calm().await;
    let mut client = world.client("creating").await;
    for _ in 0..20 {
        assert_eq!(client.send(GET).await.status, 503);
        assert_eq!(client.get("test", "/free").await.status, 200);
    }
    let vms = world.status("creating").vms;
    assert!(vms[0].traps > 0 && vms[0].created <= 4, "{vms:?}");
    assert!(stat(&world.proxy, "wasm.vm_failures").await >= 2);
    world.calm().await;
}

#[tokio::test]
async fn a_loop_ends_in_any_callback_of_a_stream() {
    let cases = [
        ('b', Some(503)),
        ('H', Some(503)),
        ('B', None),
        ('o', Some(200)),
    ];
    let names = ["loop_b", "loop_head", "loop_data", "loop_log"];
    let plugins = names.map(|name| (name, guest("hostile"), ""));
    let world = World::new(&plugins).await;
    for ((place, expected), name) in cases.into_iter().zip(names) {
        let mut client = world.client(name).await;
        client.write(faulty('l', place).as_bytes()).await;
        let seen = client.read().await.map(|response| response.status);
        assert_eq!(seen, expected, "{place}");
        let error = until("the loop is told", || world.status(name).error).await;
        assert!(error.contains("time budget"), "{error}");
        world.calm().await;
        serves_again(&world, name).await;
    }
    assert_eq!(stat(&world.proxy, "wasm.vm_failures").await, 4);
}

#[tokio::test]
async fn a_bomb_that_uses_its_memory_ends_at_the_cap_or_at_its_budget() {
    let world = World::new(&[("bomb", guest("hostile"), "")]).await;
    let mut client = world.client("bomb").await;
    let response = client.send(&faulty('M', 'h')).await;
    assert!([200, 503].contains(&response.status), "{response:?}");
    world.calm().await;
    serves_again(&world, "bomb").await;
    let memory = world.status("bomb").vms[0].memory;
    assert!(memory <= MEMORY_LIMIT, "{memory}");
}

#[tokio::test]
async fn the_failure_policy_decides_on_the_wire() {
    // (policy, the request whose callback traps, those that meet no VM)
    let cases = [
        (", failure_policy: FAIL_OPEN", 503, 200),
        (", fail_open: true", 200, 200),
        (
            ", failure_policy: FAIL_RELOAD, reload_config: {backoff: {base_interval: 10s}}",
            503,
            503,
        ),
    ];
    for (fields, trapping, without) in cases {
        let world = World::with(&[("failing", guest("hostile"), "")], fields).await;
        let mut client = world.client("failing").await;
        let response = client.send(&faulty('t', 'h')).await;
        assert_eq!(
            (response.status, response.header("x-guest")),
            (trapping, ""),
            "{fields}"
        );
        // An answer before the end of the body may be the connection's last.
        let mut client = world.client("failing").await;
        let again = async {
            loop {
                let response = client.send(GET).await;
                if response.header("x-guest") == "1" {
                    return;
                }
                assert_eq!(response.status, without, "{fields}");
            }
        };
        tokio::time::timeout(Duration::from_secs(30), again)
            .await
            .expect("a fresh VM takes new streams");
        assert_eq!(
            stat(&world.proxy, "wasm.failing.vm_reload_success").await,
            1
        );
        if without == 503 {
            assert!(stat(&world.proxy, "wasm.failing.vm_reload_backoff").await > 0);
        }
        world.calm().await;
    }
}

/// A guest that holds each request, calls the cluster `up`, and does `answered` when the answer comes.
fn calls_out(answered: &str) -> Vec<u8> {
    let pairs = [(":method", "GET"), (":path", "/"), (":authority", "up")];
    let number = |number: usize| u32::try_from(number).expect("small").to_le_bytes();
    let mut map = number(pairs.len()).to_vec();
    for (key, value) in pairs {
        map.extend(number(key.len()));
        map.extend(number(value.len()));
    }
    for part in pairs.iter().flat_map(|(key, value)| [key, value]) {
        map.extend(part.bytes());
        map.push(0);
    }
    let mut text = String::new();
    for byte in &map {
        write!(text, "\\{byte:02x}").expect("a string");
    }
    module(&format!(
        r#"(import "env" "proxy_http_call"
             (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
           (data (i32.const 16) "up") (data (i32.const 64) "{text}")
           (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
             (if (call $call (i32.const 16) (i32.const 2) (i32.const 64) (i32.const {}) (i32.const 0) (i32.const 0)
                   (i32.const 0) (i32.const 0) (i32.const 5000) (i32.const 0))
               (then (return (i32.const 0))))
             (i32.const 1))
           (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32) {answered})"#,
        map.len()
    ))
}

#[tokio::test]
async fn a_callouts_answer_that_is_the_end_of_its_vm_ends_the_request_at_once() {
    let world = World::new(&[
        ("trapping", calls_out("(unreachable)"), ""),
        ("looping", calls_out("(loop $ever (br $ever))"), ""),
    ])
    .await;
    for (name, error) in [("trapping", "unreachable"), ("looping", "time budget")] {
        let mut client = world.client(name).await;
        let begin = Instant::now();
        let response = client.send(GET).await;
        assert_eq!(response.status, 503, "{name}");
        assert!(begin.elapsed() < Duration::from_secs(5), "not by a timeout");
        let told = world.status(name).error.expect("told");
        assert!(told.contains(error), "{told}");
        world.calm().await;
    }
    assert_eq!(stat(&world.proxy, "wasm.vm_failures").await, 2);
}

/// How the code server answers.
#[derive(Clone)]
enum Behaviour {
    Serve(Vec<u8>),
    /// Announces all, sends half, and closes.
    Short(Vec<u8>),
    /// Sends it when the gate opens: as slow as the test likes.
    Slow(Vec<u8>, tokio::sync::watch::Receiver<bool>),
    Silent,
}

/// Serves code over HTTP; what it does not know is 404.
struct CodeServer {
    address: SocketAddr,
    files: Arc<Mutex<HashMap<String, Behaviour>>>,
    task: JoinHandle<()>,
}

impl CodeServer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let files: Arc<Mutex<HashMap<String, Behaviour>>> = Arc::default();
        let known = Arc::clone(&files);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&known)));
            }
        });
        Self {
            address,
            files,
            task,
        }
    }

    fn set(&self, path: &str, behaviour: Behaviour) {
        let mut files = self.files.lock().expect("no panic");
        files.insert(path.to_owned(), behaviour);
    }
}

impl Drop for CodeServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request a connection.
async fn answer(mut stream: TcpStream, files: Arc<Mutex<HashMap<String, Behaviour>>>) {
    let Some(head) = read_head(&mut stream, &mut Vec::new()).await else {
        return;
    };
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let behaviour = files.lock().expect("no panic").get(&path).cloned();
    let head = |status: &str, length: usize| {
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n")
            .into_bytes()
    };
    let mut bytes;
    match behaviour {
        Some(Behaviour::Serve(code)) => {
            bytes = head("200 OK", code.len());
            bytes.extend(code);
        }
        Some(Behaviour::Short(code)) => {
            bytes = head("200 OK", code.len());
            bytes.extend(&code[..code.len() / 2]);
        }
        Some(Behaviour::Slow(code, mut gate)) => {
            if gate.wait_for(|open| *open).await.is_err() {
                return;
            }
            bytes = head("200 OK", code.len());
            bytes.extend(code);
        }
        Some(Behaviour::Silent) => {
            // Until the proxy gives up.
            while !matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)) {}
            return;
        }
        None => bytes = head("404 Not Found", 0),
    }
    // The proxy may have given up.
    let _ = stream.write_all(&bytes).await;
}

/// A proxy whose plugin comes by ECDS and, remotely, from a code server; version 1 is live.
struct Remote {
    plane: ControlPlane,
    code: CodeServer,
    _upstream: FakeUpstream,
    proxy: TestProxy,
    version: AtomicUsize,
    test: &'static str,
}

impl Remote {
    async fn new(test: &'static str) -> Self {
        let upstream = FakeUpstream::start("answer").await;
        let code = CodeServer::start().await;
        let plane = plane().await;
        let filter = format!(
            "- {{name: plugin, config_discovery: {{config_source: {{ads: {{}}, resource_api_version: V3}}, type_urls: [{WASM}]}}}}"
        );
        let clusters = vec![
            static_cluster("up", upstream.address.port()),
            static_cluster("code", code.address.port()),
            // Nobody listens there.
            static_cluster("dead", 1),
        ];
        plane.set_resources(CLUSTER, clusters, "1");
        plane.set_resources(
            LISTENER,
            vec![any(&listener_yaml("web", ROUTES, &filter))],
            "1",
        );
        let one = marker(test, 1);
        code.set("/v1", Behaviour::Serve(one.clone()));
        let remote = Self {
            proxy: {
                let first = Self::extension("code", "/v1", Digest::of(&one));
                plane.set_resources(EXTENSION, vec![first], "1");
                TestProxy::start(&bootstrap(&plane)).await
            },
            plane,
            code,
            _upstream: upstream,
            version: AtomicUsize::new(1),
            test,
        };
        let address = remote.proxy.address("web").await;
        let response = Client::connect(address).await.send(GET).await;
        assert_eq!((response.status, response.header("x-guest")), (200, "1"));
        remote
    }

    fn marker(&self, version: u8) -> Vec<u8> {
        marker(self.test, version)
    }

    fn extension(cluster: &str, path: &str, sha256: Digest) -> pb::Any {
        Self::extension_of(&format!(
            "{{remote: {{http_uri: {{uri: 'http://code{path}', cluster: {cluster}, timeout: 1s}}, sha256: {sha256}, \
             retry_policy: {{num_retries: 1, retry_back_off: {{base_interval: 0.05s, max_interval: 0.2s}}}}}}}}"
        ))
    }

    fn extension_of(code: &str) -> pb::Any {
        any(&format!(
            "'@type': {EXTENSION}\nname: plugin\ntyped_config: {}\n",
            plugin("remote", code, "")
        ))
    }

    fn push(&self, extension: pb::Any) {
        let version = self.version.fetch_add(1, Relaxed) + 1;
        self.plane
            .set_resources(EXTENSION, vec![extension], &version.to_string());
    }

    fn status(&self, sha256: Digest) -> Option<PluginStatus> {
        let plugins = self.proxy.running.server.plugins.status();
        plugins
            .into_iter()
            .find(|plugin| plugin.sha256 == Some(sha256))
    }

    /// Clients that never see anything but an answer that passed the plugin of a version of `allowed`.
    async fn load(&self, allowed: &'static [&'static str]) -> Load {
        let address = self.proxy.address("web").await;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicUsize::new(0));
        let tasks = (0..4)
            .map(|_| {
                let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
                tokio::spawn(async move {
                    let mut client = Client::connect(address).await;
                    while !stop.load(Relaxed) {
                        let response = client.send(GET).await;
                        assert_eq!(response.status, 200, "{response:?}");
                        let version = response.header("x-guest");
                        assert!(allowed.contains(&version), "{response:?}");
                        sent.fetch_add(1, Relaxed);
                    }
                })
            })
            .collect();
        Load { stop, sent, tasks }
    }
}

struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Waits for some more requests.
    async fn some_more(&self) {
        let goal = self.sent.load(Relaxed) + 20;
        until("requests are answered", || {
            (self.sent.load(Relaxed) >= goal || self.tasks.iter().any(JoinHandle::is_finished))
                .then_some(())
        })
        .await;
    }

    async fn end(self) {
        self.stop.store(true, Relaxed);
        for task in self.tasks {
            task.await.expect("no request failed");
        }
    }
}

/// Code that is not a plugin.
fn broken_modules() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = marker("broken", 1);
    let mut corrupt = good.clone();
    let end = corrupt.len();
    corrupt[20..end].fill(0xff);
    vec![
        (
            "/truncated",
            good[..end / 2].to_vec(),
            "Failed to load Wasm module",
        ),
        ("/corrupt", corrupt, "Failed to load Wasm module"),
        (
            "/text",
            b"<html>not found</html>".to_vec(),
            "not a WebAssembly module",
        ),
        ("/no-abi", guest("no-abi"), "ABI version"),
        (
            "/create",
            module(r#"(func (export "proxy_on_context_create") (param i32 i32) (unreachable))"#),
            "unreachable",
        ),
        (
            "/start",
            module(
                r#"(func (export "proxy_on_vm_start") (param i32 i32) (result i32) (unreachable))"#,
            ),
            "unreachable",
        ),
        (
            "/configure",
            module(
                r#"(func (export "proxy_on_configure") (param i32 i32) (result i32) (unreachable))"#,
            ),
            "unreachable",
        ),
        (
            "/refuse",
            guest("refuse-configure"),
            "proxy_on_configure returned false",
        ),
    ]
}

#[tokio::test]
async fn bad_code_and_bad_sources_leave_the_old_version_serving() {
    let remote = Remote::new("sources").await;
    let load = remote.load(&["1"]).await;
    let absent = |text: &str| Digest::of(text.as_bytes());
    // (cluster, path, sha256, state, cause, statistic)
    let fetches = "wasm.remote_load_fetch_failures";
    let loads = "wasm.load_failures";
    remote.code.set("/lie", Behaviour::Serve(remote.marker(4)));
    remote
        .code
        .set("/short", Behaviour::Short(remote.marker(5)));
    remote.code.set("/silent", Behaviour::Silent);
    let mut cases = vec![
        (
            "code",
            "/lie",
            absent("lie"),
            State::Fetching,
            "sha256 is",
            fetches,
        ),
        (
            "code",
            "/short",
            Digest::of(&remote.marker(5)),
            State::Fetching,
            "fetching http://code/short",
            fetches,
        ),
        (
            "code",
            "/silent",
            absent("silent"),
            State::Fetching,
            "fetching http://code/silent",
            fetches,
        ),
        (
            "code",
            "/missing",
            absent("missing"),
            State::Fetching,
            "404",
            fetches,
        ),
        (
            "dead",
            "/dead",
            absent("dead"),
            State::Fetching,
            "503",
            fetches,
        ),
    ];
    for (path, code, cause) in broken_modules() {
        let digest = Digest::of(&code);
        remote.code.set(path, Behaviour::Serve(code));
        cases.push(("code", path, digest, State::Failed, cause, loads));
    }
    let mut pages = String::new();
    for (cluster, path, digest, state, cause, statistic) in cases {
        let before = stat(&remote.proxy, statistic).await;
        remote.push(Remote::extension(cluster, path, digest));
        let status = until(path, || {
            let status = remote.status(digest)?;
            (status.error.is_some() && status.state == state).then_some(status)
        })
        .await;
        let error = status.error.expect("told");
        assert!(error.contains(cause), "{path}: {error}");
        assert!(
            stat(&remote.proxy, statistic).await > before,
            "{path}: {statistic}"
        );
        assert!(stat(&remote.proxy, loads).await > 0, "{path}");
        let page = admin(&remote.proxy, "/wasm?format=json").await;
        assert!(
            page.contains(&digest.to_string()) && page.contains(state.as_str()),
            "{page}"
        );
        pages.push_str(&page);
        load.some_more().await;
    }
    assert!(pages.contains("sha256 is"), "{pages}");
    // What is good takes over, as if nothing had been.
    load.end().await;
    remote.code.set("/v2", Behaviour::Serve(remote.marker(2)));
    remote.push(Remote::extension(
        "code",
        "/v2",
        Digest::of(&remote.marker(2)),
    ));
    until("the next good version is live", || {
        (remote.status(Digest::of(&remote.marker(2)))?.state == State::Live).then_some(())
    })
    .await;
    let mut client = Client::connect(remote.proxy.address("web").await).await;
    let shows = async {
        while client.send(GET).await.header("x-guest") != "2" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), shows)
        .await
        .expect("it serves");
}

#[tokio::test]
async fn a_source_that_is_slow_or_comes_back_is_awaited_while_the_old_version_serves() {
    let remote = Remote::new("awaited").await;
    let load = remote.load(&["1", "2", "3"]).await;
    let live = |digest: Digest| {
        let status = remote.status(digest)?;
        (status.state == State::Live).then_some(())
    };
    // Slow: nothing happens until the answer comes.
    let (gate, gated) = tokio::sync::watch::channel(false);
    let two = Digest::of(&remote.marker(2));
    remote
        .code
        .set("/slow", Behaviour::Slow(remote.marker(2), gated));
    remote.push(Remote::extension("code", "/slow", two));
    until("it is being fetched", || {
        (remote.status(two)?.state == State::Fetching).then_some(())
    })
    .await;
    load.some_more().await;
    let mut client = Client::connect(remote.proxy.address("web").await).await;
    assert_eq!(client.send(GET).await.header("x-guest"), "1");
    gate.send(true).expect("the server waits");
    until("the slow one is live", || live(two)).await;
    load.some_more().await;
    // Away, then back: it is asked again without a word of the control plane.
    let three = Digest::of(&remote.marker(3));
    remote.push(Remote::extension("code", "/later", three));
    until("the failure is told", || remote.status(three)?.error).await;
    load.some_more().await;
    remote
        .code
        .set("/later", Behaviour::Serve(remote.marker(3)));
    until("it is live", || live(three)).await;
    let shows = async {
        while client.send(GET).await.header("x-guest") != "3" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), shows)
        .await
        .expect("it serves");
    load.end().await;
    assert!(remote.status(three).expect("live").error.is_none());
}

#[tokio::test]
async fn bad_local_code_is_refused_and_the_old_version_serves() {
    let remote = Remote::new("local").await;
    let load = remote.load(&["1"]).await;
    let files = Files::new();
    for (path, code, cause) in broken_modules() {
        remote.push(Remote::extension_of(&files.local(&path[1..], &code)));
        let refusal = async {
            loop {
                let answer = remote.plane.next_answer(EXTENSION).await;
                if let Some(error) = answer.error {
                    return error;
                }
            }
        };
        let error = tokio::time::timeout(Duration::from_secs(30), refusal)
            .await
            .expect("a refusal");
        assert!(error.contains(cause), "{path}: {error}");
        load.some_more().await;
    }
    load.end().await;
    let page = admin(&remote.proxy, "/stats?filter=config_fail").await;
    let failed = page.lines().find_map(|line| {
        line.strip_prefix("extension_config_discovery.http_filter.plugin.config_fail: ")
    });
    assert_eq!(failed, Some(&*broken_modules().len().to_string()), "{page}");
    let page = admin(&remote.proxy, "/config_dump").await;
    assert!(page.contains("proxy_on_configure returned false"), "{page}");
}
