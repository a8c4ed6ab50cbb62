;; ABI 0.1.0: headers callbacks are not told of the end, and a header that is missing is an empty one.
(module
  (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_continue_request" (func $continue (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "x-nonex-guest1")
  (func (export "proxy_abi_version_0_1_0"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_request_headers") (param i32 i32) (result i32)
    (if (i32.eqz (call $get (i32.const 0) (i32.const 64) (i32.const 6) (i32.const 0) (i32.const 4)))
      (then (drop (call $add (i32.const 0) (i32.const 70) (i32.const 7) (i32.const 77) (i32.const 1)))))
    (drop (call $continue))
    (i32.const 1)))
