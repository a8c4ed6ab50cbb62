//! From bytes to a compiled module: magic, ABI marker, compilation, and the cache of compiled code.
//!
//! The cache is a [`PrivateFolder`] whose entries are sealed: native code is run only if this host wrote it. An entry is
//! named by the sum of the code, of the compiler's settings, and the tier.

use std::hash::{Hash as _, Hasher as _};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use wasmtime::{Engine, ExternType};

use super::disk::{Entry, PrivateFolder, Seal, with_room};
use super::engine::Tier;
use super::portable::Portable;
use super::spec::Digest;
pub(crate) use super::spec::MAX_CODE;
use super::{archive, sdk};
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
    /// There are as many VMs as there may be; as others go there will be room.
    #[error("Failed to initialize Wasm code: {0}")]
    NoRoom(String),
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
    /// What it says of its compiler, or gives away.
    pub(crate) sdk: Option<Arc<str>>,
    /// `None`: it came from the cache.
    pub(crate) compile_time: Option<Duration>,
    /// What follows it, where it is of the baseline tier.
    pub(crate) successor: Option<Arc<Successor>>,
    /// How much further down than in what was loaded its functions are, in bytes: to be taken off where a place in them is
    /// told.
    pub(crate) shift: i64,
    /// Shared by its copies: while there is one, its entry on the disk stays.
    held: Arc<()>,
}

/// The optimised form of a module, perhaps still to come.
#[derive(Debug)]
pub(crate) struct Successor {
    /// What it is compiled of, packed or not.
    source: Bytes,
    pub(crate) module: OnceCell<Module>,
}

impl Module {
    /// The optimised form in `cache`. Reads a file: call it on a blocking thread.
    pub(crate) fn cached(engine: &Engine, digest: Digest, cache: &Cache) -> Option<Self> {
        cache.load(engine, digest, Tier::Optimised)
    }

    /// The baseline form in `cache` of `bytes`, packed or not, whose optimised form a process has not lived to see. Reads a
    /// file: call it on a blocking thread.
    pub(crate) fn cached_soon(
        engine: &Engine,
        bytes: &Bytes,
        digest: Digest,
        cache: &Cache,
    ) -> Option<Self> {
        let mut module = cache.load(engine, digest, Tier::Baseline)?;
        module.successor = Some(Successor::of(bytes));
        Some(module)
    }

    /// Compiles `bytes`, packed or not. Takes long: call it on a blocking thread.
    pub(crate) fn compile(
        engine: &Engine,
        bytes: &[u8],
        digest: Digest,
    ) -> Result<Self, LoadError> {
        Self::compile_with(bytes, digest, |unpacked| {
            Compiled::at_once(engine, unpacked)
        })
    }

    /// As [`Module::compile`], but to the baseline tier where the code is, unpacked, at least `from` bytes, and its instances
    /// can go on with other code.
    pub(crate) fn compile_soon(
        engine: &Engine,
        bytes: &Bytes,
        digest: Digest,
        from: usize,
    ) -> Result<Self, LoadError> {
        Self::compile_with(bytes, digest, |unpacked| {
            let large = unpacked.len() >= from;
            let portable = large.then(|| Portable::of(unpacked)).flatten();
            let baseline = portable.and_then(|portable| {
                Some(Compiled {
                    code: compile_to(Tier::Baseline, engine, &portable.bytes).ok()?,
                    successor: Some(Successor::of(bytes)),
                    shift: portable.shift,
                })
            });
            // What is wrong with it is told of the module as it came.
            baseline.map_or_else(|| Compiled::at_once(engine, unpacked), Ok)
        })
    }

    fn compile_with(
        bytes: &[u8],
        digest: Digest,
        compile: impl FnOnce(&[u8]) -> wasmtime::Result<Compiled>,
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
        let Compiled {
            code,
            successor,
            shift,
        } = compile(bytes).map_err(LoadError::Compile)?;
        let compile_time = Some(begin.elapsed());
        let exports = code.exports().map(|export| export.name());
        let sdk = sdk::of(bytes).or_else(|| sdk::guess(exports).map(str::to_owned));
        Ok(Self {
            digest,
            abi: abi(&code)?,
            sdk: sdk.map(Arc::from),
            code,
            compile_time,
            successor,
            shift,
            held: Arc::default(),
        })
    }

    pub(crate) fn tier(&self) -> Tier {
        match self.successor {
            Some(_) => Tier::Baseline,
            None => Tier::Optimised,
        }
    }

