// Hot reload under load: a plugin is swapped again and again by remote fetch, over many distinct modules, while
// keep-alive clients count every answer that failed, was not seen by a plugin, or was seen by two versions of it. Long
// streams are held open across swaps. The same for routes and clusters.

package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	wasm "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// module gives the n-th of a family of modules that differ in their digest: a custom section says which it is.
func module(base []byte, n int) []byte {
	text := fmt.Sprintf("variant %d", n)
	section := append([]byte{4}, "note"...)
	section = append(section, text...)
	out := append([]byte(nil), base...)
	out = append(out, 0, byte(len(section)))
	return append(out, section...)
}

type moduleServer struct {
	mutex   sync.Mutex
	modules map[string][]byte
	hits    atomic.Int64
}

func (s *moduleServer) add(code []byte) string {
	digest := sha256.Sum256(code)
	name := hex.EncodeToString(digest[:])
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.modules[name] = code
	return name
}

func (s *moduleServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mutex.Lock()
	code := s.modules[strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/"), ".wasm")]
	s.mutex.Unlock()
	s.hits.Add(1)
	if code == nil {
		http.NotFound(w, r)
		return
	}
	_, _ = w.Write(code)
}

func serve(handler http.Handler) uint32 {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() { _ = http.Serve(listener, handler) }()
	return uint32(listener.Addr().(*net.TCPAddr).Port)
}

// remotePlugin is the ECDS resource whose code is fetched.
func remotePlugin(port uint32, digest, greeting string) types.Resource {
	plugin := &wasm.PluginConfig{
		Name:          "reload",
		RootId:        "hello",
		Configuration: pack(wrapperspb.String(greeting)),
		Vm: &wasm.PluginConfig_VmConfig{VmConfig: &wasm.VmConfig{
			Runtime: "envoy.wasm.runtime.v8",
			Code: &core.AsyncDataSource{Specifier: &core.AsyncDataSource_Remote{Remote: &core.RemoteDataSource{
				HttpUri: &core.HttpUri{
					Uri:              fmt.Sprintf("http://127.0.0.1:%d/%s.wasm", port, digest),
					HttpUpstreamType: &core.HttpUri_Cluster{Cluster: "code"},
					Timeout:          durationpb.New(5 * time.Second),
				},
				Sha256: digest,
			}}},
		}},
	}
	return &core.TypedExtensionConfig{Name: filterName, TypedConfig: pack(&httpwasm.Wasm{Config: plugin})}
}

// strictLoad sends at a steady rate and holds each answer to what its own upstream request showed.
type strictLoad struct {
	sent, failed, mixed atomic.Int64
	first               atomic.Pointer[string]
	stop                chan struct{}
	group               sync.WaitGroup
}

func (l *strictLoad) fail(counter *atomic.Int64, text string) {
	counter.Add(1)
	l.first.CompareAndSwap(nil, &text)
}

// start runs clients that send a request every interval each.
func (l *strictLoad) start(address string, clients int, interval time.Duration) {
	l.stop = make(chan struct{})
	for i := 0; i < clients; i++ {
		l.group.Add(1)
		go func() {
			defer l.group.Done()
			var connection net.Conn
			var reader *bufio.Reader
			ticker := time.NewTicker(interval)
			defer ticker.Stop()
			for {
				select {
				case <-l.stop:
					return
				case <-ticker.C:
				}
				if connection == nil {
					var err error
					if connection, err = net.Dial("tcp", address); err != nil {
						l.sent.Add(1)
						l.fail(&l.failed, err.Error())
						connection = nil
						continue
					}
					reader = bufio.NewReader(connection)
				}
				l.sent.Add(1)
				if err := l.once(connection, reader); err != nil {
					l.fail(&l.failed, err.Error())
					connection.Close()
					connection = nil
				}
			}
		}()
	}
}

func (l *strictLoad) once(connection net.Conn, reader *bufio.Reader) error {
	_ = connection.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(connection, "GET / HTTP/1.1\r\nhost: load\r\n\r\n"); err != nil {
		return err
	}
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d: %s", response.StatusCode, body)
	}
	request, answer := response.Header.Get("x-saw-hello"), response.Header.Get("x-hello")
	if request == "" || answer == "" {
		return fmt.Errorf("a request that no plugin saw")
	}
	if request != answer {
		l.fail(&l.mixed, fmt.Sprintf("the request met %s, the response %s", request, answer))
	}
	return nil
}

func (l *strictLoad) end() {
	close(l.stop)
	l.group.Wait()
}

