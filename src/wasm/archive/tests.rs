//! Tests of `wasm::archive`.

use std::io::Write as _;

use super::*;

const CODE: &[u8] = b"\0asm\x01\0\0\0 and more";

/// [`CODE`] as the `zstd` program compresses it, with its checksum.
const BY_ZSTD: &[u8] = b"(\xb5/\xfd\x04X\x89\x00\x00\x00asm\x01\x00\x00\x00 and more\x018\xc6\x5c";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("into memory");
    encoder.finish().expect("into memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// A member as `tar` writes it.
fn member(kind: u8, size: &str, content: &[u8]) -> Vec<u8> {
    named(b"name", kind, size, content)
}

fn named(name: &[u8], kind: u8, size: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; BLOCK];
    header[..name.len()].copy_from_slice(name);
    header[124..124 + size.len()].copy_from_slice(size.as_bytes());
    header[156] = kind;
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut member = header.to_vec();
    member.extend_from_slice(content);
    member.resize(member.len().next_multiple_of(BLOCK), 0);
    member
}

fn file(content: &[u8]) -> Vec<u8> {
    member(b'0', &format!("{:011o}", content.len()), content)
}

fn error(bytes: &[u8]) -> String {
    unpack_within(bytes, 10_000, None)
        .expect_err("no module")
        .to_string()
}

#[test]
fn every_form_gives_the_module() {
    let directory = member(b'5', "00000000000", b"");
    let link = member(b'2', "00000000000", b"");
    let extended = member(b'x', &format!("{:011o}", CODE.len()), CODE);
    let tar = [
        directory,
        link,
        extended,
        file(b""),
        file(&[b'r'; 600]),
        file(CODE),
        file(b"\0asm another"),
        vec![0; 2 * BLOCK],
    ]
    .concat();
    let halves = [gzip(&CODE[..5]), gzip(&CODE[5..])].concat();
    // What is not for us: a table of contents, as lazy pullers of images have it.
    let table = b"\x50\x2a\x4d\x18\x03\0\0\0toc".to_vec();
    let frames = [zstd(&CODE[..5]), table.clone(), zstd(&CODE[5..]), table].concat();
    for form in [
        CODE.to_vec(),
        gzip(CODE),
        halves,
        tar.clone(),
        gzip(&tar),
        zstd(CODE),
        zstd(&tar),
        frames,
        BY_ZSTD.to_vec(),
        gzip(&gzip(CODE)),
        [file(b"text"), file(&gzip(CODE))].concat(),
        gzip(&file(&zstd(&file(CODE)))),
    ] {
        assert_eq!(unpack(&form).expect("a module"), CODE);
    }
    let old = member(0, &format!("{:o}", CODE.len()), CODE);
    assert_eq!(unpack(&old).expect("no end mark is needed"), CODE);
}

#[test]
fn what_is_no_module_says_so() {
    for bytes in [&b""[..], b"\0as", b"<html>", &[0; 4096], &[b'x'; 4096]] {
        assert!(error(bytes).contains("not a WebAssembly module"));
        assert!(error(&gzip(bytes)).contains("not a WebAssembly module"));
        assert!(error(&zstd(bytes)).contains("not a WebAssembly module"));
    }
    let mut deep = CODE.to_vec();
    for _ in 0..MAX_FORMS {
        deep = gzip(&deep);
    }
    assert_eq!(unpack(&deep).expect("a module"), CODE);
    let deep = gzip(&deep);
    assert!(error(&deep).contains("within one another"));
    let tar = [file(b"text"), vec![0; 2 * BLOCK]].concat();
    assert!(error(&tar).contains("no file of its tar"));
}

#[test]
fn a_bomb_is_left_when_it_is_too_large() {
    let bomb = gzip(&vec![0; 64 << 20]);
    assert!(error(&bomb).contains("more than 10000 bytes come out"));
    let bomb = zstd(&vec![0; 64 << 20]);
    assert!(error(&bomb).contains("more than 10000 bytes come out"));
    let mut large = CODE.to_vec();
    large.resize(10_001, 0);
    for pack in [gzip, zstd] {
        assert!(error(&pack(&large)).contains("more than 10000 bytes come out"));
        let fits = pack(&large[..10_000]);
        let module = unpack_within(&fits, 10_000, None).expect("just fits");
        assert_eq!(module, &large[..10_000]);
    }
    let many = [zstd(&large[..6000]), zstd(&large[6000..])].concat();
    assert!(error(&many).contains("more than 10000 bytes come out"));
    // Sizes that the archive does not have, or that no archive has.
    for size in ["00000010000", "77777777777"] {
        assert!(error(&member(b'0', size, CODE)).contains("ends within a file"));
    }
    for size in ["\u{7f}9", "-1", ""] {
        assert!(error(&member(b'0', size, CODE)).contains("not a number"));
    }
}

