;; Logs what it hears of the ends of streams and connections (the peer that closed a connection comes after `close`), of its own
;; end, and of statistics.
(module
  (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "close 0 done log delete stats")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func $say (param $from i32) (param $len i32)
    (drop (call $log (i32.const 2) (local.get $from) (local.get $len))))
  (func (export "proxy_on_downstream_connection_close") (param $id i32) (param $peer i32)
    (i32.store8 (i32.const 70) (i32.add (i32.const 48) (local.get $peer)))
    (call $say (i32.const 64) (i32.const 7)))
  (func (export "proxy_on_done") (param i32) (result i32) (call $say (i32.const 72) (i32.const 4)) (i32.const 1))
  (func (export "proxy_on_log") (param i32) (call $say (i32.const 77) (i32.const 3)))
  (func (export "proxy_on_delete") (param i32) (call $say (i32.const 81) (i32.const 6)))
  (func (export "envoy_on_stats_update") (param i32 i32) (call $say (i32.const 88) (i32.const 5))))
