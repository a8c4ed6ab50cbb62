//! Properties, filter state and expressions, as a guest asks for them.

use http::Method;

use super::*;
use crate::config::listener::TrafficDirection;
use crate::http::RequestHead;
use crate::pb::google::protobuf::{Struct, Value, value::Kind};
use crate::stream::{ConnectionInfo, StreamConfig};
use crate::wasm::context::StreamContext;
use crate::wasm::meter::Quota;

/// The id of the stream's context.
pub(super) const STREAM: u32 = 2;
/// Where arguments lie, and where what is given is noted.
const NAME: usize = 1024;
const ARGUMENT: usize = 8192;
const AT: i64 = 16;
const LEN: i64 = 20;

const OK: u32 = 0;
const NOT_FOUND: u32 = 1;
const BAD_ARGUMENT: u32 = 2;
const NO_FORM: u32 = 3;
const FAILURE: u32 = 10;

pub(super) fn connection() -> Arc<ConnectionInfo> {
    Arc::new(ConnectionInfo {
        id: 7,
        remote: "127.0.0.1:1234".parse().ok(),
        local: "127.0.0.2:80".parse().ok(),
        listener: "listener".into(),
        filter_chain: "chain".into(),
        direction: TrafficDirection::Outbound,
        ..ConnectionInfo::none()
    })
}

pub(super) fn stream(connection: &Arc<ConnectionInfo>) -> Arc<Stream> {
    let mut head = RequestHead::new(Method::GET, "host.example", "/path?query#fragment");
    for (name, value) in [("x-twice", "a"), ("x-twice", "b"), ("content-length", "12")] {
        head.headers
            .append(name, value.parse().expect("a header's value"));
    }
    let config = StreamConfig {
        routes: None,
        clusters: Arc::default(),
        upstream_filters: None,
        options: Arc::default(),
        generation: 0,
        records: None,
    };
    let stream = Stream::new(Arc::clone(connection), config, head, 1);
    let text = |text: &str| Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let mut metadata = crate::pb::Metadata::default();
    let fields = [
        ("key".to_owned(), text("value")),
        ("null".to_owned(), Value::default()),
    ];
    let fields = Struct {
        fields: fields.into(),
    };
    metadata.filter_metadata.insert("ns".to_owned(), fields);
    metadata
        .typed_filter_metadata
        .insert("typed".to_owned(), crate::pb::pack(&"in any".to_owned()));
    stream.info.lock().dynamic_metadata = Some(Box::new(metadata));
    stream
}

impl Bench {
    /// With a stream whose request headers are shown.
    pub(super) fn with_stream(stream: &Arc<Stream>) -> Self {
        let mut bench = Self::new();
        bench.enter_stream(stream);
        bench
    }

    fn enter_stream(&mut self, stream: &Arc<Stream>) {
        let mut context = StreamContext::new(Arc::clone(stream), ROOT);
        context.visible.request_headers = true;
        let host = self.store.data_mut();
        host.streams.insert(STREAM, context);
        (host.current, host.effective, host.root_id) = (STREAM, STREAM, ROOT);
    }

    fn enter_root(&mut self) {
        let host = self.store.data_mut();
        (host.current, host.effective, host.root_id) = (ROOT, ROOT, ROOT);
    }

    fn get(&mut self, path: &str) -> Result<Vec<u8>, u32> {
        let path = path.replace('.', "\0");
        self.write(NAME, path.as_bytes());
        let args = [NAME as i64, path.len() as i64, AT, LEN];
        match self.call("proxy_get_property", &args).expect("no trap") {
            OK => Ok(self.given(AT as usize, LEN as usize)),
            status => Err(status),
        }
    }

    fn set(&mut self, name: &str, value: &[u8]) -> u32 {
        self.write(NAME, name.as_bytes());
        self.write(ARGUMENT, value);
        let args = [
            NAME as i64,
            name.len() as i64,
            ARGUMENT as i64,
            value.len() as i64,
        ];
        self.call("proxy_set_property", &args).expect("no trap")
    }