#[test]
fn a_piece_is_not_the_whole() {
    let packed = gzip(CODE);
    for length in 2..packed.len() {
        assert!(error(&packed[..length]).contains("broken gzip"), "{length}");
    }
    let mut flipped = packed;
    let checksum = flipped.len() - 8;
    flipped[checksum] ^= 1;
    assert!(error(&flipped).contains("broken gzip"));
    for length in 4..BY_ZSTD.len() {
        assert!(
            error(&BY_ZSTD[..length]).contains("broken zstd"),
            "{length}"
        );
    }
    let mut flipped = BY_ZSTD.to_vec();
    *flipped.last_mut().expect("some") ^= 1;
    assert!(error(&flipped).contains("broken zstd: a checksum"));
    assert!(error(&[BY_ZSTD, b"\x50\x2a\x4d\x18\x09\0\0\0toc"].concat()).contains("broken zstd"));
    assert!(error(&[BY_ZSTD, b"more"].concat()).contains("broken zstd"));
    let tar = file(CODE);
    assert!(error(&tar[..BLOCK + 4]).contains("ends within a file"));
    let mut second = [file(b"text"), tar].concat();
    second[2 * BLOCK] ^= 1;
    assert!(error(&second).contains("checksum"));
}

#[test]
fn of_a_layer_it_is_the_one_of_the_right_name() {
    let size = format!("{:011o}", CODE.len());
    let other = file(b"\0asm another");
    let ours = named(b"./deep/plugin.wasm", b'0', &size, CODE);
    let longer = named(b"my-plugin.wasm", b'0', &size, CODE);
    let end = vec![0; 2 * BLOCK];
    let layer = gzip(&[other.clone(), ours, end.clone()].concat());
    assert_eq!(unpack_layer(&layer).expect("a module"), CODE);
    // Without one of that name it is the first.
    let layer = [other, longer, end].concat();
    assert_eq!(
        unpack_layer(&layer).expect("a module"),
        &b"\0asm another"[..]
    );
    assert_eq!(unpack_layer(CODE).expect("a module"), CODE);
    // A name that is too long for a header, as GNU's tar and the standard have it; and one that is packed.
    let long = [&b"a/"[..], &[b'b'; 120], b"/plugin.wasm"].concat();
    let other = file(b"\0asm another");
    let ours = named(&long[..100], b'0', &size, CODE);
    let gnu = named(
        b"././@LongLink",
        b'L',
        &format!("{:011o}", long.len()),
        &long,
    );
    let record = [b"144 path=", &long[..], b"\n"].concat();
    assert_eq!(record.len(), 144);
    let pax = named(b"x", b'x', &format!("{:011o}", record.len()), &record);
    for before in [gnu, pax] {
        let layer = [other.clone(), before, ours.clone()].concat();
        assert_eq!(unpack_layer(&layer).expect("a module"), CODE);
    }
    let packed = gzip(CODE);
    let licence = file(&gzip(b"licence"));
    let ours = named(
        b"plugin.wasm",
        b'0',
        &format!("{:011o}", packed.len()),
        &packed,
    );
    assert_eq!(
        unpack_layer(&[licence, ours].concat()).expect("a module"),
        CODE
    );
}

#[test]
fn what_is_packed_for_an_image_is_found_in_it() {
    let tar = pack_layer(CODE);
    assert_eq!(tar, pack_layer(CODE));
    assert_eq!(unpack_layer(&tar).expect("a module"), CODE);
    assert_eq!(unpack_layer(&super::gzip(&tar)).expect("a module"), CODE);
}

#[test]
fn a_window_is_no_larger_than_what_may_come_out() {
    // A frame without its size, of a window of 64 MiB, that holds one block of three bytes.
    let frame = b"\x28\xb5\x2f\xfd\x00\x80\x19\x00\x00abc";
    assert_eq!(unzstd(frame, 64 << 20).expect("it fits"), b"abc");
    let error = unzstd(frame, 1 << 20).expect_err("it does not");
    assert!(error.to_string().contains("broken zstd"), "{error}");
}
