//! `envoy.config.core.v3.Address` to the model.

use std::net::{IpAddr, SocketAddr};

use super::Address;
use crate::config::ConfigError;
use crate::config::error::At;
use crate::config::field::{non_empty, refuse, required};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::core::v3::address::Address as Kind;
use crate::pb::envoy::config::core::v3::socket_address::{PortSpecifier, Protocol};

/// What the kernel has room for, with the zero at the end.
const MAX_PIPE: usize = 108;

/// An address with what only listeners make use of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::config) struct BindAddress {
    /// Where.
    pub(in crate::config) address: Address,
    /// A pipe's `mode`; zero is unset.
    pub(in crate::config) mode: Option<u32>,
    /// `ipv4_compat` of an IPv6 address.
    pub(in crate::config) ipv4_compat: bool,
}

impl Address {
    /// Validates an `Address`. A host name becomes [`Address::Name`]; who cannot resolve must refuse it.
    ///
    /// # Errors
    /// No address, a bad port, or a kind that is not supported.
    pub fn parse(proto: core::Address) -> Result<Self, ConfigError> {
        Ok(BindAddress::parse(proto)?.address)
    }

    /// As [`Address::parse`], refusing host names.
    ///
    /// # Errors
    /// As [`Address::parse`], and a host name.
    pub fn parse_numeric(proto: core::Address) -> Result<Self, ConfigError> {
        match Self::parse(proto)? {
            Self::Name(name, _) => Err(malformed(&name)),
            address @ (Self::Socket(_) | Self::Pipe(_)) => Ok(address),
        }
    }
}

/// Envoy's words for a host name where an IP address must be.
pub(in crate::config) fn malformed(name: &str) -> ConfigError {
    ConfigError::invalid(format!("malformed IP address: {name}"))
        .at("address")
        .at("socket_address")
}

impl BindAddress {
    /// As [`Address::parse`].
    pub(in crate::config) fn parse(proto: core::Address) -> Result<Self, ConfigError> {
        let core::Address { address } = proto;
        match required(address, "address")? {
            Kind::SocketAddress(address) => socket(address).at("socket_address"),
            Kind::Pipe(core::Pipe { path, mode }) => {
                let path = non_empty(path, "path").at("pipe")?;
                if path.len() >= MAX_PIPE {
                    return Err(ConfigError::invalid(format!(
                        "Path \"{path}\" exceeds maximum UNIX domain socket path size of {MAX_PIPE}."
                    ))
                    .at("path")
                    .at("pipe"));
                }
                if mode > 0o777 {
                    return Err(
                        ConfigError::invalid("value must be less than or equal to 511")
                            .at("mode")
                            .at("pipe"),
                    );
                }
                if mode != 0 && path.starts_with('@') {
                    return Err(ConfigError::invalid(
                        "Cannot set mode for Abstract AF_UNIX sockets",
                    )
                    .at("pipe"));
                }
                Ok(Self {
                    address: Address::Pipe(path.into()),
                    mode: (mode != 0).then_some(mode),
                    ipv4_compat: false,
                })
            }
            Kind::EnvoyInternalAddress(_) => Err(ConfigError::unsupported(
                "envoy_internal_address",
                "internal listeners are not implemented by this build yet",
            )),
        }
    }
}

/// A `SocketAddress` with an IP address.
pub(in crate::config) fn numeric_socket(
    proto: core::SocketAddress,
) -> Result<SocketAddr, ConfigError> {
    match socket(proto)?.address {
        Address::Socket(address) => Ok(address),
        Address::Name(name, _) => {
            Err(ConfigError::invalid(format!("malformed IP address: {name}")).at("address"))
        }
        Address::Pipe(_) => Err(ConfigError::invalid("must be an IP address")),
    }
}

fn socket(proto: core::SocketAddress) -> Result<BindAddress, ConfigError> {
    let core::SocketAddress {
        protocol,
        address,
        resolver_name,
        ipv4_compat,
        network_namespace_filepath,
        port_specifier,
    } = proto;
    let protocol = crate::config::field::enumeration::<Protocol>(protocol, "protocol")?;
    refuse(
        protocol == Protocol::Udp,
        "protocol",
        "UDP is not implemented by this build yet",
    )?;
    let address = non_empty(address, "address")?;
    refuse(
        !resolver_name.is_empty(),
        "resolver_name",
        "address resolvers are not implemented by this build yet",
    )?;
    refuse(
        !network_namespace_filepath.is_empty(),
        "network_namespace_filepath",
        "network namespaces are not implemented by this build yet",
    )?;
    let port = match required(port_specifier, "port_specifier")? {
        PortSpecifier::PortValue(port) => u16::try_from(port).map_err(|_| {
            ConfigError::invalid("value must be less than or equal to 65535").at("port_value")
        })?,
        PortSpecifier::NamedPort(_) => {
            return Err(ConfigError::unsupported(
                "named_port",
                "no resolver of this build handles named ports",
            ));
        }
    };
    let address = match address.parse::<IpAddr>() {
        Ok(ip) => Address::Socket(SocketAddr::new(ip, port)),
        Err(_) => Address::Name(address.into(), port),
    };
    Ok(BindAddress {
        address,
        mode: None,
        ipv4_compat,
    })
}
