//! The documents of `plenipo plugin`, by the binary: every command that `docs/plugins.md` shows is run, and prints what stands
//! there; those of other documents, of its text and of the help run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use regex::Regex;

use crate::plugin_cli::{folder, plenipo, printed, printed_in, registry, root, text};

/// A command's words; those in quotes are one.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in command.split('\'').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_ascii_whitespace().map(str::to_owned));
        }
    }
    words
}

/// Without what another run, or another compiler's output of the same source, changes: times, counts of the timer, places
/// in the code, and sizes and sums, of which the sum is held to `SHA256SUMS` below.
fn lasting(output: &str) -> Vec<String> {
    let dropped = Regex::new(r"^(size|sha256|made by|written in) |^ +\d+: 0x").expect("a pattern");
    let masks = [
        (r" +[0-9.]+ (µs|ms|s)\b", " TIME"),
        (r" +[0-9.]+ (B|KiB|MiB)\b", " SIZE"),
        (r"^(    ticks .*?) +\d+$", "$1 #"),
        (r"sha256:[0-9a-f]{64}", "SUM"),
        (r"\([0-9.]+ (B|KiB|MiB)\b", "(SIZE"),
        // The table of `bench`: what was called, and how often, stays.
        (r"^(\S.* +\d+) +\d+ +\d+$", "$1 # #"),
    ]
    .map(|(pattern, mask)| (Regex::new(pattern).expect("a pattern"), mask));
    output
        .lines()
        .filter(|line| !dropped.is_match(line))
        .map(|line| {
            masks.iter().fold(line.to_owned(), |line, (pattern, mask)| {
                pattern.replace_all(&line, *mask).into_owned()
            })
        })
        .collect()
}

#[test]
fn what_changes_is_masked_and_nothing_else() {
    let output = "size         68.6 KiB
callbacks    _initialize
    proxy_on_context_create                135.6 µs  in 2 calls
    proxy_on_done                             5.8 ms         12.0 s
memory: 1.0 MiB of the VM
    ticks       counter    12
    callouts    counter    1
      2: 0x1ec4 - <unknown>
proxy_on_done                             2000      1763      3365";
    let wanted = [
        "callbacks    _initialize",
        "    proxy_on_context_create TIME  in 2 calls",
        "    proxy_on_done TIME TIME",
        "memory: SIZE of the VM",
        "    ticks       counter #",
        "    callouts    counter    1",
        "proxy_on_done                             2000 # #",
    ];
    // The spaces before a masked number go with it.
    assert_eq!(lasting(output), wanted);
    assert_eq!(
        words("run 'GET /' -H 'a: b'"),
        ["run", "GET /", "-H", "a: b"]
    );
}

/// Where the page has its registry.
const REGISTRY: &str = "localhost:5000";

#[test]
fn the_commands_of_the_page_print_what_it_shows() {
    let page = std::fs::read_to_string(root().join("docs/plugins.md")).expect("the page");
    let blocks: Vec<_> = page.split("```console\n").skip(1).collect();
    let mut shown = BTreeSet::new();
    let (_runtime, registry) = registry();
    let own = registry.address.to_string();
    let file = folder("page").join("hello.wasm");
    let file = file.to_str().expect("UTF-8").to_owned();
    for block in blocks {
        let (block, _) = block.split_once("```").expect("an end");
        let (command, wanted) = block.split_once('\n').expect("a command");
        let command = command
            .strip_prefix("$ plenipo plugin ")
            .expect("a command of ours");
        // The registry of the page, and the files that it is pulled into, are this test's own.
        let mut words = words(command);
        for word in &mut words {
            *word = word.replace(REGISTRY, &own);
            if word == "hello.wasm" {
                word.clone_from(&file);
            }
        }
        shown.insert(words[0].clone());
        let output = plenipo(&words);
        // As on a terminal: what went well, then the summary of what did not.
        let found = text(&output.stdout) + &text(&output.stderr);
        let found = found.replace(&own, REGISTRY).replace(&file, "hello.wasm");
        assert_eq!(lasting(&found), lasting(wanted), "{command}");
        let fails = [
            "404 Not Found",
            "refused: ",
            "the plugin has failed",
            "FAIL ",
            "DIFFERENT ",
        ];
        let code = i32::from(fails.iter().any(|word| wanted.contains(word)));
        assert_eq!(output.status.code(), Some(code), "{command}");
    }
    let shown: Vec<_> = shown.iter().map(String::as_str).collect();
    assert_eq!(
        shown,
        ["bench", "diff", "inspect", "pull", "push", "run", "test"]
    );
}

/// Fenced blocks of a page, with their language, and the page without them.
fn fenced(page: &str) -> (Vec<(String, String)>, String) {
    let block = Regex::new(r"(?ms)^```(\w*)\n(.*?)^```$").expect("a pattern");
    let blocks = block.captures_iter(page);
    let blocks = blocks.map(|found| (found[1].to_owned(), found[2].to_owned()));
    (blocks.collect(), block.replace_all(page, "").into_owned())
}

