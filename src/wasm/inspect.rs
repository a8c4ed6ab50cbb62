//! What a file of code holds, and what this host makes of it, without running any of it.
//!
//! Structure is read by `wasmparser`; which imports are known and whether the module links is asked of the same table
//! of host functions that serves traffic.

use std::collections::BTreeSet;

use serde::Serialize;
use wasmparser::{ExternalKind, KnownCustom, Parser, Payload, TypeRef};
use wasmtime::{Engine, FuncType, Linker};

use super::abi::linker;
use super::callbacks::{fits, misfit};
use super::context::Host;
use super::engine::Runtime;
use super::module::{LoadError, MAX_CODE, Module};
use super::sdk;
use super::spec::Digest;

/// The size of a page of memory, in bytes.
const PAGE: u64 = 64 << 10;

/// What is in a file of code.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// In bytes.
    pub size: usize,
    /// SHA-256 of the whole, in hexadecimal.
    pub sha256: String,
    /// What kind of code it is.
    pub kind: Kind,
    /// The versions of Proxy-Wasm whose markers it exports, as `0.2.1`; the host takes the first.
    pub abi: Vec<String>,
    /// The `producers` section: languages, SDKs and tools, as they name themselves.
    pub producers: Vec<Producer>,
    /// What it was written with, as it says or gives away.
    pub sdk: Option<String>,
    /// In the module's order.
    pub imports: Vec<Import>,
    /// Exported functions with the name of a callback, of HTTP or of TCP.
    pub callbacks: Vec<String>,
    /// All other exported names.
    pub other_exports: Vec<String>,
    /// Memories, defined or imported.
    pub memories: Vec<Memory>,
    /// Custom sections.
    pub custom_sections: Vec<CustomSection>,
    /// Why this host would refuse it; `None` where it compiles and links.
    pub refused: Option<String>,
}

/// The kind of a file of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A core module.
    Module,
    /// A component (layer 1 of the binary format).
    Component,
    /// Neither.
    Unknown,
}

/// One entry of the `producers` section.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Producer {
    /// `language`, `sdk` or `processed-by`.
    pub role: String,
    /// As it names itself.
    pub name: String,
    /// As it names it; may be empty.
    pub version: String,
}

/// One import.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Import {
    /// The module that it is asked of.
    pub module: String,
    /// Its name there.
    pub name: String,
    /// Whether this host has a function of that name.
    pub known: bool,
    /// What happens or what to do where it is not known.
    pub hint: Option<&'static str>,
}

/// One memory, in pages of 64 KiB.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// At the start.
    pub min_pages: u64,
    /// The module's own bound.
    pub max_pages: Option<u64>,
    /// Addressed by 64 bits.
    pub memory64: bool,
    /// Shared between threads.
    pub shared: bool,
    /// Asked of the host.
    pub imported: bool,
}

impl Memory {
    fn of(memory: wasmparser::MemoryType, imported: bool) -> Self {
        Self {
            min_pages: memory.initial,
            max_pages: memory.maximum,
            memory64: memory.memory64,
            shared: memory.shared,
            imported,
        }
    }

    /// Bytes at the start, at most `u64::MAX`.
    pub fn min_bytes(&self) -> u64 {
        self.min_pages.saturating_mul(PAGE)
    }

    /// The module's own bound in bytes.
    pub fn max_bytes(&self) -> Option<u64> {
        self.max_pages.map(|pages| pages.saturating_mul(PAGE))
    }
}

/// One custom section.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct CustomSection {
    /// Its name.
    pub name: String,
    /// Of its content, in bytes.
    pub size: usize,
}

/// Looks into `bytes`. Compiles them: call it on a thread that may block. Any bytes are fine; what is wrong with them
/// is in [`Inspection::refused`].
///
/// # Errors
/// Where the engine cannot be made on this machine.
pub fn inspect(bytes: &[u8]) -> anyhow::Result<Inspection> {
    let runtime = Runtime::new().map_err(|error| anyhow::anyhow!("{error:#}"))?;
    let engine = runtime.engine();
    let table = linker(engine).map_err(|error| anyhow::anyhow!("{error:#}"))?;
    Ok(look(engine, &table, bytes))
}

