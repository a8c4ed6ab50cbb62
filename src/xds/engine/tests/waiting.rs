//! What is waited for, and for how long.

use super::*;

#[tokio::test]
async fn listeners_are_asked_for_once_the_clusters_are_warm() {
    let mut side = Side::new(options(false));
    assert_eq!(side.said(), ["cds []"]);
    side.respond(CDS, &[cluster("a", "e", 15), cluster("b", "f", 15)]);
    assert_eq!(
        side.said(),
        ["eds [e,f]", "cds [] ok"],
        "all names at once, and first"
    );
    assert_eq!(side.clusters(), [] as [&str; 0]);
    assert_eq!(side.stat("cluster_manager.warming_clusters"), 2);
    side.respond(EDS, &["{cluster_name: e}".to_owned()]);
    assert_eq!(side.said(), ["eds [e,f] ok"]);
    assert_eq!(side.clusters(), ["a"], "each as it becomes warm");
    assert_eq!(side.engine.progress(), Progress::Clusters);
    side.respond(EDS, &["{cluster_name: f}".to_owned()]);
    assert_eq!(side.said(), ["eds [e,f] ok", "lds []"]);
    assert_eq!(side.engine.progress(), Progress::Listeners);
    side.respond(LDS, &[listener("l", "r", "")]);
    assert_eq!(side.said(), ["rds [r]", "lds [] ok"]);
    assert_eq!(side.listeners(), [] as [&str; 0]);
    assert_eq!(side.engine.status().unready().len(), 1);
    side.respond(RDS, &[route("r")]);
    assert_eq!(side.listeners(), ["l"]);
    assert_eq!(side.engine.progress(), Progress::Ready);
    assert!(side.engine.status().unready().is_empty());
    side.respond(CDS, &[cluster("a", "e", 15), cluster("c", "g", 15)]);
    assert_eq!(
        side.said(),
        ["rds [r] ok", "eds [e,g] ok", "cds [] ok"],
        "what was let go and what is new, in one request"
    );
    assert_eq!(side.clusters(), ["a"]);
    assert_eq!(
        side.engine.progress(),
        Progress::Ready,
        "it never goes back"
    );
}

#[tokio::test]
async fn waiting_ends_with_its_time_and_no_time_is_for_ever() {
    let mut side = Side::new(options(false));
    side.after(14);
    assert_eq!(side.engine.progress(), Progress::Clusters);
    side.after(1);
    assert_eq!(side.stat("cluster_manager.cds.init_fetch_timeout"), 1);
    assert_eq!(
        side.said(),
        ["cds []", "lds []"],
        "CDS was given up for now"
    );
    side.after(15);
    assert_eq!(side.engine.progress(), Progress::Ready);
    side.respond(CDS, &[cluster("patient", "p", 0), cluster("hasty", "h", 3)]);
    side.after(3);
    assert_eq!(side.clusters(), ["hasty"]);
    assert_eq!(side.stat("cluster.h.init_fetch_timeout"), 1);
    side.after(3600);
    assert_eq!(side.clusters(), ["hasty"]);
    side.respond(EDS, &["{cluster_name: p}".to_owned()]);
    assert_eq!(side.clusters(), ["hasty", "patient"]);

    let mut side = Side::new(Options {
        cds: Some(ads(0)),
        ..options(false)
    });
    side.after(100_000);
    assert_eq!(side.engine.progress(), Progress::Clusters);
}

#[tokio::test]
async fn a_listener_whose_routes_never_come_goes_without() {
    let mut side = at_listeners(false);
    side.respond(LDS, &[listener("l", "r", "")]);
    side.after(5);
    assert_eq!(side.listeners(), ["l"]);
    assert!(side.snapshot.routes.is_empty());
    assert_eq!(side.stat("http.in.rds.r.init_fetch_timeout"), 1);
}

#[tokio::test]
async fn refused_routes_end_the_first_wait_but_replace_nothing() {
    let bad = "{name: r, virtual_hosts: [{name: a, domains: ['*']}, {name: b, domains: ['*']}]}";
    let mut side = at_listeners(false);
    side.respond(LDS, &[listener("l", "r", "")]);
    side.respond(RDS, &[bad.to_owned()]);
    assert!(side.said().last().unwrap().contains("!r: "));
    assert_eq!(side.listeners(), ["l"], "as in Envoy");
    side.respond(RDS, &[route("r")]);
    let served = Arc::clone(&side.snapshot.listeners["l"]);
    side.respond(LDS, &[listener("l", "s", "")]);
    side.respond(RDS, &[bad.replace("name: r", "name: s")]);
    assert!(Arc::ptr_eq(&side.snapshot.listeners["l"], &served));
    assert!(
        side.snapshot.routes.get(ADS, "r").is_some(),
        "what it serves stays"
    );
    side.respond(RDS, &[route("s")]);
    assert!(!Arc::ptr_eq(&side.snapshot.listeners["l"], &served));
    assert_eq!(side.snapshot.routes.len(), 1);
    assert_eq!(
        side.said().last().unwrap(),
        "rds [s] ok",
        "and the old ones are let go"
    );
}

