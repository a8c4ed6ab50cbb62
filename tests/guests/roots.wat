;; For VMs with several root contexts. Writes what happened into the shared data of its vm_id under the key `roots`: for
;; each callback its letter, the context's id, the first letter of plugin_name and that of the configuration, where it
;; can be read. Contexts: C create, V start, F configure, H request headers, L log, D done, X delete, T tick.
;; The configuration's first letter makes: n on_configure return false, s on_configure compute for long, t
;; on_request_headers trap, p on_done return false and the next tick call proxy_done, w request headers pause, o on_configure
;; return false while k forbids it, which on_request_headers of k switches on and off.
(module
  (import "env" "proxy_get_property" (func $property (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_buffer_bytes" (func $buffer (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_shared_data" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_shared_data" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_tick_period_milliseconds" (func $period (param i32) (result i32)))
  (import "env" "proxy_done" (func $done (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "plugin_name")
  (data (i32.const 80) "roots")
  (data (i32.const 96) "forbidden")
  (global $at (mut i32) (i32.const 4096))
  ;; At 2048 + id: the first letter of the configuration of root id; at 3072 + id: the root of stream id.
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func $put (param i32)
    (i32.store8 (global.get $at) (local.get 0))
    (global.set $at (i32.add (global.get $at) (i32.const 1))))
  (func $saw (param $letter i32) (param $id i32)
    (call $put (local.get $letter))
    (call $put (i32.add (i32.const 48) (local.get $id)))
    (if (i32.eqz (call $property (i32.const 64) (i32.const 11) (i32.const 0) (i32.const 4)))
      (then (call $put (i32.load8_u (i32.load (i32.const 0))))))
    (if (i32.eqz (call $buffer (i32.const 7) (i32.const 0) (i32.const 9) (i32.const 0) (i32.const 4)))
      (then (call $put (i32.load8_u (i32.load (i32.const 0))))))
    (call $put (i32.const 32))
    (drop (call $set (i32.const 80) (i32.const 5) (i32.const 4096)
      (i32.sub (global.get $at) (i32.const 4096)) (i32.const 0))))
  (func $kind (param $root i32) (result i32)
    (i32.load8_u (i32.add (i32.const 2048) (local.get $root))))
  (func $forbidden (result i32)
    (i32.store (i32.const 4) (i32.const 0))
    (drop (call $get (i32.const 96) (i32.const 9) (i32.const 0) (i32.const 4) (i32.const 12)))
    (i32.load (i32.const 4)))
  (func (export "proxy_on_context_create") (param $id i32) (param $root i32)
    (i32.store8 (i32.add (i32.const 3072) (local.get $id)) (local.get $root))
    (call $saw (i32.const 67) (local.get $id)))
  (func (export "proxy_on_vm_start") (param $id i32) (param i32) (result i32)
    (call $saw (i32.const 86) (local.get $id))
    (i32.const 1))
  (func (export "proxy_on_configure") (param $id i32) (param i32) (result i32)
    (local $left i32)
    (call $saw (i32.const 70) (local.get $id))
    (drop (call $buffer (i32.const 7) (i32.const 0) (i32.const 9) (i32.const 0) (i32.const 4)))
    (i32.store8 (i32.add (i32.const 2048) (local.get $id)) (i32.load8_u (i32.load (i32.const 0))))
    (if (i32.eq (call $kind (local.get $id)) (i32.const 115)) ;; s
      (then
        (local.set $left (i32.const 300000000))
        (loop $again
          (local.set $left (i32.sub (local.get $left) (i32.const 1)))
          (i32.store (i32.const 8) (local.get $left))
          (br_if $again (local.get $left)))))
    (if (i32.eq (call $kind (local.get $id)) (i32.const 111)) ;; o
      (then (return (i32.eqz (call $forbidden)))))
    (i32.ne (call $kind (local.get $id)) (i32.const 110))) ;; n
  (func (export "proxy_on_request_headers") (param $id i32) (param i32 i32) (result i32)
    (local $kind i32)
    (call $saw (i32.const 72) (local.get $id))
    (local.set $kind (call $kind (i32.load8_u (i32.add (i32.const 3072) (local.get $id)))))
    (if (i32.eq (local.get $kind) (i32.const 116)) (then (unreachable))) ;; t
    (if (i32.eq (local.get $kind) (i32.const 107)) ;; k
      (then (drop (call $set (i32.const 96) (i32.const 9) (i32.const 96) (i32.eqz (call $forbidden)) (i32.const 0)))))
    (i32.eq (local.get $kind) (i32.const 119))) ;; w
  (func (export "proxy_on_log") (param $id i32) (call $saw (i32.const 76) (local.get $id)))
  (func (export "proxy_on_tick") (param $id i32)
    (call $saw (i32.const 84) (local.get $id))
    (drop (call $period (i32.const 0)))
    (drop (call $done)))
  (func (export "proxy_on_done") (param $id i32) (result i32)
    (call $saw (i32.const 68) (local.get $id))
    (if (i32.eq (call $kind (local.get $id)) (i32.const 112)) ;; p
      (then (drop (call $period (i32.const 5))) (return (i32.const 0))))
    (i32.const 1))
  (func (export "proxy_on_delete") (param $id i32) (call $saw (i32.const 88) (local.get $id))))
