;; Makes a gRPC callout to a cluster that there is not for each request, and another one whenever it is told that one has
;; failed.
(module
  (import "env" "proxy_grpc_call" (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 128) "\0a\06\0a\04none")
  (data (i32.const 160) "test.Service")
  (data (i32.const 176) "hello")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 8192))
  (func $again
    (drop (call $call (i32.const 128) (i32.const 8) (i32.const 160) (i32.const 12) (i32.const 176) (i32.const 5)
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 400) (i32.const 8))))
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (call $again) (i32.const 0))
  (func (export "proxy_on_grpc_close") (param i32 i32 i32) (call $again)))
