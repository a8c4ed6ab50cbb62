#!/usr/bin/env bash
# Faults and reloads against the release binary, in their short form; arguments are passed on (-swaps 1000 is
# the long one).
set -euo pipefail
cd "$(dirname "$0")/../interop"
command -v go >/dev/null || { echo "the fault suite needs Go" >&2; exit 1; }
go build -o bin/interop .
./bin/interop -suite reload -proxy ../../target/release/plenipo -module ../../plugins/bin/hello-v2.wasm "$@"
