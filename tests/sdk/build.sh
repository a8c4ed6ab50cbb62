#!/usr/bin/env bash
# Builds the plugins of the SDK suite into build/: each by the tools of its own language, from that language's registry.
set -euo pipefail
cd "$(dirname "$0")"
out=$PWD/build
mkdir -p "$out"
for tool in go node npm python3; do
    command -v "$tool" >/dev/null || { echo "the SDK suite needs $tool" >&2; exit 1; }
done
python3 -m ziglang version >/dev/null 2>&1 || { echo "the SDK suite needs Zig: pip install ziglang==0.15.1" >&2; exit 1; }

# Go SDK, standard Go.
(cd go && GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -ldflags="-s -w" -o "$out/go.wasm" .)

# AssemblyScript SDK.
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cp -r assemblyscript "$work/as"
(cd "$work/as" && npm ci --silent --no-audit --no-fund &&
    npx asc assembly/index.ts -b "$out/assemblyscript.wasm" --use abort=abort_proc_exit --optimize >/dev/null)

# C++ and Zig on the bare ABI.
python3 -m ziglang c++ -target wasm32-wasi -mexec-model=reactor -O2 -s -fno-exceptions -o "$out/cpp.wasm" cpp/plugin.cc
python3 -m ziglang build-exe zig/plugin.zig -target wasm32-freestanding -fno-entry -rdynamic -O ReleaseSmall \
    --cache-dir "$work/zig" -femit-bin="$out/zig.wasm"

# Coraza with the OWASP rules. It is written for TinyGo and the SDK's older module path: the copy is pointed to the SDK of standard Go,
# whose plugins register themselves in init().
sdk=github.com/proxy-wasm/proxy-wasm-go-sdk
version=$(cd go && go list -m -f '{{.Version}}' $sdk)
(cd coraza && go mod download github.com/corazawaf/coraza-proxy-wasm)
cp -r "$(cd coraza && go list -m -f '{{.Dir}}' github.com/corazawaf/coraza-proxy-wasm)" "$work/coraza"
chmod -R u+w "$work/coraza"
(
    cd "$work/coraza"
    rm -f go.work init_tinygo.go
    grep -rl tetratelabs/proxy-wasm-go-sdk --include='*.go' . | xargs sed -i "s#github.com/tetratelabs/proxy-wasm-go-sdk#$sdk#g"
    sed -i "s#github.com/tetratelabs/proxy-wasm-go-sdk v[0-9.]*#$sdk $version#" go.mod
    sed -i 's/^func main() {/func main() {}\n\nfunc init() {/' main.go
    go mod tidy 2>/dev/null
    GOOS=wasip1 GOARCH=wasm go build -tags no_fs_access,memoize_builders -ldflags="-s -w" -buildmode=c-shared -o "$out/coraza.wasm" .
)
ls -l "$out"
