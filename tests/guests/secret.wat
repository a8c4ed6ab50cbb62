;; Configured with `w`: fills 16 MiB with a secret, shares one, and traps. Otherwise it takes 16 MiB and looks for anything
;; in them, and for what was shared, and answers 418 where there is something.
(module
  (import "env" "proxy_get_buffer_bytes" (func $buffer (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_shared_data" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_shared_data" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_send_local_response"
    (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (global $writes (mut i32) (i32.const 0))
  (data (i32.const 64) "secret")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (if (local.get 1)
      (then
        (drop (call $buffer (i32.const 7) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 4)))
        (global.set $writes (i32.eq (i32.load8_u (i32.load (i32.const 0))) (i32.const 119)))))
    (i32.const 1))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $at i32) (local $end i32) (local $found i64)
    (local.set $at (i32.shl (memory.grow (i32.const 256)) (i32.const 16)))
    (local.set $end (i32.add (local.get $at) (i32.const 0x1000000)))
    (if (global.get $writes)
      (then
        (memory.fill (local.get $at) (i32.const 83) (i32.const 0x1000000))
        (drop (call $set (i32.const 64) (i32.const 6) (i32.const 64) (i32.const 6) (i32.const 0)))
        (unreachable)))
    (loop $next
      (local.set $found (i64.or (local.get $found) (i64.load (local.get $at))))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $next (i32.lt_u (local.get $at) (local.get $end))))
    (if (i32.or (i64.ne (local.get $found) (i64.const 0))
          (i32.eqz (call $get (i32.const 64) (i32.const 6) (i32.const 0) (i32.const 4) (i32.const 8))))
      (then (drop (call $reply (i32.const 418) (i32.const 0) (i32.const 0) (i32.const 64) (i32.const 6)
        (i32.const 0) (i32.const 0) (i32.const -1)))
        (return (i32.const 0))))
    ;; Its memory goes with its VM, so that the next one gets it anew.
    (unreachable)))
