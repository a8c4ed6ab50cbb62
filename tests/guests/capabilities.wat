;; For a restriction to proxy_on_configure and proxy_set_shared_data. Goes live where what no restriction is about works:
;; the functions of Emscripten's runtime, and a denied callback of a type that would not do. Writes `told` into the shared
;; data when it is told of statistics.
(module
  (import "env" "pthread_equal" (func $equal (param i32 i32) (result i32)))
  (import "env" "emscripten_notify_memory_growth" (func $grown (param i32)))
  (import "env" "proxy_set_shared_data" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "told")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_tick"))
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (call $grown (i32.const 0))
    (i32.eqz (call $equal (i32.const 1) (i32.const 2))))
  (func (export "envoy_on_stats_update") (param i32 i32)
    (drop (call $set (i32.const 64) (i32.const 4) (i32.const 64) (i32.const 4) (i32.const 0)))))