/// As [`inspect`], with the engine and the host functions `table`.
pub(crate) fn look(engine: &Engine, table: &Linker<Host>, bytes: &[u8]) -> Inspection {
    let mut found = Inspection {
        size: bytes.len(),
        sha256: Digest::of(bytes).to_string(),
        kind: match bytes.get(..8) {
            Some(b"\0asm\x01\0\0\0") => Kind::Module,
            Some([0, b'a', b's', b'm', _, _, 1, 0]) => Kind::Component,
            _ => Kind::Unknown,
        },
        abi: Vec::new(),
        producers: Vec::new(),
        sdk: None,
        imports: Vec::new(),
        callbacks: Vec::new(),
        other_exports: Vec::new(),
        memories: Vec::new(),
        custom_sections: Vec::new(),
        refused: None,
    };
    found.refused = match found.kind {
        Kind::Module if bytes.len() <= MAX_CODE => {
            let read = read(bytes, &mut found, |module, name| {
                knows(engine, table, module, name)
            });
            match read {
                Err(error) => Some(format!("the module is damaged: {error}")),
                Ok(()) => {
                    let exports = found.other_exports.iter().map(String::as_str);
                    found.sdk =
                        sdk::of(bytes).or_else(|| sdk::guess(exports).map(str::to_owned));
                    verdict(engine, table, bytes, &found)
                }
            }
        }
        Kind::Module => Some(format!(
            "{} bytes are more than the limit of {MAX_CODE}",
            bytes.len()
        )),
        Kind::Component => Some(
            "this is a component; a Proxy-Wasm plugin is a core module (build for wasm32-wasip1, not wasm32-wasip2)"
                .to_owned(),
        ),
        Kind::Unknown => Some("this is not WebAssembly in its binary form".to_owned()),
    };
    found
}

/// Whether the table defines a name: what is defined cannot be defined again.
fn knows(engine: &Engine, table: &Linker<Host>, module: &str, name: &str) -> bool {
    let ty = FuncType::new(engine, [], []);
    table
        .clone()
        .func_new(module, name, ty, |_, _, _| Ok(()))
        .is_err()
}

/// What the host says on loading, up to the start of the first instance.
fn verdict(
    engine: &Engine,
    table: &Linker<Host>,
    bytes: &[u8],
    found: &Inspection,
) -> Option<String> {
    if found.abi.is_empty() {
        let http_wasm = found.imports.iter().any(|i| i.module == "http_handler")
            || found.other_exports.iter().any(|e| e == "handle_request");
        return Some(if http_wasm {
            "this is a plugin for the http-wasm ABI; Proxy-Wasm is needed".to_owned()
        } else {
            "it exports no proxy_abi_version_0_1_0, _0_2_0 or _0_2_1: not a Proxy-Wasm plugin (SDKs export one)"
                .to_owned()
        });
    }
    if let Some(memory) = found.memories.iter().find(|m| m.memory64 || m.shared) {
        let what = if memory.memory64 { "64-bit" } else { "shared" };
        return Some(format!(
            "its memory is {what}; Proxy-Wasm has 32-bit, unshared memory"
        ));
    }
    let (module, abi) = match Module::compile(engine, bytes, Digest::of(bytes)) {
        Ok(module) => (module.code, module.abi),
        Err(error) => return Some(error.to_string()),
    };
    let mut table = table.clone();
    let linked = table
        .define_unknown_imports_as_traps(&module)
        .and_then(|()| table.instantiate_pre(&module).map(drop));
    if let Err(error) = linked {
        return Some(format!("an import does not fit: {error:#}"));
    }
    let bad = |name: &str| Some(LoadError::BadSignature(name.to_owned()).to_string());
    if let Some(name) = misfit(&module, abi) {
        return bad(name);
    }
    let exports = |name: &str| found.callbacks.iter().any(|export| export == name);
    if !exports("malloc") && !exports("proxy_on_memory_allocate") {
        return Some("it exports neither malloc nor proxy_on_memory_allocate".to_owned());
    }
    let starts: &[(&str, usize, usize)] = match (exports("_initialize"), exports("main")) {
        (true, true) => &[("_initialize", 0, 0), ("main", 2, 1)],
        (true, false) => &[("_initialize", 0, 0), ("__main_void", 0, 1)],
        (false, _) => &[("_start", 0, 0)],
    };
    let mut starts = starts.iter();
    let start = starts.find(|(name, params, results)| !fits(&module, name, *params, *results));
    start.and_then(|(name, ..)| bad(name))
}

