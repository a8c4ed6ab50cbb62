//! Every example under `xds-examples/` is read by the proxy's own parsers, is complete, and is explained: so that none
//! is ever behind.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use plenipo::bootstrap::{self, Bootstrap};
use plenipo::config::cluster::Discovery;
use plenipo::config::extension::parse_typed_extension;
use plenipo::config::http_connection_manager::{FilterSource, RouteSource};
use plenipo::config::route::{Action, ClusterSpecifier};
use plenipo::config::{Cluster, Endpoints, Listener, ParseContext, RouteConfig, Source};
use plenipo::control_plane::ServedFolder;
use plenipo::filter::registry::Registry;
use plenipo::pb;
use plenipo::pb::envoy::service::discovery::v3::DiscoveryResponse;
use std::sync::Arc;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("xds-examples")
}

/// The examples' folders.
fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(root())
        .expect("xds-examples")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(folders.len() > 10, "{folders:?}");
    folders
}

fn name(folder: &Path) -> &str {
    folder
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name")
}

/// The files of a folder that hold resources.
fn resource_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|ext| ext == "yaml" || ext == "json")
                && path.file_stem().is_some_and(|stem| stem != "bootstrap")
        })
        .collect();
    files.sort();
    files
}

/// The resources of a file, digests filled in with a digest, and a module that is built elsewhere with one that is here.
fn resources(file: &Path) -> Vec<pb::Any> {
    let text = std::fs::read_to_string(file).expect("a file");
    let placeholder = regex::Regex::new(r"\$\{sha256:[^}]*\}").expect("a pattern");
    let text = placeholder.replace_all(&text, "0".repeat(64).as_str());
    let text = text.replace("tests/sdk/build/coraza.wasm", "plugins/bin/hello.wasm");
    let format = pb::Format::of_path(file);
    let single = text.lines().any(|line| line.starts_with("\"@type\""));
    let read = if single {
        pb::from_text::<pb::Any>(&text, format)
            .and_then(pb::Parsed::strict)
            .map(|any| vec![any])
    } else {
        pb::from_text::<DiscoveryResponse>(&text, format)
            .and_then(pb::Parsed::strict)
            .map(|response| response.resources)
    };
    read.unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// What a folder and its bootstrap hold, parsed.
#[derive(Default)]
struct Example {
    listeners: BTreeMap<String, Listener>,
    routes: BTreeMap<String, RouteConfig>,
    clusters: BTreeMap<String, Cluster>,
    endpoints: BTreeSet<String>,
    filters: BTreeMap<String, String>,
}

fn example(folder: &Path) -> Example {
    let registry = Registry::new();
    let context = ParseContext::new(&registry, Source::Dynamic);
    let mut example = Example::default();
    for file in resource_files(folder) {
        for any in resources(&file) {
            let parsed = add(&mut example, &any, &context);
            parsed.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
    }
    let bootstrap = parsed_bootstrap(&folder.join("bootstrap.yaml"));
    for cluster in bootstrap.clusters {
        example.clusters.insert(
            cluster.value.name.to_string(),
            cluster.value.as_ref().clone(),
        );
    }
    for listener in bootstrap.listeners {
        example.listeners.insert(
            listener.value.name.to_string(),
            listener.value.as_ref().clone(),
        );
    }
    example
}

fn add(
    example: &mut Example,
    any: &pb::Any,
    context: &ParseContext<'_>,
) -> Result<(), plenipo::config::ConfigError> {
    match pb::type_name(&any.type_url) {
        "envoy.config.listener.v3.Listener" => {
            let listener = Listener::parse(pb::unpack(any)?, context)?;
            example
                .listeners
                .insert(listener.name.to_string(), listener);
        }
        "envoy.config.route.v3.RouteConfiguration" => {
            let routes = RouteConfig::parse(pb::unpack(any)?, context)?;
            example.routes.insert(routes.name.to_string(), routes);
        }
        "envoy.config.cluster.v3.Cluster" => {
            let cluster = Cluster::parse(pb::unpack(any)?, context)?;
            example.clusters.insert(cluster.name.to_string(), cluster);
        }
        "envoy.config.endpoint.v3.ClusterLoadAssignment" => {
            let endpoints = Endpoints::parse(pb::unpack(any)?, context)?;
            example.endpoints.insert(endpoints.cluster_name.to_string());
        }
        "envoy.config.core.v3.TypedExtensionConfig" => {
            let (name, config) = parse_typed_extension(pb::unpack(any)?, context)?;
            example.filters.insert(name.into(), config.type_url.into());
        }
        other => panic!("an example of {other}?"),
    }
    Ok(())
}

fn parsed_bootstrap(file: &Path) -> Bootstrap {
    let text = std::fs::read_to_string(file).expect("a bootstrap");
    // Files are named from the folder that the proxy is started in.
    let folder = file
        .ancestors()
        .nth(2)
        .expect("a folder")
        .display()
        .to_string();
    let text = text.replace(
        "filename: plugins/",
        &format!("filename: {folder}/plugins/"),
    );
    let source = bootstrap::Source {
        yaml: Some(text),
        ..bootstrap::Source::default()
    };
    let loaded =
        bootstrap::load(&source).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert_eq!(loaded.unknown_fields, 0, "{}", file.display());
    assert!(
        loaded.warnings.is_empty(),
        "{}: {:?}",
        file.display(),
        loaded.warnings
    );
    Bootstrap::parse(loaded.proto, &Registry::new())
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The clusters that a table names.
fn clusters_of(routes: &RouteConfig) -> Vec<String> {
    let mut names = Vec::new();
    for route in routes.virtual_hosts.iter().flat_map(|host| &host.routes) {
        let Action::Forward(forward) = &route.action else {
            continue;
        };
        match &forward.cluster {
            ClusterSpecifier::Cluster(name) => names.push(name.to_string()),
            ClusterSpecifier::Weighted { clusters, .. } => {
                names.extend(clusters.iter().map(|cluster| cluster.name.to_string()));
            }
            ClusterSpecifier::Header(_) => {}
        }
    }
    names
}

#[test]
fn every_file_is_accepted() {
    for folder in folders() {
        let example = example(&folder);
        assert!(!example.listeners.is_empty(), "{}", name(&folder));
    }
    parsed_bootstrap(&root().join("quickstart/upstreams/bootstrap.yaml"));
}

#[test]
fn every_reference_leads_somewhere() {
    for folder in folders() {
        let example = example(&folder);
        let at = name(&folder);
        let known = |cluster: &str| {
            // One example shows what happens otherwise.
            cluster == "not-there" || example.clusters.contains_key(cluster)
        };
        for listener in example.listeners.values() {
            let chains = listener
                .filter_chains
                .iter()
                .chain(&listener.default_filter_chain);
            for chain in chains {
                let Some(http) = chain.http() else { continue };
                let routes = match &http.routes {
                    RouteSource::Inline(routes) => routes.as_ref(),
                    RouteSource::Rds { name, .. } => example
                        .routes
                        .get(&**name)
                        .unwrap_or_else(|| panic!("{at}: no routes '{name}'")),
                };
                for cluster in clusters_of(routes) {
                    assert!(known(&cluster), "{at}: no cluster '{cluster}'");
                }
                for filter in &http.http_filters {
                    if let FilterSource::Discovered { type_urls, .. } = &filter.config {
                        let found = example.filters.get(&*filter.name);
                        assert!(
                            found.is_some_and(|found| type_urls.iter().any(|url| **url == **found)),
                            "{at}: no filter '{}'",
                            filter.name
                        );
                    }
                }
            }
        }
        for cluster in example.clusters.values() {
            if let Discovery::Eds { service_name, .. } = &cluster.discovery {
                assert!(
                    example.endpoints.contains(&**service_name),
                    "{at}: no endpoints '{service_name}'"
                );
            }
        }
    }
}

#[tokio::test]
async fn the_control_plane_serves_every_folder() {
    for folder in folders() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a socket");
        let print = Arc::clone(&lines);
        let served = ServedFolder::start(&folder, listener, move |line| {
            print.lock().push(line.to_owned());
        });
        served.expect("served");
        let lines = lines.lock();
        assert!(
            !lines.iter().any(|line| line.starts_with("error")),
            "{}: {lines:?}",
            name(&folder)
        );
        let has_resources = !resource_files(&folder).is_empty();
        assert!(!has_resources || !lines.is_empty(), "{}", name(&folder));
    }
}

#[test]
fn every_file_is_explained() {
    let index = std::fs::read_to_string(root().join("README.md")).expect("an index");
    for folder in folders() {
        let at = name(&folder);
        assert!(
            index.contains(&format!("[{at}]({at})")),
            "{at} is not in the index"
        );
        let readme = std::fs::read_to_string(folder.join("README.md")).expect("a README");
        let mut files = resource_files(&folder);
        files.push(folder.join("bootstrap.yaml"));
        for file in files {
            let file = file
                .file_name()
                .and_then(|name| name.to_str())
                .expect("a name");
            assert!(
                readme.contains(&format!("`{file}`")),
                "{at}: {file} is not explained"
            );
        }
    }
}
