//! The protocol's rules, one by one, without a socket.

use super::*;
use pb::envoy::config::cluster::v3::Cluster;
use pb::envoy::config::core::v3::TypedExtensionConfig;
use pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use pb::envoy::config::route::v3::RouteConfiguration;

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::Endpoints;
const RDS: ResourceType = ResourceType::Route;
const ECDS: ResourceType = ResourceType::Extension;

fn names(names: &[&str]) -> BTreeSet<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

fn any_of(kind: ResourceType, name: &str) -> pb::Any {
    match kind {
        CDS => pb::pack(&Cluster {
            name: name.to_owned(),
            ..Cluster::default()
        }),
        RDS => pb::pack(&RouteConfiguration {
            name: name.to_owned(),
            ..RouteConfiguration::default()
        }),
        ECDS => pb::pack(&TypedExtensionConfig {
            name: name.to_owned(),
            ..TypedExtensionConfig::default()
        }),
        _ => pb::pack(&ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            ..ClusterLoadAssignment::default()
        }),
    }
}

fn sotw(kind: ResourceType, version: &str, nonce: &str, names: &[&str]) -> Response {
    Response::Sotw(DiscoveryResponse {
        version_info: version.to_owned(),
        nonce: nonce.to_owned(),
        type_url: kind.type_url().to_owned(),
        resources: names.iter().map(|name| any_of(kind, name)).collect(),
        ..DiscoveryResponse::default()
    })
}

