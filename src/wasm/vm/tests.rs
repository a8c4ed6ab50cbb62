//! Host functions called as a hostile guest would call them, without a proxy around.

use std::time::Duration;

use arc_swap::ArcSwap;
use wasmtime::{Linker, Store, Val, ValType};

use super::*;
use crate::base::Shards;
use crate::config::wasm_settings::PluginPolicy;
use crate::pb;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::extensions::wasm::v3 as proto;
use crate::telemetry::metrics::Registry;
use crate::wasm::abi;
use crate::wasm::context::Root;
use crate::wasm::meter::Quota;
use crate::wasm::module::Abi;
use crate::wasm::shared::Shared;
use crate::wasm::spec::PluginSpec;

/// The id of the root context that calls.
const ROOT: u32 = 1;

/// One page of memory, and an allocator that gives the same block for ever.
const GUEST: &str = r#"(module
    (memory (export "memory") 1)
    (func (export "malloc") (param i32) (result i32) (i32.const 32768)))"#;

struct Bench {
    store: Store<Host>,
    linker: Linker<Host>,
    inbox: mpsc::UnboundedReceiver<Message>,
}

fn environment(name: &str) -> Arc<Environment> {
    let code = core::data_source::Specifier::InlineString("code".to_owned());
    let spec = PluginSpec::parse(proto::PluginConfig {
        name: name.to_owned(),
        configuration: Some(pb::pack(&"plugin's".to_owned())),
        vm: Some(proto::plugin_config::Vm::VmConfig(proto::VmConfig {
            code: Some(core::AsyncDataSource {
                specifier: Some(core::async_data_source::Specifier::Local(
                    core::DataSource {
                        specifier: Some(code),
                        watched_directory: None,
                    },
                )),
            }),
            configuration: Some(pb::pack(&"vm's".to_owned())),
            ..Default::default()
        })),
        ..Default::default()
    })
    .expect("a valid configuration");
    let shared: Arc<Shared> = Arc::default();
    Arc::new(Environment {
        space: shared.space(&spec.vm_id),
        vm: Arc::new(spec),
        abi: Abi::V0_2_1,
        shift: 0,
        registry: Registry::new(Shards::for_workers(1)),
        clusters: Arc::<ArcSwap<_>>::default(),
        node: None,
        shared,
        policy: PluginPolicy {
            callback_hard: Duration::from_secs(1),
            start: Duration::from_secs(1),
            memory: 1 << 20,
            ..PluginPolicy::default()
        },
        probe: None,
        dns: None,
    })
}

impl Bench {
    fn new() -> Self {
        Self::of(environment("bench"))
    }

    fn of(env: Arc<Environment>) -> Self {
        let engine = wasmtime::Engine::default();
        let (mailbox, inbox) = mpsc::unbounded_channel();
        let mut store = Store::new(&engine, Host::new(env, mailbox));
        let module = wasmtime::Module::new(&engine, GUEST).expect("valid");
        let linker = abi::linker(&engine).expect("no name twice");
        let instance = linker
            .instantiate(&mut store, &module)
            .expect("instantiates");
        let memory = instance.get_memory(&mut store, "memory");
        let allocate = instance.get_typed_func(&mut store, "malloc").ok();
        let host = store.data_mut();
        host.memory = memory;
        host.allocate = allocate;
        host.phase = Phase::Open;
        let made_for = Arc::new(RootSpec::new(&host.env.vm));
        host.roots.push(Root::new(ROOT, made_for));
        host.last_id = ROOT;
        host.current = ROOT;
        host.effective = ROOT;
        host.root_id = ROOT;
        Self {
            store,
            linker,
            inbox,
        }
    }

    fn call(&mut self, name: &str, args: &[i64]) -> Result<u32, wasmtime::Error> {
        let function = self
            .linker
            .get(&mut self.store, "env", name)
            .expect(name)
            .into_func()
            .expect("a function");
        self.call_function(&function, args)
    }

