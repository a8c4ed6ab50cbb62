//! Foreign functions: Envoy's, by name.
//!
//! As Envoy, a known function sets the place and length of its result in any case: to zero where there is none. A null
//! pointer to either is none; without one to the place, the result is not handed over.

use std::io::Read as _;

use super::{Fault, Guest, Outcome, Status, allocate, bytes, control, expressions, memory, put};
use super::{properties, put_u32, signatures, state};

/// Longest result of a decompression.
const MAX_UNCOMPRESSED: u64 = 16 << 20;

/// What a function gives: bytes, which may be none, or nothing at all.
type Given = Result<Option<Vec<u8>>, Status>;

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
    let argument = bytes(guest, argument, argument_len)?;
    let given: Given = match name.as_slice() {
        b"compress" => compress(&argument).map(Some),
        b"uncompress" => uncompress(&argument).map(Some),
        b"verify_signature" => signatures::verify(&argument).map(Some),
        b"sign" => signatures::sign(&argument).map(Some),
        b"set_envoy_filter_state" => state::set(guest, &argument).map(|()| None),
        b"clear_route_cache" => {
            control::clear_route_cache(guest)?;
            Ok(None)
        }
        b"declare_property" => properties::declare(guest, &argument).map(|()| None),
        b"expr_create" => expressions::create(guest, &argument).map(Some),
        b"expr_evaluate" => expressions::evaluate(guest, &argument).map(Some),
        b"expr_delete" => expressions::delete(guest, &argument).map(|()| None),
        _ => return Err(Status::NotFound.into()),
    };
    let (result, outcome) = match given {
        Ok(result) => (result, Ok(())),
        Err(status) => (None, Err(status.into())),
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

fn compress(data: &[u8]) -> Result<Vec<u8>, Status> {
    let mut out = Vec::new();
    flate2::read::ZlibEncoder::new(data, flate2::Compression::default())
        .read_to_end(&mut out)
        .map_err(|_| Status::SerializationFailure)?;
    Ok(out)
}

fn uncompress(data: &[u8]) -> Result<Vec<u8>, Status> {
    let mut out = Vec::new();
    let read = flate2::read::ZlibDecoder::new(data)
        .take(MAX_UNCOMPRESSED + 1)
        .read_to_end(&mut out)
        .map_err(|_| Status::SerializationFailure)?;
    // Nothing is no stream.
    if data.is_empty() || read as u64 > MAX_UNCOMPRESSED {
        return Err(Status::SerializationFailure);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zlib_there_and_back_within_bounds() {
        let data = b"abcabcabc".repeat(100);
        let compressed = compress(&data).expect("in memory");
        assert!(compressed.len() < data.len());
        assert_eq!(uncompress(&compressed), Ok(data));
        let nothing = compress(b"").expect("in memory");
        assert_eq!(uncompress(&nothing), Ok(Vec::new()));
        for bad in [&b"no zlib"[..], b"", &compressed[..compressed.len() - 1]] {
            assert_eq!(uncompress(bad), Err(Status::SerializationFailure));
        }
        let bomb = compress(&vec![0; 17 << 20]).expect("in memory");
        assert_eq!(uncompress(&bomb), Err(Status::SerializationFailure));
    }
}
