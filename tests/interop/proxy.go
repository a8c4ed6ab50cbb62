// The proxy under test, as its own process with a bootstrap of its own.

package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// mode is one of the ways to be told.
type mode struct {
	name  string
	ads   bool
	delta bool
	file  bool
}

var modes = []mode{
	{name: "ads-sotw", ads: true},
	{name: "ads-delta", ads: true, delta: true},
	{name: "per-type-sotw"},
	{name: "per-type-delta", delta: true},
	{name: "file", file: true},
}

type proxy struct {
	command *exec.Cmd
	admin   string
	log     *os.File
}

// freePort gives a port below those that the system gives to connections, so that no client takes it before the proxy does.
func freePort() uint32 {
	for {
		port := 10_000 + rand.IntN(22_000)
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			listener.Close()
			return uint32(port)
		}
	}
}

func (m mode) bootstrap(xdsPort, adminPort uint32, folder string) string {
	api := "GRPC"
	if m.delta {
		api = "DELTA_GRPC"
	}
	service := fmt.Sprintf(`{api_type: %s, transport_api_version: V3, set_node_on_first_message_only: true,
    grpc_services: [{envoy_grpc: {cluster_name: xds}}]}`, api)
	var dynamic string
	switch {
	case m.file:
		source := func(kind string) string {
			return fmt.Sprintf(`{path_config_source: {path: %q}, resource_api_version: V3}`, filepath.Join(folder, kind+".json"))
		}
		dynamic = fmt.Sprintf("  lds_config: %s\n  cds_config: %s\n", source("lds"), source("cds"))
	case m.ads:
		dynamic = fmt.Sprintf("  ads_config: %s\n  lds_config: {ads: {}, resource_api_version: V3}\n  cds_config: {ads: {}, resource_api_version: V3}\n", service)
	default:
		dynamic = fmt.Sprintf("  lds_config: {api_config_source: %s, resource_api_version: V3}\n  cds_config: {api_config_source: %s, resource_api_version: V3}\n", service, service)
	}
	return fmt.Sprintf(`node: {id: interop, cluster: interop}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}
dynamic_resources:
%sstatic_resources:
  clusters:
  - name: xds
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: xds
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}]}]
`, adminPort, dynamic, xdsPort)
}

func startProxy(binary, bootstrap, folder string, adminPort uint32) (*proxy, error) {
	path := filepath.Join(folder, "bootstrap.yaml")
	if err := os.WriteFile(path, []byte(bootstrap), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(folder, "proxy.log"))
	if err != nil {
		return nil, err
	}
	command := exec.Command(binary, "-c", path, "--concurrency", "2", "-l", "info", "--drain-time-s", "1")
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		return nil, err
	}
	return &proxy{command: command, admin: fmt.Sprintf("http://127.0.0.1:%d", adminPort), log: log}, nil
}

func (p *proxy) get(path string) (int, string) {
	response, err := http.Get(p.admin + path)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(body)
}

func (p *proxy) awaitReady(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	var said string
	for time.Now().Before(deadline) {
		var status int
		if status, said = p.get("/ready"); status == http.StatusOK && strings.TrimSpace(said) == "LIVE" {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("not ready after %v: %s", limit, said)
}

func (p *proxy) end() {
	_ = p.command.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = p.command.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		_ = p.command.Process.Kill()
	}
	_ = p.log.Close()
}
