#!/bin/sh
# Rebuilds envoy.descriptors.bin from the protos inside the envoy-types crate that Cargo.lock names, and
# plenipo.descriptors.bin from our own.
set -eu
cd "$(dirname "$0")"
manifest=$(cargo metadata --format-version 1 --offline --filter-platform x86_64-unknown-linux-gnu --manifest-path ../Cargo.toml |
    python3 -c 'import json,sys; print(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"]=="envoy-types"))')
api=$(dirname "$manifest")/proto
includes=
for folder in data-plane-api xds googleapis protoc-gen-validate opentelemetry-proto client_model cel-spec/proto; do
    includes="$includes -I $api/$folder"
done
# envoy/type/http_status.proto and the like have no v3 twin but are imported; listing all files keeps this simple.
files=$(cd "$api/data-plane-api" && find envoy -name '*.proto' | sort)
extra=$(cd "$api/xds" && find xds udpa -name '*.proto' | sort)
own=$(find plenipo -name '*.proto' | sort)
# shellcheck disable=SC2086 # the lists are meant to be split
protoc -I . $includes --include_imports --descriptor_set_out=envoy.descriptors.bin \
    $files $extra google/rpc/status.proto xds/type/v3/typed_struct.proto udpa/type/v1/typed_struct.proto
# Without imports: those are in the first.
# shellcheck disable=SC2086
protoc -I . $includes --descriptor_set_out=plenipo.descriptors.bin $own
