//! `envoy.filters.http.header_mutation`: adds, sets and removes headers and query parameters.
//!
//! | field | |
//! |---|---|
//! | `mutations.request_mutations`, `.response_mutations` (`append`, `remove`, `remove_on_match`) | honoured |
//! | `mutations.query_parameter_mutations` | honoured |
//! | `mutations.request_trailers_mutations`, `.response_trailers_mutations` | refused |
//! | `most_specific_header_mutations_wins` | honoured |
//!
//! Per route (`HeaderMutationPerRoute`) every level adds to the filter's own mutations: the most specific comes first and
//! the least specific last, so that the last word is the table's; `most_specific_header_mutations_wins` turns that round.
//! Within a level headers come before query parameters. Values are substitution formats.
//!
//! Unlike Envoy, which decodes the whole query and writes it back undecoded, parameters that no mutation names stay as
//! they are, byte by byte.

mod query;

use std::sync::Arc;

use http::HeaderMap;
use http::HeaderName;

use super::factory::{BuildContext, FilterFactory, PerRoute, per_route_all};
use super::{HttpFilter, Step};
use crate::config::ConfigError;
use crate::config::error::At as _;
use crate::config::field::{each, required};
use crate::config::header::{HeaderMutations, HeaderTarget, HeaderValueOption};
use crate::config::matcher::StringMatcher;
use crate::http::Body;
use crate::http::order::take_out_all;
use crate::pb::envoy::config::common::mutation_rules::v3::HeaderMutation as MutationProto;
use crate::pb::envoy::config::common::mutation_rules::v3::header_mutation::{
    Action, RemoveOnMatch,
};
use crate::pb::envoy::extensions::filters::http::header_mutation::v3 as proto;
use crate::route::matcher::string_matches;
use crate::stream::{Stream, finalize};
use query::QueryMutation;

/// The mutations of one level.
#[derive(Debug, Default)]
pub struct Mutations {
    request: Vec<Mutation>,
    query: Vec<QueryMutation>,
    response: Vec<Mutation>,
}

/// The filter's configuration.
#[derive(Debug)]
pub struct Config {
    mutations: Mutations,
    most_specific_wins: bool,
}

#[derive(Debug)]
enum Mutation {
    /// One addition or removal.
    One(HeaderMutations),
    /// Removes the headers whose names match.
    RemoveOnMatch(StringMatcher),
}

impl Mutation {
    fn parse(proto: MutationProto) -> Result<Self, ConfigError> {
        let MutationProto { action } = proto;
        match required(action, "action")? {
            Action::Append(option) => {
                let option = HeaderValueOption::parse(option).at("append")?;
                if !matches!(option.name, HeaderTarget::Header(_)) {
                    return Err(ConfigError::invalid(
                        ":-prefixed or host headers may not be modified",
                    )
                    .at("append"));
                }
                Ok(Self::One(HeaderMutations {
                    add: vec![option],
                    remove: Vec::new(),
                }))
            }
            Action::Remove(name) => {
                let name = HeaderName::try_from(name.as_str()).map_err(|_| {
                    ConfigError::invalid(format!("'{name}' is not a header that can be removed"))
                        .at("remove")
                })?;
                Ok(Self::One(HeaderMutations {
                    add: Vec::new(),
                    remove: vec![name],
                }))
            }
            Action::RemoveOnMatch(RemoveOnMatch { key_matcher }) => {
                let matcher = required(key_matcher, "key_matcher").at("remove_on_match")?;
                StringMatcher::parse(matcher)
                    .at("key_matcher")
                    .at("remove_on_match")
                    .map(Self::RemoveOnMatch)
            }
        }
    }

    fn request(&self, stream: &Stream) {
        match self {
            Self::One(mutation) => finalize::mutate_request(stream, mutation),
            Self::RemoveOnMatch(matcher) => {
                remove_matching(&mut stream.request.lock().headers, matcher);
            }
        }
    }

    fn response(&self, stream: &Stream) {
        match self {
            Self::One(mutation) => finalize::mutate_response(stream, mutation),
            Self::RemoveOnMatch(matcher) => {
                if let Some(head) = &mut *stream.response.lock() {
                    remove_matching(&mut head.headers, matcher);
                }
            }
        }
    }
}

