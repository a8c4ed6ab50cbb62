//! Code from registries of images, as istiod without its agent asks for it: by ECDS, `oci://`, the cluster `_`, `nil` for no
//! sum, credentials and pull policy in variables. Under load no request fails or goes without a plugin.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use plenipo::config::WasmSettings;
use plenipo::control_plane::ControlPlane;
use plenipo::wasm::PluginStatus;
use plenipo::wasm::source::credentials;
use plenipo::wasm::source::download::Downloader;
use plenipo::wasm::source::oci::Registry;
use plenipo::wasm::source::push::Layout as PushLayout;
use plenipo::wasm::source::reference::Reference;
use plenipo::wasm::status::State;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::guests::{RUN, marker};
use crate::support::registry::{Door, FakeRegistry, Fault, LAYOUTS, Layout, digest};
use crate::support::{Client, FakeUpstream, TestProxy, ads_bootstrap, any, listener_yaml};

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
const WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
const SETTINGS: &str = "type.googleapis.com/plenipo.extensions.wasm.v1.WasmSettings";
const ROUTES: &str = "route_config: {virtual_hosts: [{name: all, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: up}}]}]}";
const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

struct World {
    plane: ControlPlane,
    registry: FakeRegistry,
    _upstream: FakeUpstream,
    proxy: TestProxy,
    version: AtomicUsize,
    test: &'static str,
}

impl World {
    /// Version 1 serves, from the tag `one`.
    async fn new(test: &'static str) -> Self {
        let upstream = FakeUpstream::start("answer").await;
        let registry = FakeRegistry::start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let plane = ControlPlane::start(listener).expect("the control plane starts");
        let cluster = any(&format!(
            "'@type': {CLUSTER}\nname: up\ntype: STATIC\nload_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: [{}]}}]}}\n",
            upstream.endpoint()
        ));
        plane.set_resources(CLUSTER, vec![cluster], "1");
        let filter = format!(
            "- {{name: plugin, config_discovery: {{config_source: {{ads: {{}}, resource_api_version: V3}}, type_urls: [{WASM}]}}}}"
        );
        let web = any(&listener_yaml("web", ROUTES, &filter));
        plane.set_resources(LISTENER, vec![web], "1");
        let bootstrap = format!(
            "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n\
             bootstrap_extensions: [{{name: wasm, typed_config: {{'@type': {SETTINGS}, insecure_registries: ['{}']}}}}]\n{}",
            registry.address,
            ads_bootstrap(plane.address(), false)
        );
        registry.push("one", Layout::Cncf, &marker(test, 1));
        let world = Self {
            proxy: TestProxy::start_cold(&bootstrap, 2).await,
            plane,
            registry,
            _upstream: upstream,
            version: AtomicUsize::new(0),
            test,
        };
        world.push_tag("one", &[]);
        tokio::time::timeout(Duration::from_secs(20), world.proxy.running.live())
            .await
            .expect("live within 20 s")
            .expect("the listener is bound");
        world.serves("1").await;
        world
    }

    fn name(&self) -> String {
        format!("{}/{}/{}", self.registry.address, *RUN, self.test)
    }

    /// Wants the image `reference` of this test's repository, with these variables of istiod's.
    fn push(&self, reference: &str, sha256: &str, variables: &[(&str, &str)]) {
        let uri = format!("oci://{}{reference}", self.name());
        let pairs: Vec<_> = variables
            .iter()
            .map(|(name, value)| format!("ISTIO_META_WASM_{name}: '{value}'"))
            .collect();
        let extension = any(&format!(
            "'@type': {EXTENSION}
name: plugin
typed_config:
  '@type': {WASM}
  config:
    name: oci
    failure_policy: FAIL_CLOSED
    vm_config:
      vm_id: oci
      environment_variables: {{key_values: {{{}}}}}
      code:
        remote:
          http_uri: {{uri: '{uri}', cluster: _, timeout: 2s}}
          sha256: '{sha256}'
          retry_policy: {{num_retries: 1, retry_back_off: {{base_interval: 0.05s, max_interval: 0.2s}}}}
",
            pairs.join(", ")
        ));
        let version = self.version.fetch_add(1, Relaxed) + 1;
        self.plane
            .set_resources(EXTENSION, vec![extension], &version.to_string());
    }

