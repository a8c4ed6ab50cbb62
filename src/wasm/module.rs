//! From bytes to a compiled module: magic, ABI marker, compilation, and the cache of compiled code.
//!
//! The cache is a [`PrivateFolder`] whose entries are sealed: native code is run only if this host wrote it. An entry is
//! named by the sum of the code and of the compiler's settings.

use std::hash::{Hash as _, Hasher as _};
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use wasmtime::{Engine, ExternType};

use super::archive;
use super::disk::{PrivateFolder, Seal};
use super::spec::Digest;
pub(crate) use super::spec::MAX_CODE;
use crate::base::file::read_regular;

/// A version of the ABI, by the module's marker export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abi {
    V0_1_0,
    V0_2_0,
    V0_2_1,
}

impl Abi {
    /// As `/wasm` prints it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_2_1 => "0.2.1",
        }
    }
}

/// A compiled module that is larger, in bytes, is none of ours.
const MAX_COMPILED: u64 = 16 * MAX_CODE as u64;

/// Compiled entries kept on disk, unless the settings say otherwise; the least recently used go.
const MAX_ENTRIES: usize = 64;

/// Why code is not a module that can run here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// It does not begin as a WebAssembly module does.
    #[error("Failed to load Wasm module: not a WebAssembly module")]
    NotWasm,
    /// What it is packed in is broken or too large, or holds no module.
    #[error("Failed to load Wasm module: {0}")]
    Archive(String),
    /// It is too large.
    #[error("Failed to load Wasm module: {0} bytes are more than the limit of {MAX_CODE}")]
    TooLarge(usize),
    /// It has no marker, or one of a version that does not exist.
    #[error("Missing or unknown Proxy-Wasm ABI version")]
    UnknownAbi,
    /// It does not validate or compile.
    #[error("Failed to load Wasm module: {0:#}")]
    Compile(wasmtime::Error),
    /// A callback has another type than the ABI's.
    #[error("Bad function signature for: {0}")]
    BadSignature(String),
    /// An import that is not a function, or has another type than the ABI's.
    #[error("Failed to load Wasm module due to a bad import: {0}")]
    BadImport(String),
    /// It exports neither `malloc` nor `proxy_on_memory_allocate`.
    #[error("Wasm module is missing malloc function.")]
    NoAllocator,
    /// It needs more than a VM may have, or its start traps.
    #[error("Failed to initialize Wasm code: {0}")]
    Start(String),
    /// `on_vm_start` returned false.
    #[error("Failed to start the Wasm VM: proxy_on_vm_start returned false")]
    VmStart,
    /// `on_configure` returned false.
    #[error("Failed to configure the Wasm plugin: proxy_on_configure returned false")]
    Configure,
    /// A callback trapped while the plugin was being configured.
    #[error("Failed to configure the Wasm plugin: {0}")]
    Trap(String),
}

/// A compiled module.
#[derive(Clone, Debug)]
pub(crate) struct Module {
    pub(crate) digest: Digest,
    pub(crate) abi: Abi,
    pub(crate) code: wasmtime::Module,
    /// `None`: it came from the cache.
    pub(crate) compile_time: Option<Duration>,
}

impl Module {
    /// The compiled form in `cache`. Reads a file: call it on a blocking thread.
    pub(crate) fn cached(engine: &Engine, digest: Digest, cache: &Cache) -> Option<Self> {
        let code = cache.load(engine, digest)?;
        let abi = abi(&code).ok()?;
        Some(Self {
            digest,
            abi,
            code,
            compile_time: None,
        })
    }

    /// Compiles `bytes`, packed or not, and keeps the result in `cache`. Takes long: call it on a blocking thread.
    pub(crate) fn compile(
        engine: &Engine,
        bytes: &[u8],
        digest: Digest,
        cache: Option<&Cache>,
    ) -> Result<Self, LoadError> {
        if bytes.len() > MAX_CODE {
            return Err(LoadError::TooLarge(bytes.len()));
        }
        let bytes = &*archive::unpack(bytes)?;
        // Version 1 of the binary format, layer 0: no component, no text.
        if !bytes.starts_with(b"\0asm\x01\0\0\0") {
            return Err(LoadError::NotWasm);
        }
        let begin = Instant::now();
        let code = wasmtime::Module::from_binary(engine, bytes).map_err(LoadError::Compile)?;
        let compile_time = Some(begin.elapsed());
        let abi = abi(&code)?;
        if let Some(cache) = cache {
            cache.store(&code, digest);
        }
        Ok(Self {
            digest,
            abi,
            code,
            compile_time,
        })
    }
}

