#!/bin/sh
# Builds every plugin into bin/, smaller still where wasm-opt is installed. Needs the target wasm32-wasip1.
set -eu
cd "$(dirname "$0")"
# No path of this machine ends up in the modules.
export RUSTFLAGS="--remap-path-prefix=$PWD=/plugins --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
cargo build --release --locked --target wasm32-wasip1
mkdir -p bin
for file in target/wasm32-wasip1/release/*.wasm; do
    name=$(basename "$file" .wasm | tr _ -)
    if command -v wasm-opt >/dev/null 2>&1; then
        wasm-opt -Oz --strip-debug --strip-producers --enable-bulk-memory --enable-sign-ext \
            --enable-mutable-globals --enable-nontrapping-float-to-int -o "bin/$name.wasm" "$file"
    else
        cp "$file" "bin/$name.wasm"
    fi
done
(cd bin && sha256sum -- *.wasm >SHA256SUMS && cat SHA256SUMS)
