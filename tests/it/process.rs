//! The binary as a process: what signals do to it, and what it writes beside its logs.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
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
    let mut connection = TcpStream::connect(address).expect("the admin interface");
    connection
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout");
    connection
        .write_all(b"GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
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
