//! What `plenipo plugin inspect` prints for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::json;

use super::source::{Access, Fetched, Packed};
use super::{Verdict, bytes, image, json_text, print, printable};
use crate::cli::plugin::InspectArgs;
use crate::config::WasmSettings;
use crate::wasm::{Inspection, InspectionKind};

/// Looks into a file, or into what comes from a registry or a server. What is no plugin is described too, and the reason then stands on standard error as well.
pub(super) fn run(arguments: &InspectArgs) -> anyhow::Result<(String, Verdict)> {
    let fetched = Access::of(&arguments.registry)?.fetch(&arguments.source)?;
    let found = crate::wasm::inspect(&fetched.code)?;
    let text = if arguments.json {
        let mut value = serde_json::to_value(&found)?;
        if let Some(image) = &fetched.image {
            value["image"] = image::json_of(&arguments.source, image);
        }
        if let Some(packed) = &fetched.packed {
            value["packed"] = json!({ "size": packed.size, "sha256": packed.sha256 });
        }
        json_text(&value)?
    } else {
        text(&arguments.source, &fetched, &found)
    };
    let Some(reason) = found.refused else {
        return Ok((text, Verdict::Well));
    };
    print(&text);
    anyhow::bail!("{}: {reason}", arguments.source)
}

/// A report in lines of a heading and what belongs to it.
fn text(source: &str, fetched: &Fetched, found: &Inspection) -> String {
    let mut out = String::new();
    let mut line = |heading: &str, value: &str| {
        let _ = writeln!(out, "{heading:<12} {}", printable(value));
    };
    if source.contains("://") {
        line("source", source);
    } else {
        line("file", source);
    }
    let image = fetched.image.as_ref();
    for (heading, value) in image.map(image::lines).unwrap_or_default() {
        line(heading, &value);
    }
    if let Some(Packed { size, sha256 }) = &fetched.packed {
        // What a configuration names is the sum of the bytes as they come.
        line(
            "packed",
            &format!("{}, sha256 {sha256}", bytes(*size as u64)),
        );
    }
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
    if let Some(sdk) = &found.sdk {
        line("written in", sdk);
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
        let default = WasmSettings::default().defaults.memory as u64;
        let over = if memory.min_bytes() > default {
            format!("; a VM may have {} (memory_limit_bytes)", bytes(default))
        } else {
            String::new()
        };
        line(
            "memory",
            &format!("{}, {max}{over}", bytes(memory.min_bytes())),
        );
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
