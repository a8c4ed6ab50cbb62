#!/usr/bin/env bash
# Builds the control plane on the released go-control-plane and drives the release binary with it.
# Arguments are passed on (-snapshots N, -mode NAME, -json FILE).
set -euo pipefail
cd "$(dirname "$0")"
command -v go >/dev/null || { echo "interop needs Go" >&2; exit 1; }
proxy=../../target/release/plenipo
[ -x "$proxy" ] || { echo "interop needs target/release/plenipo: cargo build --release" >&2; exit 1; }
go vet ./...
go build -o bin/interop .
exec ./bin/interop -proxy "$proxy" -module ../../plugins/bin/hello-v2.wasm "$@"
