//! One name from several sources is several resources.

use super::*;

/// Two files that exist.
const A: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
const B: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock");

/// The resource, with what it refers to from a file.
fn from(file: &str, text: &str) -> String {
    text.replace("ads: {}", &format!("path_config_source: {{path: {file}}}"))
}

fn source(file: &str) -> SourceSpecifier {
    SourceSpecifier::Path {
        path: file.into(),
        watched_directory: None,
    }
}

impl Side {
    /// The file has been read, as a source of this type.
    fn load(&mut self, file: &str, kind: ResourceType, resources: &[String]) {
        let mut channels = self.engine.channels.iter();
        let id = channels
            .find(|channel| channel.kind == Some(kind) && channel.source == source(file))
            .map(|channel| channel.id)
            .expect("the file is asked for");
        let response = DiscoveryResponse {
            resources: resources.iter().map(|text| any(kind, text)).collect(),
            ..DiscoveryResponse::default()
        };
        self.engine.loaded(id, Ok(response));
        self.settle();
    }
}

/// A table called `r` that has a name for itself.
fn table(host: &str) -> String {
    format!("{{name: r, virtual_hosts: [{{name: {host}, domains: ['*']}}]}}")
}

#[tokio::test]
async fn routes_of_one_name_are_those_of_their_source() {
    for delta in [false, true] {
        let mut side = at_listeners(delta);
        let two = from(A, &listener("two", "r", ""));
        let three = from(B, &listener("three", "r", ""));
        side.respond(LDS, &[listener("one", "r", ""), two.clone(), three.clone()]);
        side.respond(RDS, &[table("ads")]);
        assert_eq!(side.listeners(), ["one"], "the others wait for their own");
        side.load(A, RDS, &[table("a")]);
        assert_eq!(side.listeners(), ["one", "two"]);
        side.after(5);
        assert_eq!(side.listeners(), ["one", "three", "two"]);
        let host = |side: &Side, source: &SourceSpecifier| {
            let table = side.snapshot.routes.get(source, "r")?;
            Some(table.virtual_hosts[0].name.to_string())
        };
        assert_eq!(host(&side, ADS).as_deref(), Some("ads"));
        assert_eq!(host(&side, &source(A)).as_deref(), Some("a"));
        assert_eq!(host(&side, &source(B)), None, "nothing came in time");
        // An update of one leaves the other alone.
        side.respond(RDS, &[table("new")]);
        assert_eq!(host(&side, ADS).as_deref(), Some("new"));
        assert_eq!(host(&side, &source(A)).as_deref(), Some("a"));
        let dumped = side.engine.status().resources(RDS);
        assert_eq!(dumped.len(), 2);

        // One is let go, the other stays.
        side.said();
        side.respond(LDS, &[two, three]);
        if delta {
            side.remove(LDS, "one");
        }
        let unsubscribed = if delta { "rds +[] -[r]" } else { "rds [] ok" };
        assert!(side.said().contains(&unsubscribed.to_owned()));
        assert_eq!(host(&side, ADS), None);
        assert_eq!(host(&side, &source(A)).as_deref(), Some("a"));
        assert_eq!(side.engine.status().resources(RDS).len(), 1);
    }
}

#[tokio::test]
async fn a_listener_that_moves_to_another_source_serves_as_before_until_that_has_answered() {
    let mut side = at_listeners(false);
    side.respond(LDS, &[listener("l", "r", "")]);
    side.respond(RDS, &[table("ads")]);
    let before = Arc::clone(&side.snapshot.listeners["l"]);
    side.respond(LDS, &[from(A, &listener("l", "r", ""))]);
    assert!(Arc::ptr_eq(&side.snapshot.listeners["l"], &before));
    assert!(side.snapshot.routes.get(ADS, "r").is_some());
    side.load(A, RDS, &[table("a")]);
    assert!(!Arc::ptr_eq(&side.snapshot.listeners["l"], &before));
    assert!(side.snapshot.routes.get(&source(A), "r").is_some());
    assert!(side.snapshot.routes.get(ADS, "r").is_none());
    // And back: the file is closed with the last who refers to it.
    side.respond(LDS, &[listener("l", "r", "")]);
    side.respond(RDS, &[table("ads")]);
    assert!(side.snapshot.routes.get(ADS, "r").is_some());
    assert_eq!(side.engine.channels.len(), 1);
    assert_eq!(side.engine.cache.read().tables(RDS).len(), 1);
}

