;; A global cannot be imported.
(module
  (import "env" "stack" (global i32))
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1")))