    fn foreign(&mut self, name: &str, argument: &[u8]) -> Result<Vec<u8>, u32> {
        self.write(NAME, name.as_bytes());
        self.write(ARGUMENT, argument);
        self.write(AT as usize, &[0xff; 8]);
        let args = [
            NAME as i64,
            name.len() as i64,
            ARGUMENT as i64,
            argument.len() as i64,
            AT,
            LEN,
        ];
        let status = self.call("proxy_call_foreign_function", &args);
        match status.expect("no trap") {
            OK => Ok(self.given(AT as usize, LEN as usize)),
            status => Err(status),
        }
    }

    fn evaluate(&mut self, text: &str) -> Result<Vec<u8>, u32> {
        let token = self.foreign("expr_create", text.as_bytes())?;
        let result = self.foreign("expr_evaluate", &token);
        self.foreign("expr_delete", &token).expect("always");
        assert_eq!(self.foreign("expr_evaluate", &token), Err(NOT_FOUND));
        result
    }
}

#[test]
fn properties_are_there_or_not_and_encoded_as_in_envoy() {
    let stream = stream(&connection());
    let mut bench = Bench::with_stream(&stream);
    let number = |number: i64| Ok(number.to_le_bytes().to_vec());
    let text = |text: &str| Ok(text.as_bytes().to_vec());
    let size = ":authority".len()
        + "host.example".len()
        + ":path/path?query#fragment".len()
        + ":methodGET".len()
        + ":schemehttp".len()
        + "x-twicea".len() * 2
        + "content-length12".len();
    for (path, value) in [
        ("request.path", text("/path?query#fragment")),
        ("request.url_path", text("/path")),
        ("request.query", text("query")),
        ("request.headers.X-Twice", text("a,b")),
        ("request.headers.host", text("host.example")),
        ("request.headers.none", Err(NOT_FOUND)),
        ("request.size", number(12)),
        ("request.headers_bytes", number(size as i64)),
        ("request.total_size", number(size as i64)),
        ("request.path.more", Err(NOT_FOUND)),
        ("request", Err(NO_FORM)),
        ("response", Err(NO_FORM)),
        ("connection", Err(NO_FORM)),
        ("xds", Err(NO_FORM)),
        ("", Err(NO_FORM)),
        ("response.headers", Ok(vec![0; 4])),
        ("response.headers_bytes", number(0)),
        ("response.trailers", Ok(vec![0; 4])),
        ("response.code", Err(NOT_FOUND)),
        ("response.grpc_status", Err(NOT_FOUND)),
        ("connection.id", number(7)),
        ("connection_id", number(7)),
        ("connection_id.x", Err(NOT_FOUND)),
        ("connection.requested_server_name", Ok(Vec::new())),
        ("source.address", text("127.0.0.1:1234")),
        ("upstream.address", Err(NOT_FOUND)),
        ("upstream_filter_state", Err(NOT_FOUND)),
        ("metadata.filter_metadata.ns.key", text("value")),
        ("metadata.filter_metadata.ns.key.more", Err(NOT_FOUND)),
        ("metadata.filter_metadata.ns.null", Err(NO_FORM)),
        ("metadata.filter_metadata.ns", Err(NO_FORM)),
        ("metadata.typed_filter_metadata.typed", text("in any")),
        ("plugin_name", text("bench")),
        ("plugin_name.x", Err(NOT_FOUND)),
        ("xds.listener_direction", number(2)),
        ("listener_direction", number(2)),
        ("xds.listener_metadata", Ok(Vec::new())),
        ("xds.filter_chain_name", text("chain")),
        ("xds.route_name", Err(NOT_FOUND)),
    ] {
        assert_eq!(bench.get(path), value, "{path}");
    }
    // Headers that went on are gone, and what is counted of them.
    let context = bench
        .store
        .data_mut()
        .streams
        .get_mut(STREAM)
        .expect("there");
    context.visible.request_headers = false;
    for (path, value) in [
        ("request.path", Err(NOT_FOUND)),
        ("request.headers", Ok(vec![0; 4])),
        ("request.size", number(0)),
        ("request.headers_bytes", number(0)),
        ("request.protocol", text("HTTP/1.1")),
    ] {
        assert_eq!(bench.get(path), value, "{path}");
    }
    bench.enter_root();
    for path in ["request.path", "request", "connection_id", "metadata"] {
        assert_eq!(bench.get(path), Err(NOT_FOUND), "{path}");
    }
    assert_eq!(bench.get("xds"), Err(NO_FORM));
}

