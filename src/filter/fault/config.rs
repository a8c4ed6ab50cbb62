//! The fault filter's configuration.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use super::proto;
use super::proto::fault_abort::ErrorType;
use crate::config::ConfigError;
use crate::config::error::At as _;
use crate::config::field::{duration, each, uint32};
use crate::config::matcher::HeaderMatcher;
use crate::pb;
use crate::pb::envoy::extensions::filters::common::fault::v3 as common;
use crate::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use crate::pb::envoy::r#type::v3::FractionalPercent;
use crate::pb::envoy::r#type::v3::fractional_percent::DenominatorType;

/// What to do to which requests.
#[derive(Debug)]
pub struct Config {
    pub(super) delay: Option<Delay>,
    pub(super) abort: Option<Abort>,
    pub(super) upstream_cluster: Option<Box<str>>,
    pub(super) headers: Vec<HeaderMatcher>,
    pub(super) downstream_nodes: Vec<Box<str>>,
    pub(super) max_active: Option<u64>,
    pub(super) no_downstream_stats: bool,
    pub(super) metadata: Option<pb::Struct>,
}

#[derive(Debug)]
pub(super) struct Delay {
    /// `None`: by header.
    pub(super) fixed: Option<Duration>,
    pub(super) percentage: Percentage,
}

#[derive(Debug)]
pub(super) struct Abort {
    pub(super) status: Status,
    pub(super) percentage: Percentage,
    pub(super) body: Bytes,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Status {
    Http(StatusCode),
    Grpc(u32),
    /// By header.
    Header,
}

/// A fraction whose numerator a header may lower.
#[derive(Clone, Copy, Debug)]
pub(super) struct Percentage {
    numerator: u64,
    denominator: u64,
}

impl Percentage {
    /// Absent is never.
    fn parse(proto: Option<FractionalPercent>) -> Result<Self, ConfigError> {
        let Some(FractionalPercent {
            numerator,
            denominator,
        }) = proto
        else {
            return Ok(Self {
                numerator: 0,
                denominator: 100,
            });
        };
        let denominator = match DenominatorType::try_from(denominator) {
            Ok(DenominatorType::Hundred) => 100,
            Ok(DenominatorType::TenThousand) => 10_000,
            Ok(DenominatorType::Million) => 1_000_000,
            Err(_) => {
                return Err(
                    ConfigError::invalid("value must be one of the defined enum values")
                        .at("denominator"),
                );
            }
        };
        Ok(Self {
            numerator: u64::from(numerator),
            denominator,
        })
    }

    pub(super) fn lowered(self, numerator: Option<u64>) -> Self {
        Self {
            numerator: numerator.map_or(self.numerator, |n| n.min(self.numerator)),
            ..self
        }
    }

    pub(super) fn happens(self) -> bool {
        self.numerator >= self.denominator
            || (self.numerator > 0 && fastrand::u64(..self.denominator) < self.numerator)
    }
}

impl Config {
    /// Validates the message.
    ///
    /// # Errors
    /// A rate limit, which is not supported, or a value out of range.
    pub(super) fn parse(proto: proto::HttpFault) -> Result<Self, ConfigError> {
        let proto::HttpFault {
            delay,
            abort,
            upstream_cluster,
            headers,
            downstream_nodes,
            max_active_faults,
            response_rate_limit,
            delay_percent_runtime: _,
            abort_percent_runtime: _,
            delay_duration_runtime: _,
            abort_http_status_runtime: _,
            max_active_faults_runtime: _,
            response_rate_limit_percent_runtime: _,
            abort_grpc_status_runtime: _,
            disable_downstream_cluster_stats,
            filter_metadata,
        } = proto;
        if response_rate_limit.is_some() {
            return Err(ConfigError::unsupported("response_rate_limit", ""));
        }
        Ok(Self {
            delay: delay.map(parse_delay).transpose().at("delay")?,
            abort: abort.map(parse_abort).transpose().at("abort")?,
            upstream_cluster: (!upstream_cluster.is_empty()).then(|| upstream_cluster.into()),
            headers: each(headers, "headers", HeaderMatcher::parse)?,
            downstream_nodes: downstream_nodes.into_iter().map(Into::into).collect(),
            max_active: uint32(max_active_faults).map(u64::from),
            no_downstream_stats: disable_downstream_cluster_stats,
            metadata: filter_metadata,
        })
    }
}

fn parse_delay(proto: common::FaultDelay) -> Result<Delay, ConfigError> {
    let common::FaultDelay {
        percentage,
        fault_delay_secifier,
    } = proto;
    let fixed = match fault_delay_secifier {
        Some(FaultDelaySecifier::FixedDelay(delay)) => {
            let delay = duration(Some(delay), "fixed_delay")?.unwrap_or_default();
            if delay.is_zero() {
                return Err(ConfigError::invalid("value must be greater than 0s").at("fixed_delay"));
            }
            Some(delay)
        }
        Some(FaultDelaySecifier::HeaderDelay(common::fault_delay::HeaderDelay {})) => None,
        None => return Err(ConfigError::missing("fault_delay_secifier")),
    };
    Ok(Delay {
        fixed,
        percentage: Percentage::parse(percentage).at("percentage")?,
    })
}

fn parse_abort(proto: proto::FaultAbort) -> Result<Abort, ConfigError> {
    let proto::FaultAbort {
        percentage,
        response_body,
        error_type,
    } = proto;
    let status = match error_type {
        Some(ErrorType::HttpStatus(status)) => u16::try_from(status)
            .ok()
            .filter(|status| (200..600).contains(status))
            .and_then(|status| StatusCode::from_u16(status).ok())
            .map(Status::Http)
            .ok_or_else(|| {
                ConfigError::invalid("value must be inside range [200, 600)").at("http_status")
            })?,
        Some(ErrorType::GrpcStatus(status)) => Status::Grpc(status),
        Some(ErrorType::HeaderAbort(proto::fault_abort::HeaderAbort {})) => Status::Header,
        None => return Err(ConfigError::missing("error_type")),
    };
    Ok(Abort {
        status,
        percentage: Percentage::parse(percentage).at("percentage")?,
        body: if response_body.is_empty() {
            Bytes::from_static(b"fault filter abort")
        } else {
            response_body.into()
        },
    })
}
