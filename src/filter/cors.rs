//! `envoy.filters.http.cors`: answers preflight requests, and tells browsers which answers they may read.
//!
//! The filter itself has no settings; the policy is per route (route, virtual host, table: the first level that says
//! something about a field decides it).
//!
//! | field of `CorsPolicy` | |
//! |---|---|
//! | `allow_origin_string_match`, `allow_methods`, `allow_headers`, `expose_headers`, `max_age` | honoured |
//! | `allow_credentials`, `allow_private_network_access`, `forward_not_matching_preflights` | honoured |
//! | `filter_enabled`, `shadow_enabled` | their default values; there is no runtime |
//!
//! Routes that answer by themselves (redirects, direct responses) have no policy. A preflight is told the method and the
//! headers that it asks for where the policy allows `*`.
//!
//! Statistics: `http.<stat_prefix>.cors.origin_valid`, `origin_invalid`.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::factory::{BuildContext, FilterFactory, PerRoute, per_route_all};
use super::{HttpFilter, Step};
use crate::config::ConfigError;
use crate::config::error::At as _;
use crate::config::field::{each, runtime_per_million};
use crate::config::matcher::StringMatcher;
use crate::http::{Body, ResponseHead};
use crate::pb::envoy::extensions::filters::http::cors::v3 as proto;
use crate::pb::google::protobuf::BoolValue;
use crate::route::SelectedRoute;
use crate::route::matcher::string_matches;
use crate::stream::Stream;
use crate::telemetry::metrics::StatSet;

const REQUEST_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-allow-private-network");

crate::stats! {
    mod stat {
        ORIGIN_INVALID: Counter = "origin_invalid",
        ORIGIN_VALID: Counter = "origin_valid",
    }
}

/// The filter.
#[derive(Debug)]
pub struct Cors {
    name: Box<str>,
    slot: usize,
    stats: Arc<StatSet>,
}

/// A policy of one level.
#[derive(Debug)]
pub struct Policy {
    origins: Vec<StringMatcher>,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: Option<bool>,
    private_network: Option<bool>,
    forward_not_matching: Option<bool>,
    enabled: u32,
    shadow: u32,
}

impl FilterFactory for Cors {
    const NAME: &'static str = "envoy.filters.http.cors";
    type Proto = proto::Cors;
    type Config = ();

    fn parse(proto: proto::Cors, _: &str) -> Result<(), ConfigError> {
        let proto::Cors {} = proto;
        Ok(())
    }

    fn build(_: &Arc<()>, context: &BuildContext<'_>) -> Arc<dyn HttpFilter> {
        Arc::new(Self {
            name: context.name.into(),
            slot: context.slot,
            stats: context.stats(&stat::TABLE, "cors"),
        })
    }
}

impl PerRoute for Cors {
    type RouteProto = proto::CorsPolicy;
    type RouteConfig = Policy;

    fn parse_route(proto: proto::CorsPolicy, _: &str) -> Result<Policy, ConfigError> {
        let proto::CorsPolicy {
            allow_origin_string_match,
            allow_methods,
            allow_headers,
            expose_headers,
            max_age,
            allow_credentials,
            filter_enabled,
            shadow_enabled,
            allow_private_network_access,
            forward_not_matching_preflights,
        } = proto;
        let said = |value: Option<BoolValue>| value.map(|value| value.value);
        Ok(Policy {
            origins: each(
                allow_origin_string_match,
                "allow_origin_string_match",
                StringMatcher::parse,
            )?,
            methods: value(&allow_methods, "allow_methods")?,
            headers: value(&allow_headers, "allow_headers")?,
            expose: value(&expose_headers, "expose_headers")?,
            max_age: value(&max_age, "max_age")?,
            credentials: said(allow_credentials),
            private_network: said(allow_private_network_access),
            forward_not_matching: said(forward_not_matching_preflights),
            enabled: match filter_enabled {
                Some(fraction) => runtime_per_million(fraction).at("filter_enabled")?,
                None => MILLION,
            },
            shadow: match shadow_enabled {
                Some(fraction) => runtime_per_million(fraction).at("shadow_enabled")?,
                None => 0,
            },
        })
    }
}