#[test]
fn what_plugins_set_comes_after_envoys_names_and_before_the_dropped_ones() {
    let stream = stream(&connection());
    let mut bench = Bench::with_stream(&stream);
    for name in ["mine", "request", "plugin_name", "cluster_name", "a\0b"] {
        assert_eq!(bench.set(name, b"set"), OK);
    }
    for (path, value) in [
        ("mine", Ok(b"set".to_vec())),
        ("mine.more", Err(NOT_FOUND)),
        ("wasm.mine", Err(NOT_FOUND)),
        ("request", Err(NO_FORM)),
        ("plugin_name", Ok(b"bench".to_vec())),
        ("cluster_name", Ok(b"set".to_vec())),
        // A path of two segments is read segment by segment, and never found.
        ("a.b", Err(NOT_FOUND)),
    ] {
        assert_eq!(bench.get(path), value, "{path}");
    }
    let state = |name: &str| {
        crate::stream::state::with_object(
            &stream.info.lock().filter_state,
            &stream.connection.filter_state,
            name,
            |object| object.value.clone(),
        )
    };
    assert_eq!(state("wasm.mine").as_deref(), Some(&b"set"[..]));
    bench.enter_root();
    assert_eq!(bench.set("mine", b"x"), NOT_FOUND);
}

/// A message of `declare_property`.
#[derive(Clone, PartialEq, prost::Message)]
struct Declaration {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bool, tag = "2")]
    read_only: bool,
    #[prost(int32, tag = "3")]
    kind: i32,
    #[prost(string, tag = "4")]
    schema: String,
    #[prost(int32, tag = "5")]
    span: i32,
}

fn declaration(name: &str, change: impl FnOnce(&mut Declaration)) -> Vec<u8> {
    let mut made = Declaration {
        name: name.to_owned(),
        ..Declaration::default()
    };
    change(&mut made);
    prost::Message::encode_to_vec(&made)
}

#[test]
fn declared_properties_have_their_type_span_and_protection() {
    let connection = connection();
    let first = stream(&connection);
    let mut bench = Bench::new();
    let locality = "type.googleapis.com/envoy.config.core.v3.Locality";
    let declared = [
        declaration("once", |it| it.read_only = true),
        declaration("kept", |it| it.span = 2),
        declaration("place", |it| {
            (it.kind, it.schema) = (3, locality.to_owned())
        }),
        declaration("nothing", |it| {
            (it.kind, it.schema) = (3, "x/no.such.Type".to_owned())
        }),
    ];
    for argument in &declared {
        assert_eq!(bench.foreign("declare_property", argument), Ok(Vec::new()));
        assert_eq!(
            bench.foreign("declare_property", argument),
            Err(BAD_ARGUMENT)
        );
    }
    assert_eq!(
        bench.foreign("declare_property", b"\xff"),
        Err(BAD_ARGUMENT)
    );
    bench.enter_stream(&first);
    // A stream's declarations are its own, and without effect.
    let own = declaration("mine", |it| it.read_only = true);
    assert_eq!(bench.foreign("declare_property", &own), Ok(Vec::new()));
    for (name, second) in [("once", BAD_ARGUMENT), ("kept", OK), ("mine", OK)] {
        assert_eq!(bench.set(name, b"1"), OK, "{name}");
        assert_eq!(bench.set(name, b"2"), second, "{name}");
    }
    assert_eq!(bench.get("once"), Ok(b"1".to_vec()));
    let region = b"\x0a\x06region";
    assert_eq!(
        (bench.set("place", region), bench.set("nothing", region)),
        (OK, OK)
    );
    for (path, value) in [
        ("place", Ok(region.to_vec())),
        ("place.region", Ok(b"region".to_vec())),
        ("place.zone", Ok(Vec::new())),
        ("place.nosuch", Err(NOT_FOUND)),
        ("nothing", Ok(region.to_vec())),
        ("nothing.region", Err(NOT_FOUND)),
    ] {
        assert_eq!(bench.get(path), value, "{path}");
    }
    assert_eq!(bench.evaluate("filter_state['wasm.nothing']"), Err(NO_FORM));
    assert_eq!(
        bench.evaluate("place.region + '!'"),
        Ok(b"region!".to_vec())
    );
    assert_eq!(bench.evaluate("has(place.zone)"), Ok(vec![0]));
    // The next stream of the connection.
    bench.enter_stream(&stream(&connection));
    assert_eq!(bench.get("kept"), Ok(b"2".to_vec()));
    assert_eq!(bench.get("once"), Err(NOT_FOUND));
}

