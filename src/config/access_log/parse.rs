//! Protobuf to access logs and local reply configuration.

use bytes::Bytes;
use http::StatusCode;

use super::{
    AccessLog, AccessLogFilter, AccessLogSink, BodyFormat, Comparison, Format, JsonFormat,
    LocalReplyConfig, LocalReplyMapper, LogFormat, PluginLog,
};
use crate::config::any::{holds, type_name, unknown_extension, unpack};
use crate::config::context::ParseContext;
use crate::config::error::{At, ConfigError};
use crate::config::header::HeaderMutations;
use crate::config::matcher::HeaderMatcher;
use crate::pb;
use crate::pb::envoy::config::accesslog::v3 as accesslog;
use crate::pb::envoy::config::accesslog::v3::access_log::ConfigType;
use crate::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::core::v3::data_source::Specifier;
use crate::pb::envoy::config::core::v3::substitution_format_string::Format as ProtoFormat;
use crate::pb::envoy::data::accesslog::v3::AccessLogType;
use crate::pb::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log};
use crate::pb::envoy::extensions::access_loggers::stream::v3::{
    StderrAccessLog, StdoutAccessLog, stderr_access_log, stdout_access_log,
};
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use crate::pb::envoy::r#type::v3::fractional_percent::DenominatorType;

/// Sinks that this build does not have; a log may be dropped, so they are accepted with a warning.
const IGNORED_SINKS: &[&str] = &[
    "envoy.extensions.access_loggers.fluentd.v3.FluentdAccessLogConfig",
    "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
    "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig",
    "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
    "envoy.extensions.access_loggers.stats.v3.Config",
    "envoy.extensions.access_loggers.wasm.v3.WasmAccessLog",
];

/// Filters nested deeper than this are refused: they are walked recursively.
const MAX_FILTER_DEPTH: usize = 32;

impl AccessLog {
    /// Validates one entry of `access_log`. `None`: a kind of sink that this build knows and does not write to.
    ///
    /// # Errors
    /// An unknown sink, a bad format, or a filter that is not supported.
    pub fn parse(
        proto: accesslog::AccessLog,
        context: &ParseContext<'_>,
    ) -> Result<Option<Self>, ConfigError> {
        let accesslog::AccessLog {
            name,
            filter,
            config_type,
        } = proto;
        let _ = context;
        // Parsed even for ignored sinks: a filter that is wrong is wrong everywhere.
        let filter = filter
            .map(AccessLogFilter::parse)
            .transpose()
            .at("filter")?;
        let Some(ConfigType::TypedConfig(any)) = config_type else {
            return Err(unknown_extension(&name, ""));
        };
        let any = pb::resolve_typed_struct(&any)
            .map_err(|error| ConfigError::invalid(error.to_string()))
            .at("typed_config")?;
        let (sink, format) = if holds::<FileAccessLog>(&any) {
            let FileAccessLog {
                path,
                access_log_format,
            } = unpack(&any)?;
            if path.is_empty() {
                return Err(
                    ConfigError::invalid("value length must be at least 1 characters")
                        .at("path")
                        .at("typed_config"),
                );
            }
            let format = file_format(access_log_format).at("typed_config")?;
            (AccessLogSink::File(path.into()), format)
        } else if holds::<StdoutAccessLog>(&any) {
            let StdoutAccessLog { access_log_format } = unpack(&any)?;
            let format = access_log_format
                .map(|stdout_access_log::AccessLogFormat::LogFormat(format)| format);
            (
                AccessLogSink::Stdout,
                log_format(format).at("typed_config")?,
            )
        } else if holds::<StderrAccessLog>(&any) {
            let StderrAccessLog { access_log_format } = unpack(&any)?;
            let format = access_log_format
                .map(|stderr_access_log::AccessLogFormat::LogFormat(format)| format);
            (
                AccessLogSink::Stderr,
                log_format(format).at("typed_config")?,
            )
        } else if IGNORED_SINKS.contains(&type_name(&any)) {
            tracing::warn!(
                name,
                kind = type_name(&any),
                "access log sink is not supported and ignored"
            );
            return Ok(None);
        } else {
            return Err(unknown_extension(&name, &any.type_url));
        };
        Ok(Some(Self {
            sink,
            format,
            filter,
        }))
    }

    /// Validates all of `access_log`, without those that are ignored.
    ///
    /// # Errors
    /// As [`AccessLog::parse`].
    pub fn parse_all(
        protos: Vec<accesslog::AccessLog>,
        context: &ParseContext<'_>,
    ) -> Result<Vec<Self>, ConfigError> {
        let mut logs = Vec::with_capacity(protos.len());
        for (index, proto) in protos.into_iter().enumerate() {
            logs.extend(Self::parse(proto, context).at_index("access_log", index)?);
        }
        Ok(logs)
    }
}