fn read(
    bytes: &[u8],
    found: &mut Inspection,
    knows: impl Fn(&str, &str) -> bool,
) -> wasmparser::Result<()> {
    let mut markers = BTreeSet::new();
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    if let TypeRef::Memory(memory) = import.ty {
                        found.memories.push(Memory::of(memory, true));
                    }
                    let function = matches!(import.ty, TypeRef::Func(_) | TypeRef::FuncExact(_));
                    let known = function && knows(import.module, import.name);
                    found.imports.push(Import {
                        module: import.module.to_owned(),
                        name: import.name.to_owned(),
                        known,
                        hint: (!known).then(|| match function {
                            true => hint(import.module, import.name),
                            false => NO_FUNCTION,
                        }),
                    });
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    found.memories.push(Memory::of(memory?, false));
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export?;
                    let name = export.name;
                    let function =
                        matches!(export.kind, ExternalKind::Func | ExternalKind::FuncExact);
                    match name.strip_prefix("proxy_abi_version_") {
                        Some(version @ ("0_1_0" | "0_2_0" | "0_2_1")) if function => {
                            markers.insert(version.replace('_', "."));
                        }
                        _ if function && is_callback(name) => {
                            found.callbacks.push(name.to_owned());
                        }
                        _ => found.other_exports.push(name.to_owned()),
                    }
                }
            }
            Payload::CustomSection(section) => {
                found.custom_sections.push(CustomSection {
                    name: section.name().to_owned(),
                    size: section.data().len(),
                });
                if let KnownCustom::Producers(fields) = section.as_known() {
                    // A custom section cannot make a module invalid: what is damaged in it is left out.
                    for field in fields.into_iter().map_while(Result::ok) {
                        for value in field.values.into_iter().map_while(Result::ok) {
                            found.producers.push(Producer {
                                role: field.name.to_owned(),
                                name: value.name.to_owned(),
                                version: value.version.to_owned(),
                            });
                        }
                    }
                }
            }
            _ => {}
        }
    }
    found.abi = markers.into_iter().collect();
    Ok(())
}

fn is_callback(name: &str) -> bool {
    name.starts_with("proxy_on_") || matches!(name, "malloc" | "_initialize" | "_start" | "main")
}

/// Of a memory, a table or a global.
const NO_FUNCTION: &str = "not a function: the host gives functions only, the module is refused";

