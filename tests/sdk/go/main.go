// A plugin of the Go SDK, built by standard Go: it edits headers, answers by itself, calls out, and rewrites a response's body. What
// it does depends on the path, so that one plugin shows each behaviour in a real Envoy and in Plenipo.
package main

import (
	"bytes"
	"strings"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/types"
)

func main() {}

func init() {
	proxywasm.SetVMContext(&vm{})
}

type vm struct{ types.DefaultVMContext }

func (*vm) NewPluginContext(uint32) types.PluginContext { return &plugin{} }

type plugin struct {
	types.DefaultPluginContext
	greeting string
}

func (p *plugin) OnPluginStart(int) types.OnPluginStartStatus {
	configuration, err := proxywasm.GetPluginConfiguration()
	if err != nil && err != types.ErrorStatusNotFound {
		proxywasm.LogCriticalf("no configuration: %v", err)
		return types.OnPluginStartStatusFailed
	}
	p.greeting = string(configuration)
	return types.OnPluginStartStatusOK
}

func (p *plugin) NewHttpContext(uint32) types.HttpContext {
	return &stream{plugin: p}
}

type stream struct {
	types.DefaultHttpContext
	plugin *plugin
	path   string
	size   int
}

func (s *stream) OnHttpRequestHeaders(int, bool) types.Action {
	path, err := proxywasm.GetHttpRequestHeader(":path")
	if err != nil {
		proxywasm.LogErrorf("no path: %v", err)
		return types.ActionContinue
	}
	s.path = path
	switch {
	case strings.HasPrefix(path, "/blocked"):
		headers := [][2]string{{"x-why", "blocked"}, {"content-type", "text/plain"}}
		if err := proxywasm.SendHttpResponse(403, headers, []byte("not here\n"), -1); err != nil {
			proxywasm.LogErrorf("no reply: %v", err)
		}
		return types.ActionPause
	case strings.HasPrefix(path, "/call"):
		headers := [][2]string{{":method", "GET"}, {":path", "/status/204?asked=1"}, {":authority", "callout"}}
		if _, err := proxywasm.DispatchHttpCall("callout", headers, nil, nil, 2000, s.called); err != nil {
			proxywasm.LogErrorf("no call: %v", err)
			return types.ActionContinue
		}
		return types.ActionPause
	case strings.HasPrefix(path, "/route"):
		// A changed header chooses the route anew.
		if err := proxywasm.ReplaceHttpRequestHeader("x-tenant", "gold"); err != nil {
			proxywasm.LogErrorf("no header: %v", err)
		}
	}
	_ = proxywasm.AddHttpRequestHeader("x-sdk", "go")
	_ = proxywasm.AddHttpRequestHeader("x-greeting", s.plugin.greeting)
	_ = proxywasm.RemoveHttpRequestHeader("x-secret")
	return types.ActionContinue
}

func (s *stream) called(headers, size, trailers int) {
	fields, err := proxywasm.GetHttpCallResponseHeaders()
	if err != nil {
		proxywasm.LogErrorf("no answer: %v", err)
	}
	for _, field := range fields {
		if field[0] == ":status" {
			_ = proxywasm.AddHttpRequestHeader("x-called", field[1])
		}
	}
	if err := proxywasm.ResumeHttpRequest(); err != nil {
		proxywasm.LogErrorf("no resume: %v", err)
	}
}

func (s *stream) OnHttpRequestBody(size int, end bool) types.Action {
	if !strings.HasPrefix(s.path, "/upper") {
		return types.ActionContinue
	}
	if !end {
		return types.ActionPause
	}
	body, err := proxywasm.GetHttpRequestBody(0, size)
	if err != nil {
		proxywasm.LogErrorf("no body: %v", err)
		return types.ActionContinue
	}
	_ = proxywasm.ReplaceHttpRequestBody(bytes.ToUpper(body))
	return types.ActionContinue
}

func (s *stream) OnHttpResponseHeaders(int, bool) types.Action {
	_ = proxywasm.AddHttpResponseHeader("x-sdk", "go")
	if strings.HasPrefix(s.path, "/redact") {
		_ = proxywasm.RemoveHttpResponseHeader("content-length")
	}
	return types.ActionContinue
}

func (s *stream) OnHttpResponseBody(size int, end bool) types.Action {
	if !strings.HasPrefix(s.path, "/redact") {
		return types.ActionContinue
	}
	s.size = size
	if !end {
		return types.ActionPause
	}
	body, err := proxywasm.GetHttpResponseBody(0, s.size)
	if err != nil {
		proxywasm.LogErrorf("no body: %v", err)
		return types.ActionContinue
	}
	_ = proxywasm.ReplaceHttpResponseBody(bytes.ReplaceAll(body, []byte("hunter2"), []byte("***")))
	return types.ActionContinue
}

func (s *stream) OnHttpStreamDone() {
	proxywasm.LogInfof("done: %s", s.path)
}