fn remove_matching(headers: &mut HeaderMap, matcher: &StringMatcher) {
    take_out_all(headers, |name| {
        string_matches(matcher, name.as_str().as_bytes())
    });
}

impl Mutations {
    fn parse(proto: Option<proto::Mutations>) -> Result<Self, ConfigError> {
        let proto::Mutations {
            request_mutations,
            query_parameter_mutations,
            response_mutations,
            response_trailers_mutations,
            request_trailers_mutations,
        } = proto.unwrap_or_default();
        if !response_trailers_mutations.is_empty() {
            return Err(ConfigError::unsupported("response_trailers_mutations", ""));
        }
        if !request_trailers_mutations.is_empty() {
            return Err(ConfigError::unsupported("request_trailers_mutations", ""));
        }
        Ok(Self {
            request: each(request_mutations, "request_mutations", Mutation::parse)?,
            query: each(
                query_parameter_mutations,
                "query_parameter_mutations",
                QueryMutation::parse,
            )?,
            response: each(response_mutations, "response_mutations", Mutation::parse)?,
        })
    }

    fn request(&self, stream: &Stream) {
        for mutation in &self.request {
            mutation.request(stream);
        }
        query::mutate(stream, &self.query);
    }

    fn response(&self, stream: &Stream) {
        for mutation in &self.response {
            mutation.response(stream);
        }
    }
}

/// The filter.
#[derive(Debug)]
pub struct HeaderMutation {
    name: Box<str>,
    config: Arc<Config>,
}

impl FilterFactory for HeaderMutation {
    const NAME: &'static str = "envoy.filters.http.header_mutation";
    type Proto = proto::HeaderMutation;
    type Config = Config;

    fn parse(proto: proto::HeaderMutation, _: &str) -> Result<Config, ConfigError> {
        let proto::HeaderMutation {
            mutations,
            most_specific_header_mutations_wins,
        } = proto;
        Ok(Config {
            mutations: Mutations::parse(mutations).at("mutations")?,
            most_specific_wins: most_specific_header_mutations_wins,
        })
    }

    fn build(config: &Arc<Config>, context: &BuildContext<'_>) -> Arc<dyn HttpFilter> {
        Arc::new(Self {
            name: context.name.into(),
            config: Arc::clone(config),
        })
    }
}

impl PerRoute for HeaderMutation {
    type RouteProto = proto::HeaderMutationPerRoute;
    type RouteConfig = Mutations;

    fn parse_route(
        proto: proto::HeaderMutationPerRoute,
        _: &str,
    ) -> Result<Mutations, ConfigError> {
        let proto::HeaderMutationPerRoute { mutations } = proto;
        Mutations::parse(mutations).at("mutations")
    }
}

impl HeaderMutation {
    /// The filter's mutations, then those of the route's levels.
    fn each(&self, stream: &Stream, apply: impl Fn(&Mutations)) {
        apply(&self.config.mutations);
        let Some(route) = stream.route() else {
            return;
        };
        if self.config.most_specific_wins {
            let levels: smallvec::SmallVec<[&Mutations; 4]> =
                per_route_all(&route, &self.name).collect();
            levels.into_iter().rev().for_each(apply);
        } else {
            per_route_all(&route, &self.name).for_each(apply);
        }
    }
}

impl HttpFilter for HeaderMutation {
    fn request(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        self.each(stream, |mutations| mutations.request(stream));
        Step::Next(body)
    }

