#!/usr/bin/env bash
# Builds the binary that is measured and shipped: release-lto by the profile of a load. Three steps of some minutes: a binary
# that counts, the load of `bench/train.py`, and the binary that is made by the counts: target/pgo/plenipo.
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
profdata=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
[ -x "$profdata" ] || rustup component add llvm-tools
out=$PWD/target/pgo
# Cargo does not see that a profile is another one.
rm -rf "$out/counts" "$out/use"

# With a target of its own, build scripts and macros stay as they are.
build() {
    RUSTFLAGS="$1" cargo build --locked --profile release-lto --bin plenipo --target "$host" --target-dir "$2"
}

build "-Cprofile-generate=$out/counts" "$out/generate"
python3 bench/train.py "$out/generate/$host/release-lto/plenipo"
"$profdata" merge -o "$out/profile" "$out/counts"
build "-Cprofile-use=$out/profile" "$out/use"
cp "$out/use/$host/release-lto/plenipo" "$out/plenipo"
