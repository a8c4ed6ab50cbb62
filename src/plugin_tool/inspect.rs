//! What `plenipo plugin inspect` prints for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::wasm::{Inspection, InspectionKind};

/// A report in lines of a heading and what belongs to it.
pub(super) fn text(source: &str, found: &Inspection) -> String {
    let mut out = String::new();
    let mut line = |heading: &str, value: &str| {
        let _ = writeln!(out, "{heading:<12} {}", printable(value));
    };
    line("file", source);
    line("size", &bytes(found.size as u64));
    line("sha256", &found.sha256);
    line(
        "kind",
        match found.kind {
            InspectionKind::Module => "core module",
            InspectionKind::Component => "component",
            InspectionKind::Unknown => "not WebAssembly",
        },
    );
    if found.kind == InspectionKind::Module {
        line(
            "abi",
            &if found.abi.is_empty() {
                "none of Proxy-Wasm's".to_owned()
            } else {
                format!("Proxy-Wasm {}", found.abi.join(", "))
            },
        );
    }
    for (index, producer) in found.producers.iter().enumerate() {
        let heading = if index == 0 { "made by" } else { "" };
        let version = match producer.version.as_str() {
            "" => String::new(),
            version => format!(" {version}"),
        };
        line(
            heading,
            &format!("{}{version} ({})", producer.name, producer.role),
        );
    }
    for memory in &found.memories {
        let max = memory
            .max_bytes()
            .map_or("no maximum of its own".to_owned(), |max| {
                format!("at most {}", bytes(max))
            });
        line("memory", &format!("{}, {max}", bytes(memory.min_bytes())));
    }
    list(&mut line, "callbacks", &found.callbacks);
    list(&mut line, "exports", &found.other_exports);
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    for import in found.imports.iter().filter(|import| import.known) {
        *known.entry(&import.module).or_default() += 1;
    }
    let known: Vec<_> = known
        .into_iter()
        .map(|(module, count)| format!("{count} known, of {module}"))
        .collect();
    list(&mut line, "imports", &known);
    let missing: Vec<_> = found
        .imports
        .iter()
        .filter_map(|import| {
            import
                .hint
                .map(|hint| format!("{}.{}: {hint}", import.module, import.name))
        })
        .collect();
    list(&mut line, "missing", &missing);
    let sections: Vec<_> = found
        .custom_sections
        .iter()
        .map(|section| format!("{} ({})", section.name, bytes(section.size as u64)))
        .collect();
    list(&mut line, "sections", &sections);
    line(
        "verdict",
        &found
            .refused
            .as_ref()
            .map_or("compiles and links here".to_owned(), |reason| {
                format!("refused: {reason}")
            }),
    );
    out
}

fn list(line: &mut impl FnMut(&str, &str), heading: &str, values: &[String]) {
    for (index, value) in values.iter().enumerate() {
        line(if index == 0 { heading } else { "" }, value);
    }
}

/// Names in a module are anybody's: they do not get to steer the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..0x10_0000 => format!("{}.{} KiB", count >> 10, ((count & 1023) * 10) >> 10),
        _ => format!("{}.{} MiB", count >> 20, ((count & 0xf_ffff) * 10) >> 20),
    }
}
