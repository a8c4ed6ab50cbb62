//! Sequences of host functions with any arguments.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plenipo::wasm::fuzzing::hostcalls(data));
