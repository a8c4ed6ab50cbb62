//! HTTP filters of an upstream: `http_filters` of a cluster's `HttpProtocolOptions`, and a router's `upstream_http_filters`.
//!
//! The codec closes such a list, and stands for our own: what is left are the filters before it. The texts are Envoy's.

use super::{FilterSource, HttpFilter};
use crate::config::ConfigError;
use crate::config::any::{holds, resolve, type_name, unknown_extension, unpack};
use crate::config::error::At;
use crate::config::extension::Extensions;
use crate::config::field::non_empty;
use crate::pb;
use crate::pb::envoy::extensions::filters::http::upstream_codec::v3::UpstreamCodec;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;

/// The upstream filters of Envoy 1.40, of which this build has some: the others are no typing errors.
const OF_ENVOY: &[&str] = &[
    "envoy.extensions.common.matching.v3.ExtensionWithMatcher",
    "envoy.extensions.filters.http.admission_control.v3.AdmissionControl",
    "envoy.extensions.filters.http.ai_protocol_manager.v3.AiProtocolManager",
    "envoy.extensions.filters.http.aws_lambda.v3.Config",
    "envoy.extensions.filters.http.aws_request_signing.v3.AwsRequestSigning",
    "envoy.extensions.filters.http.body_size_limit.v3.BodySizeLimit",
    "envoy.extensions.filters.http.buffer.v3.Buffer",
    "envoy.extensions.filters.http.composite.v3.Composite",
    "envoy.extensions.filters.http.compressor.v3.Compressor",
    "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector",
    "envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter",
    "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
    "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
    "envoy.extensions.filters.http.lua.v3.Lua",
    "envoy.extensions.filters.http.rbac.v3.RBAC",
    "envoy.extensions.filters.http.wasm.v3.Wasm",
];

/// Where a list stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Cluster,
    Router,
}

impl Owner {
    /// Envoy's word for such a chain.
    fn chain(self) -> &'static str {
        match self {
            Self::Cluster => "upstream http",
            Self::Router => "router upstream http",
        }
    }
}

/// Validates `http_filters` of a cluster. `None`: it has no list, and that of the router holds.
pub(in crate::config) fn of_cluster(
    protos: Vec<proto::HttpFilter>,
    extensions: &dyn Extensions,
) -> Result<Option<Vec<HttpFilter>>, ConfigError> {
    let Some(last) = protos.last() else {
        return Ok(None);
    };
    let is_codec = match &last.config_type {
        Some(ConfigType::TypedConfig(any)) => holds::<UpstreamCodec>(&*resolve(any)?),
        Some(ConfigType::ConfigDiscovery(_)) | None => false,
    };
    if !is_codec {
        return Err(ConfigError::invalid(
            "The codec filter is the only valid terminal upstream HTTP filter, use \
             'envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec'",
        )
        .at("http_filters"));
    }
    all(protos, Owner::Cluster, "http_filters", extensions).map(Some)
}

/// Validates `upstream_http_filters` of a router.
///
/// # Errors
/// A filter that is not known or not valid; the codec is not the last, and only the last.
pub fn of_router(
    protos: Vec<proto::HttpFilter>,
    extensions: &dyn Extensions,
) -> Result<Vec<HttpFilter>, ConfigError> {
    all(protos, Owner::Router, "upstream_http_filters", extensions)
}

fn all(
    protos: Vec<proto::HttpFilter>,
    owner: Owner,
    field: &str,
    extensions: &dyn Extensions,
) -> Result<Vec<HttpFilter>, ConfigError> {
    let count = protos.len();
    let mut filters = Vec::with_capacity(count.saturating_sub(1));
    for (index, proto) in protos.into_iter().enumerate() {
        let filter = one(proto, index + 1 == count, owner, extensions).at_index(field, index)?;
        filters.extend(filter);
    }
    Ok(filters)
}

/// `None`: the codec, or an optional filter of an unknown type.
fn one(
    proto: proto::HttpFilter,
    last: bool,
    owner: Owner,
    extensions: &dyn Extensions,
) -> Result<Option<HttpFilter>, ConfigError> {
    let proto::HttpFilter {
        name,
        is_optional,
        disabled,
        config_type,
    } = proto;
    let name = non_empty(name, "name")?;
    if last && disabled {
        return Err(ConfigError::invalid(format!(
            "Error: the last (terminal) filter ({name}) in the chain cannot be disabled by default."
        )));
    }
    let any = match config_type {
        Some(ConfigType::TypedConfig(any)) => resolve(&any).at("typed_config")?.into_owned(),
        Some(ConfigType::ConfigDiscovery(_)) => {
            return Err(ConfigError::unsupported(
                "config_discovery",
                "filters of an upstream must be given inline",
            ));
        }
        None if is_optional && !last => return Ok(None),
        None => return Err(unknown_extension(&name, "")),
    };
    if holds::<UpstreamCodec>(&any) {
        let UpstreamCodec {} = unpack(&any).at("typed_config")?;
        if last {
            return Ok(None);
        }
        return Err(ConfigError::invalid(format!(
            "Error: terminal filter named {name} of type envoy.filters.http.upstream_codec must be the last filter in a {} filter chain.",
            owner.chain()
        )));
    }
    match extensions.upstream_filter(&name, &any).at("typed_config")? {
        Some(_) if last => Err(ConfigError::invalid(format!(
            "Error: non-terminal filter named {name} of type {} is the last filter in a {} filter chain. When \
             upstream_http_filters are specified, they must explicitly end with an UpstreamCodec filter.",
            factory_name(type_name(&any)),
            owner.chain()
        ))),
        Some(config) => Ok(Some(HttpFilter {
            name: name.into(),
            config: FilterSource::Inline(config),
            disabled,
        })),
        None if is_optional && !last => {
            tracing::info!(
                name,
                kind = type_name(&any),
                "optional upstream filter is not known and left out"
            );
            Ok(None)
        }
        None => Err(unknown(&name, &any)),
    }
}

/// Envoy's name of a filter whose message has the full name `kind`.
fn factory_name(kind: &str) -> String {
    let parts = kind.strip_prefix("envoy.extensions.filters.http.");
    match parts.and_then(|rest| rest.split_once('.')) {
        Some((filter, _)) => format!("envoy.filters.http.{filter}"),
        None => kind.to_owned(),
    }
}

fn unknown(name: &str, any: &pb::Any) -> ConfigError {
    let kind = type_name(any);
    if OF_ENVOY.contains(&kind) {
        let reason =
            format!("upstream HTTP filter '{name}' ({kind}) is not implemented by this build yet");
        return ConfigError::unsupported("", reason);
    }
    unknown_extension(name, &any.type_url)
}

#[cfg(test)]
mod tests;
