//! WASI, as a guest asks for it.

use super::*;
use crate::cluster::client::{Call, CallError, CallResponse};
use crate::wasm::probe::{BuildTimes, Probe};

impl Bench {
    fn wasi(&mut self, name: &str, args: &[i64]) -> u32 {
        let function = self
            .linker
            .get(&mut self.store, "wasi_snapshot_preview1", name)
            .expect(name)
            .into_func()
            .expect("a function");
        self.call_function(&function, args).expect("no trap")
    }
}

#[test]
fn standard_output_is_of_no_known_kind() {
    let mut bench = Bench::new();
    bench.write(64, &[9; 24]);
    assert_eq!(bench.wasi("fd_fdstat_get", &[1, 64]), 0);
    assert_eq!((bench.word(64), bench.word(72)), (0, 64));
    assert_eq!(bench.wasi("fd_fdstat_get", &[1, -1]), 0);
}

#[test]
fn wasi_says_what_envoys_says() {
    let mut bench = Bench::new();
    // No bytes of a place that is none, and a line's end.
    for (at, word) in [(64, u32::MAX), (68, 0), (72, 80), (76, 1)] {
        bench.write(at, &word.to_le_bytes());
    }
    bench.write(80, b"\n");
    let cases: [(&str, &[i64], u32, Option<u32>); 16] = [
        ("fd_renumber", &[1, 2], 58, None),
        ("fd_renumber", &[1, 3], 8, None),
        ("fd_renumber", &[0, 2], 8, None),
        ("random_get", &[-1, 0], 0, None),
        ("random_get", &[-1, 1], 21, None),
        ("fd_write", &[1, 64, 2, 96], 0, Some(1)),
        ("fd_write", &[1, 64, 1, 96], 0, Some(0)),
        ("fd_write", &[1, 1024, 1024, 96], 0, Some(0)),
        ("fd_write", &[1, 1024, 1025, 96], 28, None),
        ("fd_readdir", &[1, 0, 0, 0, 96], 20, Some(0)),
        ("path_readlink", &[1, 0, 0, 0, 0, 96], 58, Some(0)),
        ("sock_accept", &[1, 0, 96], 58, Some(0)),
        ("sock_recv", &[1, 0, 0, 0, 96, 100], 58, Some(0)),
        ("sock_send", &[1, 0, 0, 0, 96], 58, Some(0)),
        ("sock_send", &[1, 0, 0, 0, -1], 21, None),
        ("sock_recv", &[1, 0, 0, 0, 96, -1], 21, Some(0)),
    ];
    for (name, args, code, written) in cases {
        bench.write(96, &[9; 8]);
        assert_eq!(bench.wasi(name, args), code, "{name} {args:?}");
        let expected = written.unwrap_or(0x0909_0909);
        assert_eq!(bench.word(96), expected, "{name} {args:?}");
    }
}

/// What it prints is a log line, an empty one too.
#[test]
fn an_empty_line_is_written() {
    #[derive(Debug, Default)]
    struct Lines(parking_lot::Mutex<Vec<(u32, String)>>);
    impl Probe for Lines {
        fn log(&self, level: u32, message: &str) {
            self.0.lock().push((level, message.to_owned()));
        }
        fn log_level(&self) -> u32 {
            0
        }
        fn called(&self, _: &'static str, _: Duration) {}
        fn built(&self, _: BuildTimes) {}
        fn grpc(&self, _: &str) {}
        fn has_cluster(&self, _: &str) -> bool {
            false
        }
        fn call(&self, _: &str, _: Call) -> Result<CallResponse, CallError> {
            Err(CallError::Timeout)
        }
    }
    let lines: Arc<Lines> = Arc::default();
    let mut bench = Bench::new();
    let env = &mut bench.store.data_mut().env;
    let env = Arc::get_mut(env).expect("nobody else's");
    env.probe = Some(Arc::clone(&lines) as _);
    for (at, word) in [(64, 80u32), (68, 1), (72, 80), (76, 0)] {
        bench.write(at, &word.to_le_bytes());
    }
    bench.write(80, b"\n");
    assert_eq!(bench.wasi("fd_write", &[1, 64, 1, 96]), 0);
    assert_eq!(bench.wasi("fd_write", &[2, 72, 1, 96]), 0);
    assert_eq!(*lines.0.lock(), [(2, String::new())]);
}
