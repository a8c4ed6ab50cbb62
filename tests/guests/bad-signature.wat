;; A callback of another type than the ABI's.
(module
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_request_headers") (param i64) (result i32) (i32.const 0)))
