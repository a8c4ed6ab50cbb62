//! `/stats` and `/stats/prometheus`.

use regex::Regex;

use super::request::{Kind, Request, Response, regex};
use super::{Context, wasm_metrics};
use crate::bootstrap::{StatsConfig, StatsMatcher, StatsTag};
use crate::config::ConfigError;
use crate::route::matcher::string_matches;
use crate::telemetry::prometheus::{self as encoder, Options};
use crate::telemetry::samples::{KindFilter, Query, Samples};
use crate::telemetry::tags::TagExtractor;
use crate::telemetry::text::{self, Buckets};

/// The rules of the bootstrap and of `--stats-tag`.
///
/// # Errors
/// A regular expression that does not compile.
pub fn tags(
    config: &StatsConfig,
    cli_tags: &[(String, String)],
) -> Result<TagExtractor, ConfigError> {
    let mut fixed = cli_tags.to_vec();
    let mut rules = Vec::new();
    for tag in &config.tags {
        match tag {
            StatsTag::Fixed { name, value } => fixed.push((name.clone(), value.clone())),
            StatsTag::Extracted {
                name,
                regex: Some(regex),
            } => rules.push((name.clone(), regex.clone())),
            // A rule of Envoy's by its name: all of these are on, or none.
            StatsTag::Extracted { regex: None, .. } => {}
        }
    }
    TagExtractor::new(config.use_default_tags, fixed, rules).map_err(|error| {
        ConfigError::invalid(error.to_string())
            .at("stats_tags")
            .at("stats_config")
    })
}

/// True where `matcher` leaves the statistic `name` out.
pub fn hidden(matcher: &StatsMatcher, name: &str) -> bool {
    let any = |matchers: &[crate::config::matcher::StringMatcher]| {
        matchers
            .iter()
            .any(|matcher| string_matches(matcher, name.as_bytes()))
    };
    match matcher {
        StatsMatcher::All => false,
        StatsMatcher::None => true,
        StatsMatcher::Except(matchers) => any(matchers),
        StatsMatcher::Only(matchers) => !any(matchers),
    }
}

struct Wanted {
    query: Query,
    /// `invert_filter`: what this matches is left out.
    except: Option<Regex>,
    buckets: Option<Buckets>,
    /// `hidden=only`: none are hidden here.
    nothing: bool,
}

impl Wanted {
    /// Prometheus knows no such buckets.
    fn suits_prometheus(&self) -> bool {
        !matches!(self.buckets, Some(Buckets::Detailed | Buckets::Disjoint))
    }
}

fn wanted(request: &Request) -> Result<Wanted, Response> {
    let filter = request
        .text("filter")
        .map(|pattern| regex(pattern, "Invalid re2 regex"))
        .transpose()?;
    let (filter, except) = if request.flag("invert_filter") {
        (None, filter)
    } else {
        (filter, None)
    };
    let kind = match request.param("type") {
        None | Some("") => KindFilter::All,
        Some(name) => {
            KindFilter::parse(name).ok_or_else(|| Response::bad("invalid &type= param"))?
        }
    };
    if !matches!(
        request.param("hidden"),
        None | Some("" | "include" | "only" | "exclude")
    ) {
        return Err(Response::bad(
            "usage: /stats?hidden=(include|only|exclude)\n\n",
        ));
    }
    let buckets = match request.param("histogram_buckets") {
        None | Some("none" | "") => None,
        Some(name) => Some(Buckets::parse(name).ok_or_else(|| {
            Response::bad(
                "usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary)\n",
            )
        })?),
    };
    Ok(Wanted {
        query: Query {
            used_only: request.flag("usedonly"),
            filter,
            kind,
        },
        except,
        buckets,
        nothing: request.param("hidden") == Some("only"),
    })
}

fn collect(context: &Context, wanted: &Wanted) -> Samples {
    let matcher = &context.bootstrap.stats.matcher;
    Samples::collect(&context.metrics, &wanted.query, &|name| {
        wanted.nothing
            || hidden(matcher, name)
            || wanted
                .except
                .as_ref()
                .is_some_and(|except| except.is_match(name))
    })
}

/// True where a request is answered with statistics, by [`page`] or [`prometheus`].
pub(super) fn is_shown(request: &Request) -> bool {
    let is_prometheus = match &*request.path {
        "/stats/prometheus" => true,
        "/stats" => match request.param("format") {
            None | Some("" | "text" | "json" | "html" | "active-html") => false,
            Some("prometheus") => true,
            Some(_) => return false,
        },
        _ => return false,
    };
    wanted(request).is_ok_and(|wanted| !is_prometheus || wanted.suits_prometheus())
}

pub(super) fn page(context: &Context, request: &Request) -> Response {
    let wanted = match wanted(request) {
        Ok(wanted) => wanted,
        Err(response) => return response,
    };
    match request.param("format") {
        None | Some("" | "text") => Response::text(text::text(
            &collect(context, &wanted),
            wanted.buckets.unwrap_or_default(),
        )),
        Some("json") => Response {
            kind: Kind::Json,
            ..Response::text(text::json(
                &collect(context, &wanted),
                wanted.buckets.unwrap_or_default(),
            ))
        },
        Some("prometheus") => prometheus(context, request),
        Some("html" | "active-html") => {
            let body = text::text(
                &collect(context, &wanted),
                wanted.buckets.unwrap_or_default(),
            );
            let body = body.replace('&', "&amp;").replace('<', "&lt;");
            Response {
                kind: Kind::Html,
                ..Response::text(format!(
                    "<!DOCTYPE html>\n<html lang='en'>\n<head><title>Statistics</title></head>\n<body><pre>\n{body}</pre></body>\n</html>\n"
                ))
            }
        }
        Some(_) => {
            Response::bad("usage: /stats?format=(html|active-html|json|prometheus|text)\n\n")
        }
    }
}

pub(super) fn prometheus(context: &Context, request: &Request) -> Response {
    let wanted = match wanted(request) {
        Ok(wanted) => wanted,
        Err(response) => return response,
    };
    if !wanted.suits_prometheus() {
        return Response::bad("unsupported prometheus histogram bucket mode");
    }
    let options = Options {
        text_readouts: request.flag("text_readouts"),
        buckets: wanted.buckets,
    };
    let mut page = encoder::page(&collect(context, &wanted), &context.tags, options);
    if wanted.query.kind == KindFilter::All && wanted.except.is_none() {
        let plugins = context.proxy.plugins();
        wasm_metrics::write(&plugins, wanted.query.filter.as_ref(), &mut page);
    }
    Response::text(page)
}