const MILLION: u32 = 1_000_000;

/// An empty text says nothing.
fn value(text: &str, field: &str) -> Result<Option<HeaderValue>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    HeaderValue::from_str(text)
        .map(Some)
        .map_err(|_| ConfigError::invalid("is not a header value").at(field))
}

fn happens(parts: u32) -> bool {
    parts >= MILLION || (parts > 0 && fastrand::u32(..MILLION) < parts)
}

/// The policies of a route, most specific first.
struct Policies<'a>(smallvec::SmallVec<[&'a Policy; 4]>);

impl<'a> Policies<'a> {
    fn of(route: &'a SelectedRoute, name: &str) -> Self {
        Self(per_route_all::<Policy>(route, name).collect())
    }

    fn first<T>(&self, f: impl Fn(&'a Policy) -> Option<T>) -> Option<T> {
        self.0.iter().find_map(|policy| f(policy))
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let origins = self.first(|policy| (!policy.origins.is_empty()).then_some(&policy.origins));
        origins.is_some_and(|origins| {
            origins.iter().any(|matcher| {
                string_matches(matcher, b"*") || string_matches(matcher, origin.as_bytes())
            })
        })
    }
}

/// What the response half must know: the origin was allowed under this route.
struct Allowed {
    origin: HeaderValue,
    route: Arc<SelectedRoute>,
}

impl HttpFilter for Cors {
    fn request(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let origin = {
            let request = stream.request.lock();
            match request.headers.get(header::ORIGIN) {
                Some(origin) if !origin.is_empty() => origin.clone(),
                _ => return Step::Next(body),
            }
        };
        let Some(route) = stream.route().filter(|route| route.is_entry()) else {
            return Step::Next(body);
        };
        let policies = Policies::of(&route, &self.name);
        let Some(first) = policies.0.first() else {
            return Step::Next(body);
        };
        let enabled = happens(first.enabled);
        if !enabled && !happens(first.shadow) {
            return Step::Next(body);
        }
        let allowed = policies.allows(&origin);
        self.stats.inc(if allowed {
            stat::ORIGIN_VALID
        } else {
            stat::ORIGIN_INVALID
        });
        if !enabled {
            return Step::Next(body);
        }
        let (preflight, private_network) = {
            let request = stream.request.lock();
            let asked = request.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
            (
                request.method == Method::OPTIONS && asked.is_some_and(|asked| !asked.is_empty()),
                request
                    .headers
                    .get(REQUEST_PRIVATE_NETWORK)
                    .is_some_and(|asked| asked == "true"),
            )
        };
        let forward = policies
            .first(|policy| policy.forward_not_matching)
            .unwrap_or(true);
        let answer = (preflight && (allowed || !forward)).then(|| {
            let mut head = ResponseHead::new(StatusCode::OK);
            let origin = allowed.then_some(&origin);
            let asked = &stream.request.lock().headers;
            preflight_headers(&policies, origin, private_network, asked, &mut head);
            head
        });
        drop(policies);
        if allowed {
            let state = Allowed { origin, route };
            stream.with_slot(self.slot, || state, |_| ());
        }
        match answer {
            Some(head) => {
                stream.info.lock().details = Some("cors_response".into());
                Step::Answer(Box::new(head), Body::empty())
            }
            None => Step::Next(body),
        }
    }

    fn response(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let Some(allowed) = stream.take_slot::<Allowed>(self.slot) else {
            return Step::Next(body);
        };
        let policies = Policies::of(&allowed.route, &self.name);
        if let Some(head) = &mut *stream.response.lock() {
            head.headers
                .insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed.origin.clone());
            if policies.first(|policy| policy.credentials) == Some(true) {
                head.headers.insert(
                    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
                    HeaderValue::from_static("true"),
                );
            }
            if let Some(expose) = policies.first(|policy| policy.expose.as_ref()) {
                head.headers
                    .insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
            }
        }
        Step::Next(body)
    }
}