fn delta(
    kind: ResourceType,
    nonce: &str,
    resources: &[(&str, &str)],
    removed: &[&str],
) -> Response {
    Response::Delta(DeltaDiscoveryResponse {
        nonce: nonce.to_owned(),
        type_url: kind.type_url().to_owned(),
        resources: resources
            .iter()
            .map(|(name, version)| Resource {
                name: (*name).to_owned(),
                version: (*version).to_owned(),
                resource: Some(any_of(kind, name)),
                ..Resource::default()
            })
            .collect(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    })
}

fn conversation(encoding: Encoding) -> Conversation {
    let node = pb::Node {
        id: "n".to_owned(),
        ..pb::Node::default()
    };
    Conversation::new(encoding, node, true)
}

fn open(encoding: Encoding) -> Conversation {
    let mut conversation = conversation(encoding);
    conversation.opened(|_, _| true);
    conversation
}

/// Requests as one line each: `cds [names] v=version n=nonce !error +node`.
fn said(conversation: &mut Conversation) -> Vec<String> {
    conversation
        .take_requests()
        .map(|request| match request {
            Request::Sotw(request) => {
                let kind = ResourceType::of_url(&request.type_url).unwrap();
                let mut line = format!("{kind} [{}]", request.resource_names.join(","));
                line += &format!(" v={} n={}", request.version_info, request.response_nonce);
                finish(line, request.error_detail, request.node)
            }
            Request::Delta(mut request) => {
                let kind = ResourceType::of_url(&request.type_url).unwrap();
                let mut line = kind.to_string();
                for (sign, names) in [
                    ('+', &request.resource_names_subscribe),
                    ('-', &request.resource_names_unsubscribe),
                ] {
                    for name in names {
                        line += &format!(" {sign}{name}");
                    }
                }
                let mut held: Vec<_> = request.initial_resource_versions.drain().collect();
                held.sort();
                for (name, version) in held {
                    line += &format!(" {name}@{version}");
                }
                line += &format!(" n={}", request.response_nonce);
                finish(line, request.error_detail, request.node)
            }
        })
        .collect()
}

fn finish(
    mut line: String,
    error: Option<pb::google::rpc::Status>,
    node: Option<pb::Node>,
) -> String {
    if let Some(error) = error {
        assert_eq!(error.code, 13);
        line += &format!(" !{}", error.message);
    }
    if let Some(node) = node {
        line += &format!(" +{}", node.id);
    }
    line
}

fn judge(conversation: &mut Conversation) -> Update {
    conversation.next_update().expect("a response to judge")
}

fn update_names(update: &Update) -> Vec<&str> {
    update
        .resources
        .iter()
        .map(|resource| &*resource.name)
        .collect()
}

#[test]
fn the_first_requests_go_out_in_order_and_only_the_first_names_the_node() {
    let mut stream = conversation(Encoding::Sotw);
    stream.want(ResourceType::Route, names(&["r"]));
    stream.want(EDS, names(&["b", "a"]));
    stream.want(CDS, names(&["*"]));
    assert!(said(&mut stream).is_empty(), "not open yet");
    stream.opened(|_, _| true);
    assert_eq!(
        said(&mut stream),
        ["cds [] v= n= +n", "eds [a,b] v= n=", "rds [r] v= n="]
    );
}

#[test]
fn the_node_goes_out_with_each_request_where_it_must() {
    let mut stream = Conversation::new(
        Encoding::Delta,
        pb::Node {
            id: "n".to_owned(),
            ..pb::Node::default()
        },
        false,
    );
    stream.opened(|_, _| true);
    stream.want(CDS, names(&["*"]));
    stream.want(EDS, names(&["a"]));
    assert_eq!(said(&mut stream), ["cds n= +n", "eds +a n= +n"]);
}

#[test]
fn an_acknowledgement_carries_the_version_the_nonce_and_every_name() {
    let mut stream = open(Encoding::Sotw);
    stream.want(EDS, names(&["a", "b"]));
    said(&mut stream);
    assert!(stream.receive(sotw(EDS, "1", "x", &["a"])));
    let update = judge(&mut stream);
    assert_eq!(update_names(&update), ["a"]);
    assert!(!update.full_state, "what EDS leaves out is unchanged");
    stream.answer(EDS, Ok(()));
    assert_eq!(said(&mut stream), ["eds [a,b] v=1 n=x"]);
}

#[test]
fn a_refusal_carries_the_old_version_and_the_new_nonce() {
    let mut stream = open(Encoding::Sotw);
    stream.want(CDS, names(&["*"]));
    said(&mut stream);
    stream.receive(sotw(CDS, "1", "x", &["a"]));
    judge(&mut stream);
    stream.answer(CDS, Ok(()));
    stream.receive(sotw(CDS, "2", "y", &["a"]));
    assert!(
        judge(&mut stream).full_state,
        "what CDS leaves out is deleted"
    );
    stream.answer(CDS, Err("a: lb_policy: no".to_owned()));
    assert_eq!(
        said(&mut stream),
        ["cds [] v=1 n=x", "cds [] v=1 n=y !a: lb_policy: no"]
    );
}

#[test]
fn one_response_of_a_type_is_judged_at_a_time_and_each_is_answered_in_order() {
    let mut stream = open(Encoding::Sotw);
    stream.want(CDS, names(&["*"]));
    stream.want(EDS, names(&["a"]));
    said(&mut stream);
    stream.receive(sotw(CDS, "1", "x", &["a"]));
    stream.receive(sotw(CDS, "2", "y", &["a"]));
    stream.receive(sotw(EDS, "7", "z", &["a"]));
    assert_eq!(&*judge(&mut stream).version, "1");
    assert_eq!(&*judge(&mut stream).version, "7", "other types go on");
    assert!(stream.next_update().is_none(), "version 2 waits for 1");
    stream.answer(EDS, Ok(()));
    stream.answer(CDS, Err("no".to_owned()));
    assert_eq!(&*judge(&mut stream).version, "2");
    stream.answer(CDS, Ok(()));
    assert_eq!(
        said(&mut stream),
        ["eds [a] v=7 n=z", "cds [] v= n=x !no", "cds [] v=2 n=y"]
    );
}

#[test]
fn names_that_change_under_judgement_go_out_with_the_answer_and_never_with_a_stale_nonce() {
    let mut stream = open(Encoding::Sotw);
    stream.want(EDS, names(&["a"]));
    said(&mut stream);
    stream.receive(sotw(EDS, "1", "x", &["a"]));
    stream.want(EDS, names(&["a", "b"]));
    judge(&mut stream);
    stream.want(EDS, names(&["a", "b", "c"]));
    assert!(said(&mut stream).is_empty(), "the nonce x is not answered");
    stream.answer(EDS, Ok(()));
    assert_eq!(said(&mut stream), ["eds [a,b,c] v=1 n=x"]);
    stream.want(EDS, names(&["c"]));
    assert_eq!(
        said(&mut stream),
        ["eds [c] v=1 n=x"],
        "the nonce x is current"
    );
}

#[test]
fn the_last_name_gone_unsubscribes() {
    let mut stream = open(Encoding::Sotw);
    stream.want(EDS, names(&[]));
    assert!(
        said(&mut stream).is_empty(),
        "an empty first request would ask for all"
    );
    stream.want(EDS, names(&["a"]));
    stream.want(EDS, names(&[]));
    stream.want(EDS, names(&["b"]));
    assert_eq!(
        said(&mut stream),
        ["eds [a] v= n= +n", "eds [] v= n=", "eds [b] v= n="]
    );
}

#[test]
fn a_wildcard_is_empty_until_a_name_was_sent() {
    let mut stream = open(Encoding::Sotw);
    for wanted in [&["*"][..], &["*", "a"], &["*"], &["a"]] {
        stream.want(CDS, names(wanted));
    }
    assert_eq!(
        said(&mut stream),
        [
            "cds [] v= n= +n",
            "cds [*,a] v= n=",
            "cds [*] v= n=",
            "cds [a] v= n="
        ]
    );
    let mut stream = open(Encoding::Delta);
    for wanted in [&["*"][..], &["*", "a"], &["*"], &["a"]] {
        stream.want(CDS, names(wanted));
    }
    assert_eq!(
        said(&mut stream),
        ["cds n= +n", "cds +a n=", "cds -a n=", "cds +a -* n="]
    );
}

#[test]
fn a_new_stream_begins_anew_with_the_accepted_version() {
    let mut stream = open(Encoding::Sotw);
    stream.want(CDS, names(&["*"]));
    stream.want(EDS, names(&["a", "b"]));
    for kind in [CDS, EDS] {
        stream.receive(sotw(kind, "1", "x", &["a"]));
        judge(&mut stream);
        stream.answer(kind, Ok(()));
    }
    stream.receive(sotw(CDS, "2", "y", &["a"]));
    judge(&mut stream);
    stream.closed();
    stream.want(EDS, names(&["a"]));
    stream.answer(CDS, Ok(()));
    assert!(
        said(&mut stream).is_empty(),
        "nothing is said to a stream that is gone"
    );
    stream.opened(|_, name| name == "a");
    assert_eq!(said(&mut stream), ["cds [] v=1 n= +n", "eds [a] v=1 n="]);
}

#[test]
fn a_version_is_not_claimed_where_a_wanted_name_is_not_held() {
    let mut stream = open(Encoding::Sotw);
    stream.want(EDS, names(&["a"]));
    stream.receive(sotw(EDS, "1", "x", &["a"]));
    judge(&mut stream);
    stream.answer(EDS, Ok(()));
    stream.closed();
    stream.want(EDS, names(&["a", "b"]));
    said(&mut stream);
    stream.opened(|_, name| name == "a");
    assert_eq!(said(&mut stream), ["eds [a,b] v= n= +n"]);
}

#[test]
fn a_delta_answer_is_a_nonce_and_a_subscription_change_has_none() {
    let mut stream = open(Encoding::Delta);
    stream.want(EDS, names(&["a", "b"]));
    stream.receive(delta(EDS, "x", &[("a", "1")], &[]));
    judge(&mut stream);
    stream.want(EDS, names(&["b", "c"]));
    stream.answer(EDS, Ok(()));
    stream.receive(delta(EDS, "y", &[("c", "1")], &[]));
    judge(&mut stream);
    stream.answer(EDS, Err("c: no".to_owned()));
    assert_eq!(
        said(&mut stream),
        [
            "eds +a +b n= +n",
            "eds +c -a n=",
            "eds n=x",
            "eds n=y !c: no"
        ]
    );
}

#[test]
fn after_a_reconnect_only_acknowledged_versions_are_claimed() {
    let mut stream = open(Encoding::Delta);
    stream.want(CDS, names(&["*"]));
    stream.want(EDS, names(&["a", "b"]));
    stream.receive(delta(
        CDS,
        "1",
        &[("a", "1"), ("b", "1"), ("gone", "1")],
        &[],
    ));
    judge(&mut stream);
    stream.answer(CDS, Ok(()));
    stream.receive(delta(CDS, "2", &[("b", "2"), ("c", "2")], &["gone"]));
    let update = judge(&mut stream);
    assert_eq!(update.removed, [Arc::from("gone")]);
    stream.answer(CDS, Err("c: no".to_owned()));
    stream.receive(delta(EDS, "3", &[("a", "5"), ("b", "5")], &[]));
    judge(&mut stream);
    stream.answer(EDS, Ok(()));
    stream.receive(delta(EDS, "4", &[("a", "6")], &[]));
    judge(&mut stream);
    said(&mut stream);
    stream.closed();
    stream.answer(EDS, Ok(()));
    stream.want(EDS, names(&["a"]));
    stream.want(EDS, names(&["a", "b"]));
    stream.opened(|_, _| true);
    assert_eq!(
        said(&mut stream),
        ["cds a@1 b@1 n= +n", "eds +a +b a@5 n=",],
        "b was let go in between"
    );
}

#[test]
fn what_was_never_asked_for_is_ignored() {
    let mut stream = open(Encoding::Sotw);
    stream.want(CDS, names(&["*"]));
    said(&mut stream);
    assert!(!stream.receive(sotw(EDS, "1", "x", &["a"])));
    assert!(!stream.receive(Response::Sotw(DiscoveryResponse {
        type_url: "type.googleapis.com/unknown".to_owned(),
        ..DiscoveryResponse::default()
    })));
    assert!(stream.next_update().is_none());
    assert!(said(&mut stream).is_empty());
}

#[test]
fn what_cannot_be_read_deletes_nothing_and_spares_its_neighbours() {
    let good = any_of(CDS, "good");
    let wrong_type = any_of(EDS, "wrong");
    let malformed = pb::Any {
        value: b"\x0a\x05ab".to_vec(),
        ..good.clone()
    };
    let nameless = any_of(CDS, "");
    for (bad, reason) in [
        (
            wrong_type,
            "resources[1]: expected type.googleapis.com/envoy.config.cluster.v3.Cluster",
        ),
        (malformed, "resources[1]: malformed message"),
        (nameless, "resources[1].name: "),
        (any_of(CDS, "good"), "duplicate cluster found"),
    ] {
        let update = Update::of_sotw(
            CDS,
            DiscoveryResponse {
                resources: vec![good.clone(), bad],
                ..DiscoveryResponse::default()
            },
        );
        assert_eq!(update_names(&update), ["good"]);
        let [(_, _, error)] = &update.unreadable[..] else {
            panic!("one is unreadable: {update:?}");
        };
        assert!(error.to_string().starts_with(reason), "{error}");
        assert!(!update.full_state);
    }
}

#[test]
fn of_a_resource_sent_twice_by_name_the_first_counts_in_a_state_of_the_world() {
    let (first, second) = (any_of(EDS, "a"), any_of(EDS, "a"));
    let update = Update::of_sotw(
        EDS,
        DiscoveryResponse {
            resources: vec![first, second],
            ..DiscoveryResponse::default()
        },
    );
    assert_eq!(update_names(&update), ["a"]);
    assert!(update.unreadable.is_empty());
}

#[test]
fn a_listener_without_a_name_is_given_one_that_stays() {
    use pb::envoy::config::listener::v3::Listener;
    let of = |prefix: &str| {
        pb::pack(&Listener {
            stat_prefix: prefix.to_owned(),
            ..Listener::default()
        })
    };
    let sotw = |listeners: Vec<pb::Any>| {
        let response = DiscoveryResponse {
            resources: listeners,
            ..DiscoveryResponse::default()
        };
        Update::of_sotw(ResourceType::Listener, response)
    };
    let update = sotw(vec![of("a"), of("b")]);
    assert!(update.unreadable.is_empty(), "{update:?}");
    let names = update_names(&update);
    assert_eq!(names.len(), 2);
    assert_ne!(names[0], names[1]);
    assert!(uuid::Uuid::parse_str(names[0]).is_ok(), "{names:?}");
    for (received, prefix) in update.resources.iter().zip(["a", "b"]) {
        let body = received.body.clone().expect("a body");
        let listener = <Listener as prost::Message>::decode(body).expect("a listener");
        assert_eq!(
            (&*listener.name, &*listener.stat_prefix),
            (&*received.name, prefix)
        );
    }
    // It is the same listener for as long as it says the same.
    assert_eq!(update_names(&sotw(vec![of("b")])), names[1..]);

    let update = Update::of_delta(
        ResourceType::Listener,
        DeltaDiscoveryResponse {
            resources: vec![Resource {
                name: "outer".to_owned(),
                resource: Some(of("a")),
                ..Resource::default()
            }],
            ..DeltaDiscoveryResponse::default()
        },
    );
    assert_eq!(update_names(&update), ["outer"]);
    let body = update.resources[0].body.clone().expect("a body");
    let listener = <Listener as prost::Message>::decode(body).expect("a listener");
    assert_eq!(listener.name, "outer");
    // Nothing else goes without.
    let update = Update::of_sotw(
        CDS,
        DiscoveryResponse {
            resources: vec![any_of(CDS, "")],
            ..DiscoveryResponse::default()
        },
    );
    assert_eq!(update.unreadable.len(), 1);
}

#[test]
fn what_a_delta_adds_and_removes_at_once_stays_and_is_refused() {
    let update = Update::of_delta(
        CDS,
        DeltaDiscoveryResponse {
            resources: vec![Resource {
                name: "b".to_owned(),
                resource: Some(any_of(CDS, "b")),
                ..Resource::default()
            }],
            removed_resources: vec!["b".to_owned(), "c".to_owned()],
            ..DeltaDiscoveryResponse::default()
        },
    );
    assert_eq!(update_names(&update), ["b"]);
    assert_eq!(update.removed, ["c".into()]);
    let [(name, _, error)] = &update.unreadable[..] else {
        panic!("one is refused: {update:?}");
    };
    assert_eq!(
        (&**name, error.to_string().as_str()),
        (
            "b",
            "duplicate name b found in the union of added+removed resources"
        )
    );
}

#[test]
fn wrapped_resources_are_unwrapped_and_a_heartbeat_has_no_body() {
    let wrap = |resource: Option<pb::Any>| {
        pb::pack(&Resource {
            name: "outer".to_owned(),
            version: "9".to_owned(),
            resource,
            ..Resource::default()
        })
    };
    for (resource, body) in [(Some(any_of(EDS, "outer")), true), (None, false)] {
        let update = Update::of_sotw(
            EDS,
            DiscoveryResponse {
                version_info: "1".to_owned(),
                resources: vec![wrap(resource)],
                ..DiscoveryResponse::default()
            },
        );
        let [received] = &update.resources[..] else {
            panic!("{update:?}");
        };
        assert_eq!(&*received.name, "outer");
        assert_eq!(&*received.version, "9");
        assert_eq!(received.body.is_some(), body);
    }
}

#[test]
fn a_wrapper_does_not_rename_what_it_wraps() {
    for (kind, inner, named, refused) in [
        (CDS, "inner", Some("inner"), None),
        (CDS, "", Some("outer"), None),
        (EDS, "outer", Some("outer"), None),
        (EDS, "", Some("outer"), None),
        (
            EDS,
            "inner",
            None,
            Some("Unexpected EDS cluster (expecting outer): inner"),
        ),
        (RDS, "outer", Some("outer"), None),
        (
            RDS,
            "inner",
            None,
            Some("Unexpected RDS configuration (expecting outer): inner"),
        ),
        (ECDS, "outer", Some("outer"), None),
        (
            ECDS,
            "inner",
            None,
            Some("Unexpected resource name in ExtensionConfigDS response: inner"),
        ),
    ] {
        let wrapped = Resource {
            name: "outer".to_owned(),
            resource: Some(any_of(kind, inner)),
            ..Resource::default()
        };
        let sotw = Update::of_sotw(
            kind,
            DiscoveryResponse {
                resources: vec![pb::pack(&wrapped)],
                ..DiscoveryResponse::default()
            },
        );
        let delta = Update::of_delta(
            kind,
            DeltaDiscoveryResponse {
                resources: vec![wrapped],
                ..DeltaDiscoveryResponse::default()
            },
        );
        for update in [sotw, delta] {
            let name = update.resources.first().map(|received| &*received.name);
            assert_eq!(name, named, "{kind} {inner}");
            let error = update.unreadable.first().map(|(name, _, error)| {
                assert_eq!(&**name, "outer");
                error.to_string()
            });
            assert_eq!(error.as_deref(), refused, "{kind} {inner}");
        }
    }
}

#[test]
fn a_removal_that_was_not_answered_is_said_again() {
    let mut stream = open(Encoding::Delta);
    stream.want(CDS, names(&["*"]));
    stream.receive(delta(CDS, "1", &[("a", "1"), ("b", "1")], &[]));
    judge(&mut stream);
    stream.answer(CDS, Ok(()));
    stream.receive(delta(CDS, "2", &[("c", "1")], &["b"]));
    judge(&mut stream);
    said(&mut stream);
    stream.closed();
    stream.opened(|_, _| true);
    assert_eq!(
        said(&mut stream),
        ["cds a@1 b@1 n= +n"],
        "the server hears that b is still held"
    );
}
