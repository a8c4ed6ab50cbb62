//! What fuzzers feed: the parts of the host that read bytes of whoever wrote a plugin.
//!
//! Each function takes any bytes and returns; what it panics with is a defect of the host. `fuzz/` has a target for each,
//! and the tests below run them on the seeds of those targets and on what is made from these.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use tokio::sync::mpsc;
use wasmtime::{Engine, Global, Instance, Linker, Store, Val, ValType};

use super::abi;
use super::abi::pairs as form;
use super::archive;
use super::context::{Environment, Host, Phase, Root, RootSpec, StreamContext};
use super::engine::Runtime;
use super::inspect;
use super::module::{Abi, MAX_CODE, Module};
use super::probe::{BuildTimes, Probe};
use super::shared::Shared;
use super::spec::{Digest, PluginSpec};
use super::status::wasm_stats;
use super::vm::{Direction, Vm};
use crate::base::Shards;
use crate::cluster::client::{Call, CallError, CallResponse};
use crate::config::listener::TrafficDirection;
use crate::config::wasm_settings::PluginPolicy;
use crate::http::{RequestHead, ResponseHead};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::extensions::wasm::v3 as proto;
use crate::stream::{ConnectionInfo, Stream, StreamConfig};
use crate::telemetry::metrics::Registry;

/// A serialized map of headers: what is read is written again as the same bytes.
pub fn pairs(data: &[u8]) {
    let Some(pairs) = form::read(data) else {
        return;
    };
    let written = form::to_bytes(&pairs);
    // No bytes at all are an empty map too.
    assert!(data.is_empty() || written == data, "it is read otherwise");
    assert_eq!(form::read(&written), Some(pairs));
}

/// Code as it comes from anywhere: unpacked, looked into, compiled, linked and started. What `inspect` says is fine
/// compiles, in both tiers.
pub fn module(data: &[u8]) {
    static HOST: OnceLock<(Runtime, Linker<Host>)> = OnceLock::new();
    let (runtime, table) = HOST.get_or_init(|| {
        let runtime = Runtime::new().expect("an engine");
        let table = abi::linker(runtime.engine()).expect("no name twice");
        (runtime, table)
    });
    for unpacked in [archive::unpack(data), archive::unpack_layer(data)]
        .into_iter()
        .flatten()
    {
        assert!(unpacked.len() <= MAX_CODE, "{} bytes", unpacked.len());
        assert!(unpacked.starts_with(b"\0asm"), "it is no module");
    }
    let found = inspect::look(runtime.engine(), table, data);
    let compiled = Module::compile(runtime.engine(), data, Digest::of(data));
    let module = match (&found.refused, compiled) {
        (_, Ok(module)) => module,
        (Some(_), Err(_)) => return,
        (None, Err(error)) => panic!("inspect finds nothing wrong with it: {error}"),
    };
    let env = environment(module.abi);
    let Ok(imports) = abi::Imports::resolve(table, &module, &env.vm) else {
        return;
    };
    let build = |imports: &abi::Imports| {
        let roots = [Arc::new(RootSpec::new(&env.vm))];
        let stats = env.registry.set(&wasm_stats::TABLE, "wasm.", "wasm", []);
        // Whether it starts is its own affair.
        let _ = Vm::build(runtime, &imports.pre, &env, &roots, Arc::default(), stats);
    };
    build(&imports);
    let bytes = Bytes::copy_from_slice(data);
    let baseline = Module::compile_soon(runtime.engine(), &bytes, module.digest, 0);
    let baseline = baseline.expect("it compiles, and links, as before");
    if let Some(successor) = &baseline.successor {
        let optimised = successor.compile(runtime.engine(), module.digest);
        assert_eq!(optimised.expect("likewise").shift, baseline.shift);
        build(&abi::Imports::resolve(table, &baseline, &env.vm).expect("likewise"));
    }
}

