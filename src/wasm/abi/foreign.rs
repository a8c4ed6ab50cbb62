//! Foreign functions: those of Envoy's that need nothing but the stream and zlib.

use std::io::Read as _;

use super::{Guest, Outcome, Status, bytes, control, give, properties};

/// Longest result of a decompression.
const MAX_UNCOMPRESSED: u64 = 16 << 20;

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
    let result = match name.as_slice() {
        b"compress" => compress(&argument)?,
        b"uncompress" => uncompress(&argument)?,
        b"clear_route_cache" => {
            control::clear_route_cache(guest)?;
            Vec::new()
        }
        b"declare_property" => {
            properties::declare(guest, &argument)?;
            Vec::new()
        }
        _ => return Err(Status::NotFound.into()),
    };
    give(guest, &result, at_out, len_out)
}

fn compress(data: &[u8]) -> Result<Vec<u8>, Status> {
    let mut out = Vec::new();
    flate2::read::ZlibEncoder::new(data, flate2::Compression::default())
        .read_to_end(&mut out)
        .map_err(|_| Status::InternalFailure)?;
    Ok(out)
}

fn uncompress(data: &[u8]) -> Result<Vec<u8>, Status> {
    let mut out = Vec::new();
    let read = flate2::read::ZlibDecoder::new(data)
        .take(MAX_UNCOMPRESSED + 1)
        .read_to_end(&mut out)
        .map_err(|_| Status::SerializationFailure)?;
    if read as u64 > MAX_UNCOMPRESSED {
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
        assert_eq!(uncompress(b"no zlib"), Err(Status::SerializationFailure));
        let bomb = compress(&vec![0; 17 << 20]).expect("in memory");
        assert_eq!(uncompress(&bomb), Err(Status::SerializationFailure));
    }
}
