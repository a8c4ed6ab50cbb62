// What the control plane serves: one world a version, in which clusters, routes, the listener's contents and the
// configuration of a Wasm plugin change in turn.

package main

import (
	"fmt"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	httpwasm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	wasm "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	routeName  = "interop-route"
	filterName = "interop-plugin"
)

// world is what one version serves, and what a reply shows of it.
type world struct {
	cluster int    // the number in the name of the cluster that is routed to; its parity is the upstream's number
	route   string // a response header
	server  string // the listener's server_name
	plugin  string // the plugin's configuration
}

// worldAt gives the world after n changes; each change touches one thing.
func worldAt(n int) world {
	count := func(turn int) int { return (n + 3 - turn) / 4 }
	return world{
		cluster: count(0),
		route:   fmt.Sprintf("r%d", count(1)),
		server:  fmt.Sprintf("server-%d", count(2)),
		plugin:  fmt.Sprintf("p%d", count(3)),
	}
}

func (w world) upstream() int { return w.cluster % 2 }

func clusterName(number int) string { return fmt.Sprintf("cluster-v%d", number) }

// served are the clusters of a version: make before break, the one before and the one to come besides that in use.
// Streams of their own for each type arrive in any order; only the author can keep routes behind their clusters.
func (w world) served() []int { return []int{w.cluster - 1, w.cluster, w.cluster + 1} }

type builder struct {
	source       func() *core.ConfigSource
	fileSource   func(kind string) *core.ConfigSource
	listenerPort uint32
	upstreams    [2]uint32
	module       string
	badCluster   bool
	// For the reload suite: what takes the plugin's place, and where its code comes from.
	plugin   types.Resource
	codePort uint32
}

// from is where resources of a kind come from.
func (b *builder) from(kind string) *core.ConfigSource {
	if b.fileSource != nil {
		return b.fileSource(kind)
	}
	return b.source()
}

func pack(message proto.Message) *anypb.Any {
	packed, err := anypb.New(message)
	if err != nil {
		panic(err)
	}
	return packed
}

func address(port uint32) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address:       "127.0.0.1",
		PortSpecifier: &core.SocketAddress_PortValue{PortValue: port},
	}}}
}

func (b *builder) clusters(w world) []types.Resource {
	var resources []types.Resource
	for _, number := range w.served() {
		resources = append(resources, &cluster.Cluster{
			Name:                 clusterName(number),
			ConnectTimeout:       durationpb.New(5 * time.Second),
			ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
			EdsClusterConfig:     &cluster.Cluster_EdsClusterConfig{EdsConfig: b.from("eds")},
			LbPolicy:             cluster.Cluster_ROUND_ROBIN,
		})
	}
	if b.codePort != 0 {
		resources = append(resources, &cluster.Cluster{
			Name:                 "code",
			ConnectTimeout:       durationpb.New(time.Second),
			ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STATIC},
			LoadAssignment: &endpoint.ClusterLoadAssignment{ClusterName: "code",
				Endpoints: []*endpoint.LocalityLbEndpoints{{LbEndpoints: []*endpoint.LbEndpoint{{
					HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{
						Address: address(b.codePort),
					}},
				}}}}},
		})
	}
	if b.badCluster {
		// No known proxy accepts a cluster without a name to look its endpoints up by and a negative timeout.
		resources = append(resources, &cluster.Cluster{
			Name:                 "bad-cluster",
			ConnectTimeout:       durationpb.New(-time.Second),
			ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STATIC},
			LoadAssignment:       &endpoint.ClusterLoadAssignment{ClusterName: "bad-cluster"},
		})
	}
	return resources
}

func (b *builder) endpoints(w world) []types.Resource {
	var resources []types.Resource
	for _, number := range w.served() {
		resources = append(resources, &endpoint.ClusterLoadAssignment{
			ClusterName: clusterName(number),
			Endpoints: []*endpoint.LocalityLbEndpoints{{
				LbEndpoints: []*endpoint.LbEndpoint{{
					HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{
						Address: address(b.upstreams[(number+2)%2]),
					}},
				}},
			}},
		})
	}
	return resources
}

func (b *builder) routes(w world) []types.Resource {
	return []types.Resource{&route.RouteConfiguration{
		Name: routeName,
		VirtualHosts: []*route.VirtualHost{{
			Name:    "all",
			Domains: []string{"*"},
			Routes: []*route.Route{{
				Match: &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
				Action: &route.Route_Route{Route: &route.RouteAction{
					// Streams of the reload suite are held open for longer than the default of 15 s.
					Timeout:          durationpb.New(0),
					ClusterSpecifier: &route.RouteAction_Cluster{Cluster: clusterName(w.cluster)},
				}},
				ResponseHeadersToAdd: []*core.HeaderValueOption{{
					Header: &core.HeaderValue{Key: "x-route", Value: w.route},
				}},
			}},
		}},
	}}
}

func (b *builder) listeners(w world) []types.Resource {
	manager := &hcm.HttpConnectionManager{
		StatPrefix: "interop",
		ServerName: w.server,
		RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{
			ConfigSource: b.from("rds"), RouteConfigName: routeName,
		}},
		HttpFilters: []*hcm.HttpFilter{
			{Name: filterName, ConfigType: &hcm.HttpFilter_ConfigDiscovery{ConfigDiscovery: &core.ExtensionConfigSource{
				ConfigSource: b.from("ecds"),
				TypeUrls:     []string{resource.APITypePrefix + "envoy.extensions.filters.http.wasm.v3.Wasm"},
			}}},
			{Name: "router", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: pack(&router.Router{})}},
		},
	}
	return []types.Resource{&listener.Listener{
		Name:    "interop-listener",
		Address: address(b.listenerPort),
		FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{{
			Name:       "http",
			ConfigType: &listener.Filter_TypedConfig{TypedConfig: pack(manager)},
		}}}},
	}}
}

func (b *builder) extensions(w world) []types.Resource {
	if b.plugin != nil {
		return []types.Resource{b.plugin}
	}
	plugin := &wasm.PluginConfig{
		Name:          "interop",
		RootId:        "hello",
		Configuration: pack(wrapperspb.String(fmt.Sprintf(`{"greeting":%q}`, w.plugin))),
		Vm: &wasm.PluginConfig_VmConfig{VmConfig: &wasm.VmConfig{
			Runtime: "envoy.wasm.runtime.v8",
			Code: &core.AsyncDataSource{Specifier: &core.AsyncDataSource_Local{Local: &core.DataSource{
				Specifier: &core.DataSource_Filename{Filename: b.module},
			}}},
		}},
	}
	return []types.Resource{&core.TypedExtensionConfig{
		Name:        filterName,
		TypedConfig: pack(&httpwasm.Wasm{Config: plugin}),
	}}
}

func (b *builder) all(n int) map[resource.Type][]types.Resource {
	w := worldAt(n)
	return map[resource.Type][]types.Resource{
		resource.ClusterType:         b.clusters(w),
		resource.EndpointType:        b.endpoints(w),
		resource.RouteType:           b.routes(w),
		resource.ListenerType:        b.listeners(w),
		resource.ExtensionConfigType: b.extensions(w),
	}
}

func (b *builder) snapshot(n int) (*cache.Snapshot, error) {
	return cache.NewSnapshot(fmt.Sprintf("v%d", n), b.all(n))
}
