//go:build tools

// Package coraza pins the version of the firewall that build.sh builds.
package coraza

import _ "github.com/corazawaf/coraza-proxy-wasm/wasmplugin"
