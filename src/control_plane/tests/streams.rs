//! Streams that break, and responses that cannot be read or come in a burst.

use super::*;

#[tokio::test]
async fn an_outage_changes_nothing_and_a_restart_resends_nothing_that_is_held() {
    for mode in MODES {
        let mut world = World::new(mode).await;
        world.serve_basics();
        world.ready().await;
        world.ack(RDS).await;
        let before = world.until(|_| true).await;
        let address = world.control_plane.address();
        drop(world.control_plane);
        let listener = rebind(address).await;
        world.control_plane = ControlPlane::start(listener).unwrap();
        world.serve_basics();
        within(world.control_plane.next_stream()).await;
        // The first thing that is new after the restart.
        world.serve(CDS, vec![cluster(mode, "a", "9s")], "2");
        let after = world
            .until(|snapshot| snapshot.clusters["a"].connect_timeout == Duration::from_secs(9))
            .await;
        assert!(Arc::ptr_eq(&before.listeners["l"], &after.listeners["l"]));
        assert!(Arc::ptr_eq(
            one(&before.routes, "r").unwrap(),
            one(&after.routes, "r").unwrap()
        ));
        assert!(Arc::ptr_eq(
            one(&before.endpoints, "a").unwrap(),
            one(&after.endpoints, "a").unwrap()
        ));
        assert!(world.stat("cluster_manager.cds.update_failure") >= Some(1));
    }
}

async fn rebind(address: SocketAddr) -> TcpListener {
    within(async {
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => return listener,
                // The old server's socket closes as soon as its task is dropped.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_burst_of_responses_is_answered_one_by_one() {
    let world = World::new(Mode::AdsSotw).await;
    world.serve_basics();
    world.ready().await;
    world.ack(CDS).await;
    for (index, timeout) in ["2s", "3s", "4s"].iter().enumerate() {
        world.control_plane.push(DiscoveryResponse {
            version_info: format!("raw-{index}"),
            nonce: format!("n{index}"),
            type_url: CDS.type_url().to_owned(),
            resources: vec![cluster(world.mode, "a", timeout)],
            ..DiscoveryResponse::default()
        });
    }
    for index in 0..3 {
        let answer = world.ack(CDS).await;
        assert_eq!(answer.nonce, format!("n{index}"));
        assert_eq!(answer.version, format!("raw-{index}"));
    }
}

#[tokio::test]
async fn a_response_that_cannot_be_read_deletes_nothing() {
    let mut world = World::new(Mode::AdsSotw).await;
    world.serve_basics();
    world.ready().await;
    world.ack(CDS).await;
    world.control_plane.push(DiscoveryResponse {
        version_info: "2".to_owned(),
        type_url: CDS.type_url().to_owned(),
        resources: vec![endpoints("a", 1)],
        ..DiscoveryResponse::default()
    });
    let text = world.nack(CDS).await;
    assert!(text.contains("ClusterLoadAssignment"), "{text}");
    assert_eq!(names(&world.until(|_| true).await.clusters), ["a", "xds"]);
}

#[tokio::test]
async fn a_cut_stream_comes_back_and_says_what_it_holds() {
    let world = World::new(Mode::AdsDelta).await;
    world.serve_basics();
    world.ready().await;
    world.ack(RDS).await;
    world.control_plane.events();
    world.control_plane.disconnect();
    within(world.control_plane.next_stream()).await;
    let request = within(world.control_plane.next_request(EDS.type_url())).await;
    let ReceivedRequest::Delta(request) = request else {
        panic!("{request:?}");
    };
    assert_eq!(request.resource_names_subscribe, ["a"]);
    assert_eq!(request.initial_resource_versions.len(), 1);
    assert!(request.initial_resource_versions.contains_key("a"));
}

#[tokio::test]
async fn initial_metadata_reaches_the_server() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rules = Rules {
        record: true,
        metadata: Some(("x-token".to_owned(), "secret".to_owned())),
        ..Rules::default()
    };
    let control_plane = ControlPlane::start_with(socket, rules).unwrap();
    let world = World::with(Mode::AdsSotw, control_plane, Arc::new(AdmitAll));
    world.serve_basics();
    world.ready().await;
}

#[tokio::test]
async fn a_name_that_is_let_go_and_asked_for_again_is_answered_again() {
    for mode in MODES {
        let mut world = World::new(mode).await;
        world.serve_basics();
        world.serve(RDS, vec![routes("r", "a"), routes("r2", "a")], "1");
        world.ready().await;
        for (version, table) in [("2", "r2"), ("3", "r"), ("4", "r2")] {
            world.serve(LDS, vec![listener(mode, "l", table, "")], version);
            world
                .until(|snapshot| names_of(&snapshot.routes) == [table])
                .await;
        }
    }
}