impl PluginLog {
    /// Validates those of `access_log` that are plugins; the others are left in it.
    ///
    /// # Errors
    /// A plugin's configuration or a filter that is not supported.
    pub fn take_all(
        protos: &mut Vec<accesslog::AccessLog>,
        context: &ParseContext<'_>,
    ) -> Result<Vec<Self>, ConfigError> {
        let mut logs = Vec::new();
        let mut others = Vec::with_capacity(protos.len());
        for (index, proto) in std::mem::take(protos).into_iter().enumerate() {
            match Self::parse(index, &proto, context).at_index("access_log", index)? {
                Some(log) => logs.push(log),
                None => others.push(proto),
            }
        }
        *protos = others;
        Ok(logs)
    }

    fn parse(
        index: usize,
        proto: &accesslog::AccessLog,
        context: &ParseContext<'_>,
    ) -> Result<Option<Self>, ConfigError> {
        let accesslog::AccessLog {
            name,
            filter,
            config_type,
        } = proto;
        let Some(ConfigType::TypedConfig(any)) = config_type else {
            return Ok(None);
        };
        let config = context.extensions.access_logger(name, any);
        let Some(config) = config.at("typed_config")? else {
            return Ok(None);
        };
        let filter = filter.clone().map(AccessLogFilter::parse);
        Ok(Some(Self {
            index,
            config,
            filter: filter.transpose().at("filter")?,
        }))
    }
}

fn log_format(format: Option<core::SubstitutionFormatString>) -> Result<LogFormat, ConfigError> {
    match format {
        Some(format) => Ok(BodyFormat::parse(format).at("log_format")?.format),
        None => Ok(LogFormat::default_text()),
    }
}

#[expect(
    deprecated,
    reason = "old control planes still send the deprecated forms"
)]
fn file_format(format: Option<file_access_log::AccessLogFormat>) -> Result<LogFormat, ConfigError> {
    use file_access_log::AccessLogFormat;
    match format {
        None => Ok(LogFormat::default_text()),
        Some(AccessLogFormat::LogFormat(format)) => log_format(Some(format)),
        // An empty one is the default, too.
        Some(AccessLogFormat::Format(text)) if text.is_empty() => Ok(LogFormat::default_text()),
        Some(AccessLogFormat::Format(text)) => Ok(LogFormat::Text {
            format: Format::parse(&text).at("format")?,
            omit_empty: false,
        }),
        Some(AccessLogFormat::JsonFormat(fields)) => Ok(LogFormat::Json {
            object: JsonFormat::parse(fields).at("json_format")?,
            omit_empty: false,
        }),
        Some(AccessLogFormat::TypedJsonFormat(fields)) => Ok(LogFormat::Json {
            object: JsonFormat::parse(fields).at("typed_json_format")?,
            omit_empty: false,
        }),
    }
}

impl LogFormat {
    /// Envoy's default line.
    pub fn default_text() -> Self {
        Self::Text {
            format: Format::parse(super::DEFAULT_FORMAT).expect("the default format is valid"),
            omit_empty: false,
        }
    }
}

impl BodyFormat {
    /// Validates a `SubstitutionFormatString`.
    ///
    /// # Errors
    /// No format, a bad one, or `formatters` (this build has no further operators).
    pub fn parse(proto: core::SubstitutionFormatString) -> Result<Self, ConfigError> {
        let core::SubstitutionFormatString {
            omit_empty_values: omit_empty,
            content_type,
            formatters,
            // Properties are always sorted.
            json_format_options: _,
            format,
        } = proto;
        if let Some(formatter) = formatters.first() {
            let type_url = formatter
                .typed_config
                .as_ref()
                .map_or("", |any| any.type_url.as_str());
            // CEL and METADATA are built in; naming them again adds nothing.
            let built_in = [
                "envoy.extensions.formatter.metadata.v3.Metadata",
                "envoy.extensions.formatter.cel.v3.Cel",
            ];
            if !built_in.iter().any(|name| type_url.ends_with(name)) {
                return Err(unknown_extension(&formatter.name, type_url).at_index("formatters", 0));
            }
        }
        #[expect(deprecated, reason = "text_format is what everybody sends")]
        let format = match format {
            Some(ProtoFormat::TextFormat(text)) => LogFormat::Text {
                format: Format::parse(&text).at("text_format")?,
                omit_empty,
            },
            Some(ProtoFormat::TextFormatSource(source)) => {
                let bytes = read_source(source).at("text_format_source")?;
                let text = std::str::from_utf8(&bytes)
                    .map_err(|_| ConfigError::invalid("not UTF-8"))
                    .at("text_format_source")?;
                LogFormat::Text {
                    format: Format::parse(text).at("text_format_source")?,
                    omit_empty,
                }
            }
            Some(ProtoFormat::JsonFormat(fields)) => LogFormat::Json {
                object: JsonFormat::parse(fields).at("json_format")?,
                omit_empty,
            },
            None => return Err(ConfigError::missing("format")),
        };
        Ok(Self {
            format,
            content_type: (!content_type.is_empty()).then(|| content_type.into()),
        })
    }
}

