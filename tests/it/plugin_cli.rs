//! `plenipo plugin`, by the binary: every command that `docs/plugins.md` shows is run, and prints what stands there.

use std::path::Path;
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn plenipo(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plenipo"))
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("the binary")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Without what another compiler's output of the same source changes: the sum is held to `SHA256SUMS` below.
fn lasting(output: &str) -> Vec<&str> {
    let changes = |line: &&str| line.starts_with("size ") || line.starts_with("sha256 ");
    output.lines().filter(|line| !changes(line)).collect()
}

#[test]
fn the_commands_of_the_page_print_what_it_shows() {
    let page = std::fs::read_to_string(root().join("docs/plugins.md")).expect("the page");
    let blocks: Vec<_> = page.split("```console\n").skip(1).collect();
    assert!(blocks.len() >= 2, "{} blocks", blocks.len());
    for block in blocks {
        let (block, _) = block.split_once("```").expect("an end");
        let (command, wanted) = block.split_once('\n').expect("a command");
        let words: Vec<_> = command
            .strip_prefix("$ plenipo ")
            .expect("a command of ours")
            .split(' ')
            .collect();
        let output = plenipo(&words);
        // As on a terminal: what went well, then the summary of what did not.
        let found = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(lasting(&found), lasting(wanted), "{command}");
        assert_eq!(
            output.status.success(),
            output.stderr.is_empty(),
            "{command}"
        );
    }
}

#[test]
fn inspect_prints_json_and_its_code_is_the_verdict() {
    let output = plenipo(&["plugin", "inspect", "plugins/bin/hello.wasm", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(found["kind"], "module");
    assert_eq!(found["refused"], serde_json::Value::Null);
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
        ("oci://example.com/a:1", "not oci://"),
    ] {
        let output = plenipo(&["plugin", "inspect", source]);
        assert_eq!(output.status.code(), Some(1), "{source}");
        assert!(text(&output.stderr).contains(reason), "{source}");
    }
}