#[test]
fn objects_of_envoys_are_set_and_read() {
    let stream = stream(&connection());
    let mut bench = Bench::with_stream(&stream);
    let mut set = |key: &str, value: &str| {
        let argument = [
            &[0x0a, key.len() as u8][..],
            key.as_bytes(),
            &[0x12, value.len() as u8],
            value.as_bytes(),
        ]
        .concat();
        bench.foreign("set_envoy_filter_state", &argument)
    };
    assert_eq!(set("envoy.string", "text"), Ok(Vec::new()));
    assert_eq!(set("nosuch", "text"), Err(NOT_FOUND));
    assert_eq!(set("envoy.network.ip", "text"), Err(BAD_ARGUMENT));
    let address = "envoy.network.transport_socket.original_dst_address";
    assert_eq!(set(address, "[::1]:9"), Ok(Vec::new()));
    assert_eq!(
        bench.evaluate("filter_state['envoy.string']"),
        Ok(b"text".to_vec())
    );
    assert_eq!(
        bench.evaluate(&format!("filter_state['{address}'].ip")),
        Ok(b"::1".to_vec())
    );
    assert_eq!(
        bench.evaluate(&format!("filter_state['{address}'].port")),
        Ok(9i64.to_le_bytes().to_vec())
    );
}

#[test]
fn a_known_function_sets_its_result_even_where_it_fails() {
    let mut bench = Bench::new();
    assert_eq!(bench.foreign("uncompress", b"no zlib"), Err(NO_FORM));
    assert_eq!((bench.word(16), bench.word(20)), (0, 0));
    assert_eq!(bench.foreign("nosuch", b""), Err(NOT_FOUND));
    assert_eq!((bench.word(16), bench.word(20)), (u32::MAX, u32::MAX));
}

