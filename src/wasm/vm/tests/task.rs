//! The task of a VM: whose turn it is.

use futures_util::FutureExt as _;

use super::*;
use crate::cluster::client::{Call, CallError, CallResponse};
use crate::wasm::engine::Runtime;
use crate::wasm::module::Module;
use crate::wasm::probe::{BuildTimes, Probe};
use crate::wasm::spec::Digest;

/// Registers a queue, and puts an empty message into it when it is configured and with each one that it hears of, which it
/// takes.
const FEEDER: &str = r#"(module
    (import "env" "proxy_register_shared_queue" (func $register (param i32 i32 i32) (result i32)))
    (import "env" "proxy_enqueue_shared_queue" (func $enqueue (param i32 i32 i32) (result i32)))
    (import "env" "proxy_dequeue_shared_queue" (func $dequeue (param i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "proxy_abi_version_0_2_1"))
    (func (export "malloc") (param i32) (result i32) (i32.const 1024))
    (func (export "proxy_on_configure") (param i32 i32) (result i32)
        (drop (call $register (i32.const 64) (i32.const 1) (i32.const 0)))
        (drop (call $enqueue (i32.load (i32.const 0)) (i32.const 0) (i32.const 0)))
        (i32.const 1))
    (func (export "proxy_on_log") (param i32))
    (func (export "proxy_on_queue_ready") (param i32) (param $token i32)
        (drop (call $dequeue (local.get $token) (i32.const 0) (i32.const 4)))
        (drop (call $enqueue (local.get $token) (i32.const 0) (i32.const 0)))))"#;

/// Has each callback of a queue take 30 ms of the paused clock.
#[derive(Debug, Default)]
struct Slow {
    told: AtomicU64,
    logged: AtomicU64,
}

impl Probe for Slow {
    fn called(&self, callback: &'static str, _: Duration) {
        if callback == "proxy_on_queue_ready" {
            self.told.fetch_add(1, Relaxed);
            // Polled once it has moved the clock.
            let _ = tokio::time::advance(Duration::from_millis(30)).now_or_never();
        } else if callback == "proxy_on_log" {
            self.logged.fetch_add(1, Relaxed);
        }
    }
    fn log(&self, _: u32, _: &str) {}
    fn log_level(&self) -> u32 {
        0
    }
    fn built(&self, _: BuildTimes) {}
    fn grpc(&self, _: &str) {}
    fn has_cluster(&self, _: &str) -> bool {
        false
    }
    fn call(&self, _: &str, _: Call) -> Result<CallResponse, CallError> {
        Err(CallError::Timeout)
    }
}

/// A VM at work, and what it took.
fn feeder() -> (Arc<Vm>, u32, Arc<Slow>) {
    let slow: Arc<Slow> = Arc::default();
    let mut env = environment("feeder");
    let changed = Arc::get_mut(&mut env).expect("nobody else's");
    changed.probe = Some(Arc::clone(&slow) as _);
    let runtime = Runtime::new().expect("an engine");
    let table = abi::linker(runtime.engine()).expect("no name twice");
    let code = wat::parse_str(FEEDER).expect("valid text");
    let module = Module::compile(runtime.engine(), &code, Digest::of(&code)).expect("valid");
    let imports = abi::Imports::resolve(&table, &module, &env.vm).expect("known");
    let roots = [Arc::new(RootSpec::new(&env.vm))];
    let stats = env.registry.set(&wasm_stats::TABLE, "wasm.", "wasm", []);
    let built = Vm::build(&runtime, &imports.pre, &env, &roots, Arc::default(), stats);
    let (mut vm, roots) = built.expect("built");
    Vm::adopt(&mut vm, Box::new(|reason| panic!("{reason}")));
    (vm, roots[0], slow)
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_feeds_itself_leaves_four_fifths_to_others() {
    let (vm, _, slow) = feeder();
    tokio::time::sleep(Duration::from_secs(3)).await;
    // One in 150 ms.
    let told = slow.told.load(Relaxed);
    assert!((18..=21).contains(&told), "{told}");
    vm.retire();
}

#[tokio::test(start_paused = true)]
async fn what_is_no_queues_does_not_wait_for_one() {
    let (vm, root, slow) = feeder();
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert_eq!(slow.told.load(Relaxed), 1, "it rests");
    let begin = Instant::now();
    let stream = foreign::stream(&foreign::connection());
    vm.log_in_root(root, &stream, false, None);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(slow.logged.load(Relaxed), 1);
    assert_eq!(
        (slow.told.load(Relaxed), begin.elapsed()),
        (1, Duration::ZERO)
    );
    // Who comes after all that was there before does not wait for the queue's turn.
    vm.settled().await.expect("alive");
    assert_eq!(slow.told.load(Relaxed), 2);
    assert_eq!(begin.elapsed(), Duration::from_millis(30));
    vm.leave(root);
    vm.retire();
}
