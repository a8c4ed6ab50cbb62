//! Filters that control planes put in every chain with nothing to do, so that routes may give them something: RBAC without
//! rules, Lua without a script, a local rate limit without a bucket. As such they let everything pass, as in Envoy;
//! whatever would give them something to do, in the chain or by route, is refused.

use std::sync::Arc;

use super::HttpFilter;
use super::factory::{BuildContext, FilterFactory, PerRoute};
use super::no_op::NoOp;
use crate::config::ConfigError;
use crate::config::error::At as _;
use crate::config::field::{non_empty, refuse};
use crate::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use crate::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit as LimitProto;
use crate::pb::envoy::extensions::filters::http::lua::v3::{
    Lua as LuaProto, LuaPerRoute, lua_per_route::Override,
};
use crate::pb::envoy::extensions::filters::http::rbac::v3::{Rbac as RbacProto, RbacPerRoute};

const EMPTY_ALONE: &str = "this build has the filter without anything to do alone";

fn nothing(fields: &[(bool, &str)]) -> Result<(), ConfigError> {
    fields
        .iter()
        .try_for_each(|(set, field)| refuse(*set, field, EMPTY_ALONE))
}

/// `envoy.filters.http.rbac`, without rules.
#[derive(Debug)]
pub struct Rbac;

impl FilterFactory for Rbac {
    const NAME: &'static str = "envoy.filters.http.rbac";
    type Proto = RbacProto;
    type Config = ();

    fn parse(proto: RbacProto, _: &str) -> Result<(), ConfigError> {
        let RbacProto {
            rules,
            rules_stat_prefix: _,
            matcher,
            shadow_rules,
            shadow_matcher,
            shadow_rules_stat_prefix: _,
            track_per_rule_stats: _,
        } = proto;
        nothing(&[
            (rules.is_some(), "rules"),
            (matcher.is_some(), "matcher"),
            (shadow_rules.is_some(), "shadow_rules"),
            (shadow_matcher.is_some(), "shadow_matcher"),
        ])
    }

    fn build(_: &Arc<()>, _: &BuildContext<'_>) -> Arc<dyn HttpFilter> {
        Arc::new(NoOp)
    }
}

impl PerRoute for Rbac {
    type RouteProto = RbacPerRoute;
    type RouteConfig = ();

    fn parse_route(proto: RbacPerRoute, name: &str) -> Result<(), ConfigError> {
        let RbacPerRoute { rbac } = proto;
        Self::parse(rbac.unwrap_or_default(), name).at("rbac")
    }
}

/// `envoy.filters.http.lua`, without a script.
#[derive(Debug)]
pub struct Lua;

impl FilterFactory for Lua {
    const NAME: &'static str = "envoy.filters.http.lua";
    type Proto = LuaProto;
    type Config = ();

    #[allow(deprecated, reason = "every field is named, the deprecated ones, too")]
    fn parse(proto: LuaProto, _: &str) -> Result<(), ConfigError> {
        let LuaProto {
            inline_code,
            source_codes,
            default_source_code,
            stat_prefix: _,
            clear_route_cache: _,
            filter_context: _,
            package_paths: _,
            package_cpaths: _,
        } = proto;
        nothing(&[
            (!says_nothing(&inline_code), "inline_code"),
            (!source_codes.is_empty(), "source_codes"),
            (
                default_source_code
                    .as_ref()
                    .is_some_and(|source| !is_placeholder(source)),
                "default_source_code",
            ),
        ])
    }

    fn build(_: &Arc<()>, _: &BuildContext<'_>) -> Arc<dyn HttpFilter> {
        Arc::new(NoOp)
    }
}

impl PerRoute for Lua {
    type RouteProto = LuaPerRoute;
    type RouteConfig = ();

    fn parse_route(proto: LuaPerRoute, _: &str) -> Result<(), ConfigError> {
        let LuaPerRoute {
            filter_context: _,
            package_paths: _,
            package_cpaths: _,
            r#override,
        } = proto;
        match r#override {
            None => Ok(()),
            Some(Override::Disabled(true)) => Ok(()),
            Some(Override::Disabled(false)) => {
                Err(ConfigError::invalid("value must equal true").at("disabled"))
            }
            Some(Override::Name(_)) => nothing(&[(true, "name")]),
            Some(Override::SourceCode(source)) => {
                nothing(&[(!is_placeholder(&source), "source_code")])
            }
        }
    }
}

/// A script of comments: Contour's "placeholder".
fn is_placeholder(source: &DataSource) -> bool {
    let DataSource {
        watched_directory: _,
        specifier,
    } = source;
    matches!(specifier, Some(Specifier::InlineString(script)) if says_nothing(script))
}

/// True where every line is blank or a comment of one line.
fn says_nothing(script: &str) -> bool {
    script.lines().map(str::trim).all(|line| {
        line.is_empty()
            || line
                .strip_prefix("--")
                .is_some_and(|text| !text.starts_with('['))
    })
}

/// `envoy.filters.http.local_ratelimit`, without a bucket.
#[derive(Debug)]
pub struct LocalRateLimit;

impl FilterFactory for LocalRateLimit {
    const NAME: &'static str = "envoy.filters.http.local_ratelimit";
    type Proto = LimitProto;
    type Config = ();

