//! Proxy-Wasm host; the only importer of wasmtime.
