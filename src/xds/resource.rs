//! The types of resources, and how bytes become values.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use super::admission::Candidate;
use crate::config::extension::{HttpFilterConfig, parse_typed_extension};
use crate::config::{Cluster, ConfigError, Endpoints, Listener, ParseContext, RouteConfig};
use crate::pb;

/// A type of resource, in make-before-break order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// LDS.
    Listener,
    /// ECDS.
    Extension,
    /// RDS.
    Route,
}

impl ResourceType {
    /// Every type, in order.
    pub const ALL: [Self; 5] = [
        Self::Cluster,
        Self::Endpoints,
        Self::Listener,
        Self::Extension,
        Self::Route,
    ];

    /// The type URL of the resources.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Extension => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// The type of a URL.
    pub fn of_url(type_url: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.type_url() == type_url)
    }

    /// `cds`, `eds`, …: for logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Cluster => "cds",
            Self::Endpoints => "eds",
            Self::Listener => "lds",
            Self::Extension => "ecds",
            Self::Route => "rds",
        }
    }

    /// `cluster`, `listener`, …: for messages.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Endpoints => "cluster load assignment",
            Self::Listener => "listener",
            Self::Extension => "extension config",
            Self::Route => "route config",
        }
    }

    /// What Envoy says of a resource that is called `name` where the message around it says `expected`.
    pub(super) fn unexpected(self, expected: &str, name: &str) -> String {
        match self {
            Self::Endpoints => format!("Unexpected EDS cluster (expecting {expected}): {name}"),
            Self::Route => format!("Unexpected RDS configuration (expecting {expected}): {name}"),
            Self::Extension => {
                format!("Unexpected resource name in ExtensionConfigDS response: {name}")
            }
            Self::Cluster | Self::Listener => format!("unexpected name {name}"),
        }
    }

    /// True where a state-of-the-world response is the full state: what it leaves out is deleted.
    pub fn is_full_state(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    /// Its position in [`ResourceType::ALL`].
    pub(super) fn index(self) -> usize {
        self as usize
    }

    /// The gRPC method of the type's own service.
    pub(crate) fn method(self, delta: bool) -> &'static str {
        match (self, delta) {
            (Self::Cluster, false) => {
                "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters"
            }
            (Self::Cluster, true) => {
                "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters"
            }
            (Self::Endpoints, false) => {
                "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints"
            }
            (Self::Endpoints, true) => {
                "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints"
            }
            (Self::Listener, false) => {
                "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners"
            }
            (Self::Listener, true) => {
                "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners"
            }
            (Self::Extension, false) => {
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs"
            }
            (Self::Extension, true) => {
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs"
            }
            (Self::Route, false) => "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
            (Self::Route, true) => "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
        }
    }

    /// What Envoy puts before the list of what it refuses, and between its entries; log matchers look for it.
    pub(super) fn nack_text(self, rejections: &[String]) -> String {
        match self {
            Self::Cluster => format!("Error adding/updating cluster(s) {}", rejections.join(", ")),
            Self::Listener => format!(
                "Error adding/updating listener(s) {}\n",
                rejections.join("\n")
            ),
            _ => rejections.join("\n"),
        }
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A resource as believed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Cluster(Arc<Cluster>),
    Endpoints(Arc<Endpoints>),
    Listener(Arc<Listener>),
    Extension(Arc<HttpFilterConfig>),
    Route(Arc<RouteConfig>),
}

impl Value {
    /// The listener, where it is one.
    pub(super) fn listener(&self) -> Option<&Listener> {
        match self {
            Self::Listener(listener) => Some(listener),
            _ => None,
        }
    }

    /// Decodes and validates. `previous` is the value that this one replaces, with its bytes.
    pub(super) fn parse(
        kind: ResourceType,
        body: &Bytes,
        previous: Option<(&Bytes, &Self)>,
        context: &ParseContext<'_>,
    ) -> Result<Self, ConfigError> {
        fn decode<M: prost::Message + Default>(body: &Bytes) -> Result<M, ConfigError> {
            M::decode(body.clone()).map_err(|error| ConfigError::invalid(error.to_string()))
        }
        Ok(match kind {
            ResourceType::Cluster => {
                Self::Cluster(Arc::new(Cluster::parse(decode(body)?, context)?))
            }
            ResourceType::Endpoints => {
                Self::Endpoints(Arc::new(Endpoints::parse(decode(body)?, context)?))
            }
            ResourceType::Listener => {
                Self::Listener(Arc::new(Listener::parse(decode(body)?, context)?))
            }
            ResourceType::Extension => Self::Extension(Arc::new(
                parse_typed_extension(decode(body)?, context).map(|(_, config)| config)?,
            )),
            ResourceType::Route => {
                let previous = match previous {
                    Some((body, Self::Route(table))) => Some((&body[..], &**table)),
                    _ => None,
                };
                Self::Route(Arc::new(RouteConfig::parse_encoded(
                    body, previous, context,
                )?))
            }
        })
    }

