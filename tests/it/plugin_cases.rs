//! `plenipo plugin test`, by the binary: cases, what they expect, and what becomes of results.

use crate::plugin_cli::{folder, guest, plenipo, printed, root, text};

#[test]
fn the_cases_of_the_example_plugins_pass() {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(root().join("plugins")).expect("the plugins") {
        let folder = entry.expect("an entry").path().join("tests");
        if folder.is_dir() {
            folders.push(folder.to_str().expect("UTF-8").to_owned());
        }
    }
    assert!(folders.len() >= 4, "{folders:?}");
    let mut arguments = vec!["test"];
    arguments.extend(folders.iter().map(String::as_str));
    let all = printed(&arguments, 0);
    assert!(all.ends_with(" passed, 0 failed\n"), "{all}");
}

#[test]
fn cases_are_written_and_then_hold() {
    let folder = folder("cases");
    let hello = root().join("plugins/bin/hello.wasm");
    let v2 = root().join("plugins/bin/hello-v2.wasm");
    let (hello, v2) = (hello.to_str().expect("UTF-8"), v2.to_str().expect("UTF-8"));
    let here = folder.to_str().expect("UTF-8");

    let all = printed(&["test", here], 1);
    assert!(all.contains("there is no case"), "{all}");

    let case = folder.join("case.yaml");
    std::fs::write(&case, "# Why.\nrequest: |\n  GET /a\n  x-b: c\n").expect("a file");
    let all = printed(&["test", here], 2);
    assert!(all.contains("it names no plugin"), "{all}");

    std::fs::write(folder.join("_defaults.yaml"), format!("plugin: {hello}\n")).expect("a file");
    let all = printed(&["test", here], 1);
    assert!(all.contains("expects nothing yet"), "{all}");
    let all = printed(&["test", here, "--update"], 0);
    assert!(all.ends_with("0 passed, 1 updated, 0 failed\n"), "{all}");
    let written = std::fs::read_to_string(&case).expect("the case");
    let wanted = "# Why.
request: |
  GET /a
  x-b: c
expect:
  request: |
    GET /a HTTP/1.1
    host: localhost
    x-b: c
    x-hello: v1
  response: |
    HTTP/1.1 200 OK
    x-hello: v1
  log:
  - info: \"v1 is configured: hello\"
";
    assert_eq!(written, wanted);
    let all = printed(&["test", here], 0);
    assert!(all.ends_with("1 passed, 0 failed\n"), "{all}");

    // Another plugin: the case fails, in words and in XML.
    let report = folder.join("report.xml");
    let report = report.to_str().expect("UTF-8");
    let all = printed(&["test", here, "--plugin", v2, "--junit", report], 1);
    assert!(
        all.contains("FAIL") && all.contains("        - x-hello: v1\n"),
        "{all}"
    );
    let xml = std::fs::read_to_string(report).expect("the report");
    assert!(xml.contains("tests=\"1\" failures=\"1\""), "{xml}");
    assert!(
        xml.contains("name=\"case\"") && xml.contains("<failure message="),
        "{xml}"
    );

    // What stands for anything stays where it holds; what is not there is not compared.
    std::fs::write(
        &case,
        "request: GET /a\nexpect:\n  response: |\n    200\n    x-hello: v{{any}}\n# The end.\n",
    )
    .expect("a file");
    printed(&["test", here], 0);
    printed(&["test", here, "--plugin", v2], 1);
    printed(&["test", here, "--update"], 0);
    let written = std::fs::read_to_string(&case).expect("the case");
    assert!(
        written.contains("v{{any}}") && written.ends_with("# The end.\n"),
        "{written}"
    );

    for (text, reason) in [
        ("request: GET /\nrespons: 200\n", "respons"),
        ("request: GET\n", "request line"),
        ("config: x\n", "`request` is missing"),
        ("request: GET /\nexpect: {outcome: fine}\n", "local reply"),
        ("request: GET /\nrequest: GET /\n", "request"),
        ("request: [\n", "line"),
        ("request: GET /\ncallouts: {auth: []}\n", "no answer"),
        ("request: GET /\nplugin: nonesuch.wasm\n", "nonesuch.wasm"),
    ] {
        std::fs::write(&case, text).expect("a file");
        let all = printed(&["test", here], 2);
        assert!(all.contains(reason), "{text}: {all}");
        assert!(
            all.contains("case.yaml") || text.contains("nonesuch"),
            "{text}: {all}"
        );
    }
}

