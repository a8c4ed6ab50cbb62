#!/usr/bin/env bash
# Builds the measured plugins; needs `rustup target add wasm32-wasip1`.
set -euo pipefail
cd "$(dirname "$0")"
for plugin in add read body; do
    rustc --edition 2024 --target wasm32-wasip1 --crate-type cdylib -C opt-level=3 -C panic=abort -C strip=symbols \
        -C link-arg=--no-entry -C link-arg=-zstack-size=65536 --cfg "plugin=\"$plugin\"" --check-cfg 'cfg(plugin, values("add", "read", "body"))' \
        -A static_mut_refs -o "$plugin.wasm" guest.rs
done
ls -l ./*.wasm