#[tokio::test]
async fn what_does_not_exist_is_not_waited_for() {
    let mut side = Side::new(options(true));
    side.respond(CDS, &[cluster("a", "e", 0)]);
    side.remove(EDS, "e");
    assert_eq!(side.clusters(), ["a"]);
    assert!(side.snapshot.endpoints.is_empty());
    assert_eq!(side.engine.progress(), Progress::Listeners);
    side.respond(EDS, &["{cluster_name: e}".to_owned()]);
    assert_eq!(side.snapshot.endpoints.len(), 1);
    side.remove(EDS, "e");
    assert_eq!(
        side.snapshot.endpoints.len(),
        1,
        "endpoints in use outlive their removal"
    );
    side.remove(CDS, "a");
    assert!(side.clusters().is_empty());
    assert!(side.snapshot.endpoints.is_empty());
    assert_eq!(side.said().last().unwrap(), "cds +[] -[]");
}

#[tokio::test]
async fn a_cluster_may_say_not_to_wait_for_it() {
    let eager =
        cluster("s", "e", 0).replace("type: EDS", "type: EDS, wait_for_warm_on_init: false");
    let side = Side::new(Options {
        cds: None,
        static_clusters: vec![parse_cluster(&eager)],
        ..options(false)
    });
    assert_eq!(side.engine.progress(), Progress::Listeners);
    assert!(side.clusters().is_empty());
}

#[tokio::test]
async fn a_deadline_is_that_of_its_own_subscription() {
    let mut side = at_listeners(false);
    side.respond(LDS, &[listener("l", "r", "")]);
    side.after(3);
    side.respond(LDS, &[listener("l", "r2", "")]);
    side.respond(LDS, &[listener("l", "r", "")]);
    side.after(3);
    assert_eq!(side.stat("http.in.rds.r.init_fetch_timeout"), 0);
    assert!(side.listeners().is_empty());
    side.after(2);
    assert_eq!(side.stat("http.in.rds.r.init_fetch_timeout"), 1);
    assert_eq!(side.listeners(), ["l"]);
}

fn file() -> ConfigSource {
    ConfigSource {
        specifier: SourceSpecifier::Path {
            path: concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into(),
            watched_directory: None,
        },
        initial_fetch_timeout: Some(Duration::from_secs(15)),
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_or_lacks_a_name_is_not_waited_for() {
    let mut side = Side::new(Options {
        cds: Some(file()),
        ..Options::default()
    });
    assert_eq!(side.engine.progress(), Progress::Clusters);
    side.engine.loaded(side.channel, Err("no YAML".to_owned()));
    side.settle();
    assert_eq!(side.engine.progress(), Progress::Ready);
    assert_eq!(side.stat("cluster_manager.cds.update_failure"), 1);
    assert_eq!(side.stat("cluster_manager.cds.update_rejected"), 0);

    let mut eds = (*parse_cluster(&cluster("a", "e", 15))).clone();
    eds.discovery = crate::config::cluster::Discovery::Eds {
        service_name: "e".into(),
        source: file(),
    };
    let mut side = Side::new(Options {
        static_clusters: vec![Arc::new(eds)],
        ..Options::default()
    });
    assert_eq!(side.engine.progress(), Progress::Clusters);
    let response = DiscoveryResponse {
        resources: vec![any(EDS, "{cluster_name: other}")],
        ..DiscoveryResponse::default()
    };
    side.engine.loaded(side.channel, Ok(response));
    side.settle();
    assert_eq!(side.engine.progress(), Progress::Ready);
    assert_eq!(side.clusters(), ["a"]);
    assert_eq!(side.stat("cluster.e.init_fetch_timeout"), 0);
}

#[tokio::test]
async fn an_update_that_cannot_be_read_is_refused_for_all_who_wait() {
    let mut side = at_listeners(false);
    side.respond(LDS, &[listener("l", "r", "")]);
    assert!(side.listeners().is_empty(), "waits for its routes");
    let broken = pb::Any {
        type_url: RDS.type_url().to_owned(),
        value: vec![0x0a, 0xff],
    };
    side.engine.received(
        side.channel,
        Response::Sotw(DiscoveryResponse {
            version_info: "9".to_owned(),
            nonce: "9".to_owned(),
            type_url: RDS.type_url().to_owned(),
            resources: vec![broken],
            ..DiscoveryResponse::default()
        }),
    );
    side.settle();
    assert_eq!(side.stat("http.in.rds.r.update_rejected"), 1);
    assert_eq!(side.listeners(), ["l"], "as if it had been refused by name");
}