#[test]
fn expressions_see_attributes_and_give_envoys_forms() {
    let stream = stream(&connection());
    let mut bench = Bench::with_stream(&stream);
    let text = |text: &str| Ok(text.as_bytes().to_vec());
    assert_eq!(bench.set("mine", b"set"), OK);
    for (expression, value) in [
        ("request.url_path + '!'", text("/path!")),
        ("request.headers['X-Twice']", text("a,b")),
        ("request.headers['none']", Err(FAILURE)),
        ("'none' in request.headers", Ok(vec![0])),
        (
            "request.headers.exists(name, name == 'x-twice')",
            Ok(vec![1]),
        ),
        ("size(request.headers) == 6", Ok(vec![1])),
        ("has(request.path) && !has(request.nosuch)", Ok(vec![1])),
        ("request.size + 1", Ok(13i64.to_le_bytes().to_vec())),
        (
            "request.time > timestamp('2020-01-01T00:00:00Z')",
            Ok(vec![1]),
        ),
        ("request", Err(NO_FORM)),
        ("nosuch", Err(FAILURE)),
        ("mine == b'set'", Ok(vec![1])),
        ("metadata.filter_metadata.ns.key", text("value")),
        ("metadata.filter_metadata.ns == {'a': 1}", Ok(vec![0])),
        ("plugin_name", text("bench")),
        ("1 / 0", Err(FAILURE)),
        ("null", Err(NO_FORM)),
        (
            "duration('1.5s')",
            Ok(1_500_000_000i64.to_le_bytes().to_vec()),
        ),
        (
            "[true]",
            Ok(b"\x01\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0".to_vec()),
        ),
        (
            "string(1234567.5) + string(0.1) + string(duration('1500ms'))",
            text("1.2345675e+060.11.500s"),
        ),
        ("int(' 5') + int(true)", Ok(6i64.to_le_bytes().to_vec())),
        (
            "duration('1.5s').getMilliseconds()",
            Ok(500i64.to_le_bytes().to_vec()),
        ),
        ("'abc'.matches('b') && startsWith('abc', 'a')", Ok(vec![1])),
        ("'abc'.matches('(')", Err(FAILURE)),
        // These do not come into being.
        ("1 +", Err(BAD_ARGUMENT)),
        ("", Err(BAD_ARGUMENT)),
        ("nosuch(1)", Err(BAD_ARGUMENT)),
        ("size()", Err(BAD_ARGUMENT)),
        ("'abc'.lowerAscii()", Err(BAD_ARGUMENT)),
        ("Foo{a: 1}", Err(BAD_ARGUMENT)),
    ] {
        assert_eq!(bench.evaluate(expression), value, "{expression}");
    }
    // Those of a root are known to its streams, and the other way round.
    bench.enter_root();
    let token = bench.foreign("expr_create", b"request.path").expect("made");
    assert_eq!(bench.foreign("expr_evaluate", &token), Err(FAILURE));
    bench.enter_stream(&stream);
    let path = bench.foreign("expr_evaluate", &token);
    assert_eq!(path, text("/path?query#fragment"));
    assert_eq!(bench.foreign("expr_evaluate", b"x"), Err(BAD_ARGUMENT));
}

#[test]
fn expressions_end_whatever_they_are() {
    let mut bench = Bench::new();
    let list = format!("[{}]", ["1"; 50].join(", "));
    let nested = (0..6).fold("true".to_owned(), |inner, n| {
        format!("{list}.all(x{n}, {inner})")
    });
    assert_eq!(bench.evaluate(&nested), Err(FAILURE));
    let mapped = (0..6).fold("1".to_owned(), |inner, n| {
        format!("{list}.map(x{n}, {inner})")
    });
    assert_eq!(bench.evaluate(&mapped), Err(FAILURE));
    for deep in [
        "(".repeat(10_000),
        "-".repeat(10_000),
        "[".repeat(10_000),
        format!("{}1{}", "(".repeat(5_000), ")".repeat(5_000)),
        format!("{}1", "!".repeat(20_000)),
        "1+".repeat(10_000) + "1",
        "a.".repeat(10_000) + "a",
        "a?b:".repeat(5_000) + "c",
        "{1:".repeat(5_000),
    ] {
        // A refusal, or a result: the host goes on.
        let _ = bench.evaluate(&deep);
    }
    let nested = format!("size({}1{}) == 1", "[".repeat(30), "]".repeat(30));
    assert_eq!(bench.evaluate(&nested), Ok(vec![1]));
    assert_eq!(
        bench.evaluate("'a'.matches('(a{1000}){1000}')"),
        Err(FAILURE)
    );
    assert_eq!(bench.evaluate("true"), Ok(vec![1]));
}

