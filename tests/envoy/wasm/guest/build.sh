#!/bin/sh
# Builds the guest for both ABIs. Needs the target wasm32-wasip1; the modules import nothing of its library.
set -eu
cd "$(dirname "$0")"
for abi in 0_1_0 0_2_1; do
    rustc --edition 2024 --target wasm32-wasip1 --crate-type cdylib --crate-name guest -O -C panic=abort \
        -C lto -C strip=symbols -C link-arg=--initial-memory=8388608 --remap-path-prefix="$PWD=/guest" \
        --check-cfg 'cfg(abi_0_1_0)' --cfg "abi_$abi" -A unsafe_op_in_unsafe_fn -A unexpected_cfgs -o "guest-$abi.wasm" guest.rs
done