    /// Itself, or what follows it where that is there.
    pub(crate) fn best(&self) -> &Self {
        let successor = self.successor.as_ref();
        successor
            .and_then(|successor| successor.module.get())
            .unwrap_or(self)
    }
}

impl Successor {
    /// That of a module of `source`, packed or not.
    fn of(source: &Bytes) -> Arc<Self> {
        Arc::new(Self {
            source: source.clone(),
            module: OnceCell::new(),
        })
    }

    /// Compiles it. Takes long, on the running thread alone.
    pub(crate) fn compile(&self, engine: &Engine, digest: Digest) -> Result<Module, LoadError> {
        Module::compile_with(&self.source, digest, |unpacked| {
            // As it is for whoever has a successor.
            let portable = Portable::of(unpacked)
                .ok_or_else(|| wasmtime::format_err!("its instances cannot move"))?;
            Ok(Compiled {
                code: compile_to(Tier::Optimised, engine, &portable.bytes)?,
                successor: None,
                shift: portable.shift,
            })
        })
    }
}

/// What comes of a module's bytes.
struct Compiled {
    code: wasmtime::Module,
    successor: Option<Arc<Successor>>,
    shift: i64,
}

impl Compiled {
    /// Optimised, by all threads there are.
    fn at_once(engine: &Engine, bytes: &[u8]) -> wasmtime::Result<Self> {
        Ok(Self {
            code: wasmtime::Module::from_binary(engine, bytes)?,
            successor: None,
            shift: 0,
        })
    }
}

/// Gives the running thread a tenth of the weight of the others: enough to come to an end beside workers that have more
/// to do than they can.
pub(crate) fn give_way() {
    #[allow(
        unsafe_code,
        reason = "no safe wrapper is among the dependencies' features; beside a worker on the one CPU of a container, a \
                  thread of equal priority would take half of its time for seconds"
    )]
    // SAFETY: it takes numbers and touches no memory. On Linux 0 is the calling thread.
    let refused = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) } != 0;
    if refused {
        tracing::debug!(target: "wasm", "code is optimised at the priority of all threads");
    }
}

/// Code of `tier` for `engine`, which differs in its compiler's settings, but not in what the code must be like.
fn compile_to(tier: Tier, engine: &Engine, bytes: &[u8]) -> wasmtime::Result<wasmtime::Module> {
    let compiled = tier.compiler()?.precompile_module(bytes)?;
    #[allow(
        unsafe_code,
        reason = "deserialize runs native code from bytes: these our compiler has just made, and nobody else has seen"
    )]
    // SAFETY: see the reason above.
    unsafe {
        wasmtime::Module::deserialize(engine, &compiled)
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
    /// Of what this process uses, and perhaps has used.
    held: Mutex<Vec<(Digest, Weak<()>)>>,
}

const MAGIC: &[u8; 8] = b"plenipo\x03";

impl Cache {
    /// Opens or makes the folder.
    pub(crate) fn open(folder: &Path, engine: &Engine) -> std::io::Result<Self> {
        let mut hasher = std::hash::DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Ok(Self {
            folder: PrivateFolder::open(folder)?,
            engine_hash: hasher.finish(),
            max_entries: MAX_ENTRIES,
            held: Mutex::default(),
        })
    }

    /// With room for so many entries.
    pub(crate) fn keeping(mut self, entries: usize) -> Self {
        self.max_entries = entries;
        self
    }

    fn name(&self, digest: Digest, tier: Tier) -> String {
        let of_tier = match tier {
            Tier::Baseline => ".baseline",
            Tier::Optimised => "",
        };
        format!("{digest}-{:016x}{of_tier}.cwasm", self.engine_hash)
    }

    /// Over what the entry is and holds.
    fn seal(&self, digest: Digest, tier: Tier, body: &[u8]) -> Seal {
        let engine = self.engine_hash.to_le_bytes();
        let tier = tier.as_str().as_bytes();
        self.folder.seal(&[MAGIC, &digest.0, &engine, tier, body])
    }