/// What follows of a function that the host lacks, and where it most likely comes from.
pub fn hint(module: &str, name: &str) -> &'static str {
    match (module, name) {
        ("wasi_snapshot_preview1" | "wasi_unstable", _) => {
            "a WASI function that the host lacks: calling it returns ENOSYS"
        }
        ("http_handler", _) => "a function of the http-wasm ABI: this is another kind of plugin",
        ("wbg" | "__wbindgen_placeholder__", _) => {
            "wasm-bindgen's, which needs JavaScript: calling it traps; build for wasm32-wasip1, without wasm-bindgen"
        }
        ("go" | "gojs", _) => {
            "Go's for JavaScript: calling it traps; build with GOOS=wasip1 and -buildmode=c-shared, or with TinyGo"
        }
        ("env", "abort") => {
            "AssemblyScript's: calling it traps; build with --use abort=abort_proc_exit of its Proxy-Wasm SDK"
        }
        ("env", name) if name.starts_with("syscall/js.") => {
            "TinyGo's for JavaScript: calling it traps; build with -target=wasip1"
        }
        ("env", name) if name.starts_with("__cxa_") || name.starts_with("_Z") => {
            "a C++ symbol that the linker left open: calling it traps; link what defines it, or build with -fno-exceptions"
        }
        ("env", name) if name.starts_with("emscripten_") || name.starts_with("__syscall_") => {
            "Emscripten's for JavaScript: calling it traps; link with -sSTANDALONE_WASM"
        }
        ("a", _) => {
            "a name that Emscripten has shortened for JavaScript: calling it traps; link with -sSTANDALONE_WASM"
        }
        ("env", name) if name.starts_with("proxy_") => {
            "no function of Proxy-Wasm 0.1.0 to 0.2.1 (another proxy's own, or another version's): calling it traps"
        }
        _ => "unknown to the host: calling it traps",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(text: &str) -> Inspection {
        inspect(&wat::parse_str(text).unwrap()).unwrap()
    }

    #[test]
    fn a_plugin_is_described() {
        let found = look(
            r#"(module
                (import "env" "proxy_log" (func (param i32 i32 i32) (result i32)))
                (import "wasi_snapshot_preview1" "sock_nonesuch" (func (param i32 i32 i32) (result i32)))
                (import "env" "proxy_nonesuch" (func))
                (memory (export "memory") 2 16)
                (func (export "proxy_abi_version_0_2_1"))
                (func (export "malloc") (param i32) (result i32) i32.const 0)
                (func (export "proxy_on_done") (param i32) (result i32) i32.const 1))"#,
        );
        assert_eq!(found.refused, None);
        assert_eq!(found.abi, ["0.2.1"]);
        assert_eq!(found.callbacks, ["malloc", "proxy_on_done"]);
        assert_eq!(found.other_exports, ["memory"]);
        let known: Vec<_> = found.imports.iter().map(|i| i.known).collect();
        assert_eq!(known, [true, false, false]);
        assert!(found.imports[1].hint.unwrap().contains("ENOSYS"));
        let hint = found.imports[2].hint.unwrap();
        assert!(
            hint.contains("traps") && hint.contains("another proxy's own"),
            "{hint}"
        );
        assert_eq!(found.memories[0].min_bytes(), 131_072);
        assert_eq!(found.memories[0].max_bytes(), Some(1 << 20));
    }

    #[test]
    fn what_is_missing_tells_where_it_comes_from() {
        for (module, name, source) in [
            ("wbg", "__wbg_log", "wasm-bindgen"),
            ("gojs", "runtime.wasmExit", "GOOS=wasip1"),
            ("env", "abort", "AssemblyScript"),
            ("env", "syscall/js.valueGet", "TinyGo"),
            ("env", "_ZN3fooEv", "C++"),
            ("env", "emscripten_resize_heap", "STANDALONE"),
            ("a", "b", "shortened"),
            ("env", "proxy_redis_call", "another proxy's own"),
            ("elsewhere", "b", "unknown"),
        ] {
            let found = look(&format!(r#"(module (import "{module}" "{name}" (func)))"#));
            let hint = found.imports[0].hint.expect(name);
            assert!(hint.contains(source) && hint.contains("traps"), "{hint}");
        }
    }

    #[test]
    fn the_sdk_is_told() {
        let found =
            look(r#"(module (func (export "__pin") (param i32) (result i32) i32.const 0))"#);
        assert!(found.sdk.unwrap().starts_with("AssemblyScript"));
    }

    const ALLOCATES: &str = r#"(func (export "malloc") (param i32) (result i32) i32.const 0)"#;

    /// Types are looked at as they are where a VM is made: what is never called may have any.
    #[test]
    fn what_fits_is_taken() {
        let with_end = r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) i32.const 0)"#;
        let without = r#"(func (export "proxy_on_request_headers") (param i32 i32) (result i32) i32.const 0)"#;
        for (abi, exports, taken) in [
            ("0_2_1", with_end, true),
            ("0_2_1", without, false),
            ("0_1_0", with_end, false),
            ("0_1_0", without, true),
            (
                "0_2_1",
                r#"(func (export "_initialize")) (func (export "_start") (param i64))"#,
                true,
            ),
            (
                "0_2_1",
                r#"(global (export "proxy_on_tick") i32 (i32.const 0))"#,
                true,
            ),
        ] {
            let text = format!(
                r#"(module (func (export "proxy_abi_version_{abi}")) {ALLOCATES} {exports})"#
            );
            let refused = look(&text).refused;
            assert_eq!(refused.is_none(), taken, "{text}: {refused:?}");
        }
    }

    #[test]
    fn what_is_no_plugin_is_refused_with_the_reason() {
        let marked = r#"(func (export "proxy_abi_version_0_2_0"))"#;
        for (text, reason) in [
            ("(module)".to_owned(), "not a Proxy-Wasm plugin"),
            (
                r#"(module (import "http_handler" "next" (func)))"#.to_owned(),
                "http-wasm",
            ),
            (format!("(module {marked})"), "neither malloc"),
            (format!("(module {marked} (memory i64 1))"), "64-bit"),
            (
                format!(r#"(module (import "env" "proxy_log" (func)) {marked})"#),
                "does not fit",
            ),
            (
                format!(
                    r#"(module {marked} {ALLOCATES} (func (export "proxy_on_request_headers") (param i64)))"#
                ),
                "Bad function signature for: proxy_on_request_headers",
            ),
            (
                format!(r#"(module {marked} {ALLOCATES} (func (export "proxy_on_tick")))"#),
                "Bad function signature for: proxy_on_tick",
            ),
            (
                format!(r#"(module {marked} (func (export "malloc")))"#),
                "Bad function signature for: malloc",
            ),
            (
                format!(r#"(module {marked} {ALLOCATES} (func (export "_start") (param i32)))"#),
                "Bad function signature for: _start",
            ),
            (
                format!(
                    r#"(module {marked} {ALLOCATES} (func (export "_initialize")) (func (export "main")))"#
                ),
                "Bad function signature for: main",
            ),
        ] {
            let refused = look(&text).refused.expect(&text);
            assert!(refused.contains(reason), "{text}: {refused}");
        }
        let component = inspect(b"\0asm\x0d\0\x01\0").unwrap();
        assert_eq!(component.kind, Kind::Component);
        assert!(component.refused.unwrap().contains("component"));
        assert!(inspect(b"#!/bin/sh").unwrap().refused.is_some());
        let damaged = inspect(b"\0asm\x01\0\0\0\x02\xff").unwrap();
        assert!(damaged.refused.unwrap().contains("damaged"));
    }
}
