//! From an operator's name and arguments to its meaning: the syntax, and the errors in Envoy's words.

use super::{
    DurationUnit, Field, FormatHeader, GrpcStatusFormat, HeaderChoice, MaskableAddress,
    MetadataSource, Operator, PathSource, ServerNameChoice, TimePoint,
};
use crate::config::ConfigError;
use crate::config::access_log::time::TimeFormat;

/// Accepted without arguments, and without a value here: what TLS, QUIC and fingerprints would tell.
const UNAVAILABLE: &[&str] = &[
    "DOWNSTREAM_LOCAL_DNS_SAN",
    "DOWNSTREAM_LOCAL_EMAIL_SAN",
    "DOWNSTREAM_LOCAL_IP_SAN",
    "DOWNSTREAM_LOCAL_OTHERNAME_SAN",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "DOWNSTREAM_LOCAL_URI_SAN",
    "DOWNSTREAM_PEER_CERT",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256",
    "DOWNSTREAM_PEER_CHAIN_SERIALS",
    "DOWNSTREAM_PEER_DNS_SAN",
    "DOWNSTREAM_PEER_EMAIL_SAN",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_IP_SAN",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_ISSUER_SERIAL",
    "DOWNSTREAM_PEER_OTHERNAME_SAN",
    "DOWNSTREAM_PEER_SERIAL",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_TLS_GROUP",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DOWNSTREAM_TLS_VERSION",
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
    "UPSTREAM_LOCAL_DNS_SAN",
    "UPSTREAM_LOCAL_SUBJECT",
    "UPSTREAM_LOCAL_URI_SAN",
    "UPSTREAM_PEER_CERT",
    "UPSTREAM_PEER_DNS_SAN",
    "UPSTREAM_PEER_ISSUER",
    "UPSTREAM_PEER_SUBJECT",
    "UPSTREAM_PEER_URI_SAN",
    "UPSTREAM_SERVER_NAME",
    "UPSTREAM_TLS_CIPHER",
    "UPSTREAM_TLS_GROUP",
    "UPSTREAM_TLS_SESSION_ID",
    "UPSTREAM_TLS_VERSION",
];

/// What may follow an operator's name.
#[derive(Clone, Copy)]
struct Syntax {
    params: Params,
    length: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Params {
    None,
    Optional,
    Required,
}

impl Syntax {
    const fn new(params: Params, length: bool) -> Self {
        Self { params, length }
    }

