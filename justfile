# `just` lists what a developer runs. CI runs `.ci/run`, which uses the same recipes' commands.

# Everything that needs only Rust.
default: check test

# Types and lints, quickly.
check:
    cargo fmt --all --check
    cargo clippy --all-targets -- -D warnings
    cargo check --no-default-features

# All tests that need nothing but Rust.
test:
    cargo test

# The tour: an embedded control plane, two upstreams and the proxy.
demo *ARGS:
    cargo run --release -- demo {{ARGS}}

# Real control plane (Go) and real Envoy (Python wheel); fails where one is missing.
interop *ARGS: release
    bash tests/interop/run.sh {{ARGS}}
    python3 tests/envoy/run.py
    bash tests/faults/run.sh
    python3 tests/faults/wasm.py

# Ratios to a real Envoy, written to bench/results/.
bench *ARGS:
    bash bench/pgo.sh
    python3 bench/run.py {{ARGS}}

# The long forms of everything; their last result is committed.
nightly:
    bash .ci/nightly

# Rebuilds the example plugins (needs the wasm32-wasip1 target).
plugins:
    bash plugins/build.sh

# Validates every example through the real parser.
examples:
    cargo test --test it examples

# Known vulnerabilities in dependencies (fetches the advisory database).
audit:
    cargo deny check advisories

release:
    cargo build --release
