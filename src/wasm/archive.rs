//! The forms that code comes in: bare, in a tar, and either of them compressed with gzip, one within another, as Istio's agent
//! takes it, or with zstd, as newer builders of images do.
//!
//! No more than [`MAX_CODE`] bytes come out, whatever goes in, and nothing beyond that is decompressed. Which form it
//! is, the first bytes say; the sum of a source is that of the bytes as they came.
//!
//! The tar reader is ours: all that is asked of it is to step over 512-byte headers of an archive in memory, which is
//! less than the binding of a library that is made for unpacking to a file system.

use std::borrow::Cow;
use std::fmt;
use std::io::Read as _;
use std::ops::Range;

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use super::module::{LoadError, MAX_CODE};

const MODULE: &[u8] = b"\0asm";
const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
/// The window that every decoder should have room for (RFC 8878, section 3.1.1.1.2).
const LEAST_WINDOW: u64 = 8 << 20;
/// Headers and contents of a tar are padded to this.
const BLOCK: usize = 512;

/// Forms within one another, at most.
const MAX_FORMS: usize = 5;

/// What images call their module.
const IN_IMAGES: &[u8] = b"plugin.wasm";

/// The module in `bytes`. Decompression takes a while: call it on a blocking thread.
///
/// # Errors
/// Where there is none, or what it is packed in is broken or too large.
pub(crate) fn unpack(bytes: &[u8]) -> Result<Cow<'_, [u8]>, LoadError> {
    unpack_within(bytes, MAX_CODE, None)
}

/// The module in a layer of an image: `plugin.wasm`, in whatever folder, or else the first that there is. Call it on a
/// blocking thread.
///
/// # Errors
/// As [`unpack`].
pub(crate) fn unpack_layer(bytes: &[u8]) -> Result<Cow<'_, [u8]>, LoadError> {
    unpack_within(bytes, MAX_CODE, Some(IN_IMAGES))
}

fn unpack_within<'a>(
    bytes: &'a [u8],
    limit: usize,
    preferred: Option<&[u8]>,
) -> Result<Cow<'a, [u8]>, LoadError> {
    let mut content = Cow::Borrowed(bytes);
    let mut forms = 0;
    while !content.starts_with(MODULE) {
        if forms == MAX_FORMS {
            let deep = format!("more than {MAX_FORMS} archives within one another");
            return Err(LoadError::Archive(deep));
        }
        forms += 1;
        content = if content.starts_with(GZIP) {
            Cow::Owned(gunzip(&content, limit)?)
        } else if content.starts_with(ZSTD) {
            Cow::Owned(unzstd(&content, limit)?)
        } else {
            let found = find(&content, preferred)?;
            match content {
                Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[found]),
                Cow::Owned(mut plain) => {
                    plain.truncate(found.end);
                    plain.drain(..found.start);
                    Cow::Owned(plain)
                }
            }
        };
    }
    Ok(content)
}

fn gunzip(bytes: &[u8], limit: usize) -> Result<Vec<u8>, LoadError> {
    // The last four bytes tell how much comes out, mostly: growing step by step would hold it twice. Room that is not of
    // use is never touched.
    let told = bytes
        .last_chunk()
        .map_or(0, |told| u32::from_le_bytes(*told));
    let mut plain = Vec::with_capacity((told as usize).min(limit) + 64);
    MultiGzDecoder::new(bytes)
        .take(limit as u64 + 1)
        .read_to_end(&mut plain)
        .map_err(|error| LoadError::Archive(format!("broken gzip: {error}")))?;
    within(plain, limit, "gzip")
}

/// A file of zstd: frames one behind the other, some of which hold what is not for us.
fn unzstd(mut bytes: &[u8], limit: usize) -> Result<Vec<u8>, LoadError> {
    let broken = |error: &dyn fmt::Display| LoadError::Archive(format!("broken zstd: {error}"));
    let mut decoder = FrameDecoder::new();
    // A window is memory too, and of no use beyond what may come out.
    decoder.set_max_window_size((limit as u64).max(LEAST_WINDOW));
    let mut plain = Vec::new();
    while !bytes.is_empty() && plain.len() <= limit {
        if let [0x50..=0x5f, 0x2a, 0x4d, 0x18, a, b, c, d, rest @ ..] = bytes {
            let len = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
            let cut = || broken(&"it ends within a frame");
            bytes = rest.get(len..).ok_or_else(cut)?;
            continue;
        }
        let left = (limit - plain.len()) as u64 + 1;
        let frame = StreamingDecoder::new_with_decoder(&mut bytes, &mut decoder);
        let mut frame = frame.map_err(|error| broken(&error))?;
        let came = (&mut frame).take(left).read_to_end(&mut plain);
        came.map_err(|error| broken(&error))?;
        let (told, found) = (
            frame.decoder.get_checksum_from_data(),
            frame.decoder.get_calculated_checksum(),
        );
        if plain.len() <= limit && told.is_some() && told != found {
            return Err(broken(&"a checksum is wrong"));
        }
    }
    within(plain, limit, "zstd")
}