    fn check(
        self,
        name: &str,
        params: Option<&str>,
        length: Option<usize>,
    ) -> Result<(), ConfigError> {
        let empty = params.is_none_or(str::is_empty);
        let reason = if self.params == Params::None && (!empty || length.is_some()) {
            "does not take any parameters or length"
        } else if self.params == Params::Required && empty {
            "requires parameters"
        } else if !self.length && length.is_some() {
            "does not allow length to be specified."
        } else {
            return Ok(());
        };
        Err(ConfigError::invalid(format!("{name} {reason}")))
    }
}

/// The syntax of every operator that takes something, or whose value is made up when it is parsed.
fn syntax(name: &str) -> Option<Syntax> {
    Some(match name {
        "REQ" | "REQUEST_HEADER" | "RESP" | "RESPONSE_HEADER" | "TRAILER" | "RESPONSE_TRAILER"
        | "DYNAMIC_METADATA" | "ENVIRONMENT" | "QUERY_PARAM" => Syntax::new(Params::Required, true),
        "CLUSTER_METADATA" | "UPSTREAM_METADATA" | "COMMON_DURATION" => {
            Syntax::new(Params::Required, false)
        }
        "COALESCE" => Syntax::new(Params::Required, true),
        // These say what is wrong by themselves.
        "FILTER_STATE"
        | "UPSTREAM_FILTER_STATE"
        | "METADATA"
        | "PATH"
        | "QUERY_PARAMS"
        | "XFCC_VALUE"
        | "CEL"
        | "TYPED_CEL" => Syntax::new(Params::Optional, true),
        "START_TIME"
        | "START_TIME_LOCAL"
        | "EMIT_TIME"
        | "EMIT_TIME_LOCAL"
        | "RESPONSE_CODE_DETAILS"
        | "GRPC_STATUS"
        | "REQUESTED_SERVER_NAME"
        | "DOWNSTREAM_PEER_CERT_V_START"
        | "DOWNSTREAM_PEER_CERT_V_END"
        | "UPSTREAM_PEER_CERT_V_START"
        | "UPSTREAM_PEER_CERT_V_END" => Syntax::new(Params::Optional, false),
        "HOSTNAME" => Syntax::new(Params::None, false),
        name if maskable(name).is_some() => Syntax::new(Params::Optional, false),
        name if Field::by_name(name).is_some() || UNAVAILABLE.contains(&name) => {
            Syntax::new(Params::None, false)
        }
        _ => return None,
    })
}

fn maskable(name: &str) -> Option<MaskableAddress> {
    Some(match name {
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => MaskableAddress::DownstreamRemote,
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => MaskableAddress::DownstreamDirectRemote,
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => MaskableAddress::DownstreamLocal,
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT" => MaskableAddress::DownstreamDirectLocal,
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => MaskableAddress::UpstreamLocal,
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => MaskableAddress::UpstreamRemote,
        _ => return None,
    })
}

impl Operator {
    /// The operator called `name` with what stands in its parentheses and after its colon.
    ///
    /// # Errors
    /// Envoy's texts, for names and arguments that it refuses; CEL is not supported.
    pub(in crate::config::access_log) fn parse(
        name: &str,
        params: Option<&str>,
        length: Option<usize>,
    ) -> Result<Self, ConfigError> {
        let Some(syntax) = syntax(name) else {
            return Err(ConfigError::invalid(format!(
                "Not supported field in StreamInfo: {name}"
            )));
        };
        syntax.check(name, params, length)?;
        let params = params.unwrap_or("");
        if let Some(address) = maskable(name)
            && let Ok(bits) = params.parse()
        {
            return Ok(Self::MaskedAddress { address, bits });
        }
        if let Some(field) = Field::by_name(name) {
            return Ok(Self::Field(field));
        }
        match name {
            "REQ" | "REQUEST_HEADER" => HeaderChoice::parse(params).map(Self::RequestHeader),
            "RESP" | "RESPONSE_HEADER" => HeaderChoice::parse(params).map(Self::ResponseHeader),
            "TRAILER" | "RESPONSE_TRAILER" => {
                HeaderChoice::parse(params).map(Self::ResponseTrailer)
            }
            "PATH" => parse_path(params),
            "QUERY_PARAM" => Ok(Self::QueryParam(params.into())),
            "QUERY_PARAMS" => match params {
                "" | "ORIG" => Ok(Self::QueryParams { decoded: false }),
                "DECODED" => Ok(Self::QueryParams { decoded: true }),
                other => Err(bad_option(name, other, "'ORIG'/'DECODED'")),
            },
            "RESPONSE_CODE_DETAILS" => Ok(Self::ResponseCodeDetails {
                keep_spaces: params == "ALLOW_WHITESPACES",
            }),
            "START_TIME" | "START_TIME_LOCAL" | "EMIT_TIME" | "EMIT_TIME_LOCAL" => {
                let local = name.ends_with("_LOCAL");
                if params.contains("%n") {
                    return Err(ConfigError::invalid(
                        "Invalid header configuration. Format string contains newline.",
                    ));
                }
                Ok(Self::Time {
                    emit: name.starts_with("EMIT"),
                    local,
                    format: TimeFormat::parse(params, local),
                })
            }
            "COMMON_DURATION" => parse_common_duration(params),
            "GRPC_STATUS" => match params {
                "" | "CAMEL_STRING" => Ok(Self::GrpcStatus(GrpcStatusFormat::Camel)),
                "SNAKE_STRING" => Ok(Self::GrpcStatus(GrpcStatusFormat::Snake)),
                "NUMBER" => Ok(Self::GrpcStatus(GrpcStatusFormat::Number)),
                other => Err(ConfigError::invalid(format!(
                    "GrpcStatusFormatter only supports CAMEL_STRING, SNAKE_STRING or NUMBER. Got: {other}"
                ))),
            },
            "DYNAMIC_METADATA" => Ok(metadata(MetadataSource::Dynamic, params)),
            "CLUSTER_METADATA" => Ok(metadata(MetadataSource::Cluster, params)),
            "UPSTREAM_METADATA" => Ok(metadata(MetadataSource::UpstreamHost, params)),
            "METADATA" => parse_metadata(params, length),
            "FILTER_STATE" | "UPSTREAM_FILTER_STATE" => {
                parse_filter_state(params, name == "UPSTREAM_FILTER_STATE")
            }
            "REQUESTED_SERVER_NAME" => parse_server_name(params),
            "ENVIRONMENT" => Ok(Self::Environment(
                std::env::var(params).ok().map(String::into_boxed_str),
            )),
            "HOSTNAME" => Ok(Self::Hostname(hostname())),
            "XFCC_VALUE" if params.is_empty() => Err(ConfigError::invalid(
                "XFCC_VALUE command requires a subcommand",
            )),
            "XFCC_VALUE" => parse_xfcc(params),
            "COALESCE" => parse_coalesce(params),
            "CEL" | "TYPED_CEL" => Err(ConfigError::unsupported(
                "",
                format!("%{name}(…)%: this build evaluates no CEL expressions"),
            )),
            _ => Ok(Self::Unavailable),
        }
    }
}

impl HeaderChoice {
    fn parse(params: &str) -> Result<Self, ConfigError> {
        if params
            .bytes()
            .any(|byte| byte <= b' ' || byte == 0x7f || byte == b'(' || byte == b')')
        {
            return Err(ConfigError::invalid(
                "Invalid header configuration. Format string contains invalid characters.",
            ));
        }
        let mut names = params.split('?');
        let main = names.next().unwrap_or("");
        let alternative = names.next().filter(|name| !name.is_empty());
        if names.next().is_some() {
            return Err(ConfigError::invalid(format!(
                "More than 1 alternative header specified in token: {params}"
            )));
        }
        Ok(Self {
            main: FormatHeader::parse(main),
            alternative: alternative.map(FormatHeader::parse),
        })
    }
}

/// The kernel's name of this machine; `-` where it cannot be read.
fn hostname() -> Box<str> {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "-".into(), |name| name.trim_end().into())
}