    fn response(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        self.each(stream, |mutations| mutations.response(stream));
        Step::Next(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::testing::{
        FakeUpstream, TestChain, build, metrics, parse, per_route_config,
    };

    async fn ask(
        yaml: &str,
        of_route: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (String, Vec<String>, crate::filter::testing::Answer) {
        let upstream = Arc::new(FakeUpstream {
            headers: &[("x-up", "1"), ("x-up-2", "2")],
            ..FakeUpstream::default()
        });
        let chain = TestChain::new(vec![build::<HeaderMutation>(0, yaml, &metrics())])
            .terminal(Arc::new(Arc::clone(&upstream)))
            .per_route(
                "f0",
                per_route_config::<proto::HeaderMutationPerRoute>(of_route),
            );
        let answer = chain.get_with(path, headers).await;
        let requests = upstream.requests.lock();
        let head = &requests[0].0;
        let path = String::from_utf8_lossy(head.path.as_bytes()).into_owned();
        let headers = head
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
            .collect();
        drop(requests);
        (path, headers, answer)
    }

    #[tokio::test]
    async fn the_filters_come_first_then_the_levels() {
        let yaml = "
mutations:
  request_mutations:
  - append: {header: {key: x-g, value: 'global-%REQ(x-a)%'}}
  - remove: x-rm
  - remove_on_match: {key_matcher: {prefix: x-bad-}}
  response_mutations:
  - append: {header: {key: x-resp, value: 'global-%RESPONSE_CODE%'}}
  - remove_on_match: {key_matcher: {prefix: x-up-}}
";
        let of_route = "
mutations:
  request_mutations:
  - append: {header: {key: x-g, value: route}}
  response_mutations:
  - append: {header: {key: x-resp, value: route}}
  - remove: x-up
";
        let headers = [
            ("x-a", "1"),
            ("x-rm", "1"),
            ("x-bad-1", "1"),
            ("x-bad-2", "1"),
        ];
        let (_, headers, answer) = ask(yaml, of_route, "/", &headers).await;
        assert_eq!(headers, ["x-a: 1", "x-g: global-1", "x-g: route"]);
        let values: Vec<_> = answer.head.headers.get_all("x-resp").iter().collect();
        assert_eq!(values, ["global-200", "route"]);
        assert!(!answer.head.headers.contains_key("x-up"));
        assert!(!answer.head.headers.contains_key("x-up-2"));
    }

    #[tokio::test]
    async fn query_parameters() {
        let of_route = "
mutations:
  query_parameter_mutations:
  - append: {record: {key: a, value: over}, action: OVERWRITE_IF_EXISTS_OR_ADD}
  - append: {record: {key: b, value: absent}, action: ADD_IF_ABSENT}
  - append: {record: {key: c, value: ow}, action: OVERWRITE_IF_EXISTS}
  - append: {record: {key: n, value: nope}, action: OVERWRITE_IF_EXISTS}
  - append: {record: {key: e, value: nope}, action: ADD_IF_ABSENT}
  - remove: d
";
        let path = "/p?a=1&a=2&c=3&d=4&e=5&raw=%20";
        let (path, _, _) = ask("{}", of_route, path, &[]).await;
        assert_eq!(path, "/p?a=over&c=ow&e=5&raw=%20&b=absent");

        let of_route = "
mutations:
  query_parameter_mutations:
  - append: {record: {key: q, value: 'g v&%REQ(x-q)%'}}
";
        let headers = [("x-q", "a/b~c_d-e.f!()*+")];
        let (path, _, _) = ask("{}", of_route, "/p", &headers).await;
        assert_eq!(
            path, "/p?q=g%20v%26a%2Fb%7Ec_d-e.f%21%28%29*%2B",
            "as Envoy encodes"
        );
        let (path, _, _) = ask("{}", of_route, "/p?q=1#f", &[]).await;
        assert_eq!(path, "/p?q=1&q=g%20v%26#f");
    }

    #[test]
    fn refuses_pseudo_headers_and_trailers() {
        for (yaml, error) in [
            (
                "mutations: {request_mutations: [{append: {header: {key: ':path', value: x}}}]}",
                "mutations.request_mutations[0].append: :-prefixed or host headers",
            ),
            (
                "mutations: {response_mutations: [{append: {header: {key: host, value: x}}}]}",
                "mutations.response_mutations[0].append: :-prefixed or host headers",
            ),
            (
                "mutations: {response_trailers_mutations: [{remove: x}]}",
                "mutations.response_trailers_mutations: not supported",
            ),
            (
                "mutations: {query_parameter_mutations: [{}]}",
                "mutations.query_parameter_mutations[0]: ",
            ),
        ] {
            let text = parse::<HeaderMutation>(yaml)
                .expect_err("refused")
                .to_string();
            assert!(text.starts_with(error), "{text}");
        }
    }
}