#[test]
fn failures_can_be_expected() {
    let folder = folder("failures");
    guest(&folder, "fault");
    guest(&folder, "action");
    let here = folder.to_str().expect("UTF-8");
    let case = folder.join("case.yaml");
    let trap = "plugin: fault.wasm\nconfig: th\nrequest: GET /\n";
    for (text, code) in [
        (format!("{trap}expect: {{response: 503}}\n"), 1),
        (format!("{trap}expect: {{failure: unreachable}}\n"), 0),
        (format!("{trap}expect: {{failure: budget}}\n"), 1),
        (
            "plugin: action.wasm\nconfig: '3000000'\nrequest: GET /\ntimeout: 0.2\nexpect: {outcome: stalled}\n"
                .to_owned(),
            0,
        ),
        (
            "plugin: action.wasm\nconfig: '3000000'\nrequest: GET /\ntimeout: 0.2\nexpect: {log: []}\n".to_owned(),
            1,
        ),
        (
            "plugin: fault.wasm\nconfig: tf\nrequest: GET /\nexpect: {outcome: not loaded, failure: unreachable}\n"
                .to_owned(),
            0,
        ),
    ] {
        std::fs::write(&case, &text).expect("a file");
        printed(&["test", here], code);
    }
}

#[test]
fn cases_of_one_run_do_not_see_each_other() {
    let folder = folder("apart");
    let plugin = root().join("plugins/bin/metrics-callout.wasm");
    let text = format!(
        "plugin: {}\nconfig: auth\nrequest: GET /\ncallouts: {{auth: 200}}\nexpect: {{metrics: {{callouts: 1}}}}\n",
        plugin.display()
    );
    for name in ["a.yaml", "b.yml"] {
        std::fs::write(folder.join(name), &text).expect("a file");
    }
    let all = printed(&["test", folder.to_str().expect("UTF-8")], 0);
    assert!(all.ends_with("2 passed, 0 failed\n"), "{all}");
}

/// A plugin's own answer, and a stream that it resets, are expected in words.
#[test]
fn an_outcome_that_nobody_named_is_the_upstreams_answer() {
    let folder = folder("outcomes");
    guest(&folder, "fault");
    let here = folder.to_str().expect("UTF-8");
    let case = folder.join("case.yaml");
    let auth = root().join("plugins/bin/auth-header.wasm");
    let auth = format!("plugin: {}\nconfig: s3cret\n", auth.display());
    for (plugin, outcome) in [
        (auth.as_str(), "local reply"),
        ("plugin: fault.wasm\nconfig: ch\n", "reset"),
        ("plugin: fault.wasm\nconfig: rh\n", "local reply"),
    ] {
        let text = format!("{plugin}request: GET /\nexpect:\n  log: []\n");
        std::fs::write(&case, &text).expect("a file");
        let all = printed(&["test", here], 1);
        let wanted = format!("        - answered\n        + {outcome}");
        assert!(all.contains(&wanted), "{all}");
        std::fs::write(&case, format!("{text}  outcome: {outcome}\n")).expect("a file");
        printed(&["test", here], 0);
    }
}