fn bad_option(name: &str, got: &str, allowed: &str) -> ConfigError {
    ConfigError::invalid(format!(
        "Invalid {name} option: '{got}', only {allowed} are allowed"
    ))
}

fn parse_path(params: &str) -> Result<Operator, ConfigError> {
    let mut parts = params.split(':');
    let query = match parts.next().unwrap_or("") {
        "" | "WQ" => true,
        "NQ" => false,
        other => return Err(bad_option("PATH", other, "'WQ'/'NQ'")),
    };
    let source = match parts.next().unwrap_or("") {
        "" | "ORIG_OR_PATH" => PathSource::OriginalOrCurrent,
        "ORIG" => PathSource::Original,
        "PATH" => PathSource::Current,
        other => return Err(bad_option("PATH", other, "'ORIG'/'PATH'/'ORIG_OR_PATH'")),
    };
    Ok(Operator::Path { query, source })
}

fn parse_common_duration(params: &str) -> Result<Operator, ConfigError> {
    let mut parts = params.split(':');
    let (Some(start), Some(end), unit, None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(ConfigError::invalid(format!(
            "Invalid common duration configuration: {params}."
        )));
    };
    let unit = match unit.unwrap_or("ms") {
        "ms" => DurationUnit::Millis,
        "us" => DurationUnit::Micros,
        "ns" => DurationUnit::Nanos,
        other => {
            return Err(ConfigError::invalid(format!(
                "Invalid common duration precision: {other}."
            )));
        }
    };
    Ok(Operator::CommonDuration {
        start: TimePoint::parse(start),
        end: TimePoint::parse(end),
        unit,
    })
}

impl TimePoint {
    fn parse(name: &str) -> Self {
        match name {
            "DS_RX_BEG" => Self::DownstreamRxBegin,
            "DS_RX_END" => Self::DownstreamRxEnd,
            "US_CX_BEG" => Self::UpstreamConnectBegin,
            "US_CX_END" => Self::UpstreamConnectEnd,
            "US_HS_END" => Self::UpstreamHandshakeEnd,
            "US_TX_BEG" => Self::UpstreamTxBegin,
            "US_TX_END" => Self::UpstreamTxEnd,
            "US_RX_BEG" => Self::UpstreamRxBegin,
            "US_RX_BODY_BEG" => Self::UpstreamRxBodyBegin,
            "US_RX_END" => Self::UpstreamRxEnd,
            "DS_TX_BEG" => Self::DownstreamTxBegin,
            "DS_TX_END" => Self::DownstreamTxEnd,
            other => Self::Custom(other.into()),
        }
    }
}

fn metadata(source: MetadataSource, params: &str) -> Operator {
    Operator::Metadata {
        source,
        path: params.split(':').map(Into::into).collect(),
    }
}