#[tokio::test]
async fn endpoints_of_one_name_are_those_of_their_source() {
    let mut side = Side::new(options(false));
    side.respond(
        CDS,
        &[cluster("one", "e", 15), from(A, &cluster("two", "e", 15))],
    );
    side.respond(EDS, &["{cluster_name: e}".to_owned()]);
    assert_eq!(side.clusters(), ["one"]);
    let weighted = "{cluster_name: e, policy: {overprovisioning_factor: 150}}";
    side.load(A, EDS, &[weighted.to_owned()]);
    assert_eq!(side.clusters(), ["one", "two"]);
    let factor = |source: &SourceSpecifier| {
        let endpoints = side.snapshot.endpoints.get(source, "e").expect("there");
        endpoints.overprovisioning_factor
    };
    assert_eq!((factor(ADS), factor(&source(A))), (140, 150));
}

#[tokio::test]
async fn filters_of_one_name_are_those_of_their_source_and_so_are_the_types_that_are_allowed() {
    let buffer = "buffer.v3.Buffer";
    let filter = |type_name: &str| {
        format!(
            "{{name: f, config_discovery: {{config_source: {{ads: {{}}, initial_fetch_timeout: 5s}}, \
             type_urls: [type.googleapis.com/envoy.extensions.filters.http.{type_name}]}}}},"
        )
    };
    let config = |type_name: &str| {
        format!(
            "{{name: f, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.{type_name}}}}}"
        )
    };
    let mut side = at_listeners(false);
    let two = listener("two", "s", &filter(buffer));
    let two = two.replace(
        "config_discovery: {config_source: {ads: {}",
        &format!("config_discovery: {{config_source: {{path_config_source: {{path: {A}}}"),
    );
    side.respond(LDS, &[listener("one", "r", &filter("cors.v3.Cors")), two]);
    side.respond(RDS, &[route("r"), route("s")]);
    side.said();
    side.respond(ECDS, &[config("cors.v3.Cors")]);
    assert_eq!(side.said(), ["ecds [f] ok"]);
    side.load(A, ECDS, &[config(buffer)]);
    assert_eq!(side.listeners(), ["one", "two"]);
    let type_of = |source: &SourceSpecifier| {
        let config = side.snapshot.extensions.get(source, "f").expect("there");
        pb::type_name(&config.type_url).to_owned()
    };
    assert!(type_of(ADS).ends_with("cors.v3.Cors"));
    assert!(type_of(&source(A)).ends_with(buffer));
    // The other's type is not this one's.
    side.respond(ECDS, &[config(buffer)]);
    assert!(side.said()[0].contains(" !"));
}

#[tokio::test]
async fn what_was_judged_for_a_source_that_nobody_needs_any_more_leaves_nothing_behind() {
    let options = Options {
        cds: None,
        ..options(false)
    };
    let mut side = Side::with(options, Arc::new(RoutesLater));
    side.respond(LDS, &[from(A, &listener("l", "r", ""))]);
    side.load(A, RDS, &[table("a"), "{name: ''}".to_owned()]);
    let asked = std::mem::take(&mut side.asked);
    side.respond(LDS, &[]);
    side.engine.admitted(asked[0], &[], side.now);
    side.settle();
    assert!(side.engine.status().resources(RDS).is_empty());
    assert!(side.engine.cache.read().tables(RDS).is_empty());
}

#[tokio::test]
async fn a_replaced_listener_is_remembered_while_it_is_served() {
    let mut side = at_listeners(false);
    side.respond(LDS, &[listener("l", "r", "")]);
    side.respond(RDS, &[route("r"), route("s")]);
    let served = Arc::clone(&side.snapshot.listeners["l"]);
    side.respond(LDS, &[listener("l", "s", "")]);
    side.respond(RDS, &[route("r"), route("s")]);
    let status = side.engine.status();
    let state = status.replaced_listener("l", &served).expect("remembered");
    assert_eq!(&*state.version, "1");
    status.forget_replaced();
    assert!(status.replaced_listener("l", &served).is_some());
    let now = Arc::clone(&side.snapshot.listeners["l"]);
    assert!(
        status.replaced_listener("l", &now).is_none(),
        "it is active"
    );
    drop(served);
    status.forget_replaced();
    let cache = side.engine.cache.read();
    assert!(
        cache
            .sole(LDS, "l")
            .is_some_and(|entry| entry.replaced.is_empty())
    );
}
