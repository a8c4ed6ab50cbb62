#!/usr/bin/env bash
# Runs every fuzz target for so many seconds (60), from its seeds: `fuzz/run.sh 300`. What a target finds is in
# fuzz/artifacts/TARGET; put it into fuzz/seeds/TARGET together with the fix, and `cargo test` holds it.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
rustup toolchain list | grep -q ^nightly || rustup toolchain install nightly --profile minimal
command -v cargo-fuzz >/dev/null || cargo install -q cargo-fuzz --locked
# Safe code has little that a sanitizer could find, and compiled guests confuse it: it is off, which makes inputs cheap.
for target in pairs hostcalls module; do
    echo "=== fuzz $target"
    mkdir -p "fuzz/corpus/$target"
    cargo +nightly fuzz run -s none "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 -max_len=16384 -print_final_stats=1 -print_funcs=0 -verbosity=0
done
