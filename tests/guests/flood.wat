;; Takes as much as it gets of what the first letter of a request's header `x-flood` names, and answers with the status
;; that ended it and how often it was given, six digits each. m: metrics, d: shared data (1 KiB each), q: messages of
;; 1 KiB in one queue, Q: queues, l: log lines (20,000), c: callouts to the cluster `up`. Others go on to the upstream:
;; s: computes for about 30 ms, p: is held for ever, r: reads the request's path in the response phase, and tells the
;; status in `x-read`, w: likewise, but writes; t: a timer of 1 ms from now on; u: traps; v: as u, with `x-flood: v` of
;; the response phase; z: has 4 MiB compressed.
(module
  (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_send_local_response"
    (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_define_metric" (func $metric (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_shared_data" (func $data (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_register_shared_queue" (func $queue (param i32 i32 i32) (result i32)))
  (import "env" "proxy_enqueue_shared_queue" (func $enqueue (param i32 i32 i32) (result i32)))
  (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
  (import "env" "proxy_http_call" (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_current_time_nanoseconds" (func $time (param i32) (result i32)))
  (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))
  (import "env" "proxy_call_foreign_function" (func $foreign (param i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 66)
  (global $what (mut i32) (i32.const 0))
  (data (i32.const 16) "x-flood")
  (data (i32.const 32) "x-read")
  (data (i32.const 48) ":path")
  (data (i32.const 64) "name-000000")
  (data (i32.const 96) "000000 000000")
  (data (i32.const 128) "up")
  (data (i32.const 136) "compress")
  ;; A serialized map: :method GET, :path /, :authority a.
  (data (i32.const 160) "\03\00\00\00\07\00\00\00\03\00\00\00\05\00\00\00\01\00\00\00\0a\00\00\00\01\00\00\00:method\00GET\00:path\00/\00:authority\00a\00")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 65536))
  (func $digits (param $number i32) (param $at i32) (local $left i32)
    (local.set $left (i32.const 6))
    (loop $next
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (i32.store8 (i32.add (local.get $at) (local.get $left))
        (i32.add (i32.const 48) (i32.rem_u (local.get $number) (i32.const 10))))
      (local.set $number (i32.div_u (local.get $number) (i32.const 10)))
      (br_if $next (local.get $left))))
  (func $take (param $n i32) (result i32)
    (call $digits (local.get $n) (i32.const 69))
    (if (i32.eq (global.get $what) (i32.const 109)) ;; m
      (then (return (call $metric (i32.const 0) (i32.const 64) (i32.const 11) (i32.const 4)))))
    (if (i32.eq (global.get $what) (i32.const 100)) ;; d
      (then (return (call $data (i32.const 64) (i32.const 11) (i32.const 1024) (i32.const 1024) (i32.const 0)))))
    (if (i32.eq (global.get $what) (i32.const 81)) ;; Q
      (then (return (call $queue (i32.const 64) (i32.const 11) (i32.const 4)))))
    (if (i32.eq (global.get $what) (i32.const 113)) ;; q
      (then
        (drop (call $queue (i32.const 64) (i32.const 4) (i32.const 4)))
        (return (call $enqueue (i32.load (i32.const 4)) (i32.const 1024) (i32.const 1024)))))
    (if (i32.eq (global.get $what) (i32.const 108)) ;; l
      (then
        (if (i32.ge_u (local.get $n) (i32.const 20000)) (then (return (i32.const 99))))
        (return (call $log (i32.const 4) (i32.const 64) (i32.const 11)))))
    (if (i32.eq (global.get $what) (i32.const 99)) ;; c
      (then (return (call $call (i32.const 128) (i32.const 2) (i32.const 160) (i32.const 61)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2000) (i32.const 4)))))
    (i32.const 98))
  (func $spin (local $end i64)
    (drop (call $time (i32.const 8)))
    (local.set $end (i64.add (i64.load (i32.const 8)) (i64.const 30000000)))
    (loop $more
      (drop (call $time (i32.const 8)))
      (br_if $more (i64.lt_u (i64.load (i32.const 8)) (local.get $end)))))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $n i32) (local $status i32)
    (global.set $what (i32.const 0))
    (if (i32.eqz (call $get (i32.const 0) (i32.const 16) (i32.const 7) (i32.const 0) (i32.const 4)))
      (then (global.set $what (i32.load8_u (i32.load (i32.const 0))))))
    (if (i32.eqz (global.get $what)) (then (return (i32.const 0))))
    (if (i32.eq (global.get $what) (i32.const 115)) (then (call $spin) (return (i32.const 0)))) ;; s
    (if (i32.eq (global.get $what) (i32.const 112)) (then (return (i32.const 4)))) ;; p
    (if (i32.eq (global.get $what) (i32.const 117)) (then (unreachable))) ;; u
    (if (i32.eq (global.get $what) (i32.const 122)) ;; z
      (then
        (drop (call $foreign (i32.const 136) (i32.const 8) (i32.const 65536) (i32.const 0x400000) (i32.const 0) (i32.const 0)))
        (return (i32.const 0))))
    (if (i32.eq (global.get $what) (i32.const 116)) ;; t
      (then (drop (call $tick (i32.const 1))) (return (i32.const 0))))
    (if (i32.or (i32.or (i32.eq (global.get $what) (i32.const 114)) (i32.eq (global.get $what) (i32.const 119)))
        (i32.eq (global.get $what) (i32.const 118)))
      (then (return (i32.const 0))))
    (block $enough
      (loop $more
        (local.set $status (call $take (local.get $n)))
        (br_if $enough (local.get $status))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $more (i32.lt_u (local.get $n) (i32.const 900000)))))
    (call $digits (local.get $status) (i32.const 96))
    (call $digits (local.get $n) (i32.const 103))
    (drop (call $reply (i32.const 200) (i32.const 0) (i32.const 0) (i32.const 96) (i32.const 13)
      (i32.const 0) (i32.const 0) (i32.const -1)))
    (i32.const 0))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (local $status i32)
    (if (i32.eq (global.get $what) (i32.const 118)) (then (unreachable))) ;; v
    (if (i32.eq (global.get $what) (i32.const 114))
      (then (local.set $status
        (call $get (i32.const 0) (i32.const 48) (i32.const 5) (i32.const 0) (i32.const 4)))))
    (if (i32.eq (global.get $what) (i32.const 119))
      (then (local.set $status
        (call $add (i32.const 0) (i32.const 32) (i32.const 6) (i32.const 64) (i32.const 4)))))
    (if (i32.or (i32.eq (global.get $what) (i32.const 114)) (i32.eq (global.get $what) (i32.const 119)))
      (then
        (call $digits (local.get $status) (i32.const 96))
        (drop (call $add (i32.const 2) (i32.const 32) (i32.const 6) (i32.const 101) (i32.const 1)))))
    (i32.const 0))
  (func (export "proxy_on_tick") (param i32)))
