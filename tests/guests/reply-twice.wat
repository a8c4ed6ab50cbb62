;; Makes two local replies in one callback: 418 with the details "first", and 403 with "second".
(module
  (import "env" "proxy_send_local_response" (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "first")
  (data (i32.const 8) "second")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (drop (call $reply (i32.const 418) (i32.const 0) (i32.const 5) (i32.const 0) (i32.const 5)
        (i32.const 0) (i32.const 0) (i32.const -1)))
    (drop (call $reply (i32.const 403) (i32.const 8) (i32.const 6) (i32.const 8) (i32.const 6)
        (i32.const 0) (i32.const 0) (i32.const -1)))
    (i32.const 0)))