/// Host functions, called one after the other with any arguments, by a root context and by that of a stream: each answers
/// with a status of the ABI, or traps.
///
/// The bytes are what surrounds the calls (one), what the guest's allocator gives (five), and then the calls: the number
/// of a function, and for each argument what makes it ([`Bytecode::argument`]).
pub fn hostcalls(data: &[u8]) {
    thread_local! {
        static BENCH: RefCell<Option<Bench>> = const { RefCell::new(None) };
    }
    BENCH.with_borrow_mut(|bench| bench.get_or_insert_with(Bench::new).run(data));
}

/// The ids of the contexts that call.
const ROOT: u32 = 1;
const STREAM: u32 = 2;
/// So many calls are made at most.
const MAX_CALLS: usize = 64;

/// One page of memory, and an allocator that gives what it is told to.
const GUEST: &str = r#"(module
    (memory (export "memory") 1)
    (global $block (export "block") (mut i32) (i32.const 32768))
    (func (export "malloc") (param i32) (result i32) (global.get $block)))"#;

/// Where in the guest's memory things lie: words that make sense, then the input itself. Results go before them.
const TEXTS_AT: u32 = 4096;
const INPUT_AT: u32 = 16384;

/// Words that lead on into the host.
const TEXTS: &[&[u8]] = &[
    b":path",
    b":method",
    b":authority",
    b":scheme",
    b":status",
    b"content-length",
    b"x-a",
    b"",
    b"a value\x01",
    b"200",
    // Three pairs, two of them what a call needs.
    b"\x02\0\0\0\x07\0\0\0\x03\0\0\0\x05\0\0\0\x01\0\0\0:method\0GET\0:path\0/\0",
    b"\x01\0\0\0\x01\0\0\0\x01\0\0\0a\0b\0",
    b"callout",
    b"request\0path",
    b"request\0headers\0x-a",
    b"response\0code",
    b"connection\0id",
    b"metadata\0filter_metadata\0ns",
    b"filter_state\0a",
    b"plugin_name",
    b"listener_direction",
    b"declare_property",
    b"set_envoy_filter_state",
    b"expr_create",
    b"expr_evaluate",
    b"expr_delete",
    b"compress",
    b"uncompress",
    b"verify_signature",
    b"sign",
    b"clear_route_cache",
    b"request.path + 'x' == request.headers['x-a']",
    b"\x0a\x01a\x10\x02",
];

struct Bench {
    runtime: tokio::runtime::Runtime,
    engine: Engine,
    linker: Linker<Host>,
    guest: wasmtime::Module,
    /// Names, those of Proxy-Wasm first.
    names: Vec<(String, String)>,
    /// Where the words lie, and how long they are.
    texts: Vec<(u32, u32)>,
}

impl Bench {
    fn new() -> Self {
        let engine = Engine::default();
        let linker = abi::linker(&engine).expect("no name twice");
        let guest = wasmtime::Module::new(&engine, GUEST).expect("valid");
        let (mailbox, _inbox) = mpsc::unbounded_channel();
        let mut store = Store::new(&engine, Host::new(environment(Abi::V0_2_1), mailbox));
        let mut names: Vec<_> = linker
            .iter(&mut store)
            .map(|(module, name, _)| (module.to_owned(), name.to_owned()))
            .collect();
        // The linker has no order, and an input must mean the same in every process.
        names.sort();
        let mut at = TEXTS_AT;
        let texts = TEXTS.iter().map(|text| {
            let len = u32::try_from(text.len()).expect("short");
            at += len;
            (at - len, len)
        });
        let texts = texts.collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        Self {
            runtime,
            engine,
            linker,
            guest,
            names,
            texts,
        }
    }