/// Each link of the chain makes twice of what it has, which is gigabytes soon.
#[test]
fn expressions_do_not_make_more_than_they_may() {
    let stream = stream(&connection());
    let mut bench = Bench::with_stream(&stream);
    let number = |number: i64| Ok(number.to_le_bytes().to_vec());
    for (first, twice, made) in [
        ("'a'", "x + x", 1024),
        ("b'a'", "x + x", 1024),
        ("['a']", "x + x", 1024),
        ("'a'", "[x, x]", 2),
        ("'a'", "{1: x, 2: x}", 2),
    ] {
        let chain = |links| {
            let links = format!(".map(x, {twice})").repeat(links);
            format!("[{first}]{links}.map(x, size(x))[0]")
        };
        assert_eq!(bench.evaluate(&chain(10)), number(made), "{first} {twice}");
        assert_eq!(bench.evaluate(&chain(45)), Err(FAILURE), "{first} {twice}");
    }
    // Nor by what swallows errors.
    let chain = ".map(x, x + x)".repeat(45);
    let swallowed = format!("['a']{chain}[0] == '' || true");
    assert_eq!(bench.evaluate(&swallowed), Err(FAILURE));
    // Nor of attributes.
    assert_eq!(bench.set("mine", &[b'x'; 16 << 10]), OK);
    let copies = |copies: usize| format!("size([{}])", ["mine"; 2000][..copies].join(","));
    assert_eq!(bench.evaluate(&copies(100)), number(100));
    assert_eq!(bench.evaluate(&copies(2000)), Err(FAILURE));
    let ones = ["1"; 1500].join(",");
    let mapped = |of: &str| format!("size([{ones}].map(x, {of}))");
    assert_eq!(bench.evaluate(&mapped("mine")), Err(FAILURE));
    assert_eq!(bench.evaluate(&mapped("request.path")), number(1500));
    let inner = format!("[mine].exists(m, [{ones}].exists(x, [m].exists(y, false)))");
    assert_eq!(bench.evaluate(&inner), Err(FAILURE));
}

/// What is compiled or read in each step takes seconds, of steps that are few enough.
#[test]
fn expressions_compute_no_longer_than_they_may() {
    let mut bench = Bench::with_stream(&stream(&connection()));
    let ones = (0..1000).map(|number| number.to_string());
    let ones = ones.collect::<Vec<_>>().join(",");
    let patterns = |of: &str| {
        format!("[{ones}].all(x, !'a'.matches('(b|[c-z]{{1,200}}){{1,9}}' + string({of})))")
    };
    assert_eq!(bench.evaluate(&patterns("1")), Ok(vec![1]));
    assert_eq!(bench.evaluate(&patterns("x")), Err(FAILURE));
    assert_eq!(bench.set("mine", &[b'x'; 30 << 10]), OK);
    let texts = |of: &str| {
        let inner = format!("[{ones}].all(x, [1, 2, 3, 4].all(y, !t.matches('x[^x]')))");
        format!("[string({of})].all(t, {inner})")
    };
    assert_eq!(bench.evaluate(&texts("request.path")), Ok(vec![1]));
    assert_eq!(bench.evaluate(&texts("'xxx'")), Ok(vec![1]));
    assert_eq!(bench.evaluate(&texts("mine")), Err(FAILURE));
}

