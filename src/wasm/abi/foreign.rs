//! Foreign functions: Envoy's, by name.
//!
//! As Envoy, a known function sets the place and length of its result in any case: to zero where there is none. A null
//! pointer to either is none; without one to the place, the result is not handed over.
//!
//! What takes long is counted: no deadline interrupts the host, so it ends the guest itself when its budget is spent.

use std::io::{Read as _, Write as _};

use super::{Fault, Guest, Outcome, Status, allocate, bytes, control, expressions, memory, put};
use super::{properties, put_u32, range, signatures, state, write_log};

/// Longest argument: what is compressed, or signed.
const MAX_ARGUMENT: usize = 16 << 20;
/// Longest result of a decompression.
const MAX_UNCOMPRESSED: usize = 16 << 20;
/// So much is (un)compressed between two looks at the budget: a few milliseconds.
const STEP: usize = 128 << 10;
/// The signature of a text is worth a look at the budget where its argument is longer.
const LONG: usize = 64 << 10;

/// What a function gives: bytes, which may be none, or nothing at all.
type Given = Result<Option<Vec<u8>>, Fault>;

pub(super) fn call(
    guest: &mut Guest<'_>,
    name: u32,
    name_len: u32,
    argument: u32,
    argument_len: u32,
    at_out: u32,
    len_out: u32,
) -> Outcome {
    let name = bytes(guest, name, name_len)?;
    let memory = memory(guest)?;
    let argument = range(memory.data(&*guest), argument, argument_len)?;
    let too_long = argument.len() > MAX_ARGUMENT;
    let argument = if too_long {
        Vec::new()
    } else {
        argument.to_vec()
    };
    let given: Given = match name.as_slice() {
        _ if too_long => Err(refuse(guest, &name, argument_len)),
        b"compress" => compress(&argument, || look(guest)).map(Some),
        b"uncompress" => uncompress(&argument, || look(guest)).map(Some),
        b"verify_signature" => {
            // Less text is verified in less than a tick, whatever the key.
            let long = argument.len() > LONG;
            counted(guest, long, || signatures::verify(&argument)).map(Some)
        }
        b"sign" => counted(guest, true, || signatures::sign(&argument)).map(Some),
        b"set_envoy_filter_state" => none(state::set(guest, &argument)),
        b"clear_route_cache" => {
            control::clear_route_cache(guest)?;
            Ok(None)
        }
        b"declare_property" => none(properties::declare(guest, &argument)),
        b"expr_create" => some(expressions::create(guest, &argument)),
        b"expr_evaluate" => some(expressions::evaluate(guest, &argument)),
        b"expr_delete" => none(expressions::delete(guest, &argument)),
        _ => return Err(Status::NotFound.into()),
    };
    let (result, outcome) = match given {
        Ok(result) => (result, Ok(())),
        Err(Fault::Status(status)) => (None, Err(status.into())),
        Err(trap) => return Err(trap),
    };
    let len = result.as_ref().map_or(0, Vec::len);
    if at_out != 0 {
        let at = match &result {
            Some(result) => block(guest, result)?,
            None => 0,
        };
        put_u32(guest, at_out, at)?;
    }
    if len_out != 0 {
        let len = u32::try_from(len).map_err(|_| Status::InvalidMemoryAccess)?;
        put_u32(guest, len_out, len)?;
    }
    outcome
}

fn some(result: Result<Vec<u8>, Status>) -> Given {
    Ok(Some(result?))
}

fn none(result: Result<(), Status>) -> Given {
    result?;
    Ok(None)
}

#[cold]
fn refuse(guest: &mut Guest<'_>, name: &[u8], len: u32) -> Fault {
    let name = String::from_utf8_lossy(&name[..name.len().min(64)]);
    let reason = format!("{name}: an argument of {len} bytes is more than {MAX_ARGUMENT}");
    write_log(guest.data_mut(), 3, &reason);
    Status::InternalFailure.into()
}

/// Counts what the host computes for the guest from the first call on, and ends the guest as a deadline does where its
/// time is over.
fn look(guest: &mut Guest<'_>) -> Result<(), Fault> {
    let budget = &mut guest.data_mut().budget;
    budget.count();
    if budget.is_left() {
        return Ok(());
    }
    Err(Fault::Trap(wasmtime::Trap::Interrupt.into()))
}