    fn run(&self, data: &[u8]) {
        let _entered = self.runtime.enter();
        let (mailbox, _inbox) = mpsc::unbounded_channel();
        let mut store = Store::new(&self.engine, Host::new(environment(Abi::V0_2_1), mailbox));
        let instance = self.linker.instantiate(&mut store, &self.guest);
        let instance = instance.expect("nothing is imported");
        let mut code = Bytecode { data, length: None };
        let stream = prepare(&mut store, &instance, code.byte());
        let block = code.argument(&self.texts);
        let global: Global = instance
            .get_global(&mut store, "block")
            .expect("it is exported");
        global
            .set(&mut store, Val::I32(block.cast_signed()))
            .expect("it is a number that changes");
        let memory = store.data().memory.expect("it is exported");
        let memory = memory.data_mut(&mut store);
        for ((at, _), text) in self.texts.iter().zip(TEXTS) {
            memory[*at as usize..][..text.len()].copy_from_slice(text);
        }
        let room = &mut memory[INPUT_AT as usize..];
        let len = data.len().min(room.len());
        room[..len].copy_from_slice(&data[..len]);
        for _ in 0..MAX_CALLS {
            if code.data.is_empty() || !self.call(&mut store, &mut code) {
                break;
            }
        }
        drop(store);
        drop(stream);
        // Calls to clusters that have begun end here.
        self.runtime.block_on(tokio::task::yield_now());
    }

    /// False where the guest has trapped.
    fn call(&self, store: &mut Store<Host>, code: &mut Bytecode<'_>) -> bool {
        let (module, name) = &self.names[usize::from(code.byte()) % self.names.len()];
        let function = self.linker.get(&mut *store, module, name);
        let function = function.expect("it is there").into_func();
        let function = function.expect("all are functions");
        let ty = function.ty(&*store);
        code.length = None;
        let args: Vec<_> = ty
            .params()
            .map(|ty| match ty {
                ValType::I64 => {
                    let [low, high] = [(); 2].map(|()| u64::from(code.argument(&self.texts)));
                    Val::I64((high << 32 | low).cast_signed())
                }
                _ => Val::I32(code.argument(&self.texts).cast_signed()),
            })
            .collect();
        let mut results = vec![Val::I32(0); ty.results().len()];
        if function.call(&mut *store, &args, &mut results).is_err() {
            return false;
        }
        if let (true, Some(Val::I32(status))) = (name.starts_with("proxy_"), results.first()) {
            assert!((0..=12).contains(status), "{name} {args:?}: {status}");
        }
        store.data_mut().effects.clear();
        true
    }
}

/// What is left of an input.
struct Bytecode<'a> {
    data: &'a [u8],
    /// The argument that goes with the one before: the length of what that points to.
    length: Option<u32>,
}

impl Bytecode<'_> {
    fn byte(&mut self) -> u8 {
        match self.data.split_first() {
            Some((byte, rest)) => {
                self.data = rest;
                *byte
            }
            None => 0,
        }
    }

    /// A byte says what it is: a length that belongs to the argument before, a small number, a word, a place, or any
    /// number.
    fn argument(&mut self, texts: &[(u32, u32)]) -> u32 {
        let kind = self.byte();
        if let Some(length) = self.length.take()
            && kind < 0xe0
        {
            return length;
        }
        let mut small = || u32::from(self.byte());
        match kind & 7 {
            0 => u32::from(kind >> 3),
            1 => small(),
            2 => small() * 8,
            3 => 65_536_u32.wrapping_sub(small()),
            4 => u32::MAX - small(),
            5 => {
                let (at, length) = texts[small() as usize % texts.len()];
                self.length = Some(length);
                at
            }
            6 => {
                let (at, length) = (small(), small());
                self.length = Some(length);
                INPUT_AT + at
            }
            _ => u32::from_le_bytes([(); 4].map(|()| self.byte())),
        }
    }
}

/// Makes the contexts, one of which calls; `shows` says what they can see. The stream must be kept.
fn prepare(store: &mut Store<Host>, instance: &Instance, shows: u8) -> Option<Arc<Stream>> {
    let memory = instance.get_memory(&mut *store, "memory");
    let allocate = instance.get_typed_func(&mut *store, "malloc").ok();
    let host = store.data_mut();
    host.memory = memory;
    host.allocate = allocate;
    host.phase = match shows & 0x80 {
        0 => Phase::Open,
        _ => Phase::Start,
    };
    let mut root = Root::new(ROOT, Arc::new(RootSpec::new(&host.env.vm)));
    root.configuring = shows & 0x40 != 0;
    host.roots.push(root);
    host.last_id = STREAM;
    host.root_id = ROOT;
    host.current = ROOT;
    host.effective = ROOT;
    if shows & 1 == 0 {
        return None;
    }
    let stream = stream();
    let mut context = StreamContext::new(Arc::clone(&stream), ROOT);
    context.visible.request_headers = shows & 2 != 0;
    context.visible.request_trailers = shows & 2 != 0;
    context.visible.response_headers = shows & 4 != 0;
    context.visible.response_trailers = shows & 4 != 0;
    context.responding = shows & 4 != 0;
    context.callback = Some(match shows & 4 {
        0 => Direction::Request,
        _ => Direction::Response,
    });
    if shows & 8 != 0 {
        for body in &mut context.bodies {
            body.data = Some(Bytes::from_static(b"what there is of a body"));
        }
    }
    if shows & 16 != 0 {
        context.logging = true;
    }
    host.streams.insert(STREAM, context);
    host.current = STREAM;
    host.effective = STREAM;
    Some(stream)
}

