//! `http_filters`: inline and discovered, optional, disabled; the terminal one at the end.

use super::{FilterSource, HttpFilter};
use crate::config::any::{is_no_op, resolve, type_name, unsupported_extension};
use crate::config::cluster::ConfigSource;
use crate::config::error::At;
use crate::config::extension::check_type;
use crate::config::extension::parse::http_filter;
use crate::config::field::{non_empty, non_empty_list, required};
use crate::config::{ConfigError, ParseContext};
use crate::pb;
use crate::pb::envoy::config::core::v3::ExtensionConfigSource;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;

/// Validates the chain. Optional filters of unknown types are left out.
pub(super) fn parse(
    protos: Vec<proto::HttpFilter>,
    context: &ParseContext<'_>,
) -> Result<Vec<HttpFilter>, ConfigError> {
    let last = protos.len().checked_sub(1).ok_or_else(|| {
        ConfigError::invalid("value must contain at least 1 item(s)").at("http_filters")
    })?;
    let mut filters = Vec::with_capacity(protos.len());
    for (index, proto) in protos.into_iter().enumerate() {
        let filter = one(proto, index == last, context).at_index("http_filters", index)?;
        filters.extend(filter);
    }
    Ok(filters)
}

fn one(
    proto: proto::HttpFilter,
    last: bool,
    context: &ParseContext<'_>,
) -> Result<Option<HttpFilter>, ConfigError> {
    let proto::HttpFilter {
        name,
        is_optional,
        disabled,
        config_type,
    } = proto;
    let name = non_empty(name, "name")?;
    let config = match config_type {
        Some(ConfigType::ConfigDiscovery(discovery)) => {
            if last {
                return Err(ConfigError::unsupported(
                    "config_discovery",
                    "the last filter must be the router, given inline",
                ));
            }
            discovered(&name, discovery, context).at("config_discovery")?
        }
        Some(ConfigType::TypedConfig(any)) => {
            let any = resolve(&any).at("typed_config")?;
            match http_filter(&name, &any, context).at("typed_config")? {
                Some(config) => {
                    let kind = type_name(&any);
                    match (context.extensions.is_terminal(&config), last) {
                        (true, false) => {
                            return Err(ConfigError::invalid(format!(
                                "Error: terminal filter named {name} of type {kind} must be the last filter in a http filter chain."
                            )));
                        }
                        (false, true) => {
                            return Err(ConfigError::invalid(format!(
                                "Error: non-terminal filter named {name} of type {kind} is the last filter in a http filter chain."
                            )));
                        }
                        (true, true) if disabled => {
                            return Err(ConfigError::invalid(format!(
                                "Error: the last (terminal) filter ({name}) in the chain cannot be disabled by default."
                            )));
                        }
                        (true, true) | (false, false) => FilterSource::Inline(config),
                    }
                }
                None if !last && is_no_op(&name, &any) => return Ok(None),
                None if is_optional && !last => {
                    tracing::info!(
                        name,
                        kind = type_name(&any),
                        "optional filter is not known and left out"
                    );
                    return Ok(None);
                }
                None => return Err(unsupported_extension(&name, &any.type_url)),
            }
        }
        None if is_optional && !last => return Ok(None),
        None => return Err(unsupported_extension(&name, "")),
    };
    Ok(Some(HttpFilter {
        name: name.into(),
        config,
        disabled,
    }))
}

fn discovered(
    name: &str,
    proto: ExtensionConfigSource,
    context: &ParseContext<'_>,
) -> Result<FilterSource, ConfigError> {
    let ExtensionConfigSource {
        config_source,
        default_config,
        apply_default_config_without_warming,
        type_urls,
    } = proto;
    let source =
        ConfigSource::parse(required(config_source, "config_source")?).at("config_source")?;
    let type_urls = non_empty_list(type_urls, "type_urls")?;
    let mut known = Vec::with_capacity(type_urls.len());
    for (index, type_url) in type_urls.iter().enumerate() {
        if is_known(name, type_url, context) {
            known.push(pb::type_name(type_url));
            continue;
        }
        // Istio allows its ECDS filters to be replaced by an RBAC filter. A resource of a type that is not
        // implemented will be refused when it comes; a type that does not exist is refused now.
        if !pb::is_message(type_url) {
            return Err(ConfigError::invalid(format!(
                "Error: no factory found for a required type URL {}.",
                pb::type_name(type_url)
            ))
            .at_index("type_urls", index));
        }
    }
    if known.is_empty() {
        return Err(ConfigError::unsupported(
            "type_urls",
            "none of them is implemented by this build yet",
        ));
    }
    let default = default_config
        .map(|any| {
            let any = resolve(&any)?;
            check_type(&type_urls, &any.type_url)?;
            http_filter(name, &any, context)?
                .ok_or_else(|| unsupported_extension(name, &any.type_url))
        })
        .transpose()
        .at("default_config")?;
    if apply_default_config_without_warming && default.is_none() {
        return Err(ConfigError::invalid(format!(
            "Error: filter config {name} applied without warming but has no default config."
        )));
    }
    Ok(FilterSource::Discovered {
        source,
        type_urls: type_urls.into_iter().map(String::into_boxed_str).collect(),
        default,
        apply_default_without_warming: apply_default_config_without_warming,
    })
}

/// True where a factory knows the type: an empty message is then either valid or refused by it.
fn is_known(name: &str, type_url: &str, context: &ParseContext<'_>) -> bool {
    let empty = pb::Any {
        type_url: type_url.to_owned(),
        value: Vec::new(),
    };
    !matches!(context.extensions.http_filter(name, &empty), Ok(None))
}
