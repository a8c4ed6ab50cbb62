//! A folder of resources, served: files to resources, live updates, and the command.
//!
//! Each `.yaml`, `.yml` or `.json` file holds one resource with its `@type`, or a `DiscoveryResponse` (of which
//! `resources` alone matters). `bootstrap.*` and hidden files are left out. A folder in the folder is the set of the
//! node of that id: its resources override the shared ones by name. A change is served about 100 ms after the last
//! write; a set with an error is not served at all, and the last good one stays.
//!
//! In a file, `${sha256:FILE}` and `${base64:FILE}` stand for the digest and the content of a file of the folder, so
//! that replacing a plugin is a change of the resource that names it.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use notify::{RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::store::{Answer, Event, Rules, Set, Store};
use super::{ControlPlane, service};
use crate::base::task::OwnedTask;
use crate::pb;
use crate::pb::envoy::service::discovery::v3::DiscoveryResponse;
use crate::xds::ResourceType;
use crate::xds::resource::{name_of, unwrap_resource};

/// A burst of writes is one change when they follow each other within this.
const DEBOUNCE: Duration = Duration::from_millis(100);

type Sets = BTreeMap<String, Set>;

/// Everything in a folder.
#[derive(Debug, Default, PartialEq)]
struct Contents {
    shared: Sets,
    nodes: BTreeMap<String, Sets>,
}

/// What is wrong with a file, and where.
#[derive(Debug, PartialEq, Eq)]
struct FileError {
    path: PathBuf,
    line: Option<String>,
    reason: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = &self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// Serves a folder of resources until SIGINT or SIGTERM; prints every answer and every error as a line.
///
/// # Errors
/// The address is in use, or the folder cannot be read or watched at all.
pub async fn serve_folder(folder: &Path, listen: SocketAddr) -> anyhow::Result<()> {
    anyhow::ensure!(folder.is_dir(), "{} is not a folder", folder.display());
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    let served = ServedFolder::start(folder, listener, |line| {
        // A closed standard output must not end the service.
        let _ = writeln!(
            std::io::stdout().lock(),
            "{} {line}",
            jiff::Zoned::now().strftime("%H:%M:%S%.3f")
        );
    })?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    drop(served);
    Ok(())
}

/// A folder that is served and watched until this is dropped.
#[derive(Debug)]
pub struct ServedFolder {
    control_plane: ControlPlane,
    source: Source,
    changes: mpsc::UnboundedSender<()>,
    _reload: OwnedTask,
    _watcher: notify::RecommendedWatcher,
}

impl ServedFolder {
    /// Reads the folder, serves it on `listener`, and follows its changes. `print` is given one line for each thing
    /// that happens.
    ///
    /// # Errors
    /// The folder cannot be watched. Errors in files are printed.
    pub fn start(
        folder: &Path,
        listener: TcpListener,
        print: impl Fn(&str) + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        Self::start_with(folder, listener, Rules::default(), str::to_owned, print)
    }

    /// The same with the given rules, and with a last word on the text of every file.
    ///
    /// # Errors
    /// As [`ServedFolder::start`].
    pub fn start_with(
        folder: &Path,
        listener: TcpListener,
        rules: Rules,
        rewrite: impl Fn(&str) -> String + Send + Sync + 'static,
        print: impl Fn(&str) + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let print: Arc<dyn Fn(&str) + Send + Sync> = Arc::new(print);
        let address = listener.local_addr()?;
        let events = Arc::clone(&print);
        let source = Source {
            folder: folder.to_owned(),
            rewrite: Arc::new(rewrite),
            overlay: Arc::default(),
        };
        let store = Store::new(rules).with_listener(move |event| {
            if let Some(line) = describe(event) {
                events(&line);
            }
        });
        let store = Arc::new(store);
        let (sender, changes) = mpsc::unbounded_channel();
        let again = sender.clone();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                if event.is_ok_and(|event| !event.kind.is_access()) {
                    // The task may have ended meanwhile.
                    let _ = sender.send(());
                }
            })?;
        watcher
            .watch(folder, RecursiveMode::Recursive)
            .with_context(|| format!("cannot watch {}", folder.display()))?;
        print(&format!("serving {} on {address}", folder.display()));
        let mut faulty = false;
        reload(&source, &store, &mut faulty, &*print);
        let follow = follow(source.clone(), Arc::clone(&store), faulty, print, changes);
        Ok(Self {
            source,
            changes: again,
            control_plane: ControlPlane {
                address,
                _task: OwnedTask::spawn(
                    "control_plane",
                    service::serve(listener, Arc::clone(&store)),
                ),
                store,
            },
            _reload: OwnedTask::spawn("control_plane_folder", follow),
            _watcher: watcher,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.control_plane.address
    }

    /// The server behind it: what clients answered, for one.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// Reads a resource as if it stood in a file of the folder.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn resource(&self, text: &str) -> Result<pb::Any, String> {
        let text = substitute(&(self.source.rewrite)(text), &self.source.folder)?;
        pb::from_text::<pb::Any>(&text, pb::Format::Yaml)
            .and_then(pb::Parsed::strict)
            .map_err(|error| error.to_string())
    }