    fn push_tag(&self, tag: &str, variables: &[(&str, &str)]) {
        self.push(&format!(":{tag}"), "nil", variables);
    }

    /// Polls until `look` finds something.
    async fn until<T>(&self, what: &str, mut look: impl FnMut(&[PluginStatus]) -> Option<T>) -> T {
        let found = async {
            loop {
                let plugins = self.proxy.running.server.plugins.status();
                if let Some(found) = look(&plugins) {
                    return found;
                }
                tokio::task::yield_now().await;
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(30), found).await;
        found.unwrap_or_else(|_| {
            let plugins = self.proxy.running.server.plugins.status();
            panic!("not within 30 s: {what}; {plugins:?}")
        })
    }

    /// Waits for an error of the version of this image that says this.
    async fn told(&self, image: &str, part: &str) -> PluginStatus {
        self.until(part, |plugins| {
            let mut failed = plugins.iter().filter(|plugin| {
                plugin.origin.ends_with(image)
                    && plugin
                        .history
                        .iter()
                        .any(|event| event.detail.contains(part))
            });
            failed.next().cloned()
        })
        .await
    }

    /// Waits until answers bear this.
    async fn serves(&self, version: &str) {
        let mut client = Client::connect(self.proxy.address("web").await).await;
        let wait = async {
            while client.send(GET).await.header("x-guest") != version {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait)
            .await
            .unwrap_or_else(|_| {
                let plugins = self.proxy.running.server.plugins.status();
                panic!("{version} is not served: {plugins:?}")
            });
    }

    /// Clients that see nothing but answers that passed a plugin.
    async fn load(&self) -> Load {
        let address = self.proxy.address("web").await;
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..2)
            .map(|_| {
                let stop = Arc::clone(&stop);
                tokio::spawn(async move {
                    let mut client = Client::connect(address).await;
                    while !stop.load(Relaxed) {
                        let response = client.send(GET).await;
                        assert_eq!(response.status, 200, "{response:?}");
                        assert_ne!(response.header("x-guest"), "", "{response:?}");
                    }
                })
            })
            .collect();
        Load { stop, tasks }
    }
}

struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    async fn end(self) {
        self.stop.store(true, Relaxed);
        for task in self.tasks {
            task.await.expect("no request failed");
        }
    }
}

