//! A proxy of its own, started as the binary starts one, with the control side on the test's runtime.

use std::net::SocketAddr;
use std::time::Duration;

use plenipo::app::{Prepared, Running};
use plenipo::cli::{self, Command};
use plenipo::config::endpoint::Address;
use plenipo::pb;

/// A running proxy.
#[derive(Debug)]
pub struct TestProxy {
    pub running: Running,
}

impl TestProxy {
    /// Starts with this bootstrap and two workers, and waits until the listeners are open.
    pub async fn start(bootstrap: &str) -> Self {
        Self::start_on(bootstrap, 2).await
    }

    /// As [`TestProxy::start`], on so many workers.
    pub async fn start_on(bootstrap: &str, workers: usize) -> Self {
        let proxy = Self::start_cold(bootstrap, workers).await;
        tokio::time::timeout(Duration::from_secs(20), proxy.running.live())
            .await
            .expect("live within 20 s")
            .expect("every static listener is bound");
        proxy
    }

    /// Starts on so many workers, without waiting.
    pub async fn start_cold(bootstrap: &str, workers: usize) -> Self {
        Self::try_start(bootstrap, workers)
            .await
            .expect("the proxy starts")
    }

    /// As [`TestProxy::start`], with this drain time in seconds.
    pub async fn start_draining_for(bootstrap: &str, seconds: &str) -> Self {
        let proxy = Self::launch(bootstrap, 2, seconds).await;
        let proxy = proxy.expect("the proxy starts");
        tokio::time::timeout(Duration::from_secs(20), proxy.running.live())
            .await
            .expect("live within 20 s")
            .expect("every static listener is bound");
        proxy
    }

    /// As [`TestProxy::start_cold`]; an error is why it did not start.
    pub async fn try_start(bootstrap: &str, workers: usize) -> anyhow::Result<Self> {
        Self::launch(bootstrap, workers, "1").await
    }

    async fn launch(bootstrap: &str, workers: usize, drain_time: &str) -> anyhow::Result<Self> {
        let prepared = Self::prepared(bootstrap, workers, drain_time).expect("a valid bootstrap");
        Ok(Self {
            running: prepared.start().await?,
        })
    }

    /// A proxy that is to be started, or validated.
    pub fn prepare(bootstrap: &str, workers: usize) -> anyhow::Result<Prepared> {
        Self::prepared(bootstrap, workers, "1")
    }

    fn prepared(bootstrap: &str, workers: usize, drain_time: &str) -> anyhow::Result<Prepared> {
        let workers = workers.to_string();
        let argv = [
            "plenipo",
            "--config-yaml",
            bootstrap,
            "--concurrency",
            &workers,
            "--drain-time-s",
            drain_time,
        ];
        let Ok(Command::Proxy(options)) = cli::parse(argv.iter().map(Into::into)) else {
            panic!("a command line for a proxy");
        };
        Prepared::load(*options, |_, _| Ok(None))
    }

    /// Where the admin interface really listens.
    pub fn admin(&self) -> SocketAddr {
        match self.running.admin_address() {
            Some(Address::Socket(address)) => *address,
            other => panic!("no admin address: {other:?}"),
        }
    }

    /// Where a listener really listens; waits until it does.
    pub async fn address(&self, listener: &str) -> SocketAddr {
        let mut bound = self.running.server.bound();
        let find = async {
            loop {
                let found = bound
                    .borrow_and_update()
                    .iter()
                    .find(|known| &*known.name == listener)
                    .and_then(|known| match known.addresses.first() {
                        Some(Address::Socket(address)) => Some(*address),
                        _ => None,
                    });
                if let Some(address) = found {
                    return address;
                }
                bound.changed().await.expect("the manager lives");
            }
        };
        tokio::time::timeout(Duration::from_secs(10), find)
            .await
            .expect("the listener is bound")
    }

    /// Waits until the Generation of this number, or a later one, is current.
    pub async fn generation(&self, number: u64) {
        let mut current = self.running.server.current.number();
        tokio::time::timeout(
            Duration::from_secs(10),
            current.wait_for(|now| *now >= number),
        )
        .await
        .expect("a new Generation within 10 s")
        .expect("the proxy lives");
    }

    /// The number of the current Generation.
    pub fn generation_number(&self) -> u64 {
        self.running.server.current.load().number
    }
}

/// A bootstrap that takes everything from a control plane at `address`.
pub fn ads_bootstrap(address: SocketAddr, delta: bool) -> String {
    let api = if delta { "DELTA_GRPC" } else { "GRPC" };
    format!(
        r#"
node: {{id: test, cluster: test}}
dynamic_resources:
  ads_config:
    api_type: {api}
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  lds_config: {{ads: {{}}, resource_api_version: V3}}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: xds
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]
"#,
        address.port()
    )
}

/// A resource from its YAML.
pub fn any(yaml: &str) -> pb::Any {
    pb::from_text::<pb::Any>(yaml, pb::Format::Yaml)
        .and_then(pb::Parsed::strict)
        .unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

/// A listener on a free port, with the given routes (`rds: …` or `route_config: …`) and filters before the router, as YAML flow
/// text.
pub fn listener_yaml(name: &str, routes: &str, filters: &str) -> String {
    format!(
        r#"
"@type": type.googleapis.com/envoy.config.listener.v3.Listener
name: {name}
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
filter_chains:
- filters:
  - name: http
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: {name}
      {routes}
      http_filters:
      {filters}
      - name: router
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"#
    )
}
