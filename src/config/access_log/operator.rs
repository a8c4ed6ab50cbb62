//! Substitution operators with their arguments, as Envoy 1.40 has them.

mod parse;

use http::HeaderName;

use super::time::TimeFormat;

/// A substitution operator with its arguments understood.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Operator {
    /// `REQ`, `REQUEST_HEADER`: the first of the two that is present.
    RequestHeader(HeaderChoice),
    /// `RESP`, `RESPONSE_HEADER`.
    ResponseHeader(HeaderChoice),
    /// `TRAILER`, `RESPONSE_TRAILER`.
    ResponseTrailer(HeaderChoice),
    /// `PATH`.
    Path {
        /// With the query.
        query: bool,
        /// Which path.
        source: PathSource,
    },
    /// `QUERY_PARAM`: the first value of a parameter, decoded.
    QueryParam(Box<str>),
    /// `QUERY_PARAMS`: the whole query string.
    QueryParams {
        /// Percent-decoded.
        decoded: bool,
    },
    /// One without arguments.
    Field(Field),
    /// `RESPONSE_CODE_DETAILS`: where the status comes from.
    ResponseCodeDetails {
        /// `ALLOW_WHITESPACES`: white space stays, else it is written as `_`.
        keep_spaces: bool,
    },
    /// `START_TIME`, `EMIT_TIME` and their local forms.
    Time {
        /// The moment of writing, not the beginning of the stream.
        emit: bool,
        /// In the local time zone.
        local: bool,
        /// How it is written.
        format: TimeFormat,
    },
    /// `COMMON_DURATION(start:end:precision)`.
    CommonDuration {
        /// From.
        start: TimePoint,
        /// To.
        end: TimePoint,
        /// In what unit.
        unit: DurationUnit,
    },
    /// `GRPC_STATUS`.
    GrpcStatus(GrpcStatusFormat),
    /// `…_ADDRESS_WITHOUT_PORT(bits)`: the network that the address is in.
    MaskedAddress {
        /// Which address.
        address: MaskableAddress,
        /// Length of the prefix.
        bits: u8,
    },
    /// `DYNAMIC_METADATA`, `CLUSTER_METADATA`, `UPSTREAM_METADATA`, `METADATA(source:…)`.
    Metadata {
        /// Whose.
        source: MetadataSource,
        /// The namespace, then the keys.
        path: Vec<Box<str>>,
    },
    /// `FILTER_STATE`, `UPSTREAM_FILTER_STATE`.
    FilterState {
        /// That of the upstream connection.
        upstream: bool,
        /// The object's key.
        key: Box<str>,
        /// A field of the object.
        field: Option<Box<str>>,
        /// As a message in JSON, not as the object's text.
        typed: bool,
    },
    /// `REQUESTED_SERVER_NAME`: what the TLS client asked for, or the host.
    RequestedServerName(ServerNameChoice),
    /// `HOSTNAME`, likewise.
    Hostname(Box<str>),
    /// `ENVIRONMENT`, read when the configuration is: it cannot change.
    Environment(Option<Box<str>>),
    /// `XFCC_VALUE(key)`: a value of `x-forwarded-client-cert`.
    XfccValue(Box<str>),
    /// `COALESCE`: the first that has a value.
    Coalesce(Vec<(Operator, Option<usize>)>),
    /// Accepted, and without a value in this build (TLS properties and the like).
    Unavailable,
}

/// The header of `REQ(X?Y)` and its kin.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderChoice {
    /// Looked at first.
    pub main: FormatHeader,
    /// Looked at where the first is absent.
    pub alternative: Option<FormatHeader>,
}

/// A header or pseudo-header in a format.
#[derive(Clone, Debug, PartialEq)]
pub enum FormatHeader {
    /// An ordinary header.
    Header(HeaderName),
    /// `:authority`, `host`.
    Authority,
    /// `:method`.
    Method,
    /// `:path`, with the query.
    Path,
    /// `:scheme`.
    Scheme,
    /// `:status`.
    Status,
    /// `:protocol`, the upgrade asked for.
    Protocol,
    /// No header can have this name: always absent.
    Never,
}