    /// Serves these resources in the place of the folder's of the same type and name, or beside them, until the next
    /// call.
    pub fn overlay(&self, resources: Vec<pb::Any>) {
        *self.source.overlay.lock() = resources;
        // The task lives as long as this does.
        let _ = self.changes.send(());
    }
}

/// What is served: a folder, what is done to its texts, and what lies over it.
#[derive(Clone)]
struct Source {
    folder: PathBuf,
    rewrite: Arc<dyn Fn(&str) -> String + Send + Sync>,
    overlay: Arc<Mutex<Vec<pb::Any>>>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Source {
    #[cfg(test)]
    fn of(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            rewrite: Arc::new(str::to_owned),
            overlay: Arc::default(),
        }
    }
}

async fn follow(
    source: Source,
    store: Arc<Store>,
    mut faulty: bool,
    print: Arc<dyn Fn(&str) + Send + Sync>,
    mut changes: mpsc::UnboundedReceiver<()>,
) {
    while changes.recv().await.is_some() {
        while let Ok(Some(())) = tokio::time::timeout(DEBOUNCE, changes.recv()).await {}
        reload(&source, &store, &mut faulty, &*print);
    }
}

/// `faulty` says whether the folder had errors when it was last read.
fn reload(source: &Source, store: &Store, faulty: &mut bool, print: &(dyn Fn(&str) + Send + Sync)) {
    let was_faulty = *faulty;
    let contents = read(source);
    *faulty = contents.is_err();
    match contents {
        Ok(contents) => {
            let mut line = String::from("changed:");
            for (node, sets) in std::iter::once((None, &contents.shared))
                .chain(contents.nodes.iter().map(|(node, sets)| (Some(node), sets)))
            {
                if let Some(node) = node {
                    let _ = write!(line, " [{node}]");
                }
                for (type_url, set) in sets {
                    let _ = write!(
                        line,
                        " {} {} ({})",
                        label(type_url),
                        set.version,
                        set.resources.len()
                    );
                }
            }
            if store.replace(contents.shared, contents.nodes) {
                print(&line);
            } else if was_faulty {
                print("corrected: what is served is as it was");
            }
        }
        Err(errors) => {
            for error in errors {
                print(&format!("error: {error}"));
            }
            print("error: nothing is changed until this is corrected");
        }
    }
}

fn read(source: &Source) -> Result<Contents, Vec<FileError>> {
    let mut errors = Vec::new();
    let overlay = source.overlay.lock().clone();
    let shared = read_sets(source, &source.folder, overlay, &mut errors);
    let mut nodes = BTreeMap::new();
    for entry in entries(&source.folder, &mut errors) {
        if entry.is_dir()
            && let Some(node) = entry.file_name().and_then(|name| name.to_str())
        {
            nodes.insert(
                node.to_owned(),
                read_sets(source, &entry, Vec::new(), &mut errors),
            );
        }
    }
    if errors.is_empty() {
        Ok(Contents { shared, nodes })
    } else {
        Err(errors)
    }
}

/// What is in a folder, sorted, without what is hidden.
fn entries(folder: &Path, errors: &mut Vec<FileError>) -> Vec<PathBuf> {
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            let mut paths: Vec<PathBuf> = entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| {
                    path.file_name()
                        .and_then(|name| name.to_str())
                        .is_some_and(|name| !name.starts_with('.'))
                })
                .collect();
            paths.sort();
            paths
        }
        Err(error) => {
            errors.push(FileError {
                path: folder.to_owned(),
                line: None,
                reason: error.to_string(),
            });
            Vec::new()
        }
    }
}

