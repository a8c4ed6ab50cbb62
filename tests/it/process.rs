//! The binary as a process: what signals do to it, and what it writes beside its logs.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
#[cfg(feature = "wasm")]
use std::net::TcpListener;
use std::net::TcpStream;
#[cfg(feature = "wasm")]
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Nothing that these tests wait for takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A proxy with a process of its own, killed when this is dropped.
struct Proxy {
    child: Child,
    lines: Receiver<String>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    fn start(bootstrap: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_plenipo"))
            .args(["--config-yaml", bootstrap, "--concurrency", "1"])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary");
        let lines = lines_of(child.stderr.take().expect("a pipe"));
        Self { child, lines }
    }

    /// The next line of the log that holds `text`.
    fn says(&self, text: &str) -> String {
        let mut before = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            if line.contains(text) {
                return line;
            }
            before.push(line);
        }
        panic!("no line with {text:?} after {before:#?}");
    }

    fn signal(&self, name: &str) {
        // A program of that name is not everywhere; every shell has it.
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", self.child.id())])
            .status()
            .expect("a shell");
        assert!(sent.success());
    }

    /// How it ended by itself: `None` where a signal killed it.
    fn exit_code(mut self) -> Option<i32> {
        // Its end closes the pipe, and with it the channel.
        while self.lines.recv_timeout(PATIENCE).is_ok() {}
        self.child.wait().expect("a status").code()
    }
}

fn lines_of(stderr: ChildStderr) -> Receiver<String> {
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

const ADMIN: &str = "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}\n";

fn ready(address: &str) -> String {
    get(address, "/ready")
}

fn get(address: &str, path: &str) -> String {
    let mut connection = TcpStream::connect(address).expect("the admin interface");
    connection
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout");
    connection
        .write_all(
            format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes(),
        )
        .expect("written");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn the_file_of_the_admin_address_names_the_port_that_was_bound() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("address");
    let path = file.to_str().expect("UTF-8");
    let proxy = Proxy::start(ADMIN, &["--admin-address-path", path]);
    let line = proxy.says("admin address: ");
    let address = line.rsplit_once("admin address: ").expect("found").1;
    assert_eq!(std::fs::read_to_string(&file).expect("written"), address);
    let answer = ready(address);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    proxy.signal("TERM");
    assert_eq!(proxy.exit_code(), Some(0));
}

#[test]
fn an_admin_address_that_cannot_be_written_stops_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("missing/address");
    let path = file.to_str().expect("UTF-8");
    let proxy = Proxy::start(ADMIN, &["--admin-address-path", path]);
    let line = proxy.says("cannot open admin address output file");
    assert!(line.contains("[critical]") && line.contains(path), "{line}");
    let line = proxy.says("admin address: ");
    let address = line.rsplit_once("admin address: ").expect("found").1;
    proxy.says("starting workers");
    proxy.signal("HUP");
    proxy.says("caught and eating SIGHUP");
    let answer = ready(address);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    proxy.signal("INT");
    assert_eq!(proxy.exit_code(), Some(0));
}

/// Says that it is being configured, and never ends it.
#[cfg(feature = "wasm")]
const ENDLESS: &str = r#"
(module
  (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 128) "for ever")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (drop (call $log (i32.const 2) (i32.const 128) (i32.const 8)))
    (loop $again (br $again))
    unreachable))
"#;

#[cfg(feature = "wasm")]
fn endless(folder: &Path) -> String {
    let code = folder.join("endless.wasm");
    std::fs::write(&code, wat::parse_str(ENDLESS).expect("valid text")).expect("a file");
    format!(
        "static_resources: {{listeners: [{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, \
         filter_chains: [{{filters: [{{name: h, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: h, \
         route_config: {{name: r, virtual_hosts: []}}, http_filters: [{{name: p, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm, config: {{name: p, vm_config: {{code: {{local: \
         {{filename: '{}'}}}}}}}}}}}}, {{name: router, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}]}}\n",
        code.display()
    )
}

#[cfg(feature = "wasm")]
#[test]
fn a_signal_while_plugins_are_configured_ends_it_cleanly() {
    let folder = tempfile::tempdir().expect("a folder");
    let bootstrap = endless(folder.path());
    for signal in ["TERM", "INT"] {
        let proxy = Proxy::start(&bootstrap, &[]);
        proxy.says("for ever");
        proxy.signal(signal);
        assert_eq!(proxy.exit_code(), Some(0), "SIG{signal}");
    }
}

/// A chain of a network filter, `terminal` and its access logs: a plugin of its own, and a file.
#[cfg(feature = "wasm")]
struct Ends<'a>(&'a Path);

