//! Serialized maps of headers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plenipo::wasm::fuzzing::pairs(data));