impl FormatHeader {
    fn parse(name: &str) -> Self {
        let lower = name.to_ascii_lowercase();
        match lower.as_str() {
            ":authority" | "host" => Self::Authority,
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":scheme" => Self::Scheme,
            ":status" => Self::Status,
            ":protocol" => Self::Protocol,
            other => HeaderName::from_bytes(other.as_bytes()).map_or(Self::Never, Self::Header),
        }
    }
}

/// Which path `PATH` writes, which host `REQUESTED_SERVER_NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathSource {
    /// That of before any rewrite; absent where there was none.
    Original,
    /// The present one.
    Current,
    /// The original one where there is one.
    OriginalOrCurrent,
}

/// A moment in the life of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimePoint {
    /// First byte of the request.
    DownstreamRxBegin,
    /// Last byte of the request.
    DownstreamRxEnd,
    /// A connection to the upstream was begun.
    UpstreamConnectBegin,
    /// It was made.
    UpstreamConnectEnd,
    /// Its TLS handshake was done.
    UpstreamHandshakeEnd,
    /// First byte to the upstream.
    UpstreamTxBegin,
    /// Last byte to the upstream.
    UpstreamTxEnd,
    /// First byte of the response.
    UpstreamRxBegin,
    /// End of the response's headers.
    UpstreamRxBodyBegin,
    /// Last byte of the response.
    UpstreamRxEnd,
    /// First byte to the client.
    DownstreamTxBegin,
    /// Last byte to the client.
    DownstreamTxEnd,
    /// A name that a filter may define; no filter of this build does.
    Custom(Box<str>),
}

/// The unit of `COMMON_DURATION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurationUnit {
    /// `ms`.
    Millis,
    /// `us`.
    Micros,
    /// `ns`.
    Nanos,
}

/// How `GRPC_STATUS` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcStatusFormat {
    /// `NotFound`.
    Camel,
    /// `NOT_FOUND`.
    Snake,
    /// `5`.
    Number,
}

/// An address that can be masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskableAddress {
    /// The client, as `x-forwarded-for` or the PROXY protocol tell.
    DownstreamRemote,
    /// The peer of the connection.
    DownstreamDirectRemote,
    /// Ours, as the client addressed it.
    DownstreamLocal,
    /// Ours, of the connection.
    DownstreamDirectLocal,
    /// Our end of the upstream connection.
    UpstreamLocal,
    /// Its peer.
    UpstreamRemote,
}

/// Whose metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataSource {
    /// Of the stream, set by filters.
    Dynamic,
    /// Of the cluster.
    Cluster,
    /// Of the route.
    Route,
    /// Of the upstream host.
    UpstreamHost,
    /// Of the listener.
    Listener,
    /// Of the virtual host.
    VirtualHost,
    /// Of the filter chain.
    FilterChain,
}

/// `REQUESTED_SERVER_NAME(…)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerNameChoice {
    /// The TLS server name alone.
    SniOnly,
    /// The host, before or after the server name; there is no TLS to tell one.
    Host(PathSource),
}