#[test]
fn results_are_kept_where_a_case_cannot_be_run() {
    let (folder, other) = (folder("kept_results"), folder("kept_other"));
    let hello = root().join("plugins/bin/hello.wasm");
    let good = format!(
        "plugin: {}\nrequest: GET /\nexpect: {{}}\n",
        hello.display()
    );
    for (file, text) in [
        ("a.yaml", good.as_str()),
        ("b.yaml", "plugin: nonesuch.wasm\nrequest: GET /\n"),
        ("c.yaml", "request: [\n"),
        ("d.yaml", "request: GET /\nchunk: 1.5\n"),
        ("e.yaml", &good.replace("{}", "{response: 404}")),
        ("f.yaml", &good),
    ] {
        std::fs::write(folder.join(file), text).expect("a file");
    }
    std::fs::write(other.join("_defaults.yaml"), "expect: {}\n").expect("a file");
    std::fs::write(other.join("g.yaml"), &good).expect("a file");
    let report = folder.join("report.xml");
    let paths = [&folder, &other, &report].map(|path| path.to_str().expect("UTF-8"));
    let [here, there, report] = paths;

    let output = plenipo(&["test", here, there, "--junit", report]);
    assert_eq!(output.status.code(), Some(2));
    let (out, reason) = (text(&output.stdout), text(&output.stderr));
    for part in [
        format!("pass     {here}/a.yaml\n"),
        format!("ERROR    {here}/b.yaml\n    cannot read {here}/nonesuch.wasm"),
        format!("ERROR    {here}/c.yaml\n"),
        format!("ERROR    {here}/d.yaml\n    chunk: invalid type"),
        format!("FAIL     {here}/e.yaml\n"),
        format!("pass     {here}/f.yaml\n"),
        format!("ERROR    {there}/_defaults.yaml\n    what is expected belongs to a case\n"),
        "2 passed, 1 failed, 4 not run\n".to_owned(),
    ] {
        assert!(out.contains(&part), "{part}: {out}");
    }
    assert!(
        reason.starts_with(&format!("{here}/b.yaml: cannot read "))
            && reason.ends_with(" (and 3 more that cannot be run)\n"),
        "{reason}"
    );
    let xml = std::fs::read_to_string(report).expect("the report");
    for part in [
        "tests=\"6\" failures=\"1\" errors=\"3\"",
        "name=\"b\"",
        "<error message=\"cannot read ",
    ] {
        assert!(xml.contains(part), "{part}: {xml}");
    }

    // No place for the report costs the report.
    let nowhere = folder.join("none/such.xml");
    let output = plenipo(&["test", here, "--junit", nowhere.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).contains("2 passed, 1 failed, 3 not run\n"));
    assert!(text(&output.stderr).starts_with("cannot write "));
    // A plugin that is missing for all is an argument that is wrong.
    let output = plenipo(&["test", here, "--plugin", "nonesuch.wasm"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
}

#[test]
fn an_update_leaves_files_that_can_be_read() {
    let folder = folder("updates");
    let here = folder.to_str().expect("UTF-8");
    let hello = root().join("plugins/bin/hello.wasm");
    std::fs::write(
        folder.join("_defaults.yaml"),
        format!("plugin: {}\n", hello.display()),
    )
    .expect("a file");
    let case = folder.join("case.yaml");
    for expect in [
        "expect:\n# Of the log.\n  log: []\n# Of the response.\n  response: old\n",
        "expect: {\n  log: [{info: x}]\n}\n",
        "\"expect\":\n  response: old\n",
        "expect :\n  response: old\n",
    ] {
        let text = format!("{expect}# The request.\nrequest: GET /a\n");
        std::fs::write(&case, &text).expect("a file");
        printed(&["test", here, "--update"], 0);
        let written = std::fs::read_to_string(&case).expect("the case");
        assert!(
            written.starts_with("expect:\n")
                && written.ends_with("# The request.\nrequest: GET /a\n"),
            "{written}"
        );
        let all = printed(&["test", here], 0);
        assert!(all.ends_with("1 passed, 0 failed\n"), "{all}");
    }
    // Where lines do not tell what belongs to the key, nothing is written.
    let text = "{request: GET /a, expect: {response: old}}\n";
    std::fs::write(&case, text).expect("a file");
    let all = printed(&["test", here, "--update"], 1);
    assert!(all.contains("it is not updated: write `expect:`"), "{all}");
    assert_eq!(std::fs::read_to_string(&case).expect("the case"), text);
}
