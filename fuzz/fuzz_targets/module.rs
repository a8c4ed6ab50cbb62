//! Files of code: packed, damaged, hostile.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plenipo::wasm::fuzzing::module(data));
