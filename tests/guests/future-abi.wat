;; The marker of a version that does not exist.
(module (memory (export "memory") 1) (func (export "proxy_abi_version_0_3_0")))