// holdStream begins an exchange whose response takes until release is closed, and checks that one version saw both
// ends of it.
func holdStream(address string, release chan struct{}, l *strictLoad) {
	l.group.Add(1)
	go func() {
		defer l.group.Done()
		connection, err := net.Dial("tcp", address)
		if err != nil {
			l.fail(&l.failed, err.Error())
			return
		}
		defer connection.Close()
		_, _ = io.WriteString(connection, "GET /hold HTTP/1.1\r\nhost: load\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(connection), nil)
		l.sent.Add(1)
		if err != nil {
			l.fail(&l.failed, "held stream: "+err.Error())
			return
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || !strings.HasSuffix(string(body), "end\n") {
			l.fail(&l.failed, fmt.Sprintf("held stream ended early: %v", err))
			return
		}
		if response.Header.Get("x-saw-hello") != response.Header.Get("x-hello") {
			l.fail(&l.mixed, "a held stream met two versions")
		}
	}()
	_ = release
}

func rss(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "VmRSS:") {
			fields := strings.Fields(line)
			kib, _ := strconv.Atoi(fields[1])
			return kib
		}
	}
	return 0
}

func medianOf(values []int) int {
	var all []float64
	for _, value := range values {
		all = append(all, float64(value))
	}
	middle, _ := median(all)
	return int(middle)
}

// settledRss is the median of a second: what compiles or was just let go comes and goes by megabytes.
func settledRss(pid int) int {
	var samples []float64
	for i := 0; i < 20; i++ {
		time.Sleep(50 * time.Millisecond)
		samples = append(samples, float64(rss(pid)))
	}
	middle, _ := median(samples)
	return int(middle)
}

func (p *proxy) stat(name string) int {
	_, text := p.get("/stats?filter=^" + strings.ReplaceAll(name, ".", `\.`) + "$")
	_, value, _ := strings.Cut(strings.TrimSpace(text), ": ")
	number, _ := strconv.Atoi(value)
	return number
}

type reloadResult struct {
	Suite     string  `json:"suite"`
	Swaps     int     `json:"swaps"`
	Digests   int     `json:"distinct_digests"`
	Requests  int64   `json:"requests"`
	PerSecond float64 `json:"requests_per_second"`
	Failed    int64   `json:"failed"`
	Mixed     int64   `json:"mixed"`
	MedianMs  float64 `json:"median_ms_to_effect"`
	WorstMs   float64 `json:"worst_ms_to_effect"`
	// Medians of the halves of the series: what the allocator keeps free moves by megabytes, a leak only grows.
	RssBefore   int   `json:"rss_kib_first_half"`
	RssAfter    int   `json:"rss_kib_second_half"`
	RssSeries   []int `json:"rss_kib_every_tenth"`
	VmsAtEnd    int   `json:"vms_at_end"`
	Generations int   `json:"generations_alive"`
}

