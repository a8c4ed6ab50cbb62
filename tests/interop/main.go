// Drives a proxy from the released go-control-plane in five ways: aggregated and per type, state of the world and
// delta, and by files. In each, a series of snapshots changes one thing at a time while load runs; no request may fail,
// every version must show in an answer, a bad resource must be refused by name while its sibling applies, and a restart
// of the control plane must lose nothing.

package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	clusterservice "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpointservice "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	extensionservice "github.com/envoyproxy/go-control-plane/envoy/service/extension/v3"
	listenerservice "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	routeservice "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
)

type nacks struct {
	mutex sync.Mutex
	texts []string
}

func (n *nacks) add(text string) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	n.texts = append(n.texts, text)
}

func (n *nacks) all() []string {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	return append([]string(nil), n.texts...)
}

// controlPlane is a server that can be killed and started again on its port.
type controlPlane struct {
	cache cache.SnapshotCache
	port  uint32
	nacks *nacks
	grpc  *grpc.Server
}

func (c *controlPlane) start() error {
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", c.port))
	if err != nil {
		return err
	}
	callbacks := server.CallbackFuncs{
		StreamRequestFunc: func(_ int64, request *discovery.DiscoveryRequest) error {
			if detail := request.GetErrorDetail(); detail != nil {
				c.nacks.add(detail.GetMessage())
			}
			return nil
		},
		StreamDeltaRequestFunc: func(_ int64, request *discovery.DeltaDiscoveryRequest) error {
			if detail := request.GetErrorDetail(); detail != nil {
				c.nacks.add(detail.GetMessage())
			}
			return nil
		},
	}
	xds := server.NewServer(context.Background(), c.cache, callbacks)
	c.grpc = grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(c.grpc, xds)
	clusterservice.RegisterClusterDiscoveryServiceServer(c.grpc, xds)
	endpointservice.RegisterEndpointDiscoveryServiceServer(c.grpc, xds)
	listenerservice.RegisterListenerDiscoveryServiceServer(c.grpc, xds)
	routeservice.RegisterRouteDiscoveryServiceServer(c.grpc, xds)
	extensionservice.RegisterExtensionConfigDiscoveryServiceServer(c.grpc, xds)
	go func() { _ = c.grpc.Serve(listener) }()
	return nil
}

// publisher makes a version known to the proxy.
type publisher interface {
	publish(b *builder, n int) error
}

type snapshotPublisher struct{ cache cache.SnapshotCache }

func (p snapshotPublisher) publish(b *builder, n int) error {
	snapshot, err := b.snapshot(n)
	if err != nil {
		return err
	}
	return p.cache.SetSnapshot(context.Background(), "interop", snapshot)
}

type filePublisher struct{ folder string }