    fn call_function(
        &mut self,
        function: &wasmtime::Func,
        args: &[i64],
    ) -> Result<u32, wasmtime::Error> {
        let ty = function.ty(&self.store);
        let args: Vec<Val> = ty
            .params()
            .enumerate()
            .map(|(index, ty)| match ty {
                ValType::I64 => Val::I64(args[index % args.len()]),
                _ => Val::I32(args[index % args.len()] as i32),
            })
            .collect();
        let mut results = vec![Val::I32(0); ty.results().len()];
        function.call(&mut self.store, &args, &mut results)?;
        Ok(results
            .first()
            .map_or(0, |value| value.unwrap_i32().cast_unsigned()))
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        let memory = self.store.data().memory.expect("exported");
        memory.data_mut(&mut self.store)[at..at + data.len()].copy_from_slice(data);
    }

    fn word(&mut self, at: usize) -> u32 {
        let memory = self.store.data().memory.expect("exported");
        let bytes = &memory.data(&self.store)[at..at + 4];
        u32::from_le_bytes(bytes.try_into().expect("four"))
    }

    fn given(&mut self, at: usize, len: usize) -> Vec<u8> {
        let (start, len) = (self.word(at) as usize, self.word(len) as usize);
        let memory = self.store.data().memory.expect("exported");
        memory.data(&self.store)[start..start + len].to_vec()
    }
}

#[test]
fn no_arguments_break_the_host() {
    let mut bench = Bench::new();
    let linker = bench.linker.clone();
    let functions: Vec<_> = linker
        .iter(&mut bench.store)
        .filter_map(|(module, name, item)| Some((format!("{module}.{name}"), item.into_func()?)))
        .collect();
    assert!(
        functions.len() > 120,
        "both names of WASI: {}",
        functions.len()
    );
    let hostile = [
        &[0i64][..],
        &[-1],
        &[1],
        &[65_535],
        &[65_536],
        &[i64::from(i32::MAX)],
        &[i64::from(i32::MIN)],
        &[0, -1],
        &[-1, 0],
        &[8, 4, 16],
        &[3, -1, 7],
        &[0, 100, 65_530, 8],
    ];
    for (name, function) in &functions {
        for args in hostile {
            let result = bench.call_function(function, args);
            let status = result.unwrap_or_else(|error| panic!("{name} {args:?}: {error:#}"));
            if name.starts_with("env.proxy") {
                assert!(status <= 12, "{name} {args:?}: {status}");
            }
        }
    }
}

#[test]
fn the_path_of_a_grpc_callout_is_bounded() {
    let mut bench = Bench::new();
    bench.write(0, b"nosuch");
    for (method, status) in [(0, 4), (1, 2)] {
        // The name of the service is all of the memory.
        let args = [0, 6, 0, 65_536, 0, method, 0, 0, 0, 0, 1000, 8];
        let called = bench.call("proxy_grpc_call", &args).expect("no trap");
        assert_eq!(called, status, "{method}");
    }
}

