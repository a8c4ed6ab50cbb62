//! Properties, filter state and other functions of Envoy's, as a guest asks for them.

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

    fn evaluate(&mut self, text: &str) -> Result<Vec<u8>, u32> {
        let token = self.foreign("expr_create", text.as_bytes())?;
        let result = self.foreign("expr_evaluate", &token);
        self.foreign("expr_delete", &token).expect("always");
        assert_eq!(self.foreign("expr_evaluate", &token), Err(NOT_FOUND));
        result
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

#[path = "expressions.rs"]
mod expressions;