fn within(plain: Vec<u8>, limit: usize, form: &str) -> Result<Vec<u8>, LoadError> {
    if plain.len() <= limit {
        return Ok(plain);
    }
    Err(LoadError::Archive(format!(
        "more than {limit} bytes come out of its {form}"
    )))
}

/// Where in the tar `plain` the module is: the file of the name `preferred`, if there is one that is a module, or else the
/// first module, or else the first file that is compressed.
fn find(plain: &[u8], preferred: Option<&[u8]>) -> Result<Range<usize>, LoadError> {
    let broken = |what: &str| LoadError::Archive(format!("broken tar: {what}"));
    let mut at = 0;
    let (mut first, mut packed) = (None, None);
    // A name that is too long for its header comes before that.
    let mut long_name = None;
    // Two blocks of zeros end a tar; one, or the end of the bytes, will do.
    while let Some(header) = plain
        .get(at..)
        .and_then(|rest| rest.first_chunk::<BLOCK>())
        .filter(|header| header.iter().any(|byte| *byte != 0))
    {
        if !has_checksum(header) {
            // What does not even begin as a tar is no tar.
            return Err(match at {
                0 => LoadError::NotWasm,
                _ => broken("a header's checksum is wrong"),
            });
        }
        let size = octal(&header[124..136]).ok_or_else(|| broken("a size is not a number"))?;
        let begin = at + BLOCK;
        let end = begin
            .checked_add(size)
            .filter(|end| *end <= plain.len())
            .ok_or_else(|| broken("it ends within a file"))?;
        let content = &plain[begin..end];
        match header[156] {
            // `0`, and NUL in archives of old, are regular files.
            b'0' | 0 => {
                let name = long_name.take().unwrap_or(&header[..100]);
                let name = name.split(|byte| *byte == 0).next();
                let name = name.and_then(|name| name.rsplit(|byte| *byte == b'/').next());
                let is_it = preferred.is_some() && name == preferred;
                if content.starts_with(MODULE) {
                    if is_it || preferred.is_none() {
                        return Ok(begin..end);
                    }
                    first.get_or_insert(begin..end);
                } else if content.starts_with(GZIP) || content.starts_with(ZSTD) {
                    if is_it {
                        packed = Some(begin..end);
                    }
                    packed.get_or_insert(begin..end);
                }
            }
            b'L' => long_name = Some(content),
            b'x' => long_name = pax_path(content),
            _ => long_name = None,
        }
        at = end.next_multiple_of(BLOCK);
    }
    first.or(packed).ok_or_else(|| match at {
        0 => LoadError::NotWasm,
        _ => LoadError::Archive("no file of its tar is a WebAssembly module".to_owned()),
    })
}

/// The `path` among the records of an extended header: each is its own length, a space, `key=value` and a line's end.
fn pax_path(mut records: &[u8]) -> Option<&[u8]> {
    let mut path = None;
    while let Some(space) = records.iter().position(|byte| *byte == b' ') {
        let len = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
        let (record, rest) = records.split_at_checked(len)?;
        let record = record.get(space + 1..)?;
        if let Some(value) = record.strip_prefix(b"path=") {
            path = Some(value.strip_suffix(b"\n").unwrap_or(value));
        }
        records = rest;
    }
    path
}

/// The sum of the header's bytes, its own field taken as spaces, is what that field says.
fn has_checksum(header: &[u8; BLOCK]) -> bool {
    let field = 148..156;
    let sum: usize = header
        .iter()
        .enumerate()
        .map(|(index, byte)| usize::from(if field.contains(&index) { b' ' } else { *byte }))
        .sum();
    octal(&header[field]) == Some(sum)
}

/// Octal digits between spaces and NULs. The binary form, of 8 GiB and more, is beyond any limit here.
fn octal(field: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(field).ok()?;
    usize::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok()
}

/// A tar that holds `module` as images do; equal modules make equal bytes.
pub(crate) fn pack_layer(module: &[u8]) -> Vec<u8> {
    let mut header = [0; BLOCK];
    let mut field = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    field(0, IN_IMAGES);
    // Mode, owner, group, size, time, and spaces where the sum will be.
    field(100, b"0000644\0");
    field(108, b"0000000\0");
    field(116, b"0000000\0");
    field(124, format!("{:011o}\0", module.len()).as_bytes());
    field(136, b"00000000000\0");
    field(148, b"        0");
    field(257, b"ustar\x0000");
    let sum: usize = header.iter().map(|byte| usize::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = [&header[..], module].concat();
    tar.resize(tar.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    tar
}

/// `bytes`, compressed.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    // From memory into memory: neither end can fail.
    let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::default());
    let _ = encoder.read_to_end(&mut packed);
    packed
}

#[cfg(test)]
#[path = "archive/tests.rs"]
mod tests;