#[test]
fn ranges_outside_memory_are_what_envoy_calls_them() {
    // Every argument is −1. Where an argument before the range is what is wrong, that wins, as in Envoy.
    let cases = [
        ("proxy_log", 2),
        ("proxy_get_log_level", 6),
        ("proxy_get_status", 6),
        ("proxy_get_property", 1),
        ("proxy_get_buffer_bytes", 2),
        ("proxy_set_buffer_bytes", 2),
        ("proxy_get_header_map_value", 2),
        ("proxy_get_header_map_pairs", 2),
        ("proxy_get_shared_data", 6),
        ("proxy_set_shared_data", 6),
        ("proxy_register_shared_queue", 6),
        ("proxy_resolve_shared_queue", 6),
        ("proxy_enqueue_shared_queue", 10),
        ("proxy_dequeue_shared_queue", 1),
        ("proxy_define_metric", 6),
        ("proxy_increment_metric", 2),
        ("proxy_record_metric", 1),
        ("proxy_get_metric", 2),
        ("proxy_http_call", 6),
        ("proxy_get_current_time_nanoseconds", 6),
        ("proxy_call_foreign_function", 6),
        ("proxy_send_local_response", 6),
        ("proxy_set_effective_context", 2),
        ("proxy_continue_stream", 2),
        ("proxy_close_stream", 2),
        ("proxy_done", 1),
        ("proxy_grpc_send", 6),
        ("proxy_grpc_cancel", 2),
        ("proxy_grpc_close", 2),
        ("proxy_grpc_call", 6),
        ("proxy_grpc_stream", 6),
    ];
    let mut bench = Bench::new();
    for (name, status) in cases {
        assert_eq!(bench.call(name, &[-1]).ok(), Some(status), "{name}");
    }
    // With a kind that exists, the range is what is wrong.
    for (name, args) in [
        ("proxy_log", &[2i64, -1, 8][..]),
        ("proxy_get_header_map_value", &[6, -1, 8, 0, 4]),
        ("proxy_define_metric", &[0, -1, 8, 0]),
        ("proxy_get_buffer_bytes", &[0, 0, 8, -1, 4]),
    ] {
        assert_eq!(bench.call(name, args).ok(), Some(6), "{name}");
    }
}

#[test]
fn metrics_have_envoys_ids_and_rules() {
    let mut bench = Bench::new();
    bench.write(0, b"counter gauge histogram");
    let define = |bench: &mut Bench, kind, at, len| {
        assert_eq!(
            bench
                .call("proxy_define_metric", &[kind, at, len, 128])
                .ok(),
            Some(0)
        );
        i64::from(bench.word(128))
    };
    let counter = define(&mut bench, 0, 0, 7);
    let gauge = define(&mut bench, 1, 8, 5);
    let histogram = define(&mut bench, 2, 14, 9);
    assert_eq!([counter, gauge, histogram], [4, 5, 6]);
    assert_eq!(
        define(&mut bench, 0, 0, 7),
        8,
        "another id of the same counter"
    );
    let cases = [
        ("proxy_increment_metric", counter, 2, 0),
        ("proxy_increment_metric", 8, 3, 0),
        ("proxy_increment_metric", counter, 0, 2),
        ("proxy_increment_metric", counter, -1, 2),
        ("proxy_increment_metric", gauge, -1, 0),
        ("proxy_increment_metric", histogram, 1, 2),
        ("proxy_record_metric", counter, 10, 0),
        ("proxy_record_metric", histogram, 10, 0),
        ("proxy_get_metric", histogram, 256, 2),
        ("proxy_get_metric", 3, 256, 2),
        ("proxy_increment_metric", 3, 1, 2),
        ("proxy_record_metric", 3, 1, 1),
        ("proxy_get_metric", 12, 256, 1),
        ("proxy_get_metric", counter, 256, 0),
    ];
    for (name, id, value, status) in cases {
        assert_eq!(
            bench.call(name, &[id, value]).ok(),
            Some(status),
            "{name} {id} {value}"
        );
    }
    assert_eq!(bench.word(256), 15, "2 + 3, and a record adds 10");
    bench
        .call("proxy_get_metric", &[gauge, 256])
        .expect("no trap");
    assert_eq!(
        (bench.word(256), bench.word(260)),
        (u32::MAX, u32::MAX),
        "it wraps"
    );
    assert_eq!(define(&mut bench, 0, 0, 0), 12, "one without a name");
    let other = define(&mut bench, 1, 0, 7);
    assert_eq!(other, 9, "a gauge of a counter's name");
    bench
        .call("proxy_get_metric", &[other, 256])
        .expect("no trap");
    assert_eq!(bench.word(256), 0, "they have nothing in common");
    let names: Vec<_> = bench.store.data().env.registry.metrics();
    let names: Vec<_> = names
        .iter()
        .map(|metric| metric.name().to_owned())
        .collect();
    assert_eq!(
        names,
        [
            "wasmcustom",
            "wasmcustom.counter",
            "wasmcustom.counter",
            "wasmcustom.gauge",
            "wasmcustom.histogram"
        ]
    );
}

