//! Reaching a control plane: a connection to one of its cluster's endpoints, and the gRPC codec.
//!
//! Endpoints are tried in turn, beginning after the one that failed last. HTTP/2 in plain text, over TCP or a unix
//! socket.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::config::Cluster;
use crate::config::cluster::{
    Discovery, DnsFamily, GrpcService, Http2Options, TcpKeepalive, UpstreamProtocol,
};
use crate::config::endpoint::Address;

/// `google_grpc` has no connect timeout of its own; Envoy's clusters have this one.
const GOOGLE_GRPC_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// The cluster has no endpoint.
    #[error("the cluster '{0}' has no endpoint")]
    NoEndpoint(Arc<str>),
    /// Every endpoint failed; the last reason.
    #[error("{address}: {source}")]
    Failed {
        address: String,
        #[source]
        source: io::Error,
    },
    /// HTTP/2 could not begin.
    #[error("{address}: {source}")]
    Handshake {
        address: String,
        #[source]
        source: tonic::transport::Error,
    },
}

/// The endpoints of a control plane.
#[derive(Debug)]
pub(super) struct Target {
    name: Arc<str>,
    service: GrpcService,
    addresses: Vec<Address>,
    dial: Dial,
    http2: Http2Options,
    connect_timeout: Duration,
    next: usize,
}

/// How to connect.
#[derive(Debug)]
struct Dial {
    family: DnsFamily,
    source: Option<SocketAddr>,
    keepalive: Option<TcpKeepalive>,
}

impl Target {
    /// The endpoints of the cluster of a service.
    pub(super) fn of_cluster(cluster: &Cluster, service: GrpcService) -> Self {
        let addresses = match &cluster.discovery {
            Discovery::Static(endpoints)
            | Discovery::StrictDns(endpoints)
            | Discovery::LogicalDns(endpoints) => endpoints
                .localities
                .iter()
                .flat_map(|locality| &locality.endpoints)
                .map(|endpoint| endpoint.address.clone())
                .collect(),
            Discovery::Eds { .. } => Vec::new(),
        };
        let http2 = match &cluster.protocol {
            UpstreamProtocol::Http2(options) | UpstreamProtocol::Downstream(_, options) => {
                options.clone()
            }
            UpstreamProtocol::Http1(_) => Http2Options::default(),
        };
        Self {
            name: Arc::clone(&cluster.name),
            service,
            addresses,
            dial: Dial {
                family: cluster.dns.family,
                source: cluster.source_address,
                keepalive: cluster.tcp_keepalive,
            },
            http2,
            connect_timeout: cluster.connect_timeout,
            next: 0,
        }
    }

    /// The address of a `google_grpc` service: `host:port`, `dns:///host:port` or `unix:path`.
    pub(super) fn of_uri(uri: &str, service: GrpcService) -> Self {
        let address = if let Some(path) = uri.strip_prefix("unix://").or(uri.strip_prefix("unix:"))
        {
            Some(Address::Pipe(path.into()))
        } else {
            let rest = uri
                .strip_prefix("dns:")
                .or(uri.strip_prefix("ipv4:"))
                .or(uri.strip_prefix("ipv6:"))
                .unwrap_or(uri);
            let host_port = rest.rsplit('/').next().unwrap_or(rest);
            match host_port.parse() {
                Ok(address) => Some(Address::Socket(address)),
                Err(_) => host_port
                    .rsplit_once(':')
                    .and_then(|(host, port)| Some(Address::Name(host.into(), port.parse().ok()?))),
            }
        };
        Self {
            name: uri.into(),
            service,
            addresses: address.into_iter().collect(),
            dial: Dial {
                family: DnsFamily::All,
                source: None,
                keepalive: None,
            },
            http2: Http2Options::default(),
            connect_timeout: GOOGLE_GRPC_CONNECT_TIMEOUT,
            next: 0,
        }
    }

    /// The cluster, or the address.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What goes into `:authority`.
    pub(super) fn origin(&self) -> Uri {
        let authority = self.service.authority.as_deref();
        let authority = authority.unwrap_or(&self.name);
        Uri::builder()
            .scheme("http")
            .authority(authority)
            .path_and_query("/")
            .build()
            // A cluster's name may hold what an authority may not.
            .unwrap_or_else(|_| Uri::from_static("http://xds/"))
    }

    /// `initial_metadata`, where gRPC can carry it.
    pub(super) fn metadata(&self) -> MetadataMap {
        let mut map = MetadataMap::new();
        for (name, value) in &self.service.metadata {
            let key = AsciiMetadataKey::from_bytes(name.as_bytes());
            let value = AsciiMetadataValue::try_from(&**value);
            match (key, value) {
                (Ok(key), Ok(value)) => {
                    map.append(key, value);
                }
                _ => tracing::warn!(%name, "initial metadata left out: not ASCII"),
            }
        }
        map
    }