/// What a `DataSource` holds.
fn read_source(source: core::DataSource) -> Result<Bytes, ConfigError> {
    let core::DataSource {
        // Read once: a change of the file is not followed.
        watched_directory: _,
        specifier,
    } = source;
    match specifier {
        Some(Specifier::InlineString(text)) => Ok(text.into()),
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.into()),
        Some(Specifier::Filename(path)) => std::fs::read(&path)
            .map(Bytes::from)
            .map_err(|_| ConfigError::invalid(format!("Invalid path: {path}"))),
        Some(Specifier::EnvironmentVariable(name)) => {
            std::env::var(&name).map(Bytes::from).map_err(|_| {
                ConfigError::invalid(format!("Environment variable doesn't exist: {name}"))
            })
        }
        None => Err(ConfigError::missing("specifier")),
    }
}

impl AccessLogFilter {
    /// Validates an `AccessLogFilter`.
    ///
    /// # Errors
    /// No filter, or one that is not supported (metadata, extensions): logging what was not asked for is no option.
    pub fn parse(proto: accesslog::AccessLogFilter) -> Result<Self, ConfigError> {
        Self::parse_nested(proto, 0)
    }

    fn parse_nested(proto: accesslog::AccessLogFilter, depth: usize) -> Result<Self, ConfigError> {
        if depth > MAX_FILTER_DEPTH {
            return Err(ConfigError::invalid("filters are nested too deep"));
        }
        let Some(specifier) = proto.filter_specifier else {
            return Err(ConfigError::missing("filter_specifier"));
        };
        let all = |filters: Vec<accesslog::AccessLogFilter>| {
            if filters.len() < 2 {
                return Err(
                    ConfigError::invalid("value must contain at least 2 item(s)").at("filters"),
                );
            }
            filters
                .into_iter()
                .enumerate()
                .map(|(index, filter)| {
                    Self::parse_nested(filter, depth + 1).at_index("filters", index)
                })
                .collect::<Result<Vec<_>, _>>()
        };
        match specifier {
            FilterSpecifier::StatusCodeFilter(filter) => {
                let (op, value) = comparison(filter.comparison).at("status_code_filter")?;
                Ok(Self::Status(op, value))
            }
            FilterSpecifier::DurationFilter(filter) => {
                let (op, value) = comparison(filter.comparison).at("duration_filter")?;
                Ok(Self::Duration(op, value))
            }
            FilterSpecifier::NotHealthCheckFilter(_) => Ok(Self::NotHealthCheck),
            FilterSpecifier::TraceableFilter(_) => Ok(Self::Traceable),
            FilterSpecifier::RuntimeFilter(filter) => {
                let accesslog::RuntimeFilter {
                    // There is no runtime layer: the default holds.
                    runtime_key: _,
                    percent_sampled,
                    use_independent_randomness,
                } = filter;
                let percent = percent_sampled.unwrap_or_default();
                let denominator = match percent.denominator() {
                    DenominatorType::Hundred => 100,
                    DenominatorType::TenThousand => 10_000,
                    DenominatorType::Million => 1_000_000,
                };
                Ok(Self::Fraction {
                    numerator: percent.numerator,
                    denominator,
                    independent: use_independent_randomness,
                })
            }
            FilterSpecifier::AndFilter(filter) => {
                all(filter.filters).at("and_filter").map(Self::And)
            }
            FilterSpecifier::OrFilter(filter) => all(filter.filters).at("or_filter").map(Self::Or),
            FilterSpecifier::HeaderFilter(filter) => {
                let header = filter
                    .header
                    .ok_or_else(|| ConfigError::missing("header").at("header_filter"))?;
                HeaderMatcher::parse(header)
                    .at("header")
                    .at("header_filter")
                    .map(Self::Header)
            }
            FilterSpecifier::ResponseFlagFilter(filter) => {
                for (index, flag) in filter.flags.iter().enumerate() {
                    if !super::RESPONSE_FLAGS.contains(&flag.as_str()) {
                        return Err(ConfigError::invalid(format!(
                            "value must be in list [{}]",
                            super::RESPONSE_FLAGS.join(" ")
                        ))
                        .at_index("flags", index)
                        .at("response_flag_filter"));
                    }
                }
                Ok(Self::ResponseFlags(
                    filter.flags.into_iter().map(Into::into).collect(),
                ))
            }
            FilterSpecifier::GrpcStatusFilter(filter) => {
                let statuses = filter
                    .statuses
                    .into_iter()
                    .map(|status| {
                        u32::try_from(status)
                            .ok()
                            .filter(|status| *status <= 16)
                            .ok_or_else(|| {
                                ConfigError::invalid("value must be one of the defined enum values")
                                    .at("statuses")
                                    .at("grpc_status_filter")
                            })
                    })
                    .collect::<Result<_, _>>()?;
                Ok(Self::GrpcStatus(statuses, filter.exclude))
            }
            FilterSpecifier::LogTypeFilter(filter) => {
                let types = filter
                    .types
                    .into_iter()
                    .filter_map(|value| AccessLogType::try_from(value).ok())
                    .map(|kind| kind.as_str_name().into())
                    .collect();
                Ok(Self::LogType(types, filter.exclude))
            }
            FilterSpecifier::MetadataFilter(_) => {
                Err(ConfigError::unsupported("metadata_filter", ""))
            }
            FilterSpecifier::ExtensionFilter(filter) => Err(ConfigError::unsupported(
                "extension_filter",
                format!("no access log filter '{}'", filter.name),
            )),
        }
    }
}