#[test]
fn a_long_name_of_a_metric_counts_for_several() {
    let mut bench = Bench::new();
    let mut define = |len| bench.call("proxy_define_metric", &[0, 0, len, 4]).ok();
    assert_eq!(define(1500), Some(0), "as Istio's with all labels");
    for _ in 0..9_999 / 16 {
        assert_eq!(define(32 << 10), Some(0));
    }
    assert_eq!(define(32 << 10), Some(10), "of 10,000 there are 15 left");
    assert_eq!(define(30 << 10), Some(0));
    assert_eq!(define(1), Some(10));
}

#[tokio::test(start_paused = true)]
async fn the_metrics_of_a_plugins_vms_are_bounded_together() {
    let mut env = environment("bench");
    let of_env = Arc::get_mut(&mut env).expect("nobody else has it");
    of_env.policy.quotas.metrics = 3;
    let define = |bench: &mut Bench, name: &[u8]| {
        bench.write(0, name);
        bench
            .call("proxy_define_metric", &[0, 0, name.len() as i64, 128])
            .ok()
    };
    let mut old = Bench::of(Arc::clone(&env));
    for name in [b"a", b"b", b"c"] {
        assert_eq!(define(&mut old, name), Some(0));
    }
    let mut new = Bench::of(Arc::clone(&env));
    assert_eq!(define(&mut new, b"d"), Some(10), "another VM holds three");
    assert_eq!(define(&mut new, b"a"), Some(0), "no other name");
    assert_eq!(new.store.data().meter().refused(Quota::Metrics), 1);
    drop(old);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(define(&mut new, b"d"), Some(0), "nobody holds those");
    let names: Vec<_> = env.registry.metrics();
    let names: Vec<_> = names.iter().map(|metric| metric.name()).collect();
    assert_eq!(names, ["wasmcustom.a", "wasmcustom.d"]);
    assert_eq!(env.registry.owned_by("bench"), 2);
}

#[test]
fn shared_data_and_queues_work_through_memory() {
    let mut bench = Bench::new();
    bench.write(0, b"key value queue");
    let ok = |bench: &mut Bench, name: &str, args: &[i64]| {
        assert_eq!(bench.call(name, args).ok(), Some(0), "{name}");
    };
    assert_eq!(
        bench
            .call("proxy_get_shared_data", &[0, 3, 64, 68, 72])
            .ok(),
        Some(1)
    );
    ok(&mut bench, "proxy_set_shared_data", &[0, 3, 4, 5, 0]);
    ok(&mut bench, "proxy_get_shared_data", &[0, 3, 64, 68, 72]);
    assert_eq!(bench.given(64, 68), b"value");
    assert_eq!(bench.word(72), 1, "its number");
    assert_eq!(
        bench.call("proxy_set_shared_data", &[0, 3, 4, 5, 9]).ok(),
        Some(8)
    );
    ok(&mut bench, "proxy_register_shared_queue", &[10, 5, 80]);
    let token = i64::from(bench.word(80));
    ok(&mut bench, "proxy_resolve_shared_queue", &[0, 0, 10, 5, 84]);
    assert_eq!(i64::from(bench.word(84)), token);
    assert_eq!(
        bench
            .call("proxy_dequeue_shared_queue", &[token, 64, 68])
            .ok(),
        Some(7)
    );
    ok(&mut bench, "proxy_enqueue_shared_queue", &[token, 4, 5]);
    ok(&mut bench, "proxy_dequeue_shared_queue", &[token, 64, 68]);
    assert_eq!(bench.given(64, 68), b"value");
}

