;; Writes the order of its callbacks into the shared data of its vm_id under the key `order`: one letter for each, and
;; whether the request's `:path` could be read in it (capital) or not.
(module
  (import "env" "proxy_get_header_map_value" (func $header (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_shared_data" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (global $at (mut i32) (i32.const 4096))
  (data (i32.const 64) "order:path")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func $saw (param $letter i32)
    (if (i32.eqz (call $header (i32.const 0) (i32.const 69) (i32.const 5) (i32.const 0) (i32.const 4)))
      (then (local.set $letter (i32.sub (local.get $letter) (i32.const 32)))))
    (i32.store8 (global.get $at) (local.get $letter))
    (global.set $at (i32.add (global.get $at) (i32.const 1)))
    (drop (call $set (i32.const 64) (i32.const 5) (i32.const 4096)
      (i32.sub (global.get $at) (i32.const 4096)) (i32.const 0))))
  (func (export "proxy_on_context_create") (param i32 i32)
    (call $saw (select (i32.const 99) (i32.const 114) (local.get 1)))) ;; r: root, c: stream
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (call $saw (i32.const 118)) (i32.const 1)) ;; v
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (call $saw (i32.const 102)) (i32.const 1)) ;; f
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $saw (i32.const 104)) (i32.const 0)) ;; h
  (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
    (call $saw (i32.const 98)) (i32.const 0)) ;; b
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (call $saw (i32.const 105)) (i32.const 0)) ;; i
  (func (export "proxy_on_log") (param i32) (call $saw (i32.const 108))) ;; l
  (func (export "proxy_on_done") (param i32) (result i32) (call $saw (i32.const 100)) (i32.const 1)) ;; d
  (func (export "proxy_on_delete") (param i32) (call $saw (i32.const 120)))) ;; x
