;; Makes a gRPC callout to the cluster `callout`, holds the request, and lets it go on when it is told of the callout's end.
(module
  (import "env" "proxy_grpc_call" (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_effective_context" (func $effective (param i32) (result i32)))
  (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
  (memory (export "memory") 1)
  (global $context (mut i32) (i32.const 0))
  (data (i32.const 64) "callout")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (global.set $context (local.get 0))
    ;; Where it fails at once that is a status, too.
    (drop (call $call (i32.const 64) (i32.const 7) (i32.const 64) (i32.const 1) (i32.const 64) (i32.const 1)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1000) (i32.const 4)))
    (i32.const 1))
  (func (export "proxy_on_grpc_close") (param i32 i32 i32)
    (drop (call $effective (global.get $context)))
    (drop (call $continue (i32.const 0)))))