/// An origin that is not allowed is told everything but that it is.
fn preflight_headers(
    policies: &Policies<'_>,
    origin: Option<&HeaderValue>,
    private_network: bool,
    asked: &HeaderMap,
    head: &mut ResponseHead,
) {
    let headers = &mut head.headers;
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    if policies.first(|policy| policy.credentials) == Some(true) {
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            HeaderValue::from_static("true"),
        );
    }
    // Any is what is asked for.
    let or_asked = |said: Option<&HeaderValue>, name: HeaderName| {
        said.map(|said| match said.as_bytes() {
            b"*" => asked
                .get(name)
                .cloned()
                .unwrap_or(HeaderValue::from_static("")),
            _ => said.clone(),
        })
    };
    let texts = [
        (
            header::ACCESS_CONTROL_ALLOW_METHODS,
            or_asked(
                policies.first(|policy| policy.methods.as_ref()),
                header::ACCESS_CONTROL_REQUEST_METHOD,
            ),
        ),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            or_asked(
                policies.first(|policy| policy.headers.as_ref()),
                header::ACCESS_CONTROL_REQUEST_HEADERS,
            ),
        ),
        (
            header::ACCESS_CONTROL_MAX_AGE,
            policies.first(|policy| policy.max_age.as_ref()).cloned(),
        ),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    if private_network && policies.first(|policy| policy.private_network) == Some(true) {
        headers.insert(ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::header_mutation::HeaderMutation;
    use crate::filter::testing::{Answer, build, metrics, per_route_config};

    const POLICY: &str = "
allow_origin_string_match: [{exact: 'http://o'}, {suffix: .o}]
allow_methods: GET,POST
allow_headers: x-a
expose_headers: x-b
max_age: '10'
allow_credentials: true
allow_private_network_access: true
";

    struct Case {
        answer: Answer,
        valid: u64,
        invalid: u64,
    }

    async fn ask(policy: &str, method: Method, headers: &[(&str, &str)]) -> Case {
        let registry = metrics();
        let filter = build::<Cors>(0, "{}", &registry);
        let chain = crate::filter::testing::TestChain::new(vec![filter])
            .per_route("f0", per_route_config::<proto::CorsPolicy>(policy));
        let answer = chain.request(method, "/", headers).await;
        let stats = registry.sets().pop().expect("the filter's");
        assert_eq!(stats.prefix(), "http.p.cors.");
        Case {
            answer,
            valid: stats.value(stat::ORIGIN_VALID),
            invalid: stats.value(stat::ORIGIN_INVALID),
        }
    }

    const ASKS: (&str, &str) = ("access-control-request-method", "GET");

    #[tokio::test]
    async fn a_preflight_is_answered() {
        let headers = [("origin", "http://o"), ASKS];
        let case = ask(POLICY, Method::OPTIONS, &headers).await;
        let answer = case.answer;
        assert_eq!((answer.status(), answer.text()), (200, ""));
        assert_eq!(answer.details(), "cors_response");
        let headers: Vec<_> = answer
            .head
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        assert_eq!(
            headers,
            [
                "access-control-allow-origin: http://o",
                "access-control-allow-credentials: true",
                "access-control-allow-methods: GET,POST",
                "access-control-allow-headers: x-a",
                "access-control-max-age: 10",
                "access-control-expose-headers: x-b",
            ],
            "as Envoy 1.40 orders them"
        );
        assert_eq!((case.valid, case.invalid), (1, 0));

        let headers = [
            ("origin", "http://o"),
            ASKS,
            ("access-control-request-private-network", "true"),
        ];
        let answer = ask(POLICY, Method::OPTIONS, &headers).await.answer;
        assert_eq!(
            answer.header("access-control-allow-private-network"),
            Some("true")
        );
    }

    #[tokio::test]
    async fn a_preflight_has_no_status_yet_for_the_filters_behind() {
        let registry = metrics();
        let mutation = |name: &str| {
            format!(
                "mutations: {{response_mutations: [{{append: {{header: {{key: {name}, value: '%RESPONSE_CODE%'}}}}}}]}}"
            )
        };
        let before = build::<HeaderMutation>(0, &mutation("x-before"), &registry);
        let cors = build::<Cors>(1, "{}", &registry);
        let after = build::<HeaderMutation>(2, &mutation("x-after"), &registry);
        let chain = crate::filter::testing::TestChain::new(vec![before, cors, after])
            .per_route("f1", per_route_config::<proto::CorsPolicy>(POLICY));
        let origin = ("origin", "http://o");
        let preflight = chain.request(Method::OPTIONS, "/", &[origin, ASKS]).await;
        assert_eq!(preflight.status(), 200);
        assert_eq!(preflight.header("x-before"), Some("0"), "as in Envoy");
        assert_eq!(preflight.header("x-after"), Some("0"));
        assert!(preflight.stream.has_status(), "once it is sent");
        let other = chain.request(Method::GET, "/", &[origin]).await;
        assert_eq!(other.header("x-before"), Some("200"));
        assert_eq!(other.header("x-after"), Some("200"));
    }

    #[tokio::test]
    async fn any_is_what_was_asked_for() {
        let policy = "{allow_origin_string_match: [{exact: o}], allow_methods: '*', allow_headers: '*', expose_headers: '*'}";
        for (asked, allowed) in [(Some("x-q, x-z"), "x-q, x-z"), (None, "")] {
            let mut headers = vec![("origin", "o"), ("access-control-request-method", "PUT")];
            headers.extend(asked.map(|asked| ("access-control-request-headers", asked)));
            let answer = ask(policy, Method::OPTIONS, &headers).await.answer;
            assert_eq!(answer.header("access-control-allow-methods"), Some("PUT"));
            let told = answer.header("access-control-allow-headers");
            assert_eq!(told, Some(allowed));
            assert_eq!(answer.header("access-control-expose-headers"), Some("*"));
        }
    }

    #[tokio::test]
    async fn a_route_that_answers_itself_has_no_policy() {
        use crate::config::route::{Action, DirectResponse};
        let registry = metrics();
        let answers = Action::DirectResponse(DirectResponse {
            status: StatusCode::OK,
            body: Default::default(),
        });
        let chain = crate::filter::testing::TestChain::new(vec![build::<Cors>(0, "{}", &registry)])
            .route(answers)
            .per_route("f0", per_route_config::<proto::CorsPolicy>(POLICY));
        let answer = chain.get_with("/", &[("origin", "http://o")]).await;
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }

    #[tokio::test]
    async fn other_origins_pass_or_get_an_empty_answer() {
        let headers = [("origin", "http://bad"), ASKS];
        let case = ask(POLICY, Method::OPTIONS, &headers).await;
        assert_eq!(case.answer.text(), "upstream");
        assert_eq!(case.answer.header("access-control-allow-origin"), None);
        assert_eq!((case.valid, case.invalid), (0, 1));

        let strict = format!("{POLICY}forward_not_matching_preflights: false\n");
        let answer = ask(&strict, Method::OPTIONS, &headers).await.answer;
        assert_eq!((answer.status(), answer.text()), (200, ""));
        assert_eq!(answer.header("access-control-allow-origin"), None);
        let methods = answer.header("access-control-allow-methods");
        assert_eq!(methods, Some("GET,POST"), "as Envoy 1.40 does");
        assert_eq!(answer.details(), "cors_response");
    }

    #[tokio::test]
    async fn an_answer_names_its_origin() {
        for (method, origin) in [(Method::GET, "http://a.o"), (Method::OPTIONS, "http://o")] {
            let answer = ask(POLICY, method, &[("origin", origin)]).await.answer;
            assert_eq!(answer.text(), "upstream");
            assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
            assert_eq!(answer.header("access-control-expose-headers"), Some("x-b"));
            assert_eq!(answer.header("access-control-allow-methods"), None);
        }
        let answer = ask(POLICY, Method::GET, &[]).await.answer;
        assert!(answer.head.headers.is_empty());
    }

    #[tokio::test]
    async fn a_shadow_counts_and_does_nothing() {
        let shadow = format!(
            "{POLICY}filter_enabled: {{default_value: {{numerator: 0}}}}
shadow_enabled: {{default_value: {{numerator: 100}}}}
"
        );
        let headers = [("origin", "http://o"), ASKS];
        let case = ask(&shadow, Method::OPTIONS, &headers).await;
        assert_eq!(case.answer.text(), "upstream");
        assert!(case.answer.head.headers.is_empty());
        assert_eq!((case.valid, case.invalid), (1, 0));
    }
}