/// As [`look`] before and after `work`, where that is long.
fn counted(
    guest: &mut Guest<'_>,
    long: bool,
    work: impl FnOnce() -> Result<Vec<u8>, Status>,
) -> Result<Vec<u8>, Fault> {
    if !long {
        return Ok(work()?);
    }
    look(guest)?;
    let result = work();
    look(guest)?;
    Ok(result?)
}

/// A block of the guest's with `data` in it. An empty result is a block of no bytes.
fn block(guest: &mut Guest<'_>, data: &[u8]) -> Result<u32, Fault> {
    let len = u32::try_from(data.len()).map_err(|_| Status::InvalidMemoryAccess)?;
    let at = match allocate(guest, len) {
        Err(Fault::Status(_)) if data.is_empty() => return Ok(0),
        at => at?,
    };
    let memory = memory(guest)?;
    put(memory.data_mut(&mut *guest), at, data)?;
    Ok(at)
}

/// `look` is asked after each [`STEP`].
fn compress(data: &[u8], mut look: impl FnMut() -> Result<(), Fault>) -> Result<Vec<u8>, Fault> {
    let failed = |_| Status::SerializationFailure;
    let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    let mut steps = data.chunks(STEP);
    if let Some(first) = steps.next() {
        out.write_all(first).map_err(failed)?;
    }
    for step in steps {
        look()?;
        out.write_all(step).map_err(failed)?;
    }
    Ok(out.finish().map_err(failed)?)
}

/// As [`compress`].
fn uncompress(data: &[u8], mut look: impl FnMut() -> Result<(), Fault>) -> Result<Vec<u8>, Fault> {
    let mut source = flate2::read::ZlibDecoder::new(data);
    let mut out = Vec::new();
    loop {
        let step = source.by_ref().take(STEP as u64).read_to_end(&mut out);
        let step = step.map_err(|_| Status::SerializationFailure)?;
        // Nothing is no stream.
        if data.is_empty() || out.len() > MAX_UNCOMPRESSED {
            return Err(Status::SerializationFailure.into());
        }
        if step < STEP {
            return Ok(out);
        }
        look()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zlib_there_and_back_within_bounds() {
        let status = |result: Result<Vec<u8>, Fault>| {
            result.map_err(|fault| match fault {
                Fault::Status(status) => status,
                Fault::Trap(trap) => panic!("{trap}"),
            })
        };
        let compress = |data: &[u8]| status(compress(data, || Ok(()))).expect("in memory");
        let uncompress = |data: &[u8]| status(uncompress(data, || Ok(())));
        for times in [0, 100, STEP] {
            let data = b"abcabcabc".repeat(times);
            let compressed = compress(&data);
            assert!(times == 0 || compressed.len() < data.len());
            assert_eq!(uncompress(&compressed), Ok(data));
            for bad in [&b"no zlib"[..], b"", &compressed[..compressed.len() - 1]] {
                assert_eq!(uncompress(bad), Err(Status::SerializationFailure));
            }
        }
        assert_eq!(
            uncompress(&compress(&vec![0; STEP])).map(|data| data.len()),
            Ok(STEP)
        );
        let whole = compress(&vec![0; MAX_UNCOMPRESSED]);
        assert_eq!(
            uncompress(&whole).map(|data| data.len()),
            Ok(MAX_UNCOMPRESSED)
        );
        let bomb = compress(&vec![0; MAX_UNCOMPRESSED + 1]);
        assert_eq!(uncompress(&bomb), Err(Status::SerializationFailure));
    }

    #[test]
    fn work_ends_where_the_budget_does() {
        for made in [
            compress(&vec![0; 4 * STEP], || Err(Status::Empty.into())),
            uncompress(
                &compress(&vec![0; 4 * STEP], || Ok(())).unwrap_or_default(),
                || Err(Status::Empty.into()),
            ),
        ] {
            assert!(matches!(made, Err(Fault::Status(Status::Empty))));
        }
    }
}