macro_rules! fields {
    ($($(#[$doc:meta])* $variant:ident = $($name:literal)|+;)*) => {
        /// Operators without arguments.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Field { $($(#[$doc])* $variant,)* }

        impl Field {
            fn by_name(name: &str) -> Option<Self> {
                Some(match name { $($($name)|+ => Self::$variant,)* _ => return None })
            }
        }
    };
}

fields! {
    /// The protocol of the request.
    Protocol = "PROTOCOL";
    /// The protocol spoken upstream.
    UpstreamProtocol = "UPSTREAM_PROTOCOL";
    /// The status sent; 0 where none was.
    ResponseCode = "RESPONSE_CODE";
    /// Why we ended the connection.
    ConnectionTerminationDetails = "CONNECTION_TERMINATION_DETAILS";
    /// Short flags.
    ResponseFlags = "RESPONSE_FLAGS";
    /// Long flags.
    ResponseFlagsLong = "RESPONSE_FLAGS_LONG";
    /// Body bytes of the request.
    BytesReceived = "BYTES_RECEIVED";
    /// Body bytes of the response.
    BytesSent = "BYTES_SENT";
    /// QUIC only: zero.
    BytesRetransmitted = "BYTES_RETRANSMITTED";
    /// QUIC only: zero.
    PacketsRetransmitted = "PACKETS_RETRANSMITTED";
    /// Bytes to the upstream.
    UpstreamWireBytesSent = "UPSTREAM_WIRE_BYTES_SENT";
    /// Bytes from the upstream.
    UpstreamWireBytesReceived = "UPSTREAM_WIRE_BYTES_RECEIVED";
    /// Head bytes to the upstream.
    UpstreamHeaderBytesSent = "UPSTREAM_HEADER_BYTES_SENT";
    /// Head bytes from the upstream.
    UpstreamHeaderBytesReceived = "UPSTREAM_HEADER_BYTES_RECEIVED";
    /// The same before compression.
    UpstreamDecompressedHeaderBytesSent = "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT";
    /// The same after decompression.
    UpstreamDecompressedHeaderBytesReceived = "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED";
    /// Bytes to the client.
    DownstreamWireBytesSent = "DOWNSTREAM_WIRE_BYTES_SENT";
    /// Bytes from the client.
    DownstreamWireBytesReceived = "DOWNSTREAM_WIRE_BYTES_RECEIVED";
    /// Head bytes to the client.
    DownstreamHeaderBytesSent = "DOWNSTREAM_HEADER_BYTES_SENT";
    /// Head bytes from the client.
    DownstreamHeaderBytesReceived = "DOWNSTREAM_HEADER_BYTES_RECEIVED";
    /// The same before compression.
    DownstreamDecompressedHeaderBytesSent = "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT";
    /// The same after decompression.
    DownstreamDecompressedHeaderBytesReceived = "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED";
    /// From the first byte in to the last byte out, ms.
    Duration = "DURATION";
    /// To the last byte of the request, ms.
    RequestDuration = "REQUEST_DURATION";
    /// To the last byte sent upstream, ms.
    RequestTxDuration = "REQUEST_TX_DURATION";
    /// To the first byte of the response, ms.
    ResponseDuration = "RESPONSE_DURATION";
    /// From the first byte of the response to the last one sent, ms.
    ResponseTxDuration = "RESPONSE_TX_DURATION";
    /// QUIC only.
    RoundtripDuration = "ROUNDTRIP_DURATION";
    /// TLS only.
    DownstreamHandshakeDuration = "DOWNSTREAM_HANDSHAKE_DURATION";
    /// How long the pool took, ms.
    UpstreamConnectionPoolReadyDuration = "UPSTREAM_CONNECTION_POOL_READY_DURATION";
    /// Address of the chosen host.
    UpstreamHost = "UPSTREAM_HOST";
    /// Its name, else its address.
    UpstreamHostName = "UPSTREAM_HOST_NAME";
    /// Without the port.
    UpstreamHostNameWithoutPort = "UPSTREAM_HOST_NAME_WITHOUT_PORT";
    /// The cluster's name for observability.
    UpstreamCluster = "UPSTREAM_CLUSTER";
    /// The cluster's name.
    UpstreamClusterRaw = "UPSTREAM_CLUSTER_RAW";
    /// Our end.
    UpstreamLocalAddress = "UPSTREAM_LOCAL_ADDRESS";
    /// Our end, the address.
    UpstreamLocalAddressWithoutPort = "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT";
    /// Our end, the port.
    UpstreamLocalPort = "UPSTREAM_LOCAL_PORT";
    /// The peer.
    UpstreamRemoteAddress = "UPSTREAM_REMOTE_ADDRESS";
    /// The peer's address.
    UpstreamRemoteAddressWithoutPort = "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT";
    /// The peer's port.
    UpstreamRemotePort = "UPSTREAM_REMOTE_PORT";
    /// Internal listeners only.
    UpstreamRemoteAddressEndpointId = "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID";
    /// Attempts.
    UpstreamRequestAttemptCount = "UPSTREAM_REQUEST_ATTEMPT_COUNT";
    /// Id of the upstream connection.
    UpstreamConnectionId = "UPSTREAM_CONNECTION_ID";
    /// All hosts tried.
    UpstreamHostsAttempted = "UPSTREAM_HOSTS_ATTEMPTED";
    /// All addresses tried.
    UpstreamHostsAttemptedWithoutPort = "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT";
    /// All names tried.
    UpstreamHostNamesAttempted = "UPSTREAM_HOST_NAMES_ATTEMPTED";
    /// All names tried, without ports.
    UpstreamHostNamesAttemptedWithoutPort = "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT";
    /// All connections used.
    UpstreamConnectionIdsAttempted = "UPSTREAM_CONNECTION_IDS_ATTEMPTED";
    /// Why no connection was made.
    UpstreamTransportFailureReason = "UPSTREAM_TRANSPORT_FAILURE_REASON";
    /// How the upstream closed.
    UpstreamDetectedCloseType = "UPSTREAM_DETECTED_CLOSE_TYPE";
    /// How the client closed.
    DownstreamDetectedCloseType = "DOWNSTREAM_DETECTED_CLOSE_TYPE";
    /// Why we closed the upstream connection.
    UpstreamLocalCloseReason = "UPSTREAM_LOCAL_CLOSE_REASON";
    /// Why we closed the client's.
    DownstreamLocalCloseReason = "DOWNSTREAM_LOCAL_CLOSE_REASON";
    /// TLS failure of the client.
    DownstreamTransportFailureReason = "DOWNSTREAM_TRANSPORT_FAILURE_REASON";
    /// Client.
    DownstreamRemoteAddress = "DOWNSTREAM_REMOTE_ADDRESS";
    /// Client's address.
    DownstreamRemoteAddressWithoutPort = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT";
    /// Client's port.
    DownstreamRemotePort = "DOWNSTREAM_REMOTE_PORT";
    /// Peer.
    DownstreamDirectRemoteAddress = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS";
    /// Peer's address.
    DownstreamDirectRemoteAddressWithoutPort = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT";
    /// Peer's port.
    DownstreamDirectRemotePort = "DOWNSTREAM_DIRECT_REMOTE_PORT";
    /// Our end.
    DownstreamLocalAddress = "DOWNSTREAM_LOCAL_ADDRESS";
    /// Our address.
    DownstreamLocalAddressWithoutPort = "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT";
    /// Our port.
    DownstreamLocalPort = "DOWNSTREAM_LOCAL_PORT";
    /// Our end of the connection.
    DownstreamDirectLocalAddress = "DOWNSTREAM_DIRECT_LOCAL_ADDRESS";
    /// Its address.
    DownstreamDirectLocalAddressWithoutPort = "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT";
    /// Its port.
    DownstreamDirectLocalPort = "DOWNSTREAM_DIRECT_LOCAL_PORT";
    /// Internal listeners only: empty.
    DownstreamLocalAddressEndpointId = "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID";
    /// Internal listeners only: empty.
    DownstreamDirectLocalAddressEndpointId = "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID";
    /// Round trip of the connection.
    DownstreamCxRtt = "DOWNSTREAM_CX_RTT";
    /// Id of the client's connection.
    ConnectionId = "CONNECTION_ID";
    /// Id of the stream: the request id.
    StreamId = "STREAM_ID";
    /// A new UUID each time.
    UniqueId = "UNIQUE_ID";
    /// Tracing.
    TraceId = "TRACE_ID";
    /// Tracing.
    SpanId = "SPAN_ID";
    /// Of the route.
    RouteName = "ROUTE_NAME";
    /// Of the virtual cluster.
    VirtualClusterName = "VIRTUAL_CLUSTER_NAME";
    /// Of the filter chain.
    FilterChainName = "FILTER_CHAIN_NAME";
    /// Of the listener.
    ListenerName = "LISTENER_NAME";
    /// How often a route was looked for.
    RouteResolutionCount = "ROUTE_RESOLUTION_COUNT";
    /// How long that took.
    RouteResolutionTimeUs = "ROUTE_RESOLUTION_TIME_US";
    /// Flags of filters.
    CustomFlags = "CUSTOM_FLAGS";
    /// Which record of the stream this is.
    AccessLogType = "ACCESS_LOG_TYPE";
    /// The body of a local reply.
    LocalReplyBody = "LOCAL_REPLY_BODY";
    /// Head bytes of the request, names and values.
    RequestHeadersBytes = "REQUEST_HEADERS_BYTES";
    /// Head bytes of the response.
    ResponseHeadersBytes = "RESPONSE_HEADERS_BYTES";
    /// Bytes of the response's trailers.
    ResponseTrailersBytes = "RESPONSE_TRAILERS_BYTES";
    /// The gRPC status.
    GrpcStatusNumber = "GRPC_STATUS_NUMBER";
}