fn comparison(
    proto: Option<accesslog::ComparisonFilter>,
) -> Result<(Comparison, u32), ConfigError> {
    use accesslog::comparison_filter::Op;
    let proto = proto.ok_or_else(|| ConfigError::missing("comparison"))?;
    let op = match Op::try_from(proto.op) {
        Ok(Op::Eq) => Comparison::Eq,
        Ok(Op::Ge) => Comparison::Ge,
        Ok(Op::Le) => Comparison::Le,
        Ok(Op::Ne) => Comparison::Ne,
        Err(_) => {
            return Err(
                ConfigError::invalid("value must be one of the defined enum values")
                    .at("op")
                    .at("comparison"),
            );
        }
    };
    let value = proto
        .value
        .ok_or_else(|| ConfigError::missing("value").at("comparison"))?;
    // `runtime_key` is not looked up: there is no runtime layer.
    Ok((op, value.default_value))
}

impl LocalReplyConfig {
    /// Validates `local_reply_config`.
    ///
    /// # Errors
    /// A bad filter, format or header.
    pub fn parse(
        proto: hcm::LocalReplyConfig,
        context: &ParseContext<'_>,
    ) -> Result<Self, ConfigError> {
        let _ = context;
        let hcm::LocalReplyConfig {
            mappers,
            body_format,
        } = proto;
        Ok(Self {
            mappers: mappers
                .into_iter()
                .enumerate()
                .map(|(index, mapper)| LocalReplyMapper::parse(mapper).at_index("mappers", index))
                .collect::<Result<_, _>>()?,
            body_format: body_format
                .map(BodyFormat::parse)
                .transpose()
                .at("body_format")?,
        })
    }
}

impl LocalReplyMapper {
    fn parse(proto: hcm::ResponseMapper) -> Result<Self, ConfigError> {
        let hcm::ResponseMapper {
            filter,
            status_code,
            body,
            body_format_override,
            headers_to_add,
        } = proto;
        let filter = filter.ok_or_else(|| ConfigError::missing("filter"))?;
        let status = match status_code {
            None => None,
            Some(code) => Some(
                u16::try_from(code.value)
                    .ok()
                    .filter(|code| (200..600).contains(code))
                    .and_then(|code| StatusCode::from_u16(code).ok())
                    .ok_or_else(|| {
                        ConfigError::invalid("value must be inside range [200, 600)")
                            .at("status_code")
                    })?,
            ),
        };
        Ok(Self {
            filter: AccessLogFilter::parse(filter).at("filter")?,
            status,
            body: body.map(read_source).transpose().at("body")?,
            headers: HeaderMutations::parse(headers_to_add, Vec::new(), "headers")?,
            body_format: body_format_override
                .map(BodyFormat::parse)
                .transpose()
                .at("body_format_override")?,
        })
    }
}