pub(super) fn stream() -> Arc<Stream> {
    let connection = ConnectionInfo {
        id: 7,
        remote: Some(([127, 0, 0, 1], 1234).into()),
        local: Some(([127, 0, 0, 2], 80).into()),
        listener: "listener".into(),
        filter_chain: "chain".into(),
        direction: TrafficDirection::Inbound,
        ..ConnectionInfo::none()
    };
    let config = StreamConfig {
        routes: None,
        clusters: Arc::default(),
        upstream_filters: None,
        options: Arc::default(),
        generation: 0,
        records: None,
    };
    let mut head = RequestHead::new(Method::POST, "shop.test", "/path?query");
    let value = http::HeaderValue::from_static;
    head.headers.append("x-a", value("one"));
    head.headers.append("x-a", value("two"));
    head.headers.append("content-length", value("23"));
    let stream = Stream::new(Arc::new(connection), Arc::new(config), head, 1);
    let mut response = ResponseHead::new(http::StatusCode::OK);
    response.headers.append("x-b", value("three"));
    *stream.response.lock() = Some(response);
    let mut trailers = HeaderMap::new();
    trailers.append("x-t", value("four"));
    *stream.request_trailers.lock() = Some(trailers.clone());
    *stream.response_trailers.lock() = Some(trailers);
    stream
}

/// Clusters are called `callout`, and do not answer.
struct Surroundings;

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Surroundings")
    }
}

impl Probe for Surroundings {
    fn log_level(&self) -> u32 {
        0
    }

    fn log(&self, _: u32, _: &str) {}

    fn called(&self, _: &'static str, _: Duration) {}

    fn built(&self, _: BuildTimes) {}

    fn has_cluster(&self, cluster: &str) -> bool {
        cluster == "callout"
    }

    fn grpc(&self, _: &str) {}

    fn call(&self, _: &str, _: Call) -> Result<CallResponse, CallError> {
        Err(CallError::Timeout)
    }
}

fn environment(abi: Abi) -> Arc<Environment> {
    let code = core::data_source::Specifier::InlineString("code".to_owned());
    let code = core::async_data_source::Specifier::Local(core::DataSource {
        specifier: Some(code),
        watched_directory: None,
    });
    let spec = PluginSpec::parse(proto::PluginConfig {
        name: "fuzzed".to_owned(),
        vm: Some(proto::plugin_config::Vm::VmConfig(proto::VmConfig {
            code: Some(core::AsyncDataSource {
                specifier: Some(code),
            }),
            ..Default::default()
        })),
        ..Default::default()
    });
    let spec = Arc::new(spec.expect("a valid configuration"));
    let shared: Arc<Shared> = Arc::default();
    Arc::new(Environment {
        space: shared.space(&spec.vm_id),
        vm: spec,
        abi,
        shift: 0,
        registry: Registry::new(Shards::for_workers(1)),
        clusters: Arc::default(),
        node: None,
        shared,
        policy: PluginPolicy {
            callback_hard: Duration::from_millis(20),
            start: Duration::from_millis(20),
            memory: 16 << 20,
            ..PluginPolicy::default()
        },
        probe: Some(Arc::new(Surroundings)),
        dns: None,
    })
}

#[cfg(test)]
#[path = "fuzzing/tests.rs"]
mod tests;
