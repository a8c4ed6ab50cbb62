//! The host functions of Proxy-Wasm 0.1.0, 0.2.0 and 0.2.1, by group, and what they have in common.
//!
//! Statuses and side effects are Envoy's. Every function copes with any arguments: a range outside the guest's memory
//! is [`Status::InvalidMemoryAccess`]. Data goes to the guest in blocks that its own allocator gives; while that runs,
//! nearly all host functions are out of bounds, and calling one traps.

mod attributes;
pub(crate) mod buffers;
pub(crate) mod calls;
mod control;
pub(crate) mod dns;
pub(crate) mod expressions;
mod foreign;
pub(crate) mod grpc;
mod headers;
mod link;
mod log;
pub(crate) mod metrics;
pub(crate) mod names;
pub(crate) mod pairs;
pub(crate) mod properties;
mod shared;
mod signatures;
mod state;
mod timers;
mod wasi;

use wasmtime::{Caller, Memory};

use super::context::{Host, Phase};

pub(crate) use control::invalid_request_reply;
pub(crate) use headers::{byte_size, count};
pub(crate) use link::{Imports, linker};
pub(crate) use log::write_log;

/// `WasmResult`: what a host function returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(
    dead_code,
    reason = "the whole enumeration, though not every value is returned yet"
)]
pub(crate) enum Status {
    /// Done.
    Ok = 0,
    /// No such thing.
    NotFound = 1,
    /// An argument makes no sense, or not now.
    BadArgument = 2,
    /// The value has no serialized form.
    SerializationFailure = 3,
    /// An argument does not parse.
    ParseFailure = 4,
    /// A range outside the guest's memory, or its allocator failed.
    InvalidMemoryAccess = 6,
    /// The queue is empty.
    Empty = 7,
    /// Somebody else wrote first.
    CasMismatch = 8,
    /// Refused: a limit, or a capability that is not granted.
    InternalFailure = 10,
    /// Not here.
    Unimplemented = 12,
}

/// The guest that called.
pub(crate) type Guest<'a> = Caller<'a, Host>;

/// What ends a host function early: a status for the guest, or a trap.
pub(crate) enum Fault {
    Status(Status),
    Trap(wasmtime::Error),
}

impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// The result of a host function.
pub(crate) type Outcome = Result<(), Fault>;

/// As the guest sees it.
#[inline]
pub(crate) fn answer(outcome: Outcome) -> wasmtime::Result<u32> {
    match outcome {
        Ok(()) => Ok(Status::Ok as u32),
        Err(Fault::Status(status)) => Ok(status as u32),
        Err(Fault::Trap(error)) => Err(error),
    }
}

/// Traps where host functions are out of bounds.
#[inline]
pub(crate) fn guard(guest: &Guest<'_>, name: &'static str) -> wasmtime::Result<()> {
    if guest.data().phase == Phase::Open {
        return Ok(());
    }
    Err(restricted(name))
}

#[cold]
fn restricted(name: &'static str) -> wasmtime::Error {
    wasmtime::format_err!("{name} is restricted while the module starts or allocates")
}

/// The guest's memory.
#[inline]
pub(crate) fn memory(guest: &mut Guest<'_>) -> Result<Memory, Status> {
    if let Some(memory) = guest.data().memory {
        return Ok(memory);
    }
    // Only while the instance is being made.
    guest
        .get_export("memory")
        .and_then(wasmtime::Extern::into_memory)
        .ok_or(Status::InvalidMemoryAccess)
}

/// A range of `memory`.
#[inline]
pub(crate) fn range(memory: &[u8], at: u32, len: u32) -> Result<&[u8], Status> {
    let at = at as usize;
    memory
        .get(at..at + len as usize)
        .ok_or(Status::InvalidMemoryAccess)
}

/// A copy of a range.
pub(crate) fn bytes(guest: &mut Guest<'_>, at: u32, len: u32) -> Result<Vec<u8>, Status> {
    let memory = memory(guest)?;
    range(memory.data(&*guest), at, len).map(<[u8]>::to_vec)
}

/// Writes little-endian at `at`.
#[inline]
pub(crate) fn put(memory: &mut [u8], at: u32, value: &[u8]) -> Result<(), Status> {
    let at = at as usize;
    memory
        .get_mut(at..at + value.len())
        .ok_or(Status::InvalidMemoryAccess)?
        .copy_from_slice(value);
    Ok(())
}

/// As [`put`], into the guest's memory.
pub(crate) fn put_u32(guest: &mut Guest<'_>, at: u32, value: u32) -> Result<(), Status> {
    let memory = memory(guest)?;
    put(memory.data_mut(&mut *guest), at, &value.to_le_bytes())
}

/// As [`put_u32`].
pub(crate) fn put_u64(guest: &mut Guest<'_>, at: u32, value: u64) -> Result<(), Status> {
    let memory = memory(guest)?;
    put(memory.data_mut(&mut *guest), at, &value.to_le_bytes())
}

/// A block of the guest's allocator.
pub(crate) fn allocate(guest: &mut Guest<'_>, len: u32) -> Result<u32, Fault> {
    let host = guest.data_mut();
    // Taken out, as a copy would count its type. A trap is the end of the VM, and nobody asks again.
    let Some(allocate) = host.allocate.take() else {
        return Err(Fault::Trap(wasmtime::format_err!(
            "the module exports neither malloc nor proxy_on_memory_allocate"
        )));
    };
    let phase = std::mem::replace(&mut host.phase, Phase::Allocate);
    let at = allocate.call(&mut *guest, len).map_err(Fault::Trap)?;
    let host = guest.data_mut();
    host.phase = phase;
    host.allocate = Some(allocate);
    if at == 0 {
        return Err(Status::InvalidMemoryAccess.into());
    }
    Ok(at)
}

/// Hands `data` to the guest: the place of a new block at `at_out`, its length at `len_out`; zeros where it is empty.
pub(crate) fn give(guest: &mut Guest<'_>, data: &[u8], at_out: u32, len_out: u32) -> Outcome {
    give_with(guest, data.len(), at_out, len_out, |_, block| {
        block.copy_from_slice(data);
    })
}

/// As [`give`], of data that `fill` writes into the block.
pub(crate) fn give_with(
    guest: &mut Guest<'_>,
    len: usize,
    at_out: u32,
    len_out: u32,
    fill: impl FnOnce(&mut Host, &mut [u8]),
) -> Outcome {
    let len = u32::try_from(len).map_err(|_| Status::InvalidMemoryAccess)?;
    let at = if len == 0 { 0 } else { allocate(guest, len)? };
    let memory = memory(guest)?;
    let (memory, host) = memory.data_and_store_mut(&mut *guest);
    if len > 0 {
        let block = memory
            .get_mut(at as usize..at as usize + len as usize)
            .ok_or(Status::InvalidMemoryAccess)?;
        fill(host, block);
    }
    put(memory, at_out, &at.to_le_bytes())?;
    put(memory, len_out, &len.to_le_bytes())?;
    Ok(())
}