#[test]
fn a_callout_needs_a_cluster_and_a_complete_head() {
    let mut bench = Bench::new();
    bench.write(0, b"nowhere");
    bench.write(100, &7u32.to_le_bytes());
    let args = [0, 7, 0, 0, 0, 0, 0, 0, 1000, 100];
    assert_eq!(bench.call("proxy_http_call", &args).ok(), Some(2));
    assert_eq!(bench.word(100), 0, "no token");
}

#[test]
fn without_a_stream_there_are_no_maps_and_no_effects() {
    let mut bench = Bench::new();
    for map in [0, 2, 4, 5, 6, 7] {
        assert_eq!(
            bench.call("proxy_get_header_map_size", &[map, 64]).ok(),
            Some(2),
            "{map}"
        );
        assert_eq!(
            bench
                .call("proxy_get_header_map_pairs", &[map, 64, 68])
                .ok(),
            Some(0)
        );
        assert_eq!(bench.word(68), 0, "an absent map is empty");
    }
    for buffer in [0, 1, 2, 3, 5, 8] {
        let status = bench.call("proxy_get_buffer_bytes", &[buffer, 0, 10, 64, 68]);
        assert_eq!((status.ok(), bench.word(68)), (Some(0), 0), "{buffer}");
    }
    for buffer in [4, 7] {
        assert_eq!(
            bench
                .call("proxy_get_buffer_bytes", &[buffer, 0, 10, 64, 68])
                .ok(),
            Some(1)
        );
    }
    assert_eq!(
        bench
            .call("proxy_get_buffer_bytes", &[9, 0, 10, 64, 68])
            .ok(),
        Some(2)
    );
    assert_eq!(
        bench
            .call("proxy_get_buffer_bytes", &[0, -1, 10, 64, 68])
            .ok(),
        Some(0),
        "what begins behind the end is empty"
    );
    assert_eq!(bench.call("proxy_continue_stream", &[0]).ok(), Some(0));
    assert_eq!(bench.call("proxy_continue_stream", &[3]).ok(), Some(12));
    let reply = [200, 0, 0, 0, 0, 0, 0, -1];
    assert_eq!(
        bench.call("proxy_send_local_response", &reply).ok(),
        Some(0)
    );
    assert!(bench.store.data().effects.is_empty());
}

#[test]
fn only_the_listed_functions_are_open_while_a_module_starts() {
    let mut bench = Bench::new();
    for phase in [Phase::Start, Phase::Allocate] {
        bench.store.data_mut().phase = phase;
        assert!(bench.call("proxy_log", &[2, 0, 0]).is_ok());
        for name in ["proxy_get_property", "proxy_done", "proxy_get_buffer_bytes"] {
            let error = bench.call(name, &[0]).expect_err(name);
            assert!(
                error.root_cause().to_string().contains("restricted"),
                "{error:#}"
            );
        }
    }
}

#[path = "tests/foreign.rs"]
mod foreign;
#[path = "tests/names.rs"]
mod names;
#[path = "tests/streams.rs"]
mod streams;
#[path = "tests/task.rs"]
mod task;
#[path = "tests/wasi.rs"]
mod wasi;

#[test]
fn what_is_not_there_cannot_be_set_whatever_the_value_is() {
    let mut bench = Bench::new();
    for (buffer, status) in [(4, 1), (7, 1), (6, 6), (0, 6)] {
        let args = [buffer, 0, 0, -1, 8];
        assert_eq!(
            bench.call("proxy_set_buffer_bytes", &args).ok(),
            Some(status),
            "{buffer}"
        );
    }
}

#[test]
fn a_root_speaks_without_its_plugins_name() {
    let mut bench = Bench::new();
    let host = bench.store.data_mut();
    assert_eq!(host.log_prefix(), "wasm log");
    host.effective = ROOT + 1;
    assert_eq!(host.log_prefix(), "wasm log bench");
}

