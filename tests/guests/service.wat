;; A plugin without streams. Each tick, every 20 ms, adds one to the counter `ticks` and puts a message into the queue `q`; a
;; message that comes is taken and kept in the shared data as `message`; values of statistics are kept as `stats`. Its
;; end adds to the counter `goodbye`: on_done 1, on_delete 10.
;; The configuration's first letter makes: f on_configure return false, t on_configure trap, c on_configure call the
;; cluster `callout`, whose answer's body is kept as `answer`, k the first tick of all VMs trap. Any VM configuration makes
;; on_vm_start return false.
(module
  (import "env" "proxy_get_buffer_bytes" (func $buffer (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_shared_data" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_shared_data" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_tick_period_milliseconds" (func $period (param i32) (result i32)))
  (import "env" "proxy_define_metric" (func $metric (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_increment_metric" (func $add (param i32 i64) (result i32)))
  (import "env" "proxy_register_shared_queue" (func $queue (param i32 i32 i32) (result i32)))
  (import "env" "proxy_enqueue_shared_queue" (func $enqueue (param i32 i32 i32) (result i32)))
  (import "env" "proxy_dequeue_shared_queue" (func $dequeue (param i32 i32 i32) (result i32)))
  (import "env" "proxy_http_call"
    (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 32)
  ;; Where results are written: 0 a pointer, 4 a length, 8 a check value; 12 the metric, 16 the queue, 20 a token, 24 another metric.
  (data (i32.const 64) "ticks")
  (data (i32.const 80) "q")
  (data (i32.const 96) "message")
  (data (i32.const 112) "stats")
  (data (i32.const 128) "answer")
  (data (i32.const 144) "died")
  (data (i32.const 160) "callout")
  (data (i32.const 176) "goodbye")
  (data (i32.const 256)
    "\03\00\00\00\07\00\00\00\03\00\00\00\05\00\00\00\01\00\00\00\0a\00\00\00\01\00\00\00"
    ":method\00GET\00:path\00/\00:authority\00h\00")
  (global $kind (mut i32) (i32.const 0))
  (func (export "proxy_abi_version_0_2_1"))
  ;; One thing is read at a time.
  (func (export "malloc") (param i32) (result i32) (i32.const 4096))
  (func $keep (param $name i32) (param $len i32)
    (drop (call $set (local.get $name) (local.get $len)
      (i32.load (i32.const 0)) (i32.load (i32.const 4)) (i32.const 0))))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
    (i32.eqz (local.get 1)))
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (drop (call $buffer (i32.const 7) (i32.const 0) (i32.const 9) (i32.const 0) (i32.const 4)))
    (if (local.get 1) (then (global.set $kind (i32.load8_u (i32.load (i32.const 0))))))
    (drop (call $metric (i32.const 0) (i32.const 64) (i32.const 5) (i32.const 12)))
    (drop (call $queue (i32.const 80) (i32.const 1) (i32.const 16)))
    (drop (call $period (i32.const 20)))
    (if (i32.eq (global.get $kind) (i32.const 116)) (then (unreachable))) ;; t
    (if (i32.eq (global.get $kind) (i32.const 99)) ;; c
      (then
        (return (i32.eqz (call $call (i32.const 160) (i32.const 7) (i32.const 256) (i32.const 61)
          (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 5000) (i32.const 20))))))
    (i32.ne (global.get $kind) (i32.const 102))) ;; f
  (func (export "proxy_on_tick") (param i32)
    (if (i32.eq (global.get $kind) (i32.const 107)) ;; k
      (then
        (if (call $get (i32.const 144) (i32.const 4) (i32.const 0) (i32.const 4) (i32.const 8))
          (then
            (drop (call $set (i32.const 144) (i32.const 4) (i32.const 144) (i32.const 4) (i32.const 0)))
            (unreachable)))))
    (drop (call $add (i32.load (i32.const 12)) (i64.const 1)))
    (drop (call $enqueue (i32.load (i32.const 16)) (i32.const 64) (i32.const 5))))
  (func (export "proxy_on_queue_ready") (param i32 i32)
    (if (i32.eqz (call $dequeue (local.get 1) (i32.const 0) (i32.const 4)))
      (then (call $keep (i32.const 96) (i32.const 7)))))
  (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
    (drop (call $buffer (i32.const 4) (i32.const 0) (local.get 3) (i32.const 0) (i32.const 4)))
    (call $keep (i32.const 128) (i32.const 6)))
  (func $part (param $by i64)
    (drop (call $metric (i32.const 0) (i32.const 176) (i32.const 7) (i32.const 24)))
    (drop (call $add (i32.load (i32.const 24)) (local.get $by))))
  (func (export "proxy_on_done") (param i32) (result i32)
    (call $part (i64.const 1))
    (i32.const 1))
  (func (export "proxy_on_delete") (param i32) (call $part (i64.const 10)))
  (func (export "envoy_on_stats_update") (param i32 i32)
    (drop (call $buffer (i32.const 8) (i32.const 0) (local.get 1) (i32.const 0) (i32.const 4)))
    (call $keep (i32.const 112) (i32.const 5))))