#[cfg(feature = "wasm")]
impl Ends<'_> {
    /// The guest as the plugin `name` of this type, in a VM with the others whose names begin alike.
    fn plugin(&self, kind: &str, name: &str) -> String {
        format!(
            "{{name: {name}, typed_config: {{'@type': type.googleapis.com/envoy.extensions.{kind}.wasm.v3.{}, config: \
             {{name: {name}, vm_config: {{vm_id: {}, code: {{local: {{filename: '{}'}}}}}}}}}}}}",
            if kind == "access_loggers" {
                "WasmAccessLog"
            } else {
                "Wasm"
            },
            name.split('-').next().unwrap_or_default(),
            self.0.join("ends.wasm").display(),
        )
    }

    fn listener(&self, name: &str, terminal: &str) -> String {
        format!(
            "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [\
             {}, {{name: t, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.{terminal}, stat_prefix: {name}, \
             access_log: [{}, {{name: f, typed_config: {{'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, \
             path: '{}', log_format: {{text_format_source: {{inline_string: \"%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
             %DOWNSTREAM_LOCAL_CLOSE_REASON%\\n\"}}}}}}}}]}}}}]}}]}}",
            self.plugin("filters.network", &format!("{name}-network")),
            self.plugin("access_loggers", &format!("{name}-logger")),
            self.0.join(name).display(),
        )
    }

    fn bootstrap(&self, upstream: u16) -> String {
        let web = format!(
            "http_connection_manager.v3.HttpConnectionManager, route_config: {{virtual_hosts: [{{name: a, domains: ['*'], routes: \
             [{{match: {{prefix: /}}, route: {{cluster: up}}}}]}}]}}, http_filters: [{}, {{name: r, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]",
            self.plugin("filters.http", "web-filter")
        );
        format!(
            "{ADMIN}stats_flush_interval: 299s\nstats_sinks: [{}]\nstatic_resources: {{listeners: [{}, {}], clusters: [{{name: up, \
             type: STATIC, load_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: \
             {{address: 127.0.0.1, port_value: {upstream}}}}}}}}}]}}]}}}}]}}\n",
            self.plugin("stat_sinks", "sink"),
            self.listener("web", &web),
            self.listener("tcp", "tcp_proxy.v3.TcpProxy, cluster: up"),
        )
    }
}

#[cfg(feature = "wasm")]
#[test]
fn plugins_and_logs_hear_of_what_a_signal_ends_before_their_own_end() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(
        folder.path().join("ends.wasm"),
        crate::support::guest("ends"),
    )
    .expect("a file");
    let upstream = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = upstream.local_addr().expect("bound").port();
    let proxy = Proxy::start(&Ends(folder.path()).bootstrap(port), &[]);
    let line = proxy.says("admin address: ");
    let admin = line.rsplit_once("admin address: ").expect("found").1;
    proxy.says("starting workers");
    let listeners = get(admin, "/listeners");
    let open: Vec<_> = ["web::", "tcp::"]
        .map(|name| {
            let address = listeners.lines().find_map(|line| line.strip_prefix(name));
            let mut client = TcpStream::connect(address.expect("it listens")).expect("accepted");
            client
                .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                .expect("sent");
            (client, upstream.accept().expect("it goes on"))
        })
        .into();
    proxy.signal("TERM");
    let mut heard = Vec::new();
    while let Ok(line) = proxy.lines.recv_timeout(PATIENCE) {
        heard.extend(
            line.split_once("wasm log ")
                .map(|(_, words)| words.to_owned()),
        );
    }
    drop(open);
    let of = |name: &str| -> Vec<&str> {
        let lines = heard.iter().filter(|line| line.starts_with(name));
        lines.map(String::as_str).collect()
    };
    let roots = |vm: &str, count: usize| {
        let words = ["done", "delete"].map(|word| format!("{vm}: {word}"));
        vec![words; count].concat()
    };
    let network = |name: &str| {
        ["close 1", "done", "log", "delete"].map(|word| format!("{name}-network {name}: {word}"))
    };
    let filter = [
        "web-filter web: log",
        "web: log",
        "web-filter web: done",
        "web-filter web: delete",
    ];
    let filter = filter.map(str::to_owned);
    assert_eq!(
        of("web"),
        [&network("web")[..], &filter, &roots("web", 3)].concat()
    );
    let log = ["tcp: log".to_owned()];
    assert_eq!(
        of("tcp"),
        [&network("tcp")[..], &log, &roots("tcp", 2)].concat()
    );
    let update = ["sink: stats".to_owned()];
    assert_eq!(of("sink"), [&update[..], &roots("sink", 1)].concat());
    let at = |line: &String| heard.iter().position(|heard| heard == line);
    assert!(
        at(&update[0]) > at(&filter[3]) && at(&update[0]) > at(&log[0]),
        "{heard:?}"
    );
    assert_eq!(proxy.exit_code(), Some(0));
    let reason = "purging_socket_that_have_not_progressed_to_connections";
    let log = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("a log");
    assert_eq!(
        log("web"),
        format!("DC downstream_local_disconnect({reason}) -\n")
    );
    assert_eq!(log("tcp"), format!("- - {reason}\n"));
}

#[test]
fn a_check_opens_no_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("a.log");
    let run = |mode: &[&str], bootstrap: &str| {
        Command::new(env!("CARGO_BIN_EXE_plenipo"))
            .args(["--config-yaml", bootstrap, "--concurrency", "1"])
            .arg("--log-path")
            .arg(&log)
            .args(mode)
            .output()
            .expect("the binary")
    };
    let fine = "node: {id: a, cluster: b}";
    assert!(run(&["--mode", "validate"], fine).status.success());
    assert!(!log.exists());
    // One that serves opens it, even where it cannot start.
    let clash = "node: {id: a, cluster: b}\nadmin: {address: {socket_address: {address: 203.0.113.1, port_value: 1}}}";
    assert!(!run(&[], clash).status.success());
    assert!(log.exists());
}