#[test]
fn what_expressions_add_and_keep_is_what_it_is() {
    let mut bench = Bench::new();
    for truth in [
        "1 + 2 == 3 && 1u + 2u == 3u && 1.5 + 1.0 == 2.5",
        "'a' + 'b' + '' == 'ab' && b'a' + b'b' == b'ab'",
        "[1] + ['a'] + [] == [1, 'a']",
        "duration('1s') + duration('2s') == duration('3s')",
        "timestamp('2020-01-01T00:00:00Z') + duration('1s') == timestamp('2020-01-01T00:00:01Z')",
        "duration('1s') + timestamp('2020-01-01T00:00:00Z') == timestamp('2020-01-01T00:00:01Z')",
        "[1, 2, 3].map(x, x + 1) == [2, 3, 4]",
        "[1, 2, 3].map(x, x > 1, [x] + [x]) == [[2, 2], [3, 3]]",
        "[1, 2, 3].filter(x, x != 2) == [1, 3] && {'a': 1}.map(x, x) == ['a']",
        "[1, 2, 3].exists_one(x, x == 2) && [1, 2].all(x, x > 0)",
        "[[1, 2], [3]].map(x, x.map(y, y + size(x))) == [[3, 4], [4]]",
        "{'a' + 'b': [1 + 1]}['ab'][0] == 2",
        "'a' in ['a', 'b'] && !(1 in {'a' + '': 1})",
        "['ab', 'b'].all(x, x.contains('b') && contains(x, 'b') && x.endsWith('b') && x >= 'ab')",
        "['12'].all(x, int(x) == 12 && string(12) == x && size(x) == 2 && x.size() == 2)",
        "['a', 'b'].filter(x, x.matches('^a') || matches(x, 'c')) == ['a']",
        "[{'a': 1}].map(x, x['a'] + x.a) == [2] && ['a'].all(x, x in {'a': 1} && [1][0] == 1)",
        "[duration('61s')].all(x, x.getMinutes() == 1 && has({'a': x}.a))",
    ] {
        assert_eq!(bench.evaluate(truth), Ok(vec![1]), "{truth}");
    }
    for wrong in [
        "1 + 'a' == 1",
        "'a' + 1 == 'a'",
        "1 + 1u == 2",
        "1 + 1.0 == 2",
        "[1] + 1 == [1]",
        "true + true",
        "null + 1",
        "9223372036854775807 + 1",
        "18446744073709551615u + 1u",
        "b'a' + 'a'",
        "[1, 2].map(x, 1, x)",
        "[1, 2].filter(x, x)",
        "1.map(x, x)",
    ] {
        assert_eq!(bench.evaluate(wrong), Err(FAILURE), "{wrong}");
    }
    // A list of which the library would copy all that it has with each element.
    let long = format!("size([{}].map(x, [x, x])) == 5000", ["1"; 5000].join(","));
    assert_eq!(bench.evaluate(&long), Ok(vec![1]));
}

#[test]
fn to_go_on_hides_the_request_alone_and_trailers_are_made_at_the_end_of_a_body() {
    let stream = stream(&connection());
    *stream.response.lock() = Some(crate::http::ResponseHead::new(http::StatusCode::OK));
    let mut bench = Bench::with_stream(&stream);
    let context = |bench: &mut Bench, change: fn(&mut StreamContext)| {
        let streams = &mut bench.store.data_mut().streams;
        change(streams.get_mut(STREAM).expect("there"));
    };
    bench.write(NAME, b"x-a");
    const REQUEST_TRAILERS: i64 = 1;
    const RESPONSE_HEADERS: i64 = 2;
    let get = |bench: &mut Bench, map| {
        let args = [map, NAME as i64, 3, AT, LEN];
        bench
            .call("proxy_get_header_map_value", &args)
            .expect("no trap")
    };
    let add = |bench: &mut Bench, map| {
        let args = [map, NAME as i64, 3, NAME as i64, 3];
        bench
            .call("proxy_add_header_map_value", &args)
            .expect("no trap")
    };
    // Trailers that nobody has made cannot be read, and not be made before the end.
    assert_eq!(add(&mut bench, REQUEST_TRAILERS), BAD_ARGUMENT);
    context(&mut bench, |context| {
        context.may_add_trailers = [true, false]
    });
    assert_eq!(get(&mut bench, REQUEST_TRAILERS), BAD_ARGUMENT);
    assert_eq!(add(&mut bench, REQUEST_TRAILERS), OK);
    assert_eq!(get(&mut bench, REQUEST_TRAILERS), OK);
    context(&mut bench, |context| {
        context.visible.response_headers = true;
    });
    assert_eq!(
        bench.call("proxy_continue_stream", &[1]).expect("no trap"),
        0
    );
    assert_eq!(get(&mut bench, 0), BAD_ARGUMENT);
    assert_eq!(get(&mut bench, REQUEST_TRAILERS), BAD_ARGUMENT);
    assert_eq!(get(&mut bench, RESPONSE_HEADERS), NOT_FOUND);
    // Once the head has gone to the codec, nothing comes of what is done to it.
    stream.set_phase(crate::stream::Phase::Sent);
    assert_eq!(add(&mut bench, RESPONSE_HEADERS), OK);
    let head = stream.response.lock();
    assert!(head.as_ref().expect("there").headers.is_empty());
}

