//! The documents against the tree: links lead to files, tables are those of the code, decisions are listed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use plenipo::config::ignored::{self, Ignored};
use plenipo::filter::Registry;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `README.md`, `CONTRIBUTING.md` and all of `docs/`.
fn documents() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("the documents") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    let mut found = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    walk(&root().join("docs"), &mut found);
    found.sort();
    found
}

/// The targets of `[text](target)`, without fenced code and code spans.
fn links(text: &str) -> Vec<String> {
    let fence = regex::Regex::new(r"(?s)```.*?```").expect("a pattern");
    let span = regex::Regex::new(r"`[^`\n]*`").expect("a pattern");
    let link = regex::Regex::new(r"\]\(([^()\s]+)\)").expect("a pattern");
    let text = fence.replace_all(text, "");
    let text = span.replace_all(&text, "");
    link.captures_iter(&text)
        .map(|found| found[1].to_owned())
        .collect()
}

/// What stands in `text` between the two markers of `name`.
fn marked<'a>(text: &'a str, name: &str) -> &'a str {
    let (_, rest) = text
        .split_once(&format!("<!-- {name} -->\n"))
        .unwrap_or_else(|| panic!("no marker {name}"));
    let (inner, _) = rest
        .split_once(&format!("<!-- /{name} -->"))
        .unwrap_or_else(|| panic!("no end of {name}"));
    inner.trim()
}

#[test]
fn links_lead_to_files() {
    let mut broken = Vec::new();
    let mut count = 0;
    for document in documents() {
        let folder = document.parent().expect("a folder");
        for target in links(&read(&document)) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let path = target.split('#').next().unwrap_or_default();
            count += 1;
            if !path.is_empty() && !folder.join(path).exists() {
                broken.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(count > 100, "{count} links: are they still read?");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn links_are_found_outside_code() {
    let text = "[a](b.md), `[c](d.md)`\n```\n[e](f.md)\n```\n[`g`](../h.rs#i)";
    assert_eq!(links(text), ["b.md", "../h.rs#i"]);
}

#[test]
fn the_table_of_filters_is_the_registrys() {
    let text = read(&root().join("docs/filters.md"));
    let wanted = Registry::new().markdown();
    let found = marked(&text, "filters");
    assert!(
        cfg!(not(feature = "wasm")) || found == wanted.trim(),
        "docs/filters.md is behind; between the markers belongs:\n{wanted}"
    );
}

#[test]
fn every_decision_is_listed() {
    let folder = root().join("docs/decisions");
    let files: BTreeSet<String> = std::fs::read_dir(&folder)
        .expect("the decisions")
        .map(|entry| entry.expect("an entry").file_name())
        .map(|name| name.into_string().expect("a name in UTF-8"))
        .filter(|name| name != "README.md")
        .collect();
    let list = read(&folder.join("README.md"));
    let listed: BTreeSet<String> = links(&list)
        .into_iter()
        .filter(|target| !target.contains('/'))
        .collect();
    assert_eq!(files, listed);
    let numbers: Vec<&str> = files.iter().map(|name| &name[..4]).collect();
    for (index, number) in numbers.iter().enumerate() {
        assert_eq!(
            **number,
            format!("{:04}", index + 1),
            "numbers go up by one"
        );
    }
    for name in &files {
        let title = read(&folder.join(name));
        assert!(title.starts_with(&format!("# {}: ", &name[..4])), "{name}");
    }
}

#[test]
fn every_ignored_field_is_told_with_its_reason() {
    let text = read(&root().join("docs/compatibility.md"));
    for (message, list) in ignored::all() {
        for Ignored(field, reason) in list {
            assert!(
                text.contains(&format!("| `{field}` | {reason} |")),
                "docs/compatibility.md does not tell that {message} ignores {field}: {reason}"
            );
        }
    }
}