// reload swaps the plugin (plugins true), or routes and clusters, n times under load.
func reload(binary string, modules [2]string, n, digests, clients int, plugins bool) (r reloadResult, err error) {
	r = reloadResult{Suite: "routes and clusters", Swaps: n}
	if plugins {
		r.Suite, r.Digests = "plugin", digests
	}
	folder, err := os.MkdirTemp("", "reload")
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
	// The cache of compiled modules starts empty: every digest is compiled anew.
	_ = os.Setenv("PLENIPO_CACHE_DIR", filepath.Join(folder, "cache"))
	code := &moduleServer{modules: map[string][]byte{}}
	codePort := serve(code)
	var names [][2]string
	for i := 0; i < digests; i++ {
		var pair [2]string
		for v := range modules {
			base, readErr := os.ReadFile(modules[v])
			if readErr != nil {
				return r, readErr
			}
			pair[v] = code.add(module(base, i))
		}
		names = append(names, pair)
	}
	var release atomic.Pointer[chan struct{}]
	gate := make(chan struct{})
	release.Store(&gate)
	upstreamPort := serve(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		w.Header().Set("x-saw-hello", request.Header.Get("x-hello"))
		if request.URL.Path == "/hold" {
			_, _ = io.WriteString(w, "begin\n")
			w.(http.Flusher).Flush()
			<-*release.Load()
			_, _ = io.WriteString(w, "end\n")
			return
		}
		_, _ = io.WriteString(w, "hello\n")
	}))

	m := mode{name: "reload", ads: true, delta: true}
	plane := &controlPlane{cache: cache.NewSnapshotCache(true, cache.IDHash{}, nil), port: freePort(), nacks: &nacks{}}
	if err = plane.start(); err != nil {
		return r, err
	}
	defer plane.grpc.Stop()
	b := &builder{listenerPort: freePort(), upstreams: [2]uint32{upstreamPort, upstreamPort}, codePort: codePort}
	setSource(b, m, folder)
	publish := func(step int, digest, greeting string) error {
		b.plugin = remotePlugin(codePort, digest, greeting)
		version := step
		if plugins {
			version = 0
		}
		snapshot, err := cache.NewSnapshot(fmt.Sprintf("v%d", step), b.all(version))
		if err != nil {
			return err
		}
		return plane.cache.SetSnapshot(context.Background(), "interop", snapshot)
	}
	if err = publish(0, names[0][0], "g0"); err != nil {
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
	address := fmt.Sprintf("127.0.0.1:%d", b.listenerPort)
	client := &http.Client{Timeout: 5 * time.Second}
	traffic := &strictLoad{}
	traffic.start(address, clients, 10*time.Millisecond)
	begin := time.Now()
	var took []float64
	for step := 1; step <= n; step++ {
		if step%100 == 1 {
			// Streams held open across the next hundred swaps; those of the last hundred end now.
			close(*release.Load())
			gate := make(chan struct{})
			release.Store(&gate)
			for i := 0; i < 4; i++ {
				holdStream(address, gate, traffic)
			}
		}
		version := step % 2
		digest, greeting := names[(step/2)%digests][version], fmt.Sprintf("g%d", step)
		if !plugins {
			digest, greeting = names[0][0], "g0"
		}
		pushed := time.Now()
		if err = publish(step, digest, greeting); err != nil {
			break
		}
		if err = awaitStep(client, "http://"+address+"/", step, version, plugins); err != nil {
			break
		}
		took = append(took, float64(time.Since(pushed).Microseconds())/1000)
		if step%max(n/10, 1) == 0 {
			// The load goes on meanwhile.
			r.RssSeries = append(r.RssSeries, settledRss(p.command.Process.Pid))
		}
	}
	elapsed := time.Since(begin).Seconds()
	close(*release.Load())
	traffic.end()
	r.Requests, r.Failed, r.Mixed = traffic.sent.Load(), traffic.failed.Load(), traffic.mixed.Load()
	r.PerSecond = float64(r.Requests) / elapsed
	r.MedianMs, r.WorstMs = median(took)
	if err != nil {
		return r, err
	}
	// Old versions go when their last stream has; give the sweep its second.
	deadline := time.Now().Add(15 * time.Second)
	for time.Now().Before(deadline) {
		r.VmsAtEnd, r.Generations = p.stat("wasm.envoy.wasm.runtime.v8.active"), p.stat("generation.alive")
		if r.VmsAtEnd <= 3 && r.Generations <= 1 {
			break
		}
		time.Sleep(500 * time.Millisecond)
	}
	half := len(r.RssSeries) / 2
	r.RssBefore, r.RssAfter = medianOf(r.RssSeries[:half]), medianOf(r.RssSeries[half:])
	switch {
	case r.Failed > 0 || r.Mixed > 0:
		err = fmt.Errorf("%d failed, %d mixed; the first: %s", r.Failed, r.Mixed, *traffic.first.Load())
	case r.VmsAtEnd > 3:
		err = fmt.Errorf("%d VMs are left", r.VmsAtEnd)
	case float64(r.RssAfter) > 1.05*float64(r.RssBefore):
		err = fmt.Errorf("RSS grew from %d KiB in the first half to %d KiB in the second; KiB by tenths: %v", r.RssBefore, r.RssAfter, r.RssSeries)
	}
	return r, err
}

func awaitStep(client *http.Client, url string, step, version int, plugins bool) error {
	deadline := time.Now().Add(20 * time.Second)
	var seen string
	for time.Now().Before(deadline) {
		if plugins {
			response, err := client.Get(url)
			if err != nil {
				return err
			}
			_, _ = io.Copy(io.Discard, response.Body)
			response.Body.Close()
			seen = response.Header.Get("x-hello")
			if seen == fmt.Sprintf("v%d", version+1) {
				return nil
			}
		} else {
			w := worldAt(step)
			response, err := client.Get(url)
			if err != nil {
				return err
			}
			_, _ = io.Copy(io.Discard, response.Body)
			response.Body.Close()
			seen = response.Header.Get("x-route") + " " + response.Header.Get("server")
			if seen == w.route+" "+w.server {
				return nil
			}
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("step %d did not show within 20 s; saw %s", step, seen)
}

func reloadSuite(binary string, modules [2]string, swaps, digests int, report string) bool {
	ok := true
	if digests == 0 {
		digests = swaps/2 + 1
	}
	var results []reloadResult
	for _, plugins := range []bool{true, false} {
		r, err := reload(binary, modules, swaps, digests, 32, plugins)
		results = append(results, r)
		if err != nil {
			ok = false
			fmt.Printf("FAIL %-20s %v\n", r.Suite, err)
		} else {
			fmt.Printf("ok   ")
		}
		fmt.Printf("%-20s %d swaps (%d digests a version), %d requests at %.0f/s, %d failed, %d mixed; effect %.1f ms (median), %.1f ms (worst); RSS %d → %d KiB; %d VMs, %d generations at the end\n",
			r.Suite, r.Swaps, r.Digests, r.Requests, r.PerSecond, r.Failed, r.Mixed, r.MedianMs, r.WorstMs, r.RssBefore, r.RssAfter, r.VmsAtEnd, r.Generations)
	}
	if report != "" {
		text, _ := json.MarshalIndent(results, "", "  ")
		_ = os.WriteFile(report, append(text, '\n'), 0o644)
	}
	return ok
}