    fn parse(proto: LimitProto, _: &str) -> Result<(), ConfigError> {
        let LimitProto {
            stat_prefix,
            status,
            token_bucket,
            filter_enabled,
            filter_enforced,
            request_headers_to_add_when_not_enforced,
            response_headers_to_add,
            descriptors,
            stage,
            local_rate_limit_per_downstream_connection,
            local_cluster_rate_limit,
            enable_x_ratelimit_headers,
            vh_rate_limits,
            always_consume_default_token_bucket,
            rate_limited_as_resource_exhausted,
            rate_limits,
            max_dynamic_descriptors,
            enable_retry_after_header,
        } = proto;
        non_empty(stat_prefix, "stat_prefix")?;
        nothing(&[
            (status.is_some(), "status"),
            (token_bucket.is_some(), "token_bucket"),
            (filter_enabled.is_some(), "filter_enabled"),
            (filter_enforced.is_some(), "filter_enforced"),
            (
                !request_headers_to_add_when_not_enforced.is_empty(),
                "request_headers_to_add_when_not_enforced",
            ),
            (
                !response_headers_to_add.is_empty(),
                "response_headers_to_add",
            ),
            (!descriptors.is_empty(), "descriptors"),
            (stage != 0, "stage"),
            (
                local_rate_limit_per_downstream_connection,
                "local_rate_limit_per_downstream_connection",
            ),
            (
                local_cluster_rate_limit.is_some(),
                "local_cluster_rate_limit",
            ),
            (
                enable_x_ratelimit_headers != 0,
                "enable_x_ratelimit_headers",
            ),
            (vh_rate_limits != 0, "vh_rate_limits"),
            (
                always_consume_default_token_bucket.is_some(),
                "always_consume_default_token_bucket",
            ),
            (
                rate_limited_as_resource_exhausted,
                "rate_limited_as_resource_exhausted",
            ),
            (!rate_limits.is_empty(), "rate_limits"),
            (max_dynamic_descriptors.is_some(), "max_dynamic_descriptors"),
            (enable_retry_after_header, "enable_retry_after_header"),
        ])
    }

    fn build(_: &Arc<()>, _: &BuildContext<'_>) -> Arc<dyn HttpFilter> {
        Arc::new(NoOp)
    }
}

impl PerRoute for LocalRateLimit {
    type RouteProto = LimitProto;
    type RouteConfig = ();

    fn parse_route(proto: LimitProto, name: &str) -> Result<(), ConfigError> {
        Self::parse(proto, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::config::rbac::v3::Rbac as Rules;
    use crate::pb::envoy::r#type::v3::TokenBucket;

    fn script(text: &str) -> DataSource {
        DataSource {
            watched_directory: None,
            specifier: Some(Specifier::InlineString(text.to_owned())),
        }
    }

    fn refused(result: Result<(), ConfigError>) -> String {
        result.expect_err("refused").to_string()
    }

    #[test]
    fn rbac_has_no_rules() {
        assert_eq!(Rbac::parse(RbacProto::default(), "r"), Ok(()));
        assert_eq!(Rbac::parse_route(RbacPerRoute::default(), "r"), Ok(()));
        let proto = RbacProto {
            rules: Some(Rules::default()),
            ..RbacProto::default()
        };
        let error = format!("rules: not supported: {EMPTY_ALONE}");
        assert_eq!(refused(Rbac::parse(proto.clone(), "r")), error);
        let route = RbacPerRoute { rbac: Some(proto) };
        assert_eq!(
            refused(Rbac::parse_route(route, "r")),
            format!("rbac.{error}")
        );
    }

    #[test]
    fn lua_has_no_script_but_comments() {
        let lua = |text: &str| {
            let proto = LuaProto {
                default_source_code: Some(script(text)),
                ..LuaProto::default()
            };
            Lua::parse(proto, "l")
        };
        assert_eq!(Lua::parse(LuaProto::default(), "l"), Ok(()));
        assert_eq!(
            lua("-- Placeholder for per-Route or per-Cluster config."),
            Ok(())
        );
        for text in ["return", "--[[ a ]] x()", "-- a\nx()"] {
            assert_eq!(
                refused(lua(text)),
                format!("default_source_code: not supported: {EMPTY_ALONE}"),
                "{text}"
            );
        }
        let route = |said: Option<Override>| {
            let proto = LuaPerRoute {
                r#override: said,
                ..LuaPerRoute::default()
            };
            Lua::parse_route(proto, "l")
        };
        assert_eq!(route(None), Ok(()));
        assert_eq!(route(Some(Override::Disabled(true))), Ok(()));
        for (said, field) in [
            (Override::Name("a".to_owned()), "name"),
            (Override::SourceCode(script("x()")), "source_code"),
        ] {
            let error = format!("{field}: not supported: {EMPTY_ALONE}");
            assert_eq!(refused(route(Some(said))), error);
        }
    }

    #[test]
    fn a_local_rate_limit_has_no_bucket() {
        let named = LimitProto {
            stat_prefix: "http".to_owned(),
            ..LimitProto::default()
        };
        assert_eq!(LocalRateLimit::parse(named.clone(), "l"), Ok(()));
        assert_eq!(
            refused(LocalRateLimit::parse(LimitProto::default(), "l")),
            "stat_prefix: value length must be at least 1 characters"
        );
        let proto = LimitProto {
            token_bucket: Some(TokenBucket::default()),
            ..named
        };
        assert_eq!(
            refused(LocalRateLimit::parse_route(proto, "l")),
            format!("token_bucket: not supported: {EMPTY_ALONE}")
        );
    }
}