/// Texts between back quotes.
fn spans(page: &str) -> Vec<String> {
    let span = Regex::new(r"`([^`]+)`").expect("a pattern");
    let spans = span.captures_iter(page);
    spans.map(|found| found[1].replace('\n', " ")).collect()
}

fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            pages(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// A word with `*` for one folder's name as the paths that there are.
fn globbed(word: &str) -> Vec<String> {
    let Some((folder, rest)) = word.split_once("/*/") else {
        return vec![word.to_owned()];
    };
    let entries = std::fs::read_dir(root().join(folder)).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let paths = names.map(|name| format!("{folder}/{}/{rest}", name.to_str().expect("UTF-8")));
    paths.filter(|path| root().join(path).exists()).collect()
}

/// Beside those that `docs/plugins.md` shows with what they print.
#[test]
fn the_commands_of_all_documents_run() {
    let mut files = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    for folder in ["docs", "plugins", "xds-examples"] {
        pages(&root().join(folder), &mut files);
    }
    let mut commands = BTreeSet::new();
    for file in files {
        let page = std::fs::read_to_string(&file).expect("a page");
        let (blocks, prose) = fenced(&page);
        let blocks = blocks.iter().filter(|(language, _)| language != "console");
        let lines = blocks.flat_map(|(_, block)| block.lines());
        let lines = lines.map(|line| line.split(" #").next().unwrap_or_default());
        let all = lines.map(str::to_owned).chain(spans(&prose));
        commands.extend(all.filter_map(|text| {
            let command = text.trim().strip_prefix("plenipo plugin ")?;
            Some(command.to_owned())
        }));
    }
    for wanted in ["inspect plugins/bin/hello.wasm", "test plugins/*/tests"] {
        assert!(commands.contains(wanted), "{commands:?}");
    }
    for command in commands {
        let mut words: Vec<_> = words(&command)
            .iter()
            .flat_map(|word| globbed(word))
            .collect();
        if words.len() == 1 {
            // It is mentioned.
            words.push("--help".to_owned());
        }
        let output = plenipo(&words);
        let all = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{command}: {all}");
    }
}

/// What the page says of options within its text, by commands that have them as they stand there. `@answer.http` and the like
/// are files of the folder that the commands run in.
const FORMS: [(&str, &[&str]); 21] = [
    ("--help", &["run --help"]),
    ("--json", &["inspect hello.wasm --json"]),
    ("--response", &["run hello.wasm --response 404"]),
    (
        "--response-header",
        &["run hello.wasm --response-header 'x-a: b'"],
    ),
    ("--response-body", &["run hello.wasm --response-body body"]),
    (
        "--callout auth=200",
        &[
            "run metrics-callout.wasm --config auth --callout auth=200",
            // The words beside it that take the place of the answer.
            "run metrics-callout.wasm --config auth --callout auth=timeout",
            "run hello.wasm --callout auth=reset",
        ],
    ),
    (
        "--callout auth=@answer.http",
        &["run metrics-callout.wasm --config auth --callout auth=@answer.http"],
    ),
    ("--wait 1.5", &["run metrics-callout.wasm --wait 1.5"]),
    ("--timeout", &["run hello.wasm --timeout 1"]),
    ("--repeat", &["run hello.wasm --repeat 3"]),
    ("--plugin FILE", &["test cases --plugin hello.wasm"]),
    ("--update", &["test cases --update"]),
    ("--junit FILE", &["test cases --junit report.xml"]),
    ("--requests", &["bench hello.wasm --requests 10"]),
    ("--seconds", &["bench hello.wasm --seconds 0.1"]),
    ("--cases", &["diff hello.wasm hello.wasm --cases cases"]),
    (
        "--layout artifact",
        &["push hello.wasm oci://localhost:5000/a:1 --layout artifact --plain-http"],
    ),
    (
        "--layout files",
        &["push hello.wasm oci://localhost:5000/a:2 --layout files --plain-http"],
    ),
    (
        "--username NAME --password-stdin",
        &[
            "pull oci://localhost:5000/a:1 -o pulled.wasm --plain-http --username NAME --password-stdin",
        ],
    ),
    (
        "--plain-http",
        &["pull oci://localhost:5000/a:2 -o pulled.wasm --plain-http"],
    ),
    (
        "--internal",
        &["inspect oci://localhost:5000/a:1 --plain-http --internal"],
    ),
];

/// A folder with a file for every name that the page and the help use, and the registry that they name.
struct Place {
    folder: PathBuf,
    address: String,
}

impl Place {
    fn new(name: &str, address: &std::net::SocketAddr) -> Self {
        let folder = folder(name);
        let plugins = root().join("plugins");
        let copy = |from: &str, to: &str| {
            let to = folder.join(to);
            std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
            std::fs::copy(plugins.join(from), to).expect("a file");
        };
        for to in [
            "hello.wasm",
            "plugin.wasm",
            "old.wasm",
            "new.wasm",
            "target/wasm32-wasip1/release/plugin.wasm",
        ] {
            copy("bin/hello.wasm", to);
        }
        copy("bin/metrics-callout.wasm", "metrics-callout.wasm");
        copy("bin/auth-header.wasm", "plugins/bin/auth-header.wasm");
        for case in ["_defaults.yaml", "right-token.yaml", "wrong-token.yaml"] {
            let case = format!("auth-header/tests/{case}");
            copy(&case, &format!("plugins/{case}"));
        }
        for cases in ["cases", "tests"] {
            std::fs::create_dir(folder.join(cases)).expect("a folder");
        }
        let case =
            "plugin: ../hello.wasm\nrequest: GET /\nexpect: {response: \"200\\nx-hello: v1\"}\n";
        for (file, text) in [
            ("cases/case.yaml", case),
            ("tests/case.yaml", case),
            ("answer.http", "200\nx-a: b\n"),
            ("users.http", "200\n\nme\n"),
            ("config.json", "{\"a\": 1}"),
            ("request.http", "POST /\nx-a: b\n\n< order.json\n"),
            ("order.json", "{}"),
        ] {
            std::fs::write(folder.join(file), text).expect("a file");
        }
        Self {
            folder,
            address: address.to_string(),
        }
    }

    /// What the command prints, which must end well. A measurement is cut short.
    fn run(&self, command: &str) -> String {
        let mut words = words(command);
        for word in &mut words {
            *word = word
                .replace(REGISTRY, &self.address)
                .replace("registry.example", &self.address);
        }
        if words.iter().any(|word| word.contains("oci://")) && !command.contains("--plain-http") {
            words.push("--plain-http".to_owned());
        }
        match words.iter().position(|word| word == "--seconds") {
            Some(at) => words[at + 1] = "0.1".to_owned(),
            None if words[0] == "bench" => words.extend(["--seconds", "0.1"].map(str::to_owned)),
            None => {}
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        // Who needs no password does not read it.
        printed_in(&self.folder, "sesame\n", &words, 0)
    }
}

#[test]
fn the_options_that_the_page_names_are_taken() {
    let page = std::fs::read_to_string(root().join("docs/plugins.md")).expect("the page");
    let (_, prose) = fenced(&page);
    let spans = spans(&prose).into_iter();
    let named: BTreeSet<_> = spans.filter(|span| span.starts_with("--")).collect();
    let known: BTreeSet<_> = FORMS.iter().map(|(form, _)| (*form).to_owned()).collect();
    assert_eq!(named, known);
    let (_runtime, registry) = registry();
    let place = Place::new("forms", &registry.address);
    for (form, commands) in FORMS {
        // But for what stands for a file's name.
        let option = form.strip_suffix(" FILE").unwrap_or(form);
        assert!(commands[0].contains(option), "{form}");
        for command in commands {
            place.run(command);
        }
    }
}

#[test]
fn the_case_of_the_page_passes() {
    let page = std::fs::read_to_string(root().join("docs/plugins.md")).expect("the page");
    let (blocks, _) = fenced(&page);
    let mut cases = blocks.iter().filter(|(language, _)| language == "yaml");
    let (Some((_, case)), None) = (cases.next(), cases.next()) else {
        panic!("the page has one case");
    };
    let (_runtime, registry) = registry();
    let place = Place::new("case", &registry.address);
    let folder = place.folder.join("plugins/auth-header/tests");
    std::fs::remove_file(folder.join("_defaults.yaml")).expect("a file");
    std::fs::remove_file(folder.join("right-token.yaml")).expect("a file");
    std::fs::write(folder.join("wrong-token.yaml"), case).expect("a file");
    let all = place.run("test plugins/auth-header/tests");
    assert!(all.ends_with("1 passed, 0 failed\n"), "{all}");
}

#[test]
fn the_examples_of_the_help_run() {
    let (_runtime, registry) = registry();
    let place = Place::new("help", &registry.address);
    let mut run = 0;
    // What others inspect and pull is pushed first.
    for command in ["push", "pull", "inspect", "run", "test", "bench", "diff"] {
        let help = printed(&[command, "--help"], 0);
        for line in help.lines() {
            let line = line.trim();
            let example = line.strip_prefix("echo $TOKEN | ").unwrap_or(line);
            if let Some(example) = example.strip_prefix("plenipo plugin ") {
                assert!(example.starts_with(command), "{example}");
                place.run(example);
                run += 1;
            }
        }
    }
    assert!(run >= 14, "{run}");
}