/// A message of `set_envoy_filter_state`.
#[derive(Clone, PartialEq, prost::Message)]
struct Object {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
    #[prost(int32, tag = "3")]
    span: i32,
}

#[test]
fn what_a_stream_and_its_connection_hold_is_bounded() {
    let connection = connection();
    let mut bench = Bench::with_stream(&stream(&connection));
    let memory = bench.store.data().memory.expect("exported");
    memory.grow(&mut bench.store, 32).expect("room");
    let set = |bench: &mut Bench, key: &str, len: usize| {
        let argument = Object {
            key: key.to_owned(),
            value: "v".repeat(len),
            span: 2,
        };
        let argument = prost::Message::encode_to_vec(&argument);
        bench.foreign("set_envoy_filter_state", &argument)
    };
    let most = 1 << 20;
    assert_eq!(set(&mut bench, "envoy.string", most + 1), Err(FAILURE));
    // Of the connection: what its next stream has room for, too.
    for key in ["envoy.string", "envoy.hashable_string", "envoy.string"] {
        assert_eq!(set(&mut bench, key, most), Ok(Vec::new()), "{key}");
    }
    bench.enter_stream(&stream(&connection));
    let value = vec![b'v'; most];
    assert_eq!(bench.set("a", &value), OK);
    assert_eq!(bench.set("b", &value), FAILURE, "four with their names");
    assert_eq!(bench.set("b", &value[..most / 2]), OK);
    assert_eq!(bench.set("b", &value), FAILURE, "it may not grow, either");
    assert_eq!(bench.set("a", b"small"), OK);
    assert_eq!(bench.set("b", &value), OK, "there is room again");
    assert_eq!(bench.set(&"n".repeat(4097), b""), FAILURE);
    assert_eq!(bench.set(&"n".repeat(4096), b""), OK);
    // And how many there are: three are here, and two of the connection.
    for number in 0..995 {
        assert_eq!(bench.set(&number.to_string(), b""), OK, "{number}");
    }
    assert_eq!(bench.set("more", b""), FAILURE);
    assert_eq!(bench.set("a", b"again"), OK);
}

#[test]
fn what_is_declared_is_bounded() {
    for kind in [0, 2, 3] {
        let mut bench = Bench::new();
        let memory = bench.store.data().memory.expect("exported");
        memory.grow(&mut bench.store, 32).expect("room");
        let longest = if kind == 3 { 4096 } else { 1 << 20 };
        for (name, schema, good) in [
            (4096, 0, true),
            (4097, 0, false),
            (1, longest, true),
            (2, longest + 1, false),
        ] {
            let declared = declaration(&"n".repeat(name), |it| {
                (it.kind, it.schema) = (kind, "s".repeat(schema));
            });
            let expected = if good { Ok(Vec::new()) } else { Err(FAILURE) };
            let given = bench.foreign("declare_property", &declared);
            assert_eq!(given, expected, "{kind} {name} {schema}");
        }
    }
}

#[test]
fn the_names_of_queues_are_bounded() {
    let mut bench = Bench::new();
    for (len, status) in [(4096, OK), (4097, FAILURE)] {
        let called = bench.call("proxy_register_shared_queue", &[0, len, 8192]);
        assert_eq!(called.expect("no trap"), status, "{len}");
        let refused = bench.store.data().meter().refused(Quota::Queues);
        assert_eq!(refused, u64::from(status == FAILURE));
    }
}
