//! `plenipo plugin`, by the binary.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::support::registry::{Door, FakeRegistry, Fault, Layout, digest};

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn plenipo<S: AsRef<str>>(arguments: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plenipo"))
        .arg("plugin")
        .args(arguments.iter().map(AsRef::as_ref))
        .current_dir(root())
        .env("DOCKER_CONFIG", "nonesuch")
        .output()
        .expect("the binary")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// What it printed, where it ended with `code`.
pub(crate) fn printed(arguments: &[&str], code: i32) -> String {
    let output = plenipo(arguments);
    let all = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {all}");
    all
}

pub(crate) fn json(arguments: &[&str], code: i32) -> Value {
    serde_json::from_str(&printed(arguments, code)).expect("JSON")
}

/// An empty folder of this test's own.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("plugin_cli")
        .join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// The module of a guest of `tests/guests`.
pub(crate) fn guest(folder: &Path, name: &str) -> String {
    let module = wat::parse_file(root().join("tests/guests").join(name).with_extension("wat"));
    let path = folder.join(name).with_extension("wasm");
    std::fs::write(&path, module.expect("valid text")).expect("a file");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn inspect_prints_json_and_its_code_is_the_verdict() {
    let found = json(&["inspect", "plugins/bin/hello.wasm", "--json"], 0);
    assert_eq!(found["kind"], "module");
    assert_eq!(found["refused"], Value::Null);
    assert!(
        found["sdk"]
            .as_str()
            .is_some_and(|sdk| sdk.starts_with("Rust"))
    );
    let sums = std::fs::read_to_string(root().join("plugins/bin/SHA256SUMS")).expect("the sums");
    let sum = found["sha256"].as_str().expect("a sum");
    assert!(
        sums.lines()
            .any(|line| line.starts_with(sum) && line.ends_with("hello.wasm")),
        "{sum}"
    );

    for (source, reason) in [
        ("plugins/build.sh", "not WebAssembly"),
        ("plugins/nonesuch.wasm", "cannot read"),
        ("oci://example.com/A:1", "not the name of an image"),
        ("ftp://example.com/a", "not from ftp://"),
        ("http://127.0.0.1:1/a", "--plain-http"),
    ] {
        let all = printed(&["inspect", source], 1);
        assert!(all.contains(reason), "{source}: {all}");
    }
}

/// What a proxy takes packed, the tools take too.
#[test]
fn packed_files_are_unpacked_as_a_proxy_does() {
    use std::io::Write as _;
    let folder = folder("packed");
    let module = std::fs::read(root().join("plugins/bin/hello.wasm")).expect("the plugin");
    let packed = folder.join("hello.wasm.gz");
    let file = std::fs::File::create(&packed).expect("a file");
    let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    gzip.write_all(&module).expect("written");
    gzip.finish().expect("written");
    let path = packed.to_str().expect("a path");
    let found = json(&["inspect", path, "--json"], 0);
    let sum = found["sha256"].as_str().expect("a sum");
    assert_eq!(format!("sha256:{sum}"), digest(&module));
    // A configuration names the sum of what comes.
    let bytes = std::fs::read(&packed).expect("the file");
    let sum = found["packed"]["sha256"].as_str().expect("a sum");
    assert_eq!(format!("sha256:{sum}"), digest(&bytes));
    assert_eq!(found["packed"]["size"], bytes.len());
    printed(&["run", path], 0);

    std::fs::write(&packed, &bytes[..bytes.len() / 2]).expect("a file");
    for (command, code) in [("inspect", 1), ("run", 2)] {
        let all = printed(&[command, path], code);
        assert!(all.contains("broken gzip"), "{command}: {all}");
    }
}

#[test]
fn what_never_ends_is_not_read() {
    for (arguments, code) in [
        (&["inspect", "/dev/zero"][..], 1),
        (&["run", "/dev/zero"], 2),
        (&["push", "/dev/zero", "oci://127.0.0.1:1/a:1"], 1),
        (
            &["run", "plugins/bin/hello.wasm", "--config", "@/dev/zero"],
            2,
        ),
        (
            &["run", "plugins/bin/hello.wasm", "--body", "@/dev/zero"],
            2,
        ),
    ] {
        let all = printed(arguments, code);
        assert!(all.contains("it has more than"), "{arguments:?}: {all}");
    }
}

#[test]
fn run_prints_json() {
    let found = json(
        &[
            "run",
            "plugins/bin/metrics-callout.wasm",
            "--config",
            "auth",
            "--callout",
            "auth=503",
            "--callout",
            "auth=200",
            "--repeat",
            "2",
            "--request",
            "POST https://shop.test/orders",
            "-H",
            "x-a: b",
            "--body",
            "two pears",
            "--json",
        ],
        0,
    );
    assert_eq!(found["outcome"], "answered");
    assert_eq!(found["failure"], Value::Null);
    let request = &found["request"];
    assert_eq!(request["start"], "POST https://shop.test/orders HTTP/1.1");
    let headers = serde_json::json!([["x-a", "b"], ["x-checked", "yes"]]);
    assert_eq!(request["headers"], headers);
    assert_eq!(request["body"], "two pears");
    assert_eq!(found["response"]["body"], "two pears");
    let callouts = found["callouts"].as_array().expect("a list");
    assert_eq!(callouts.len(), 2);
    assert_eq!(callouts[1]["request"]["start"], "GET /check HTTP/1.1");
    assert_eq!(found["unanswered_callouts"], serde_json::json!([]));
    let metric = |name: &str| {
        let metrics = found["metrics"].as_array().expect("a list");
        let found = metrics.iter().find(|metric| metric["name"] == name);
        found.expect(name)["value"].clone()
    };
    assert_eq!(
        (metric("callouts"), metric("in_flight")),
        (2.into(), 0.into())
    );
    let timed: Vec<_> = found["callbacks"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|callback| {
            assert!(callback["nanoseconds"].as_u64() > Some(0), "{callback}");
            (
                callback["name"].as_str().expect("a name"),
                callback["calls"].as_u64().expect("a number"),
            )
        })
        .collect();
    for wanted in [
        ("proxy_on_configure", 1),
        ("proxy_on_request_headers", 2),
        ("proxy_on_http_call_response", 2),
        ("proxy_on_delete", 2),
    ] {
        assert!(timed.contains(&wanted), "{timed:?}");
    }
    assert!(found["memory_bytes"].as_u64() > Some(65_535));
}

#[test]
fn messages_come_from_files() {
    let folder = folder("files");
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("a file");
        format!("@{}", path.to_str().expect("UTF-8"))
    };
    file("body.json", "{\"a\": 1}");
    let request = file("request.http", "POST /a\nhost: shop.test\n\n< body.json\n");
    let response = file("response.http", "404\nx-a: b\n\nno\nsuch\n");
    let greeting = file("greeting", "from a file");
    let plugin = "plugins/bin/hello-v2.wasm";
    let found = json(
        &[
            "run",
            plugin,
            "--request",
            &request,
            "--response",
            &response,
            "--config",
            &greeting,
            "--json",
        ],
        0,
    );
    assert_eq!(found["request"]["body"], "{\"a\": 1}");
    assert_eq!(found["request"]["headers"][0][1], "shop.test");
    assert_eq!(found["response"]["body"], "no\nsuch\n");
    let headers = found["response"]["headers"].as_array().expect("a list");
    let greeting = serde_json::json!(["x-hello-greeting", "from a file"]);
    assert!(headers.contains(&greeting), "{headers:?}");
}

#[test]
fn a_timer_runs_before_the_request_where_there_is_time() {
    let plugin = "plugins/bin/metrics-callout.wasm";
    let found = json(&["run", plugin, "--wait", "0.5", "--json"], 0);
    let metrics = found["metrics"].as_array().expect("a list");
    let ticks = metrics.iter().find(|metric| metric["name"] == "ticks");
    assert!(ticks.expect("defined")["value"].as_u64() > Some(0));
}

#[test]
fn callouts_end_as_told() {
    for (answer, status, failure) in [
        ("200", "HTTP/1.1 200 OK", ""),
        ("201", "HTTP/1.1 403 Forbidden", ""),
        ("timeout", "HTTP/1.1 403 Forbidden", ""),
        // Without headers there is no map of them: the plugin's SDK panics at that, and so it would in a proxy.
        (
            "reset",
            "HTTP/1.1 503 Service Unavailable",
            "unexpected status: 2",
        ),
    ] {
        let callout = format!("callout={answer}");
        let plugin = "plugins/bin/metrics-callout.wasm";
        let code = i32::from(!failure.is_empty());
        let found = json(&["run", plugin, "--callout", &callout, "--json"], code);
        assert_eq!(found["response"]["start"], status, "{answer}");
        let said = found["failure"].as_str().unwrap_or_default();
        assert!(said.contains(failure), "{said}");
    }
}

#[test]
fn a_plugin_that_fails_is_told_with_the_reason() {
    let folder = folder("fails");
    let named = |name: &str| guest(&folder, name);
    let fault = named("fault");
    // Traps in the callback of request headers.
    let all = printed(&["run", &fault, "--config", "th"], 1);
    for part in [
        "the host's, since the plugin has failed",
        "HTTP/1.1 503 Service Unavailable",
        "unreachable",
        "in proxy_on_request_headers",
        "last host calls: ",
        "hint: the plugin panicked or aborted",
    ] {
        assert!(all.contains(part), "{part}: {all}");
    }
    // Computes for ever.
    let all = printed(&["run", &fault, "--config", "lh"], 1);
    assert!(all.contains("budget"), "{all}");
    // Holds the request for ever.
    let action = named("action");
    let all = printed(
        &["run", &action, "--config", "3000000", "--timeout", "0.2"],
        1,
    );
    assert!(all.contains("the plugin holds the request"), "{all}");
    // Resets the stream, which is its good right.
    let found = json(&["run", &fault, "--config", "ch", "--json"], 0);
    assert_eq!(found["outcome"], "reset");

    for (name, reason, hint) in [
        ("no-abi", "ABI version", "SDKs export one"),
        ("no-malloc", "malloc", "exports neither malloc nor"),
        ("wrong-import", "bad import", "an import does not fit"),
        ("bad-signature", "signature", "exported callback"),
        ("refuse-configure", "proxy_on_configure", "--config"),
    ] {
        let all = printed(&["run", &named(name)], 1);
        assert!(all.contains(reason), "{name}: {all}");
        assert!(
            all.contains("hint: ") && all.contains(hint),
            "{name}: {all}"
        );
        let found = json(&["run", &named(name), "--json"], 1);
        assert_eq!(found["outcome"], "not loaded", "{name}");
        let all = printed(&["bench", &named(name)], 1);
        assert!(all.contains(reason), "{name}: {all}");
    }
    let all = printed(&["run", &named("unknown-import")], 1);
    for part in [
        "imports that the host does not know\n    env.proxy_from_the_future: no function of Proxy-Wasm",
        "the import env.proxy_from_the_future is not known to this host",
        "hint: the plugin called a function that the host lacks",
    ] {
        assert!(all.contains(part), "{part}: {all}");
    }
}

#[test]
fn arguments_that_make_no_sense_are_told() {
    let pinned = format!("oci://example.com/a@{}", digest(b"x"));
    let hello = "plugins/bin/hello.wasm";
    for (arguments, reason) in [
        (
            &["run", "plugins/nonesuch.wasm"][..],
            "cannot read plugins/nonesuch.wasm",
        ),
        (&["run", "ftp://example.com/a"], "not from ftp://"),
        (&["run", "https://127.0.0.1:1/a"], "--plain-http"),
        (&["push", hello, "example.com/a:1"], "begins with oci://"),
        (&["push", hello, &pinned], "name a tag"),
        (&["push", hello], "OCI"),
        (&["pull", "oci://example.com/a:1"], "--output"),
        (&["pull", "oci://example.com/A", "-o", "x"], "repository"),
        (&["inspect", hello, "--username", "me"], "--password-stdin"),
        (&["inspect", hello, "--password-stdin"], "--username"),
        (
            &["run", hello, "--config", "@nonesuch"],
            "cannot read nonesuch",
        ),
        (&["run", hello, "--request", "GET orders"], "begin with '/'"),
        (
            &["run", hello, "--request", "@nonesuch"],
            "cannot read nonesuch",
        ),
        (
            &["run", hello, "--request", "@plugins/bin/hello.wasm"],
            "UTF-8",
        ),
        (&["run", hello, "-H", "no colon"], "name: value"),
        (&["run", hello, "-H", "no name: x"], "no name of a header"),
        (&["run", hello, "--response", "fine"], "status"),
        (&["run", hello, "--callout", "auth"], "NAME=VALUE"),
        (&["run", hello, "--callout", "auth=fine"], "--callout"),
        (&["run", hello, "--nonesuch"], "--nonesuch"),
        (&["bench", hello, "--requests", "0"], "0 is not in"),
        (&["bench", hello, "--seconds", "x"], "number of seconds"),
        (&["test", "plugins/nonesuch"], "cannot read the folder"),
        (&["test"], "DIR"),
        (&["diff", hello], "NEW"),
        (&["diff", hello, "plugins/nonesuch.wasm"], "nonesuch.wasm"),
        (&["diff", hello, hello, "--cases", "plugins/bin"], "no case"),
    ] {
        let output = plenipo(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = text(&output.stderr);
        assert!(said.contains(reason), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    for command in ["inspect", "run", "test", "bench", "diff", "push", "pull"] {
        let help = printed(&[command, "--help"], 0);
        assert!(help.contains("Example"), "{help}");
    }
}

#[test]
fn bench_runs_as_often_as_told() {
    let hello = "plugins/bin/hello.wasm";
    let found = json(&["bench", hello, "--requests", "300", "--json"], 0);
    assert_eq!(found["request"]["calls"], 300);
    let callbacks = found["callbacks"].as_array().expect("a list");
    let calls = callbacks
        .iter()
        .find(|callback| callback["name"] == "proxy_on_request_headers")
        .expect("it is called");
    assert_eq!(calls["calls"], 300);
    let part = |of: &Value, name: &str| of[name].as_u64().expect("a number");
    for row in [calls, &found["request"]] {
        assert!(part(row, "p50_nanoseconds") > 0);
        assert!(part(row, "p99_nanoseconds") >= part(row, "p50_nanoseconds"));
    }
    assert!(part(&found["request"], "p50_nanoseconds") > part(calls, "p50_nanoseconds"));
    for name in [
        "compile_nanoseconds",
        "instantiate_nanoseconds",
        "configure_nanoseconds",
        "memory_bytes",
    ] {
        assert!(part(&found, name) > 0, "{name}");
    }
    // Time ends it as well.
    let found = json(
        &[
            "bench",
            hello,
            "--requests",
            "10000000",
            "--seconds",
            "0.3",
            "--json",
        ],
        0,
    );
    assert!(found["request"]["calls"].as_u64() < Some(10_000_000));
    let all = printed(&["bench", "plugins/bin/metrics-callout.wasm"], 1);
    assert!(all.contains("--callout 'callout=200'"), "{all}");
}

#[test]
fn diff_tells_by_its_code() {
    let (old, new) = ("plugins/bin/hello.wasm", "plugins/bin/hello-v2.wasm");
    let all = printed(&["diff", old, old], 0);
    assert!(!all.contains("both"), "{all}");
    assert!(all.contains("0 of 1 outcomes differ"), "{all}");
    let all = printed(&["diff", old, new, "--cases", "plugins/hello/tests"], 1);
    assert!(all.contains("2 of 2 outcomes differ"), "{all}");
    assert!(
        all.contains("    -     x-hello: v1\n    +     x-hello: v2\n"),
        "{all}"
    );
}

/// Two plugins that do nothing alike are no good news.
#[test]
fn diff_is_not_content_with_plugins_that_fail() {
    let folder = folder("both_fail");
    let fault = guest(&folder, "fault");
    for arguments in [
        &["diff", "README.md", "README.md"][..],
        &["diff", &fault, &fault, "--config", "th"],
        &["diff", &fault, &fault, "--config", "tf"],
    ] {
        let all = printed(arguments, 1);
        for part in ["same  ", "    both fail: ", "0 of 1", "both plugins fail"] {
            assert!(all.contains(part), "{part}: {all}");
        }
    }
    // Where something was compared, a failure of both is told, and no difference.
    for (name, config) in [("fails", "th"), ("passes", "xx")] {
        let case = format!("request: GET /\nconfig: {config}\n");
        std::fs::write(folder.join(name).with_extension("yaml"), case).expect("a file");
    }
    let here = folder.to_str().expect("UTF-8");
    let all = printed(&["diff", &fault, &fault, "--cases", here], 0);
    assert_eq!(all.matches("both fail: ").count(), 1, "{all}");
    assert!(!all.contains("both plugins fail"), "{all}");
}

/// What the tools have no answer for is told.
#[test]
fn grpc_callouts_are_told() {
    let folder = folder("grpc");
    let plugin = guest(&folder, "grpc");
    for (path, service) in [("/c/Say", "grpc"), ("/u/Say", "none"), ("/n/Say", "grpc")] {
        let run = ["run", &plugin, "--request", path, "--timeout", "0.5"];
        let output = plenipo(&run);
        let said = text(&output.stdout);
        let wanted = format!("    to {service}: GRPC IS NOT ANSWERED HERE");
        assert!(said.contains(&wanted), "{path}: {said}");
        let output = plenipo(&[&run[..], &["--json"]].concat());
        let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(found["grpc_callouts"], serde_json::json!([service]));
    }
    let case =
        "request: /c/Say\ntimeout: 0.5\nexpect: {callouts: [{grpc: gRPC is not answered}]}\n";
    std::fs::write(folder.join("case.yaml"), case).expect("a file");
    let here = folder.to_str().expect("UTF-8");
    let all = text(&plenipo(&["test", here, "--plugin", &plugin]).stdout);
    assert!(!all.contains("callouts is not as expected"), "{all}");
    // Errors are not what one wants to measure.
    let bench = ["bench", &plugin, "--request", "/c/Say", "--requests", "5"];
    let all = printed(&bench, 1);
    assert!(all.contains("it calls grpc by gRPC"), "{all}");
}

/// A registry, and what it runs on.
pub(crate) fn registry() -> (tokio::runtime::Runtime, FakeRegistry) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let registry = runtime.block_on(FakeRegistry::start());
    (runtime, registry)
}

/// As [`printed`], with a password on standard input.
fn printed_with(password: &str, arguments: &[&str], code: i32) -> String {
    printed_in(root(), password, arguments, code)
}

/// The same, in a folder.
pub(crate) fn printed_in(folder: &Path, password: &str, arguments: &[&str], code: i32) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_plenipo"))
        .arg("plugin")
        .args(arguments)
        .current_dir(folder)
        .env("DOCKER_CONFIG", "nonesuch")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    let mut stdin = child.stdin.take().expect("a pipe");
    // Who refuses the arguments does not read it.
    let _ = stdin.write_all(password.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let all = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {all}");
    all
}

#[test]
fn both_layouts_go_up_and_come_down_as_they_were() {
    let (_runtime, registry) = registry();
    let folder = folder("layouts");
    let file = folder.join("pulled.wasm");
    let file = file.to_str().expect("UTF-8");
    let hello = "plugins/bin/hello.wasm";
    let module = std::fs::read(root().join(hello)).expect("the plugin");
    for (layout, media_type) in [
        ("artifact", "application/wasm"),
        ("files", "application/vnd.oci.image.layer.v1.tar+gzip"),
    ] {
        let image = format!("oci://{}/a/b:{layout}", registry.address);
        let arguments = ["push", hello, &image, "--layout", layout, "--plain-http"];
        let pushed = printed(&arguments, 0);
        let manifest = pushed
            .lines()
            .find_map(|line| line.strip_prefix("manifest     "))
            .expect("a digest")
            .to_owned();
        assert_eq!(printed(&arguments, 0), pushed, "{layout}");

        printed(&["pull", &image, "-o", file, "--plain-http"], 0);
        assert_eq!(std::fs::read(file).expect("a file"), module, "{layout}");
        // By its digest, and looked into.
        let pinned = format!("oci://{}/a/b@{manifest}", registry.address);
        let found = json(&["inspect", &pinned, "--plain-http", "--json"], 0);
        assert_eq!(found["image"]["manifest"], manifest);
        assert_eq!(found["image"]["index"], Value::Null);
        let layers = found["image"]["layers"].as_array().expect("a list");
        assert_eq!(layers.len(), 1, "{layers:?}");
        assert_eq!(layers[0]["media_type"], media_type);
        assert_eq!(layers[0]["holds_module"], true);
        let sum = found["sha256"].as_str().expect("a sum");
        assert_eq!(format!("sha256:{sum}"), digest(&module), "{layout}");
        // And as every other source.
        let found = json(&["run", &image, "--plain-http", "--json"], 0);
        assert_eq!(found["outcome"], "answered", "{layout}");
        let all = printed(&["diff", hello, &image, "--plain-http"], 0);
        assert!(all.contains("0 of 1 outcomes differ"), "{all}");
    }
    // An index, and layers that are of no use.
    registry.push("other", Layout::Docker, &module);
    let image = format!("oci://{}/a/b:other", registry.address);
    let all = printed(&["inspect", &image, "--plain-http"], 0);
    assert!(
        all.contains("): not used") && all.contains("): the module is a file in it"),
        "{all}"
    );
    let (index, _) = registry.push("index", Layout::Index, &module);
    let image = format!("oci://{}/a/b:index", registry.address);
    let found = json(&["inspect", &image, "--plain-http", "--json"], 0);
    assert_eq!(found["image"]["index"], index);
}

#[test]
fn what_keeps_an_image_from_going_up_or_down_is_told() {
    let (_runtime, registry) = registry();
    let folder = folder("kept");
    let file = folder.join("pulled.wasm");
    let file = file.to_str().expect("UTF-8");
    let hello = "plugins/bin/hello.wasm";
    let image = format!("oci://{}/a/b:1", registry.address);
    // No plugin, or none that loads here: the registry is not even asked.
    for (source, reason) in [
        ("plugins/build.sh", "not WebAssembly"),
        ("plugins/nonesuch.wasm", "cannot read"),
        (&*guest(&folder, "no-abi"), "proxy_abi_version"),
        (&*guest(&folder, "bad-signature"), "Bad function signature"),
    ] {
        let all = printed(&["push", source, &image, "--plain-http"], 1);
        assert!(all.contains(reason), "{all}");
    }
    assert_eq!(registry.requests(), [""; 0]);
    let all = printed(&["pull", &image, "-o", file], 1);
    assert!(all.contains("--plain-http"), "{all}");
    for (fault, reason) in [
        (Fault::None, "404 Not Found: MANIFEST_UNKNOWN"),
        (Fault::Down, "error sending request"),
    ] {
        registry.set_fault(fault);
        let all = printed(&["pull", &image, "-o", file, "--plain-http"], 1);
        assert!(all.contains(reason), "{all}");
    }
    registry.set_fault(Fault::None);
    printed(&["push", hello, &image, "--plain-http"], 0);
    registry.set_fault(Fault::WrongBlobs);
    let all = printed(&["pull", &image, "-o", file, "--plain-http"], 1);
    assert!(all.contains("sha256 is"), "{all}");
    assert!(!Path::new(file).exists(), "nothing is written");
    registry.set_fault(Fault::None);
    let nowhere = folder.join("none/such");
    let nowhere = nowhere.to_str().expect("UTF-8");
    let all = printed(&["pull", &image, "-o", nowhere, "--plain-http"], 1);
    assert!(all.contains("cannot write"), "{all}");
}

#[test]
fn a_registry_is_told_who_we_are() {
    let (_runtime, registry) = registry();
    let folder = folder("doors");
    let hello = "plugins/bin/hello.wasm";
    let image = format!("oci://{}/a/b:1", registry.address);
    // `me:sesame`.
    const ME: &str = "bWU6c2VzYW1l";
    assert_eq!(STANDARD.encode("me:sesame"), ME);
    let user = ["--plain-http", "--username", "me", "--password-stdin"];
    for door in [Door::Basic(ME), Door::Token(ME)] {
        registry.set_door(door);
        let push = ["push", hello, &image];
        let all = printed(&[&push[..], &["--plain-http"]].concat(), 1);
        assert!(
            all.contains("not authorized") && all.contains("hint: give --username"),
            "{all}"
        );
        let with_user = [&push[..], &user].concat();
        let all = printed_with("wrong\n", &with_user, 1);
        assert!(all.contains("not authorized"), "{all}");
        assert!(!all.contains("wrong"), "{all}");
        let all = printed_with("", &with_user, 1);
        assert!(all.contains("no password on standard input"), "{all}");
        printed_with("sesame\r\n", &with_user, 0);
        printed_with("sesame", &[&["run", &image][..], &user].concat(), 0);
    }
    // By the docker configuration.
    let auth = format!(
        r#"{{"auths": {{"{}": {{"auth": "{ME}"}}}}}}"#,
        registry.address
    );
    std::fs::write(folder.join("config.json"), auth).expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_plenipo"))
        .args(["plugin", "inspect", &image, "--plain-http"])
        .env("DOCKER_CONFIG", &folder)
        .output()
        .expect("the binary");
    assert!(output.status.success(), "{}", text(&output.stderr));
    // By a program that it names.
    let config = format!(r#"{{"credHelpers": {{"{}": "me"}}}}"#, registry.address);
    std::fs::write(folder.join("config.json"), config).expect("a file");
    let by = |path: &Path| {
        Command::new(env!("CARGO_BIN_EXE_plenipo"))
            .args(["plugin", "inspect", &image, "--plain-http"])
            .env("DOCKER_CONFIG", &folder)
            .env("PATH", path)
            .output()
            .expect("the binary")
    };
    let output = by(&root().join("tests/it/support/programs"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = by(&folder);
    let all = text(&output.stderr);
    assert!(all.contains("docker-credential-me: No such file"), "{all}");
}

#[test]
fn code_comes_from_web_servers_packed_or_not() {
    let (_runtime, registry) = registry();
    let module = std::fs::read(root().join("plugins/bin/hello.wasm")).expect("the plugin");
    for layout in [Layout::Cncf, Layout::Oci] {
        // What a registry has can be had without asking for its manifest.
        let (_, layer) = registry.push("1", layout, &module);
        let url = format!("http://{}/v2/a/blobs/{layer}", registry.address);
        let found = json(&["inspect", &url, "--plain-http", "--json"], 0);
        let sum = found["sha256"].as_str().expect("a sum");
        assert_eq!(format!("sha256:{sum}"), digest(&module));
        assert_eq!(found["image"], Value::Null);
        // A configuration names the sum of what comes.
        let packed = found["packed"]["sha256"].as_str();
        let wanted = layer.strip_prefix("sha256:");
        assert_eq!(packed, wanted.filter(|_| matches!(layout, Layout::Oci)));
        printed(&["run", &url, "--plain-http"], 0);
        let user = ["--plain-http", "--username", "me", "--password-stdin"];
        let all = printed_with("x", &[&["run", &url][..], &user].concat(), 2);
        assert!(all.contains("--username is for registries"), "{all}");
    }
    // What is no module is described, as a file is.
    let url = format!("http://{}/v2/a/manifests/1", registry.address);
    let output = plenipo(&["inspect", &url, "--plain-http", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(found["kind"], "unknown");
    assert!(text(&output.stderr).contains("not WebAssembly"));
    printed(&["run", &url, "--plain-http"], 1);

    let url = format!("http://{}/v2/a/blobs/nonesuch", registry.address);
    let all = printed(&["run", &url, "--plain-http"], 2);
    assert!(all.contains("404 Not Found"), "{all}");
}
