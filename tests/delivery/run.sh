#!/usr/bin/env bash
# Delivery of plugins from registries and web servers against the release binary; arguments are passed on (--only slow,dead).
set -euo pipefail
cd "$(dirname "$0")/../.."
for tool in docker-registry openssl perl python3; do
    command -v "$tool" >/dev/null || { echo "the delivery suite needs $tool" >&2; exit 1; }
done
[ -f target/tmp/guests/add-header.wasm ] || cargo test --locked --quiet --test it guests >/dev/null
exec python3 tests/delivery/run.py "$@"