    /// True where both are the same allocation.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cluster(a), Self::Cluster(b)) => Arc::ptr_eq(a, b),
            (Self::Endpoints(a), Self::Endpoints(b)) => Arc::ptr_eq(a, b),
            (Self::Listener(a), Self::Listener(b)) => Arc::ptr_eq(a, b),
            (Self::Extension(a), Self::Extension(b)) => Arc::ptr_eq(a, b),
            (Self::Route(a), Self::Route(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// True where something holds the value besides this.
    pub(super) fn is_held(&self) -> bool {
        match self {
            Self::Cluster(value) => Arc::strong_count(value) > 1,
            Self::Endpoints(value) => Arc::strong_count(value) > 1,
            Self::Listener(value) => Arc::strong_count(value) > 1,
            Self::Extension(value) => Arc::strong_count(value) > 1,
            Self::Route(value) => Arc::strong_count(value) > 1,
        }
    }

    /// What admission is asked about; endpoints are always admitted.
    pub(super) fn candidate(&self, name: &Arc<str>) -> Option<Candidate> {
        Some(match self {
            Self::Cluster(cluster) => Candidate::Cluster(Arc::clone(cluster)),
            Self::Endpoints(_) => return None,
            Self::Listener(listener) => Candidate::Listener(Arc::clone(listener)),
            Self::Extension(config) => Candidate::Extension(Arc::clone(name), Arc::clone(config)),
            Self::Route(route) => Candidate::Route(Arc::clone(route)),
        })
    }
}

/// The name of an encoded resource without decoding it: in every xDS type it is the string in field 1.
///
/// `Err` where the bytes are not a message; an empty name where there is none.
pub(crate) fn name_of(body: &[u8]) -> Result<&str, &'static str> {
    const MALFORMED: &str = "malformed message";
    let mut rest = body;
    let mut name: &[u8] = b"";
    while !rest.is_empty() {
        let key = prost::encoding::decode_varint(&mut rest).map_err(|_| MALFORMED)?;
        let length = match key & 7 {
            0 => {
                prost::encoding::decode_varint(&mut rest).map_err(|_| MALFORMED)?;
                0
            }
            1 => 8,
            2 => prost::encoding::decode_varint(&mut rest).map_err(|_| MALFORMED)?,
            5 => 4,
            _ => return Err(MALFORMED),
        };
        let length = usize::try_from(length).map_err(|_| MALFORMED)?;
        let (field, after) = rest.split_at_checked(length).ok_or(MALFORMED)?;
        if key == (1 << 3 | 2) {
            name = field;
        }
        rest = after;
    }
    std::str::from_utf8(name).map_err(|_| "the name is not UTF-8")
}

/// The `Any` inside an `envoy.service.discovery.v3.Resource`, with what the wrapper says; other messages unchanged.
pub(crate) fn unwrap_resource(
    any: pb::Any,
) -> Result<pb::envoy::service::discovery::v3::Resource, prost::DecodeError> {
    use pb::envoy::service::discovery::v3::Resource;
    if pb::is::<Resource>(&any) {
        return Resource::decode(any.value.as_slice());
    }
    Ok(Resource {
        resource: Some(any),
        ..Resource::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Name as _;

    #[test]
    fn type_urls_are_those_of_the_messages() {
        use pb::envoy::config;
        assert_eq!(
            ResourceType::ALL.map(|kind| kind.type_url().to_owned()),
            [
                config::cluster::v3::Cluster::type_url(),
                config::endpoint::v3::ClusterLoadAssignment::type_url(),
                config::listener::v3::Listener::type_url(),
                config::core::v3::TypedExtensionConfig::type_url(),
                config::route::v3::RouteConfiguration::type_url(),
            ]
        );
        for (index, kind) in ResourceType::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), index);
            assert_eq!(ResourceType::of_url(kind.type_url()), Some(kind));
        }
    }

    #[test]
    fn the_name_is_read_without_decoding() {
        let cluster = pb::envoy::config::cluster::v3::Cluster {
            name: "outbound|80||a".to_owned(),
            alt_stat_name: "x".to_owned(),
            ignore_health_on_host_removal: true,
            ..Default::default()
        };
        assert_eq!(name_of(&cluster.encode_to_vec()), Ok("outbound|80||a"));
        let assignment = pb::envoy::config::endpoint::v3::ClusterLoadAssignment {
            cluster_name: "b".to_owned(),
            ..Default::default()
        };
        assert_eq!(name_of(&assignment.encode_to_vec()), Ok("b"));
        assert_eq!(name_of(b""), Ok(""));
    }

    #[test]
    fn broken_bytes_have_no_name() {
        for bytes in [
            &b"\x0a"[..],
            b"\x0a\x05ab",
            b"\x0b",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x0a\x01\xff",
            b"\x09\x01\x02",
        ] {
            assert!(name_of(bytes).is_err(), "{bytes:?}");
        }
    }
}