func (p filePublisher) publish(b *builder, n int) error {
	all := b.all(n)
	// Make before break, as a careful author of files does it.
	for _, kind := range []struct {
		name string
		url  resource.Type
	}{
		{"eds", resource.EndpointType}, {"ecds", resource.ExtensionConfigType},
		{"cds", resource.ClusterType}, {"rds", resource.RouteType}, {"lds", resource.ListenerType},
	} {
		if err := p.write(kind.name, fmt.Sprintf("v%d", n), all[kind.url]); err != nil {
			return err
		}
		if kind.name == "cds" {
			// A file has no acknowledgement: give the new cluster the time to become warm.
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

func (p filePublisher) write(kind, version string, resources []types.Resource) error {
	response := &discovery.DiscoveryResponse{VersionInfo: version}
	for _, one := range resources {
		response.Resources = append(response.Resources, pack(one))
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(response)
	if err != nil {
		return err
	}
	path := filepath.Join(p.folder, kind+".json")
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// upstream answers with its own number.
func upstream(number int) (uint32, func()) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("x-upstream", fmt.Sprint(number))
		_, _ = w.Write([]byte("hello from upstream\n"))
	})}
	go func() { _ = server.Serve(listener) }()
	return uint32(listener.Addr().(*net.TCPAddr).Port), func() { _ = server.Close() }
}

// shows tells whether an answer shows world w; the string says what it shows instead.
func shows(client *http.Client, url string, w world) (bool, string) {
	response, err := client.Get(url)
	if err != nil {
		return false, err.Error()
	}
	defer response.Body.Close()
	header := response.Header
	seen := fmt.Sprintf("upstream %s, route %s, server %s, plugin %s",
		header.Get("x-upstream"), header.Get("x-route"), header.Get("server"), header.Get("x-hello-greeting"))
	want := fmt.Sprintf("upstream %d, route %s, server %s, plugin ", w.upstream(), w.route, w.server)
	return strings.HasPrefix(seen, want) && strings.Contains(header.Get("x-hello-greeting"), w.plugin), seen
}

func awaitWorld(client *http.Client, url string, n int, limit time.Duration) (time.Duration, error) {
	begin := time.Now()
	var seen string
	for time.Since(begin) < limit {
		var ok bool
		if ok, seen = shows(client, url, worldAt(n)); ok {
			return time.Since(begin), nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return 0, fmt.Errorf("version %d did not show within %v: wanted %+v, saw %s", n, limit, worldAt(n), seen)
}

type result struct {
	Mode      string  `json:"mode"`
	Snapshots int     `json:"snapshots"`
	Sent      int64   `json:"requests"`
	Failed    int64   `json:"failed"`
	MedianMs  float64 `json:"median_ms_to_effect"`
	WorstMs   float64 `json:"worst_ms_to_effect"`
	Nack      string  `json:"nack"`
}

func run(m mode, binary, module string, snapshots int) (r result, err error) {
	r = result{Mode: m.name, Snapshots: snapshots}
	folder, err := os.MkdirTemp("", "interop-"+m.name)
	if err != nil {
		return r, err
	}
	defer func() {
		if err == nil {
			_ = os.RemoveAll(folder)
		} else {
			err = fmt.Errorf("%w (logs in %s)", err, folder)
		}
	}()
	a, endA := upstream(0)
	defer endA()
	b, endB := upstream(1)
	defer endB()

	plane := &controlPlane{cache: cache.NewSnapshotCache(m.ads, cache.IDHash{}, nil), port: freePort(), nacks: &nacks{}}
	sources := &builder{listenerPort: freePort(), upstreams: [2]uint32{a, b}, module: module}
	var pub publisher
	switch {
	case m.file:
		pub = filePublisher{folder}
	default:
		if err = plane.start(); err != nil {
			return r, err
		}
		defer func() { plane.grpc.Stop() }()
		pub = snapshotPublisher{plane.cache}
	}
	url := fmt.Sprintf("http://127.0.0.1:%d/", sources.listenerPort)
	work := func(n int, bad bool) error {
		sources.badCluster = bad
		return pub.publish(sources, n)
	}
	setSource(sources, m, folder)
	if err = work(0, false); err != nil {
		return r, err
	}
	admin := freePort()
	p, err := startProxy(binary, m.bootstrap(plane.port, admin, folder), folder, admin)
	if err != nil {
		return r, err
	}
	defer p.end()
	if err = p.awaitReady(30 * time.Second); err != nil {
		return r, err
	}
	client := &http.Client{Timeout: 5 * time.Second}
	if _, err = awaitWorld(client, url, 0, 10*time.Second); err != nil {
		return r, err
	}
	traffic := startLoad(url, 8, 2*time.Millisecond)
	defer func() {
		traffic.end()
		r.Sent, r.Failed = traffic.sent.Load(), traffic.failed.Load()
		if err == nil && r.Failed > 0 {
			err = fmt.Errorf("%d of %d requests failed: %s", r.Failed, r.Sent, strings.Join(traffic.failures, "; "))
		}
	}()

	var took []float64
	for n := 1; n <= snapshots; n++ {
		if err = work(n, false); err != nil {
			return r, err
		}
		var after time.Duration
		if after, err = awaitWorld(client, url, n, 10*time.Second); err != nil {
			return r, err
		}
		took = append(took, float64(after.Microseconds())/1000)
	}
	r.MedianMs, r.WorstMs = median(took)

	// A bad resource is refused by name; its good sibling, a cluster of a new name, applies.
	next := snapshots + 1
	for worldAt(next).cluster == worldAt(next-1).cluster {
		next++
	}
	if err = work(next, true); err != nil {
		return r, err
	}
	if _, err = awaitWorld(client, url, next, 10*time.Second); err != nil {
		return r, fmt.Errorf("the good sibling of a bad cluster was not applied: %w", err)
	}
	if m.file {
		if r.Nack, err = rejectedInDump(p); err != nil {
			return r, err
		}
	} else if r.Nack, err = awaitNack(plane.nacks, "bad-cluster"); err != nil {
		return r, err
	}

	// A control plane that dies and comes back loses nothing.
	next++
	if !m.file {
		plane.grpc.Stop()
		time.Sleep(1500 * time.Millisecond)
		if err = plane.start(); err != nil {
			return r, err
		}
	}
	if err = work(next, false); err != nil {
		return r, err
	}
	if _, err = awaitWorld(client, url, next, 45*time.Second); err != nil {
		return r, fmt.Errorf("after a restart of the control plane: %w", err)
	}
	return r, nil
}

func awaitNack(seen *nacks, name string) (string, error) {
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		for _, text := range seen.all() {
			if strings.Contains(text, name) {
				return text, nil
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return "", fmt.Errorf("no refusal that names %s; refusals: %q", name, seen.all())
}

func rejectedInDump(p *proxy) (string, error) {
	_, dump := p.get("/config_dump")
	if !strings.Contains(dump, "bad-cluster") {
		return "", fmt.Errorf("/config_dump does not tell of bad-cluster")
	}
	return "in /config_dump", nil
}

func setSource(b *builder, m mode, folder string) {
	b.source = func() *core.ConfigSource {
		if m.ads {
			return &core.ConfigSource{ResourceApiVersion: core.ApiVersion_V3,
				ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}}}
		}
		api := core.ApiConfigSource_GRPC
		if m.delta {
			api = core.ApiConfigSource_DELTA_GRPC
		}
		return &core.ConfigSource{ResourceApiVersion: core.ApiVersion_V3,
			ConfigSourceSpecifier: &core.ConfigSource_ApiConfigSource{ApiConfigSource: &core.ApiConfigSource{
				ApiType: api, TransportApiVersion: core.ApiVersion_V3, SetNodeOnFirstMessageOnly: true,
				GrpcServices: []*core.GrpcService{{TargetSpecifier: &core.GrpcService_EnvoyGrpc_{
					EnvoyGrpc: &core.GrpcService_EnvoyGrpc{ClusterName: "xds"},
				}}},
			}}}
	}
	if m.file {
		b.fileSource = func(kind string) *core.ConfigSource {
			return &core.ConfigSource{ResourceApiVersion: core.ApiVersion_V3,
				ConfigSourceSpecifier: &core.ConfigSource_PathConfigSource{PathConfigSource: &core.PathConfigSource{
					Path: filepath.Join(folder, kind+".json"),
				}}}
		}
	}
}

func main() {
	binary := flag.String("proxy", "target/release/plenipo", "the proxy")
	module := flag.String("module", "plugins/bin/hello-v2.wasm", "the plugin")
	snapshots := flag.Int("snapshots", 200, "snapshots in each mode")
	only := flag.String("mode", "", "one mode alone")
	suite := flag.String("suite", "modes", "modes, or reload")
	swaps := flag.Int("swaps", 200, "swaps of the reload suite")
	digests := flag.Int("digests", 0, "distinct modules a version in the reload suite; 0: every swap is to a new one")
	report := flag.String("json", "", "where to write the results")
	flag.Parse()
	path, err := filepath.Abs(*module)
	if err != nil {
		panic(err)
	}
	if *suite == "reload" {
		folder := filepath.Dir(path)
		modules := [2]string{filepath.Join(folder, "hello.wasm"), filepath.Join(folder, "hello-v2.wasm")}
		if !reloadSuite(*binary, modules, *swaps, *digests, *report) {
			os.Exit(1)
		}
		return
	}
	var results []result
	passed, failed := 0, 0
	for _, m := range modes {
		if *only != "" && *only != m.name {
			continue
		}
		r, err := run(m, *binary, path, *snapshots)
		results = append(results, r)
		if err != nil {
			failed++
			fmt.Printf("FAIL %-15s %v\n", m.name, err)
			continue
		}
		passed++
		fmt.Printf("ok   %-15s %d snapshots, %d requests, %d failed; effect after %.1f ms (median), %.1f ms (worst); refused: %s\n",
			r.Mode, r.Snapshots, r.Sent, r.Failed, r.MedianMs, r.WorstMs, r.Nack)
	}
	if *report != "" {
		text, _ := json.MarshalIndent(results, "", "  ")
		_ = os.WriteFile(*report, append(text, '\n'), 0o644)
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 {
		os.Exit(1)
	}
}