    /// Connects to the first endpoint in turn that can be.
    pub(super) async fn connect(&mut self) -> Result<Channel, ConnectError> {
        let mut last = ConnectError::NoEndpoint(Arc::clone(&self.name));
        let count = self.addresses.len();
        for attempt in 0..count {
            let index = (self.next + attempt) % count;
            match self.connect_to(&self.addresses[index]).await {
                Ok(channel) => {
                    // Should this connection fail, the next attempt begins with the next endpoint.
                    self.next = (index + 1) % count;
                    return Ok(channel);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect_to(&self, address: &Address) -> Result<Channel, ConnectError> {
        let failed = |source| ConnectError::Failed {
            address: address.to_string(),
            source,
        };
        let dial = async {
            match address {
                Address::Socket(address) => self.dial.tcp(*address).await.map(Either::Left),
                Address::Name(name, port) => self.dial.resolve(name, *port).await.map(Either::Left),
                Address::Pipe(path) => unix(path).await.map(Either::Right),
            }
        };
        let io: Either<TcpStream, UnixStream> = tokio::time::timeout(self.connect_timeout, dial)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(failed)?;
        let http2 = &self.http2;
        let mut endpoint = Endpoint::from(self.origin())
            .initial_stream_window_size(http2.initial_stream_window)
            .initial_connection_window_size(http2.initial_connection_window);
        if let Some((interval, timeout)) = http2.keepalive {
            endpoint = endpoint
                .http2_keep_alive_interval(interval)
                .keep_alive_timeout(timeout)
                .keep_alive_while_idle(true);
        }
        // The connection is made already: the channel takes it once, and is replaced when it breaks.
        let mut io = Some(TokioIo::new(io));
        let connector = tower::service_fn(move |_: Uri| {
            let io = io.take();
            async move { io.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset)) }
        });
        endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|source| ConnectError::Handshake {
                address: address.to_string(),
                source,
            })
    }
}

impl Dial {
    async fn tcp(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = match self.source {
            None => TcpStream::connect(address).await?,
            Some(source) => {
                let socket = match address {
                    SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
                    SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
                };
                socket.bind(source)?;
                socket.connect(address).await?
            }
        };
        stream.set_nodelay(true)?;
        if let Some(TcpKeepalive {
            probes,
            time,
            interval,
        }) = self.keepalive
        {
            // Linux's own default for the idle time; setting it also switches keepalive on.
            let time = time.unwrap_or(Duration::from_secs(7200));
            let mut keepalive = socket2::TcpKeepalive::new().with_time(time);
            if let Some(interval) = interval {
                keepalive = keepalive.with_interval(interval);
            }
            if let Some(probes) = probes {
                keepalive = keepalive.with_retries(probes);
            }
            socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        }
        Ok(stream)
    }

    async fn resolve(&self, name: &str, port: u16) -> io::Result<TcpStream> {
        let mut addresses: Vec<SocketAddr> = tokio::net::lookup_host((name, port)).await?.collect();
        match self.family {
            DnsFamily::V4Only => addresses.retain(SocketAddr::is_ipv4),
            DnsFamily::V6Only => addresses.retain(SocketAddr::is_ipv6),
            DnsFamily::V4Preferred => addresses.sort_by_key(SocketAddr::is_ipv6),
            DnsFamily::Auto => addresses.sort_by_key(SocketAddr::is_ipv4),
            DnsFamily::All => {}
        }
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match self.tcp(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

async fn unix(path: &Path) -> io::Result<UnixStream> {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::ffi::OsStrExt as _;

    match path.as_os_str().as_bytes().strip_prefix(b"@") {
        None => UnixStream::connect(path).await,
        Some(name) => {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        }
    }
}

/// Protobuf messages on a gRPC stream.
pub(crate) struct Wire<E, D>(PhantomData<fn(E) -> D>);

impl<E, D> Default for Wire<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E, D> fmt::Debug for Wire<E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl<E: prost::Message + 'static, D: prost::Message + Default + 'static> Codec for Wire<E, D> {
    type Encode = E;
    type Decode = D;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<E: prost::Message, D> Encoder for Wire<E, D> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, item: E, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.encoded_len());
        debug_assert!(buffer.has_remaining_mut() || item.encoded_len() == 0);
        item.encode(buffer)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

impl<E, D: prost::Message + Default> Decoder for Wire<E, D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        let message = D::decode(&mut *buffer);
        debug_assert!(message.is_err() || !buffer.has_remaining());
        message
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn google_grpc_targets_are_read() {
        let service = || GrpcService {
            cluster: "s".into(),
            target_uri: None,
            authority: None,
            metadata: vec![("ok".into(), "1".into()), ("b\u{e4}d".into(), "1".into())],
            timeout: None,
            max_message: None,
            skip_envoy_headers: false,
        };
        for (uri, address) in [
            ("127.0.0.1:1", Some("127.0.0.1:1")),
            ("dns:///a.test:2", Some("a.test:2")),
            ("dns:a.test:2", Some("a.test:2")),
            ("ipv6:[::1]:3", Some("[::1]:3")),
            ("unix:./x", Some("./x")),
            ("unix:///x", Some("/x")),
            ("nowhere", None),
        ] {
            let target = Target::of_uri(uri, service());
            let addresses: Vec<_> = target.addresses.iter().map(ToString::to_string).collect();
            assert_eq!(addresses.first().map(String::as_str), address, "{uri}");
        }
        let target = Target::of_uri("outbound|80||x", service());
        assert_eq!(target.metadata().len(), 1);
        assert_eq!(target.origin().scheme_str(), Some("http"), "some authority");
    }
}
