//! Tests of lists of upstream filters.

use super::*;
use crate::config::stub::{CORS, HEADER_MUTATION, Stub};

const CODEC: &str = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec";
const LUA: &str = "envoy.extensions.filters.http.lua.v3.Lua";

fn filter(name: &str, kind: &str, rest: &str) -> String {
    format!("{{name: {name}, typed_config: {{'@type': type.googleapis.com/{kind}}}{rest}}}")
}

fn protos(list: &[String]) -> Vec<proto::HttpFilter> {
    let parse = |yaml: &String| pb::from_yaml(yaml).unwrap_or_else(|e| panic!("{e}: {yaml}"));
    list.iter().map(parse).collect()
}

type Found = Result<Vec<(String, bool)>, String>;

fn shown(found: Result<Vec<HttpFilter>, ConfigError>) -> Found {
    let filters = found.map_err(|error| error.to_string())?;
    let each = filters.iter().map(|filter| {
        let HttpFilter {
            name,
            config,
            disabled,
        } = filter;
        assert!(matches!(config, FilterSource::Inline(_)));
        (name.to_string(), *disabled)
    });
    Ok(each.collect())
}

fn cluster(list: &[String]) -> Found {
    shown(of_cluster(protos(list), &Stub).map(Option::unwrap_or_default))
}

fn router(list: &[String]) -> Found {
    shown(of_router(protos(list), &Stub))
}

#[test]
fn the_codec_closes_a_list_and_is_no_part_of_it() {
    let codec = || filter("c", CODEC, "");
    assert_eq!(of_cluster(Vec::new(), &Stub), Ok(None));
    assert_eq!(of_cluster(protos(&[codec()]), &Stub), Ok(Some(Vec::new())));
    let list = [
        filter("a", HEADER_MUTATION, ""),
        filter("left-out", CORS, ", is_optional: true"),
        "{name: nothing, is_optional: true}".to_owned(),
        filter("b", HEADER_MUTATION, ", disabled: true"),
        codec(),
    ];
    let expected = Ok(vec![("a".to_owned(), false), ("b".to_owned(), true)]);
    assert_eq!(cluster(&list), expected);
    assert_eq!(router(&list), expected);
}

#[test]
fn what_is_wrong_has_envoys_words() {
    let codec = || filter("c", CODEC, "");
    let mutation = || filter("m", HEADER_MUTATION, "");
    let discovered = "{name: d, config_discovery: {type_urls: [x], config_source: {ads: {}}}}";
    let terminal = "The codec filter is the only valid terminal upstream HTTP filter, use \
                    'envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec'";
    let not_last = "Error: terminal filter named c of type envoy.filters.http.upstream_codec must be the last filter in a";
    let cases: [(Vec<String>, String, String); 9] = [
        (
            vec![mutation()],
            format!(": {terminal}"),
            "[0]: Error: non-terminal filter named m of type envoy.filters.http.header_mutation is the last filter in a \
             router upstream http filter chain. When upstream_http_filters are specified, they must explicitly end with \
             an UpstreamCodec filter."
                .to_owned(),
        ),
        (
            vec![codec(), codec()],
            format!("[0]: {not_last} upstream http filter chain."),
            format!("[0]: {not_last} router upstream http filter chain."),
        ),
        (
            vec![filter("c", CODEC, ", disabled: true")],
            "[0]: Error: the last (terminal) filter (c) in the chain cannot be disabled by default.".to_owned(),
            String::new(),
        ),
        (
            vec!["{name: x}".to_owned(), codec()],
            "[0]: Didn't find a registered implementation for 'x' with type URL: ''".to_owned(),
            String::new(),
        ),
        (
            vec![filter("x", CORS, ""), codec()],
            format!("[0]: Didn't find a registered implementation for 'x' with type URL: '{CORS}'"),
            String::new(),
        ),
        (
            vec![filter("x", LUA, ""), codec()],
            format!("[0]: not supported: upstream HTTP filter 'x' ({LUA}) is not implemented by this build yet"),
            String::new(),
        ),
        (
            vec![filter("''", HEADER_MUTATION, ""), codec()],
            "[0].name: value length must be at least 1 characters".to_owned(),
            String::new(),
        ),
        (
            vec![
                format!("{{name: m, typed_config: {{'@type': type.googleapis.com/{HEADER_MUTATION}, mutations: {{request_mutations: [{{}}]}}}}}}"),
                codec(),
            ],
            "[0].typed_config.mutations: wrong".to_owned(),
            String::new(),
        ),
        (
            vec![discovered.to_owned(), codec()],
            "[0].config_discovery: not supported: filters of an upstream must be given inline".to_owned(),
            String::new(),
        ),
    ];
    for (list, of_cluster, of_router) in cases {
        assert_eq!(cluster(&list), Err(format!("http_filters{of_cluster}")));
        let of_router = if of_router.is_empty() {
            of_cluster
        } else {
            of_router
        };
        assert_eq!(
            router(&list),
            Err(format!("upstream_http_filters{of_router}"))
        );
    }
}
