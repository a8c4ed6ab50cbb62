//! How a guest moves from one instance of its code to another: so optimised code takes the place of baseline code within
//! a VM, and the guest notices nothing.
//!
//! Between two calls a guest is its memory and its mutable globals. What else an instance has (tables, segments) is as its
//! module made it, unless the code has instructions that change it: such code does not move, nor does code that runs as
//! soon as it is instantiated. A host reaches exported globals alone, so the code that is compiled has all that count
//! among its exports. That moves its functions: what is told of a place in them must take [`Portable::shift`] off.

use std::ops::Range;

use wasm_encoder::{ExportKind, ExportSection, Section as _};
use wasmparser::{
    Export, ExternalKind, FunctionBody, GlobalSectionReader, MemorySectionReader, Operator, Parser,
    Payload, ValType,
};
use wasmtime::{AsContextMut, Extern, Instance, Memory, Store};

/// What the names of the added exports begin with; the global's number follows.
const PREFIX: &str = "plenipo:global:";
/// The memory that host functions read.
const MEMORY: &str = "memory";
/// More exports or globals than these no module of ours has.
const MAX_ENTRIES: u32 = 100_000;
/// A page of the machine, or a part of one.
const PAGE: usize = 4096;
const EMPTY: [u8; PAGE] = [0; PAGE];

/// A module whose instances can be left for others.
#[derive(Debug)]
pub(super) struct Portable {
    /// In its binary form.
    pub(super) bytes: Vec<u8>,
    /// How much further down than in the original its functions are, in bytes.
    pub(super) shift: i64,
}

impl Portable {
    /// Of a module; `None` where its instances are more than a memory and globals, and where it is not valid.
    pub(super) fn of(module: &[u8]) -> Option<Self> {
        let Parts {
            exports,
            section,
            mutable,
        } = Parts::of(module).ok()??;
        let mut all = ExportSection::new();
        for export in exports {
            let kind = match export.kind {
                ExternalKind::Func | ExternalKind::FuncExact => ExportKind::Func,
                ExternalKind::Table => ExportKind::Table,
                ExternalKind::Memory => ExportKind::Memory,
                ExternalKind::Global => ExportKind::Global,
                ExternalKind::Tag => return None,
            };
            all.export(export.name, kind, export.index);
        }
        for global in mutable {
            all.export(&format!("{PREFIX}{global}"), ExportKind::Global, global);
        }
        let mut bytes = module[..section.start].to_vec();
        all.append_to(&mut bytes);
        bytes.extend_from_slice(&module[section.end..]);
        let shift = i64::try_from(bytes.len()).ok()? - i64::try_from(module.len()).ok()?;
        Some(Self { bytes, shift })
    }
}

/// What matters of a module that is portable.
struct Parts<'a> {
    exports: Vec<Export<'a>>,
    /// Where they are, with the number and the size of their section.
    section: Range<usize>,
    /// Globals that can change.
    mutable: Vec<u32>,
}

impl<'a> Parts<'a> {
    fn of(module: &'a [u8]) -> wasmparser::Result<Option<Self>> {
        let (mut exports, mut section, mut mutable) = (Vec::new(), 0..0, Vec::new());
        // Where the last section ended.
        let mut end = 0;
        for payload in Parser::new(0).parse_all(module) {
            let payload = payload?;
            let goes = match &payload {
                Payload::Version { range, .. } => {
                    end = range.end;
                    true
                }
                // What is imported would count with what is defined; no such module loads.
                Payload::ImportSection(imports) => {
                    let mut all = imports.clone().into_imports();
                    all.all(|import| {
                        import.is_ok_and(|import| matches!(import.ty, wasmparser::TypeRef::Func(_)))
                    })
                }
                Payload::MemorySection(memories) => one_of_its_own(memories)?,
                Payload::GlobalSection(globals) => match numbers(globals)? {
                    Some(found) => {
                        mutable = found;
                        true
                    }
                    None => false,
                },
                Payload::ExportSection(all) if all.count() > MAX_ENTRIES => false,
                Payload::ExportSection(all) => {
                    section = end..all.range().end;
                    exports = all.clone().into_iter().collect::<Result<_, _>>()?;
                    true
                }
                Payload::CodeSectionEntry(body) => !changes_more(body)?,
                Payload::StartSection { .. } | Payload::TagSection(_) => false,
                _ => true,
            };
            if !goes {
                return Ok(None);
            }
            if let Some((_, range)) = payload.as_section() {
                end = range.end;
            }
        }
        let memory = |export: &Export<'_>| {
            export.name == MEMORY && matches!(export.kind, ExternalKind::Memory)
        };
        let taken = exports.iter().any(|export| export.name.starts_with(PREFIX));
        let portable = exports.iter().any(memory) && !taken;
        Ok(portable.then_some(Self {
            exports,
            section,
            mutable,
        }))
    }
}

