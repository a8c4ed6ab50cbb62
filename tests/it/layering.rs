//! The law of imports: a module imports only lower levels, and a few libraries have one importer each.
//!
//! The levels are those of the table in `src/lib.rs`; this test reads the sources, not the compiler's mind: it looks
//! at `crate::<module>` wherever it stands outside comments.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The levels, from the bottom. Modules on one level do not import each other.
const LEVELS: &[&[&str]] = &[
    &["base"],
    &["telemetry", "pb"],
    &["config"],
    &["http", "xds", "bootstrap"],
    &["cluster", "route"],
    &["stream"],
    &["wasm"],
    &["filter"],
    &["generation"],
    &["listener"],
    &["admin", "cli", "control_plane"],
    &["app", "plugin_tool"],
    &["demo"],
];

/// Libraries that one module alone may name.
const SOLE_IMPORTERS: &[(&str, &str)] = &[
    ("hyper::", "http/codec"),
    ("wasmtime::", "wasm"),
    ("reqwest::", "wasm/source"),
    ("envoy_types::", "pb.rs"),
];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        let mut entries: Vec<_> = std::fs::read_dir(folder)
            .expect("the source tree")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    found
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("a source file");
            let relative = path.strip_prefix(&root).expect("below the root").to_owned();
            (relative, text)
        })
        .collect()
}

/// The code of a line, without a trailing or whole-line comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// Tests that grew out of their module's file: named for it, and not held to its limits.
fn is_test(file: &Path) -> bool {
    file.ends_with("tests.rs")
        || file.ends_with("testing.rs")
        || file.components().any(|part| part.as_os_str() == "tests")
}

fn module_of(file: &Path) -> String {
    let first = file.components().next().expect("a file has a name");
    first
        .as_os_str()
        .to_string_lossy()
        .trim_end_matches(".rs")
        .to_owned()
}

#[test]
fn imports_point_downwards() {
    let level: BTreeMap<&str, usize> = LEVELS
        .iter()
        .enumerate()
        .flat_map(|(level, modules)| modules.iter().map(move |module| (*module, level)))
        .collect();
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let module = module_of(&file);
        if module == "lib" || module == "main" {
            continue;
        }
        let Some(own) = level.get(module.as_str()) else {
            panic!(
                "{}: module `{module}` has no level; give it one here and in src/lib.rs",
                file.display()
            );
        };
        for (number, line) in text.lines().enumerate() {
            for part in code(line).split("crate::").skip(1) {
                let target: String = part
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                // Macros are exported at the root whatever module they are written in.
                let Some(other) = level.get(target.as_str()) else {
                    continue;
                };
                if target != module && other >= own {
                    wrong.push(format!(
                        "{}:{}: {module} imports {target}",
                        file.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "imports upwards or sideways:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn each_heavy_library_has_one_importer() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for (library, owner) in SOLE_IMPORTERS {
            if file.starts_with(owner) {
                continue;
            }
            for (number, line) in text.lines().enumerate() {
                let code = code(line);
                let named = code.match_indices(library).any(|(at, _)| {
                    !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                });
                if named {
                    wrong.push(format!(
                        "{}:{}: {library} outside {owner}",
                        file.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_says_what_it_is() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(file, _)| file.display().to_string())
        .collect();
    assert!(silent.is_empty(), "no `//!` at the top of: {silent:?}");
}

#[test]
fn no_file_outgrows_its_subject() {
    let mut long = Vec::new();
    for (file, text) in sources() {
        if is_test(&file) {
            continue;
        }
        // Tests beside the code do not count.
        let lines = text
            .split("#[cfg(test)]")
            .next()
            .unwrap_or_default()
            .lines()
            .count();
        if lines > 700 {
            long.push(format!("{}: {lines} lines", file.display()));
        }
    }
    assert!(long.is_empty(), "split these: {}", long.join(", "));
}
