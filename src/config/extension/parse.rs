//! `TypedExtensionConfig` (ECDS) and `typed_per_filter_config` to the model.

use std::collections::HashMap;

use super::{HttpFilterConfig, PerRouteConfig};
use crate::config::any::{holds, is_no_op, resolve, unpack, unsupported_extension};
use crate::config::error::At;
use crate::config::field::{non_empty, required};
use crate::config::route::PerFilter;
use crate::config::{ConfigError, ParseContext};
use crate::pb;
use crate::pb::envoy::config::core::v3::TypedExtensionConfig;
use crate::pb::envoy::config::route::v3::FilterConfig;

/// Validates an ECDS resource: its name, and the filter's configuration.
///
/// # Errors
/// A type that no factory knows, or a configuration that its factory refuses.
pub fn parse_typed_extension(
    proto: TypedExtensionConfig,
    context: &ParseContext<'_>,
) -> Result<(Box<str>, HttpFilterConfig), ConfigError> {
    let TypedExtensionConfig { name, typed_config } = proto;
    let name = non_empty(name, "name")?;
    let any = required(typed_config, "typed_config")?;
    let config = http_filter(&name, &any, context)
        .at("typed_config")?
        .ok_or_else(|| unsupported_extension(&name, &any.type_url))?;
    Ok((name.into(), config))
}

/// Validates the configuration of an HTTP filter; `None` where nothing in this build knows its type.
pub(in crate::config) fn http_filter(
    name: &str,
    any: &pb::Any,
    context: &ParseContext<'_>,
) -> Result<Option<HttpFilterConfig>, ConfigError> {
    context.extensions.http_filter(name, &*resolve(any)?)
}

/// Validates `typed_per_filter_config` of a route, virtual host, weighted cluster or route table.
pub(in crate::config) fn per_filter(
    configs: HashMap<String, pb::Any>,
    context: &ParseContext<'_>,
) -> Result<PerFilter, ConfigError> {
    let mut parsed = PerFilter::new();
    for (name, any) in configs {
        let config =
            per_route(&name, &any, context).at(&format!("typed_per_filter_config[{name}]"))?;
        if let Some(config) = config {
            parsed.insert(name.into(), config);
        }
    }
    Ok(parsed)
}

/// One entry; `None` where it is to be skipped.
fn per_route(
    name: &str,
    any: &pb::Any,
    context: &ParseContext<'_>,
) -> Result<Option<PerRouteConfig>, ConfigError> {
    if !holds::<FilterConfig>(any) {
        return filter_config(name, any, false, context);
    }
    let FilterConfig {
        config,
        is_optional,
        disabled,
    } = unpack(any)?;
    if disabled {
        // What it would be configured to do does not matter: Envoy does not look either.
        return Ok(Some(PerRouteConfig {
            disabled: Some(true),
            config: None,
        }));
    }
    let config = config.ok_or_else(|| {
        ConfigError::invalid(format!(
            "Empty route/virtual host per filter configuration for {name} filter"
        ))
    })?;
    if config.type_url.is_empty() {
        // `config: {}` switches on a filter that the chain holds disabled.
        return Ok(Some(PerRouteConfig {
            disabled: Some(false),
            config: None,
        }));
    }
    filter_config(name, &config, is_optional, context).at("config")
}

fn filter_config(
    name: &str,
    any: &pb::Any,
    optional: bool,
    context: &ParseContext<'_>,
) -> Result<Option<PerRouteConfig>, ConfigError> {
    let any = resolve(any)?;
    match context.extensions.per_route(name, &any)? {
        Some(config) => Ok(Some(PerRouteConfig {
            disabled: Some(false),
            config: Some(config),
        })),
        None if optional || is_no_op(name, &any) => Ok(None),
        None => Err(unsupported_extension(name, &any.type_url)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::stub::{self, BROKEN, CORS};

    fn parse(yaml: &str) -> Result<(Box<str>, HttpFilterConfig), String> {
        let proto = pb::from_yaml::<TypedExtensionConfig>(yaml).expect("a TypedExtensionConfig");
        parse_typed_extension(proto, &stub::context()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_resource_is_a_name_and_a_filters_configuration() {
        let of = |kind: &str| {
            parse(&format!(
                "{{name: n, typed_config: {{'@type': type.googleapis.com/{kind}}}}}"
            ))
        };
        let (name, config) = of(CORS).expect("valid");
        assert_eq!(&*name, "n");
        assert_eq!(pb::type_name(&config.type_url), CORS);
        // A TypedStruct is the message that it stands for, also to those who compare types.
        let (_, resolved) = of(&format!(
            "xds.type.v3.TypedStruct, type_url: type.googleapis.com/{CORS}, value: {{}}"
        ))
        .expect("valid");
        assert_eq!(resolved, config);
        for (kind, error) in [
            (BROKEN, "typed_config.max_request_bytes: value is required"),
            (
                "google.protobuf.Empty",
                "Didn't find a registered implementation for 'n' with type URL: 'google.protobuf.Empty'",
            ),
            (
                "envoy.extensions.filters.http.rbac.v3.RBAC",
                "not supported: 'n' (envoy.extensions.filters.http.rbac.v3.RBAC) is not implemented by this build yet",
            ),
        ] {
            assert_eq!(of(kind), Err(error.to_owned()));
        }
        assert_eq!(
            parse("{}"),
            Err("name: value length must be at least 1 characters".to_owned())
        );
        assert_eq!(
            parse("{name: n}"),
            Err("typed_config: value is required".to_owned())
        );
    }
}