fn one_of_its_own(memories: &MemorySectionReader<'_>) -> wasmparser::Result<bool> {
    let shared = memories.clone().into_iter();
    let shared = shared.map(|memory| Ok(memory?.shared));
    Ok(shared.collect::<wasmparser::Result<Vec<_>>>()? == [false])
}

/// Those that can change; `None` where one of them is no number, or there are too many.
fn numbers(globals: &GlobalSectionReader<'_>) -> wasmparser::Result<Option<Vec<u32>>> {
    if globals.count() > MAX_ENTRIES {
        return Ok(None);
    }
    let mut mutable = Vec::new();
    for (number, global) in (0..).zip(globals.clone()) {
        let ty = global?.ty;
        if ty.mutable {
            if matches!(ty.content_type, ValType::Ref(_)) {
                return Ok(None);
            }
            mutable.push(number);
        }
    }
    Ok(Some(mutable))
}

/// True where the function changes tables or segments.
fn changes_more(body: &FunctionBody<'_>) -> wasmparser::Result<bool> {
    let mut operators = body.get_operators_reader()?;
    while !operators.eof() {
        match operators.read()? {
            Operator::TableSet { .. }
            | Operator::TableGrow { .. }
            | Operator::TableFill { .. }
            | Operator::TableCopy { .. }
            | Operator::TableInit { .. }
            | Operator::TableAtomicSet { .. }
            | Operator::TableAtomicRmwXchg { .. }
            | Operator::TableAtomicRmwCmpxchg { .. }
            | Operator::ElemDrop { .. }
            | Operator::DataDrop { .. } => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

/// Makes `new`, in which nothing has run, what `old` is: both are of one portable module, of whatever tier. Takes as long
/// as it takes to copy what the guest has written to.
///
/// # Errors
/// Where there is no room for the memory, or they are of two modules. The old instance is as it was.
pub(super) fn move_state<T>(
    (old_store, old): (&mut Store<T>, &Instance),
    (new_store, new): (&mut Store<T>, &Instance),
) -> wasmtime::Result<()> {
    let memory = |instance: &Instance, store: &mut Store<T>| -> wasmtime::Result<Memory> {
        let memory = instance.get_memory(store.as_context_mut(), MEMORY);
        memory.ok_or_else(|| wasmtime::format_err!("no memory"))
    };
    let (from, to) = (memory(old, old_store)?, memory(new, new_store)?);
    let exports = old.exports(&mut *old_store);
    let exports = exports
        .filter(|export| export.name().starts_with(PREFIX))
        .map(|export| (export.name().to_owned(), export.into_extern()));
    let globals = exports.collect::<Vec<_>>().into_iter();
    let globals =
        globals.map(
            |(name, from)| match (from, new.get_global(&mut *new_store, &name)) {
                (Extern::Global(from), Some(to)) => Ok((from, to)),
                _ => Err(wasmtime::format_err!("no {name}")),
            },
        );
    let globals = globals.collect::<wasmtime::Result<Vec<_>>>()?;
    let grown = from.size(&*old_store).checked_sub(to.size(&*new_store));
    let grown = grown.ok_or_else(|| wasmtime::format_err!("a larger memory"))?;
    let fresh = to.data_size(&*new_store);
    to.grow(&mut *new_store, grown)?;
    copy(from.data(&*old_store), to.data_mut(&mut *new_store), fresh);
    for (from, to) in globals {
        let value = from.get(&mut *old_store);
        to.set(&mut *new_store, value)?;
    }
    Ok(())
}

/// Copies what differs, page by page, so that pages that nobody wrote to are nobody's still. What `to` has beyond its
/// first `fresh` bytes is zero.
fn copy(from: &[u8], to: &mut [u8], fresh: usize) {
    let pages = from.chunks(PAGE).zip(to.chunks_mut(PAGE));
    for (number, (from, to)) in pages.enumerate() {
        let same = match number * PAGE < fresh {
            true => *from == *to,
            false => *from == EMPTY[..from.len()],
        };
        if !same {
            to.copy_from_slice(from);
        }
    }
}

#[cfg(test)]
#[path = "portable/tests.rs"]
mod tests;
