;; Wants 2 GiB from the beginning.
(module
  (memory (export "memory") 32768)
  (func (export "proxy_abi_version_0_2_1")))