fn abi(code: &wasmtime::Module) -> Result<Abi, LoadError> {
    code.exports()
        .filter(|export| matches!(export.ty(), ExternType::Func(_)))
        .find_map(|export| match export.name() {
            "proxy_abi_version_0_1_0" => Some(Abi::V0_1_0),
            "proxy_abi_version_0_2_0" => Some(Abi::V0_2_0),
            "proxy_abi_version_0_2_1" => Some(Abi::V0_2_1),
            _ => None,
        })
        .ok_or(LoadError::UnknownAbi)
}

/// The folder of compiled modules.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PrivateFolder,
    engine_hash: u64,
    max_entries: usize,
}

const MAGIC: &[u8; 8] = b"plenipo\x01";

impl Cache {
    /// Opens or makes the folder.
    pub(crate) fn open(folder: &Path, engine: &Engine) -> std::io::Result<Self> {
        let mut hasher = std::hash::DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Ok(Self {
            folder: PrivateFolder::open(folder)?,
            engine_hash: hasher.finish(),
            max_entries: MAX_ENTRIES,
        })
    }

    /// With room for so many entries.
    pub(crate) fn keeping(mut self, entries: usize) -> Self {
        self.max_entries = entries;
        self
    }

    fn name(&self, digest: Digest) -> String {
        format!("{digest}-{:016x}.cwasm", self.engine_hash)
    }

    /// Over what the entry is and holds.
    fn seal(&self, digest: Digest, body: &[u8]) -> Seal {
        let engine = self.engine_hash.to_le_bytes();
        self.folder.seal(&[MAGIC, &digest.0, &engine, body])
    }

    fn load(&self, engine: &Engine, digest: Digest) -> Option<wasmtime::Module> {
        let path = self.folder.path(&self.name(digest));
        let entry = read_regular(&path, MAX_COMPILED).ok()?;
        let body = entry
            .strip_prefix(MAGIC)
            .and_then(|rest| rest.split_at_checked(32))
            .filter(|(seal, body)| self.seal(digest, body).is(seal))
            .map(|(_, body)| body);
        let Some(body) = body else {
            tracing::warn!(target: "wasm", "{} is not an entry of ours; it is removed", path.display());
            let _ = std::fs::remove_file(&path);
            return None;
        };
        #[allow(
            unsafe_code,
            reason = "deserialize runs native code from bytes: these were just proven, by a MAC under a key that only \
                      this user can read, to have been written by `store`, for this digest and these compiler settings"
        )]
        // SAFETY: see the reason above; `body` is what `Module::serialize` of an equally configured engine returned.
        let module = unsafe { wasmtime::Module::deserialize(engine, body) };
        match module {
            Ok(module) => {
                super::disk::touch(&path);
                Some(module)
            }
            Err(error) => {
                tracing::warn!(target: "wasm", "{}: {error:#}; it is removed", path.display());
                let _ = std::fs::remove_file(&path);
                None
            }
        }
    }

    /// Keeps a compiled module; failing to is no failure.
    fn store(&self, code: &wasmtime::Module, digest: Digest) {
        if let Err(error) = self.try_store(code, digest) {
            tracing::warn!(target: "wasm", "cannot keep a compiled module in {}: {error:#}", self.folder.shown());
        }
    }

    fn try_store(&self, code: &wasmtime::Module, digest: Digest) -> Result<(), anyhow::Error> {
        let body = code
            .serialize()
            .map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let seal = self.seal(digest, &body);
        self.folder
            .write(&self.name(digest), &[MAGIC, &seal.0, &body])?;
        self.evict();
        Ok(())
    }

    /// Removes the least recently used entries beyond the bound.
    fn evict(&self) {
        let entries = self.folder.entries("cwasm");
        let surplus = entries.len().saturating_sub(self.max_entries);
        for entry in &entries[..surplus] {
            let _ = std::fs::remove_file(&entry.path);
        }
    }
}

#[cfg(test)]
#[path = "module/tests.rs"]
mod tests;