fn read_sets(
    source: &Source,
    folder: &Path,
    overlay: Vec<pb::Any>,
    errors: &mut Vec<FileError>,
) -> Sets {
    let mut types: BTreeMap<String, BTreeMap<String, (pb::Any, PathBuf)>> = BTreeMap::new();
    for path in entries(folder, errors) {
        let resource_file = path.is_file()
            && path.file_stem().is_some_and(|stem| stem != "bootstrap")
            && path
                .extension()
                .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|e| extension == *e));
        if !resource_file {
            continue;
        }
        let error = |line: Option<String>, reason: String| FileError {
            path: path.clone(),
            line,
            reason,
        };
        let resources = match read_file(source, &path) {
            Ok(resources) => resources,
            Err((line, reason)) => {
                errors.push(error(line, reason));
                continue;
            }
        };
        for any in resources {
            let (type_url, name) = match identify(&any) {
                Ok(identity) => identity,
                Err(reason) => {
                    errors.push(error(None, reason));
                    continue;
                }
            };
            let set = types.entry(type_url.clone()).or_default();
            if let Some((_, other)) = set.get(&name) {
                errors.push(error(
                    None,
                    format!(
                        "{} '{name}' is in {} already",
                        label(&type_url),
                        other.display()
                    ),
                ));
            } else {
                set.insert(name, (any, path.clone()));
            }
        }
    }
    for any in overlay {
        match identify(&any) {
            Ok((type_url, name)) => {
                types
                    .entry(type_url)
                    .or_default()
                    .insert(name, (any, PathBuf::new()));
            }
            Err(reason) => errors.push(FileError {
                path: folder.to_owned(),
                line: None,
                reason,
            }),
        }
    }
    types
        .into_iter()
        .map(|(type_url, resources)| {
            let resources: Vec<pb::Any> = resources.into_values().map(|(any, _)| any).collect();
            let mut bytes = Vec::new();
            for any in &resources {
                bytes.extend((any.value.len() as u64).to_le_bytes());
                bytes.extend(&any.value);
            }
            let version = format!("{:08x}", twox_hash::XxHash64::oneshot(0, &bytes) >> 32);
            (type_url, Set::new(resources, &version))
        })
        .collect()
}

/// The type and name of a resource, wrapped or not.
fn identify(any: &pb::Any) -> Result<(String, String), String> {
    let resource = unwrap_resource(any.clone()).map_err(|error| error.to_string())?;
    let inner = resource.resource.ok_or("the wrapper holds no resource")?;
    let name = if resource.name.is_empty() {
        name_of(&inner.value)?.to_owned()
    } else {
        resource.name
    };
    if name.is_empty() {
        return Err(format!("{} without a name", label(&inner.type_url)));
    }
    Ok((inner.type_url, name))
}

type Located = (Option<String>, String);

