;; A network filter that sets the property `peer` of each connection to `x`, and an object of Envoy's own, whose arguments
;; (`SetEnvoyFilterStateArguments`) are its configuration.
(module
  (import "env" "proxy_get_buffer_bytes" (func $buffer (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_property" (func $set (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_call_foreign_function" (func $foreign (param i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "peerxset_envoy_filter_state")
  (global $size (mut i32) (i32.const 0))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (global.set $size (local.get 1))
    (drop (call $buffer (i32.const 7) (i32.const 0) (local.get 1) (i32.const 0) (i32.const 4)))
    (memory.copy (i32.const 128) (i32.load (i32.const 0)) (local.get 1))
    (i32.const 1))
  (func (export "proxy_on_new_connection") (param i32) (result i32)
    (drop (call $set (i32.const 64) (i32.const 4) (i32.const 68) (i32.const 1)))
    (if (global.get $size) (then
      (drop (call $foreign (i32.const 69) (i32.const 22) (i32.const 128) (global.get $size) (i32.const 0) (i32.const 4)))))
    (i32.const 0)))