fn docker_config(registry: &str, password: &str) -> String {
    let auth = STANDARD.encode(format!("me:{password}"));
    format!(r#"{{"auths": {{"{registry}": {{"auth": "{auth}"}}}}}}"#)
}

#[tokio::test]
async fn every_layout_of_an_image_goes_live_under_load() {
    let world = World::new("layouts").await;
    let load = world.load().await;
    for (number, layout) in (2..).zip(LAYOUTS) {
        let tag = format!("v{number}");
        world
            .registry
            .push(&tag, layout, &marker("layouts", number));
        world.push_tag(&tag, &[]);
        world.serves(&number.to_string()).await;
    }
    load.end().await;
}

#[tokio::test]
async fn a_digest_pins_whatever_it_is_of() {
    let world = World::new("pins").await;
    let load = world.load().await;
    let mut number = 1;
    for of in ["manifest", "layer", "module", "uri", "index", "wrong"] {
        number += 1;
        let layout = match of {
            "index" => Layout::Index,
            _ => Layout::Oci,
        };
        let module = marker("pins", number);
        let (manifest, layer) = world.registry.push(of, layout, &module);
        let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
        match of {
            "manifest" | "index" => world.push(
                ":manifest-or-index"
                    .replace("manifest-or-index", of)
                    .as_str(),
                &hex(&manifest),
                &[],
            ),
            "layer" => world.push(":layer", &hex(&layer), &[]),
            "module" => world.push(":module", &hex(&digest(&module)), &[]),
            "uri" => world.push(&format!("@{manifest}"), "nil", &[]),
            _ => {
                world.push(":wrong", &hex(&digest(b"else")), &[]);
                world.told("wrong", "is neither that of the manifest").await;
                world.serves("6").await;
                continue;
            }
        }
        world.serves(&number.to_string()).await;
    }
    load.end().await;
}

#[tokio::test]
async fn no_fault_of_the_registry_costs_a_request_and_each_heals() {
    let world = World::new("faults").await;
    let load = world.load().await;
    for (number, (fault, told)) in (2..).zip([
        (Fault::Down, "error sending request"),
        (Fault::Silent, "not done within 2s"),
        (Fault::WrongBlobs, "sha256 is"),
        (Fault::WrongManifests, "sha256 is"),
        (Fault::Short, "blobs/sha256:"),
        (Fault::Huge, "more than 67108864 bytes"),
        (Fault::Redirect, ""),
    ]) {
        let tag = format!("v{number}");
        world
            .registry
            .push(&tag, Layout::Oci, &marker("faults", number));
        world.registry.set_fault(fault);
        world.push_tag(&tag, &[]);
        if !told.is_empty() {
            let failed = world.told(&tag, told).await;
            assert_eq!(failed.state, State::Fetching, "{failed:?}");
            world.registry.set_fault(Fault::None);
        }
        world.serves(&number.to_string()).await;
        world.registry.set_fault(Fault::None);
    }
    // A tag that is not there yet.
    world.push_tag("later", &[]);
    world
        .told("later", "404 Not Found: MANIFEST_UNKNOWN: no such tag")
        .await;
    world
        .registry
        .push("later", Layout::Solo, &marker("faults", 9));
    world.serves("9").await;
    load.end().await;
}

#[tokio::test]
async fn what_cannot_heal_says_so_and_is_not_asked_again() {
    let world = World::new("hopeless").await;
    let load = world.load().await;
    // No module at all, under a digest: it will never be one.
    let (manifest, _) = world.registry.push("text", Layout::Oci, b"no module");
    world.push(&format!("@{manifest}"), "nil", &[]);
    let failed = world.told(&manifest, "is a WebAssembly module").await;
    assert_eq!(failed.state, State::Failed);
    let asked = world.registry.counts();
    for _ in 0..2000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.registry.counts(), asked);
    // The secret that istiod could not find.
    world.push_tag("two", &[("IMAGE_PULL_SECRET", "")]);
    let failed = world.told("two", "the pull secret is missing").await;
    assert_eq!(failed.state, State::Failed);
    // When it is there, nothing else changes: the version is tried again.
    world
        .registry
        .push("two", Layout::Cncf, &marker("hopeless", 2));
    let secret = docker_config("other.test", "x");
    world.push_tag("two", &[("IMAGE_PULL_SECRET", &secret)]);
    world.serves("2").await;
    load.end().await;
}

#[tokio::test]
async fn credentials_open_either_kind_of_door() {
    let password = STANDARD.encode("me:right");
    let password: &'static str = password.leak();
    let world = World::new("doors").await;
    let load = world.load().await;
    let host = world.registry.address.to_string();
    for (number, door) in (2..).zip([Door::Basic(password), Door::Token(password)]) {
        let tag = format!("v{number}");
        world
            .registry
            .push(&tag, Layout::Oci, &marker("doors", number));
        world.registry.set_door(door);
        world.push_tag(&tag, &[]);
        world.told(&tag, "not authorized").await;
        let wrong = docker_config(&host, "hunter2");
        world.push_tag(&tag, &[("IMAGE_PULL_SECRET", &wrong)]);
        world.told(&tag, "refuse").await;
        let right = docker_config(&host, "right");
        world.push_tag(&tag, &[("IMAGE_PULL_SECRET", &right)]);
        world.serves(&number.to_string()).await;
    }
    load.end().await;
    // Nothing of it is shown.
    let mut admin = Client::connect(world.proxy.admin()).await;
    for page in ["/wasm", "/config_dump"] {
        let page = admin.get("admin", page).await.body;
        for secret in ["hunter2", &STANDARD.encode("me:right")] {
            assert!(!page.contains(secret), "{page}");
        }
    }
}