    /// What is kept of a module; its successor is the caller's matter.
    fn load(&self, engine: &Engine, digest: Digest, tier: Tier) -> Option<Module> {
        let path = self.folder.path(&self.name(digest, tier));
        let entry = read_regular(&path, MAX_COMPILED).ok()?;
        let body = entry
            .strip_prefix(MAGIC)
            .and_then(|rest| rest.split_at_checked(32))
            .filter(|(seal, body)| self.seal(digest, tier, body).is(seal))
            .and_then(|(_, body)| parts(body));
        let Some((sdk, shift, body)) = body else {
            tracing::warn!(target: "wasm", "{} is not an entry of ours; it is removed", path.display());
            let _ = std::fs::remove_file(&path);
            return None;
        };
        #[allow(
            unsafe_code,
            reason = "deserialize runs native code from bytes: these were just proven, by a MAC under a key that this user \
                      made and nobody else could read or replace, to have been written by `store`, for this digest and \
                      these compiler settings"
        )]
        // SAFETY: see the reason above, and `PrivateFolder::open` for the key; `body` is what `Module::serialize` of an equally configured engine returned.
        let module = unsafe { wasmtime::Module::deserialize(engine, body) };
        match module {
            Ok(code) => {
                super::disk::touch(&path);
                let module = Module {
                    digest,
                    abi: abi(&code).ok()?,
                    code,
                    sdk,
                    compile_time: None,
                    successor: None,
                    shift,
                    held: Arc::default(),
                };
                self.hold(&module);
                Some(module)
            }
            Err(error) => {
                tracing::warn!(target: "wasm", "{}: {error:#}; it is removed", path.display());
                let _ = std::fs::remove_file(&path);
                None
            }
        }
    }

    /// Keeps a compiled module; failing to is no failure. Optimised code takes the place of its baseline code. Writes a file:
    /// call it on a blocking thread.
    pub(crate) fn store(&self, module: &Module) {
        if let Err(error) = self.try_store(module) {
            tracing::warn!(target: "wasm", "cannot keep a compiled module in {}: {error:#}", self.folder.shown());
        }
    }

    fn try_store(&self, module: &Module) -> Result<(), anyhow::Error> {
        self.hold(module);
        let digest = module.digest;
        let code = module.code.serialize();
        let code = code.map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let sdk = module.sdk.as_deref().unwrap_or_default().as_bytes();
        let len = u16::try_from(sdk.len())?.to_le_bytes();
        let body = [&len, sdk, &module.shift.to_le_bytes(), &code].concat();
        let tier = module.tier();
        let seal = self.seal(digest, tier, &body);
        let (name, parts) = (self.name(digest, tier), [MAGIC, &seal.0[..], &body]);
        with_room(|| self.evict(), || self.folder.write(&name, &parts))?;
        let path = |tier| self.folder.path(&self.name(digest, tier));
        // Two threads write these.
        if path(Tier::Optimised).exists() {
            // There may be none.
            let _ = std::fs::remove_file(path(Tier::Baseline));
        }
        self.evict();
        Ok(())
    }

    fn hold(&self, module: &Module) {
        let mut held = self.held.lock();
        held.retain(|(_, held)| held.strong_count() > 0);
        held.push((module.digest, Arc::downgrade(&module.held)));
    }

    /// Removes the least recently used entries beyond the bound, but none that this process uses.
    fn evict(&self) {
        let entries = self.folder.entries("cwasm");
        let surplus = entries.len().saturating_sub(self.max_entries);
        if surplus == 0 {
            return;
        }
        let mut held = self.held.lock();
        held.retain(|(_, held)| held.strong_count() > 0);
        let names: Vec<String> = held.iter().map(|(digest, _)| digest.to_string()).collect();
        drop(held);
        let is_held = |entry: &&Entry| {
            let name = entry.path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| names.iter().any(|held| name.starts_with(&**held)))
        };
        for entry in entries.iter().filter(|entry| !is_held(entry)).take(surplus) {
            let _ = std::fs::remove_file(&entry.path);
        }
    }
}

/// What the code says of its compiler, how its functions were moved, and the compiled code: the parts of an entry's body.
fn parts(body: &[u8]) -> Option<(Option<Arc<str>>, i64, &[u8])> {
    let (len, rest) = body.split_first_chunk()?;
    let (sdk, rest) = rest.split_at_checked(u16::from_le_bytes(*len).into())?;
    let (shift, code) = rest.split_first_chunk()?;
    let sdk = std::str::from_utf8(sdk).ok()?;
    let sdk = (!sdk.is_empty()).then(|| sdk.into());
    Some((sdk, i64::from_le_bytes(*shift), code))
}

#[cfg(test)]
#[path = "module/tests.rs"]
mod tests;
