//! Files: as a source, and as what is served.

use super::*;

#[tokio::test]
async fn files_are_read_and_followed_by_rename() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let staged = folder.path().join("staged");
        std::fs::write(&staged, text).unwrap();
        std::fs::rename(staged, folder.path().join(name)).unwrap();
    };
    let clusters = |timeout: &str| {
        format!(
            "version_info: v{timeout}\nresources:\n- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\n  \
             name: a\n  type: EDS\n  connect_timeout: {timeout}\n  eds_cluster_config: {{eds_config: {{path_config_source: \
             {{path: {0}/eds.yaml}}}}}}\n",
            folder.path().display()
        )
    };
    write(
        "eds.yaml",
        "{resources: [{'@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: a}]}",
    );
    write("cds.yaml", &clusters("1s"));
    let source = |file: &str| ConfigSource {
        specifier: SourceSpecifier::Path {
            path: format!("{}/{file}", folder.path().display()).into(),
            watched_directory: None,
        },
        initial_fetch_timeout: Some(Duration::from_secs(15)),
    };
    let options = Options {
        cds: Some(source("cds.yaml")),
        ..Options::default()
    };
    let registry = Registry::new(Shards::for_workers(1));
    let client =
        Client::start(options, Arc::new(AnyFilter), Arc::new(AdmitAll), &registry).unwrap();
    let mut snapshots = client.snapshots();
    let mut timeout = async |seconds: u64| {
        within(snapshots.wait_for(|snapshot| {
            snapshot
                .clusters
                .get("a")
                .is_some_and(|a| a.connect_timeout == Duration::from_secs(seconds))
        }))
        .await
        .unwrap();
    };
    timeout(1).await;
    write("cds.yaml", "{resources: [");
    write("cds.yaml", &clusters("2s"));
    timeout(2).await;
    assert_eq!(client.status().version(CDS), "v2s");
    let missing = Options {
        cds: Some(source("none.yaml")),
        ..Options::default()
    };
    let error = Client::start(missing, Arc::new(AnyFilter), Arc::new(AdmitAll), &registry)
        .expect_err("there is no such file");
    assert!(
        error
            .to_string()
            .contains("paths must refer to an existing path"),
        "{error}"
    );
}

#[tokio::test]
async fn a_served_folder_prints_what_becomes_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = |timeout: &str| {
        format!(
            "'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: a\ntype: STATIC\nconnect_timeout: {timeout}\n"
        )
    };
    std::fs::write(folder.path().join("a.yaml"), cluster("1s")).unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (lines, mut printed) = tokio::sync::mpsc::unbounded_channel();
    let served = ServedFolder::start(folder.path(), socket, move |line| {
        let _ = lines.send(line.to_owned());
    })
    .unwrap();
    let registry = Registry::new(Shards::for_workers(1));
    let mut options = options(Mode::AdsDelta, served.address().port());
    options.lds = None;
    let client =
        Client::start(options, Arc::new(AnyFilter), Arc::new(AdmitAll), &registry).unwrap();
    let mut line = async |what: &str| {
        within(async {
            loop {
                let line = printed.recv().await.unwrap();
                if line.contains(what) {
                    return line;
                }
            }
        })
        .await
    };
    line("connected node=test").await;
    line("ACK cds").await;
    std::fs::write(folder.path().join("a.yaml"), cluster("nonsense")).unwrap();
    line("a.yaml").await;
    std::fs::write(folder.path().join("a.yaml"), cluster("3s")).unwrap();
    line("ACK cds").await;
    // A fault that is taken back changes nothing, and says so.
    std::fs::write(folder.path().join("a.yaml"), "[").unwrap();
    line("nothing is changed").await;
    std::fs::write(folder.path().join("a.yaml"), cluster("3s")).unwrap();
    line("corrected").await;
    let snapshot = Arc::clone(&client.snapshots().borrow());
    assert_eq!(
        snapshot.clusters["a"].connect_timeout,
        Duration::from_secs(3)
    );
}