#[tokio::test]
async fn a_tag_is_asked_again_when_the_policy_says_so() {
    let world = World::new("tags").await;
    let load = world.load().await;
    let always = |version| {
        [
            ("IMAGE_PULL_POLICY", "Always"),
            ("PLUGIN_RESOURCE_VERSION", version),
        ]
    };
    let stays = |version| {
        [
            ("IMAGE_PULL_POLICY", "IfNotPresent"),
            ("PLUGIN_RESOURCE_VERSION", version),
        ]
    };
    world
        .registry
        .push("moves", Layout::Oci, &marker("tags", 2));
    world.push_tag("moves", &always("1"));
    world.serves("2").await;
    let asked = world.registry.counts();
    // The tag moves, and nobody says so.
    world
        .registry
        .push("moves", Layout::Cncf, &marker("tags", 3));
    world.push_tag("moves", &always("1"));
    world.push_tag("one", &[]);
    world.serves("1").await;
    assert_eq!(world.registry.counts(), asked);
    world.push_tag("moves", &always("2"));
    world.serves("3").await;
    // It has not moved: its manifest alone is asked for.
    let (manifests, blobs) = world.registry.counts();
    world.push_tag("one", &[]);
    world.serves("1").await;
    world.push_tag("moves", &always("3"));
    world.serves("3").await;
    assert_eq!(world.registry.counts(), (manifests + 1, blobs));
    // Under the other policy the first answer stands.
    world
        .registry
        .push("stays", Layout::Oci, &marker("tags", 4));
    world.push_tag("stays", &stays("1"));
    world.serves("4").await;
    world
        .registry
        .push("stays", Layout::Oci, &marker("tags", 5));
    world.push_tag("one", &[]);
    world.serves("1").await;
    let asked = world.registry.counts();
    world.push_tag("stays", &stays("2"));
    world.serves("4").await;
    assert_eq!(world.registry.counts(), asked);
    load.end().await;
}

#[tokio::test]
async fn what_is_pushed_is_pulled() {
    let password: &'static str = STANDARD.encode("me:right").leak();
    let registry = FakeRegistry::start().await;
    let host = registry.address.to_string();
    let settings = WasmSettings {
        insecure_registries: vec![host.as_str().into()],
        ..WasmSettings::default()
    };
    let downloader = Downloader::new(&settings).expect("made");
    let config = docker_config(&host, "right");
    let credential = credentials::from_docker_config(&config, &host).expect("valid");
    registry.set_door(Door::Token(password));
    let module = bytes::Bytes::from(marker("push", 1));
    for (tag, layout) in [("a", PushLayout::Artifact), ("b", PushLayout::Files)] {
        let reference = Reference::parse(&format!("{host}/mine:{tag}")).expect("a name");
        let talk = || Registry::new(downloader.clone(), reference.clone(), credential.clone());
        let pushed = talk().push(module.clone(), layout).await.expect("pushed");
        let (image, pulled) = talk().pull().await.expect("pulled");
        assert_eq!((image.manifest, &pulled), (pushed, &module));
        // What is there does not go up again.
        let uploads = || {
            let requests = registry.requests();
            requests
                .iter()
                .filter(|line| line.starts_with("POST"))
                .count()
        };
        let before = uploads();
        assert_eq!(
            talk().push(module.clone(), layout).await.expect("pushed"),
            pushed
        );
        assert_eq!(uploads(), before);
        let refused = Registry::new(downloader.clone(), reference.clone(), None);
        let refused = { refused }.push(module.clone(), layout).await;
        assert!(
            refused
                .expect_err("no credentials")
                .to_string()
                .contains("not authorized")
        );
    }
}