/// Puts what `${sha256:FILE}` and `${base64:FILE}` stand for in their place. Files are looked up from the folder.
fn substitute(text: &str, folder: &Path) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let Some(length) = rest[start..].find('}') else {
            break;
        };
        let inside = &rest[start + 2..start + length];
        out.push_str(&rest[..start]);
        let content = |file: &str| {
            std::fs::read(folder.join(file)).map_err(|error| format!("${{{inside}}}: {error}"))
        };
        match inside.split_once(':') {
            Some(("sha256", file)) => {
                for byte in Sha256::digest(content(file)?) {
                    let _ = write!(out, "{byte:02x}");
                }
            }
            Some(("base64", file)) => out.push_str(&STANDARD.encode(content(file)?)),
            // Not ours: some other templating, or plain text.
            _ => out.push_str(&rest[start..=start + length]),
        }
        rest = &rest[start + length + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn read_file(source: &Source, path: &Path) -> Result<Vec<pb::Any>, Located> {
    let text = std::fs::read_to_string(path).map_err(|error| (None, error.to_string()))?;
    let text =
        substitute(&(source.rewrite)(&text), &source.folder).map_err(|reason| (None, reason))?;
    let format = pb::Format::of_path(path);
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    if is_single(&text) {
        let any = pb::from_text::<pb::Any>(&text, format)
            .and_then(pb::Parsed::strict)
            .map_err(located)?;
        return Ok(vec![any]);
    }
    pb::from_text::<DiscoveryResponse>(&text, format)
        .and_then(pb::Parsed::strict)
        .map(|response| response.resources)
        .map_err(located)
}

/// True where the file is one resource: `@type` is a key of its outermost object.
fn is_single(text: &str) -> bool {
    if let Ok(json) = serde_json::from_str::<serde_json::Value>(text) {
        return json.get("@type").is_some();
    }
    text.lines().any(|line| {
        let key = line.trim_start_matches(['"', '\'']);
        key.starts_with("@type")
    })
}

/// The line that an error names, and the error.
fn located(error: pb::Error) -> Located {
    let text = error.to_string();
    let line = text.split("line ").nth(1).map(|rest| {
        rest.chars()
            .take_while(char::is_ascii_digit)
            .collect::<String>()
    });
    (line.filter(|line| !line.is_empty()), text)
}

fn label(type_url: &str) -> &str {
    match ResourceType::of_url(type_url) {
        Some(kind) => kind.label(),
        None => type_url.rsplit(['.', '/']).next().unwrap_or(type_url),
    }
}

/// One line for what is worth one.
fn describe(event: &Event) -> Option<String> {
    Some(match event {
        Event::Opened(node) => format!("connected node={}", node.id),
        Event::Closed(node) => format!("disconnected node={node}"),
        Event::Answered(Answer {
            node,
            type_url,
            version,
            nonce: _,
            error: None,
            stale: _,
        }) => format!("ACK {} version={version} node={node}", label(type_url)),
        Event::Answered(Answer {
            node,
            type_url,
            version,
            nonce: _,
            error: Some(error),
            stale: _,
        }) => format!(
            "NACK {} version={version} node={node}: {}",
            label(type_url),
            error.trim_end()
        ),
        Event::Request(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str =
        "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: a\n";

    fn names(sets: &Sets, kind: ResourceType) -> Vec<&str> {
        sets.get(kind.type_url())
            .map(|set| set.resources.keys().map(String::as_str).collect())
            .unwrap_or_default()
    }

    #[test]
    fn files_of_every_shape_are_read_and_nodes_have_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("one.yaml", CLUSTER);
        write(
            "list.json",
            r#"{"resources": [{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "b"},
                {"@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration", "name": "r"}]}"#,
        );
        write("edge-1/one.yml", &CLUSTER.replace("name: a", "name: c"));
        write("bootstrap.yaml", "not: [a, resource");
        write("README.md", "# read me");
        write(".hidden.yaml", "also: not");
        write("empty.yaml", "\n");
        let contents = read(&Source::of(folder.path())).unwrap();
        assert_eq!(names(&contents.shared, ResourceType::Cluster), ["a", "b"]);
        assert_eq!(names(&contents.shared, ResourceType::Route), ["r"]);
        assert_eq!(
            names(&contents.nodes["edge-1"], ResourceType::Cluster),
            ["c"]
        );
        let version = |contents: &Contents, kind: ResourceType| {
            contents.shared[kind.type_url()].version.clone()
        };
        let before = read(&Source::of(folder.path())).unwrap();
        write("one.yaml", &format!("{CLUSTER}connect_timeout: 1s\n"));
        let after = read(&Source::of(folder.path())).unwrap();
        assert_ne!(
            version(&before, ResourceType::Cluster),
            version(&after, ResourceType::Cluster)
        );
        assert_eq!(
            version(&before, ResourceType::Route),
            version(&after, ResourceType::Route),
            "a version is that of its type's content"
        );
    }

    #[test]
    fn every_error_names_its_file() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("a.yaml", CLUSTER.to_owned()),
            ("b.yaml", CLUSTER.to_owned()),
            ("c.yaml", CLUSTER.replace("name: a", "nme: a")),
            ("d.json", "{".to_owned()),
            ("e.yaml", CLUSTER.replace("name: a", "")),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let errors = read(&Source::of(folder.path())).unwrap_err();
        let files: Vec<_> = errors
            .iter()
            .map(|error| error.path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(files, ["b.yaml", "c.yaml", "d.json", "e.yaml"]);
        assert!(errors[0].reason.contains("a.yaml already"), "{}", errors[0]);
        assert!(
            errors[3].reason.contains("cds without a name"),
            "{}",
            errors[3]
        );
    }

    #[test]
    fn a_file_can_name_the_digest_of_another() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.wasm"), b"abc").unwrap();
        let text = substitute(
            "x: ${sha256:a.wasm} ${base64:a.wasm} ${HOME}",
            folder.path(),
        )
        .unwrap();
        assert_eq!(
            text,
            "x: ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad YWJj ${HOME}"
        );
        let missing = substitute("${sha256:b.wasm}", folder.path()).unwrap_err();
        assert!(missing.starts_with("${sha256:b.wasm}: "), "{missing}");
    }
}