#[test]
fn the_size_of_an_answers_head_is_not_told() {
    let mut bench = Bench::new();
    bench.store.data_mut().call = Some(crate::wasm::context::CallAnswer {
        head: Some(crate::http::ResponseHead::new(http::StatusCode::OK)),
        body: None,
        trailers: None,
    });
    assert_eq!(
        bench.call("proxy_get_header_map_size", &[6, 64]).ok(),
        Some(2)
    );
    assert_eq!(
        bench
            .call("proxy_get_buffer_bytes", &[4, 0, 10, 64, 68])
            .ok(),
        Some(1),
        "a failed call has no body"
    );
}

#[test]
fn a_function_is_not_asked_for_its_result_by_null() {
    let mut bench = Bench::new();
    bench.write(64, b"compress");
    // Where the allocator gives a block, and where null points to.
    for (at_out, len_out, block, len) in [(0, 0, 9, 9), (0, 96, 9, 9), (100, 0, 0x78, 9)] {
        for at in [0, 96, 100, 32768] {
            bench.write(at, &9u32.to_le_bytes());
        }
        let args = [64, 8, 64, 1, at_out, len_out];
        let called = bench.call("proxy_call_foreign_function", &args);
        assert_eq!(called.ok(), Some(0));
        assert_eq!(bench.word(0), 9);
        assert_eq!(bench.word(32768) & 0xff, block, "{at_out} {len_out}");
        assert_eq!(bench.word(96), len, "of this byte, and untouched");
        let at = if at_out == 0 { 9 } else { 32768 };
        assert_eq!(bench.word(100), at);
    }
}

#[test]
fn a_service_that_is_too_large_is_a_bad_argument() {
    let mut bench = Bench::new();
    let memory = bench.store.data().memory.expect("a memory");
    memory.grow(&mut bench.store, 32).expect("room");
    let mut service = b"\x0a\x03\x0a\x01c".to_vec();
    for number in 0..33_000u32 {
        // `initial_metadata`: a key of six letters, a value of one.
        service.extend_from_slice(b"\x2a\x0b\x0a\x06");
        service.extend_from_slice(format!("k{number:05}").as_bytes());
        service.extend_from_slice(b"\x12\x01v");
    }
    bench.write(65536, &service);
    for len in [service.len(), (1 << 20) + 1] {
        let len = i64::try_from(len).expect("small");
        let args = [65536, len, 0, 1, 0, 1, 0, 0, 0, 1, 1000, 100];
        assert_eq!(bench.call("proxy_grpc_call", &args).ok(), Some(2), "{len}");
    }
}

/// Grows the guest's memory to so many bytes.
fn memory_of(bench: &mut Bench, bytes: u64) {
    let memory = bench.store.data().memory.expect("a memory");
    let more = (bytes >> 16) - memory.size(&bench.store);
    memory.grow(&mut bench.store, more).expect("room");
}

#[test]
fn what_the_host_computes_for_a_guest_is_on_its_budget() {
    let mut bench = Bench::new();
    memory_of(&mut bench, 1 << 20);
    let compress = |bench: &mut Bench, len: i64| {
        bench.write(64, b"compress");
        bench.call("proxy_call_foreign_function", &[64, 8, 65536, len, 16, 20])
    };
    let nano = Duration::from_nanos(1);
    bench.store.data_mut().budget = Budget::new(nano, nano);
    assert_eq!(compress(&mut bench, 1 << 10).ok(), Some(0), "little");
    // The kernel may count a thread's time but once a tick.
    let end = (0..10_000).find_map(|_| compress(&mut bench, 300 << 10).err());
    let end = end.expect("it is stopped");
    assert!(matches!(
        end.downcast_ref(),
        Some(wasmtime::Trap::Interrupt)
    ));
    assert!(bench.store.data().budget.exceeded);

    // As much as it may be, and a byte more.
    let mut bench = Bench::new();
    memory_of(&mut bench, 17 << 20);
    bench.write(16, &[9; 8]);
    assert_eq!(compress(&mut bench, (16 << 20) + 1).ok(), Some(10));
    assert_eq!((bench.word(16), bench.word(20)), (0, 0), "no result");
}
