;; Misbehaves in one callback. The configuration is two letters: how (t: traps, l: loops, b: takes all memory there is,
;; r: replies with 418, c: closes the stream), and where (see the calls of $fault).
(module
  (import "env" "proxy_get_buffer_bytes" (func $buffer (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_send_local_response"
    (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_close_stream" (func $close (param i32) (result i32)))
  (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))
  (memory (export "memory") 1)
  (global $how (mut i32) (i32.const 0))
  (global $where (mut i32) (i32.const 0))
  (data (i32.const 64) "teapot")
  (func (export "proxy_abi_version_0_2_1"))
  ;; Blocks of 64 KiB pages are never given back; the guest does not live long.
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func $fault (param $here i32)
    (if (i32.ne (local.get $here) (global.get $where)) (then (return)))
    (if (i32.eq (global.get $how) (i32.const 116)) (then (unreachable)))
    (if (i32.eq (global.get $how) (i32.const 108)) (then (loop $ever (br $ever))))
    (if (i32.eq (global.get $how) (i32.const 98))
      (then (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))))
    (if (i32.eq (global.get $how) (i32.const 114))
      (then (drop (call $reply (i32.const 418) (i32.const 64) (i32.const 6) (i32.const 64) (i32.const 6)
        (i32.const 0) (i32.const 0) (i32.const -1)))))
    (if (i32.eq (global.get $how) (i32.const 99)) (then (drop (call $close (i32.const 0))))))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (if (i32.ge_u (local.get 1) (i32.const 2))
      (then
        (drop (call $buffer (i32.const 7) (i32.const 0) (i32.const 2) (i32.const 0) (i32.const 4)))
        (global.set $how (i32.load8_u (i32.load (i32.const 0))))
        (global.set $where (i32.load8_u offset=1 (i32.load (i32.const 0))))))
    (if (i32.eq (global.get $where) (i32.const 116)) (then (drop (call $tick (i32.const 20)))))
    (call $fault (i32.const 102)) ;; f
    (i32.const 1))
  (func (export "proxy_on_context_create") (param i32 i32)
    (if (local.get 1) (then (call $fault (i32.const 110))))) ;; n
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $fault (i32.const 104)) (i32.const 0)) ;; h
  (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
    (call $fault (i32.const 98)) (i32.const 0)) ;; b
  (func (export "proxy_on_request_trailers") (param i32 i32) (result i32)
    (call $fault (i32.const 122)) (i32.const 0)) ;; z
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (call $fault (i32.const 72)) (i32.const 0)) ;; H
  (func (export "proxy_on_response_body") (param i32 i32 i32) (result i32)
    (call $fault (i32.const 66)) (i32.const 0)) ;; B
  (func (export "proxy_on_response_trailers") (param i32 i32) (result i32)
    (call $fault (i32.const 90)) (i32.const 0)) ;; Z
  (func (export "proxy_on_log") (param i32) (call $fault (i32.const 111))) ;; o
  (func (export "proxy_on_done") (param i32) (result i32)
    (call $fault (i32.const 100)) (i32.const 1)) ;; d
  (func (export "proxy_on_delete") (param i32) (call $fault (i32.const 101))) ;; e
  (func (export "proxy_on_tick") (param i32) (call $fault (i32.const 116)))) ;; t