fn parse_metadata(params: &str, length: Option<usize>) -> Result<Operator, ConfigError> {
    let (kind, rest) = params.split_once(':').unwrap_or((params, ""));
    let source = match kind {
        "DYNAMIC" => MetadataSource::Dynamic,
        "CLUSTER" => MetadataSource::Cluster,
        "ROUTE" => MetadataSource::Route,
        "UPSTREAM_HOST" => MetadataSource::UpstreamHost,
        "LISTENER" => MetadataSource::Listener,
        "VIRTUAL_HOST" => MetadataSource::VirtualHost,
        "LISTENER_FILTER_CHAIN" => MetadataSource::FilterChain,
        other => {
            return Err(ConfigError::invalid(format!(
                "{other} is not supported type of metadata"
            )));
        }
    };
    let _ = length;
    Ok(metadata(source, rest))
}

fn parse_filter_state(params: &str, upstream: bool) -> Result<Operator, ConfigError> {
    let mut parts = params.split(':');
    let key = parts.next().unwrap_or("");
    if key.is_empty() {
        return Err(ConfigError::invalid(
            "Invalid filter state configuration, key cannot be empty.",
        ));
    }
    let kind = parts.next().unwrap_or("TYPED");
    let field = parts.next();
    let typed = kind == "TYPED";
    let field = match (kind, field) {
        ("PLAIN" | "TYPED", None) => None,
        ("FIELD", Some(field)) => Some(field.into()),
        ("PLAIN" | "TYPED" | "FIELD", _) => {
            return Err(ConfigError::invalid(
                "Invalid filter state serialize type, FIELD should be used with the field name.",
            ));
        }
        _ => {
            return Err(ConfigError::invalid(
                "Invalid filter state serialize type, only support PLAIN/TYPED/FIELD.",
            ));
        }
    };
    Ok(Operator::FilterState {
        upstream,
        key: key.into(),
        field,
        typed,
    })
}

fn parse_server_name(params: &str) -> Result<Operator, ConfigError> {
    let mut parts = params.split(':');
    let choice = parts.next().unwrap_or("");
    let source = match parts.next().unwrap_or("") {
        "" | "ORIG_OR_HOST" => PathSource::OriginalOrCurrent,
        "ORIG" => PathSource::Original,
        "HOST" => PathSource::Current,
        other => {
            return Err(bad_option(
                "REQUESTED_SERVER_NAME",
                other,
                "'ORIG'/'HOST'/'ORIG_OR_HOST'",
            ));
        }
    };
    let choice = match choice {
        "" | "SNI_ONLY" => ServerNameChoice::SniOnly,
        "SNI_FIRST" | "HOST_FIRST" => ServerNameChoice::Host(source),
        other => {
            return Err(bad_option(
                "REQUESTED_SERVER_NAME",
                other,
                "'SNI_ONLY'/'SNI_FIRST'/'HOST_FIRST'",
            ));
        }
    };
    Ok(Operator::RequestedServerName(choice))
}

fn parse_xfcc(key: &str) -> Result<Operator, ConfigError> {
    let known = ["by", "hash", "cert", "chain", "subject", "uri", "dns"];
    let lower = key.to_ascii_lowercase();
    if known.contains(&lower.as_str()) {
        Ok(Operator::XfccValue(lower.into()))
    } else {
        Err(ConfigError::invalid(format!(
            "XFCC_VALUE command does not support subcommand: {key}"
        )))
    }
}

fn parse_coalesce(params: &str) -> Result<Operator, ConfigError> {
    let wrong = |reason: &str| ConfigError::invalid(format!("COALESCE: {reason}"));
    let value: serde_json::Value = serde_json::from_str(params)
        .map_err(|error| wrong(&format!("failed to parse JSON configuration: {error}")))?;
    let Some(entries) = value.get("operators").and_then(|value| value.as_array()) else {
        return Err(wrong("JSON configuration must contain 'operators' array"));
    };
    if entries.is_empty() {
        return Err(wrong("'operators' array must not be empty"));
    }
    let mut operators = Vec::with_capacity(entries.len());
    for entry in entries {
        let (command, param, max_length) = match entry {
            serde_json::Value::String(command) => (command.as_str(), None, None),
            serde_json::Value::Object(object) => {
                let text = |key: &str| object.get(key).and_then(|value| value.as_str());
                let Some(command) = text("command") else {
                    return Err(wrong("operator entry must have a 'command'"));
                };
                let max_length = object
                    .get("max_length")
                    .and_then(|value| value.as_u64())
                    .and_then(|length| usize::try_from(length).ok());
                (command, text("param"), max_length)
            }
            _ => return Err(wrong("operator entry must be a string or an object")),
        };
        operators.push((Operator::parse(command, param, max_length)?, max_length));
    }
    Ok(Operator::Coalesce(operators))
}
