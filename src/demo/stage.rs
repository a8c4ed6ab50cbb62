//! Everything that the demonstration runs, in one process: control plane, upstreams, file server, proxy.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;

use super::screen::Screen;
use super::servers::{Content, Server};
use crate::app::{Prepared, Running};
use crate::cli;
use crate::control_plane::{Rules, ServedFolder};

/// Below the repository's root; where it is not there, the copy in this binary is unpacked.
const FOLDER: &str = "xds-examples/quickstart";

macro_rules! quickstart {
    ($($file:literal),* $(,)?) => {
        &[$(($file, include_bytes!(concat!("../../xds-examples/quickstart/", $file)))),*]
    };
}

/// The quickstart as it was when this binary was built.
const EMBEDDED: &[(&str, &[u8])] = quickstart![
    "bootstrap.yaml",
    "clusters.yaml",
    "endpoints.yaml",
    "listener.yaml",
    "plugin.yaml",
    "routes.yaml",
    "plugins/broken.wasm",
    "plugins/hello.wasm",
    "plugins/hello-v2.wasm",
];

/// The ports that the quickstart's files name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Port {
    Web = 10000,
    Blue = 10001,
    Green = 10002,
    Plugins = 10003,
    Admin = 9901,
    ControlPlane = 18000,
}

const PORTS: [Port; 6] = [
    Port::Web,
    Port::Blue,
    Port::Green,
    Port::Plugins,
    Port::Admin,
    Port::ControlPlane,
];

/// The running demonstration.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) folder: PathBuf,
    pub(super) control_plane: ServedFolder,
    pub(super) proxy: Running,
    ports: BTreeMap<Port, u16>,
    _servers: Vec<Server>,
    _unpacked: Option<Unpacked>,
}

/// A folder that is removed in the end.
#[derive(Debug)]
struct Unpacked(PathBuf);

impl Drop for Unpacked {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Stage {
    /// Starts everything and waits until the proxy serves.
    ///
    /// # Errors
    /// What kept it from that.
    pub(super) async fn set(screen: &Screen) -> anyhow::Result<Self> {
        let (folder, unpacked) = find_folder()?;
        let mut listeners = BTreeMap::new();
        let mut ports = BTreeMap::new();
        for port in PORTS {
            let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
            let listener = match TcpListener::bind(wanted).await {
                Ok(listener) => listener,
                Err(_) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?,
            };
            let actual = listener.local_addr()?.port();
            if actual != port as u16 {
                screen.line(&format!(
                    "port {} is taken; using {actual} in its place",
                    port as u16
                ));
            }
            ports.insert(port, actual);
            listeners.insert(port, listener);
        }
        // The proxy binds these itself.
        listeners.remove(&Port::Web);
        listeners.remove(&Port::Admin);
        let mut take = |port| listeners.remove(&port).context("each port is taken once");
        let servers = vec![
            Server::start(take(Port::Blue)?, Content::Name("blue"))?,
            Server::start(take(Port::Green)?, Content::Name("green"))?,
            Server::start(take(Port::Plugins)?, Content::Files(folder.join("plugins")))?,
        ];
        let rewrite = {
            let ports = ports.clone();
            move |text: &str| renumber(text, &ports)
        };
        let bootstrap = std::fs::read_to_string(folder.join("bootstrap.yaml"))
            .with_context(|| format!("cannot read {}", folder.join("bootstrap.yaml").display()))?;
        let bootstrap = rewrite(&bootstrap);
        let lines = screen.clone();
        let control_plane = ServedFolder::start_with(
            &folder,
            take(Port::ControlPlane)?,
            Rules {
                record: true,
                ..Rules::default()
            },
            rewrite,
            move |line| lines.detail(&format!("control plane: {line}")),
        )?;
        let argv = [
            "plenipo",
            "--config-yaml",
            &bootstrap,
            "-l",
            "error",
            "--concurrency",
            "2",
        ];
        let command = cli::parse(argv.iter().map(Into::into));
        let Ok(cli::Command::Proxy(options)) = command else {
            anyhow::bail!("the proxy's own command line is wrong")
        };
        let proxy = Prepared::load(*options, |_, _| Ok(None))?.start().await?;
        tokio::time::timeout(Duration::from_secs(20), proxy.live())
            .await
            .context("the proxy did not become ready within 20 s")??;
        Ok(Self {
            folder,
            control_plane,
            proxy,
            ports,
            _servers: servers,
            _unpacked: unpacked,
        })
    }

    /// Where one of the parts listens.
    pub(super) fn address(&self, port: Port) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port(port)).into()
    }

    /// Its port.
    pub(super) fn port(&self, port: Port) -> u16 {
        self.ports.get(&port).copied().unwrap_or(port as u16)
    }

    /// The text of a file of the quickstart, with the ports of this run.
    pub(super) fn file(&self, name: &str) -> anyhow::Result<String> {
        let path = self.folder.join(name);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok(renumber(&text, &self.ports))
    }
}

/// Puts the ports of this run in the place of the file's.
fn renumber(text: &str, ports: &BTreeMap<Port, u16>) -> String {
    let mut text = text.to_owned();
    for (port, actual) in ports {
        let wanted = *port as u16;
        if wanted != *actual {
            text = text
                .replace(
                    &format!("port_value: {wanted}"),
                    &format!("port_value: {actual}"),
                )
                .replace(
                    &format!("127.0.0.1:{wanted}/"),
                    &format!("127.0.0.1:{actual}/"),
                );
        }
    }
    text
}

fn find_folder() -> anyhow::Result<(PathBuf, Option<Unpacked>)> {
    let here = Path::new(FOLDER);
    if here.join("bootstrap.yaml").is_file() {
        return Ok((here.to_owned(), None));
    }
    let folder = std::env::temp_dir().join(format!("plenipo-quickstart-{}", std::process::id()));
    for (name, bytes) in EMBEDDED {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok((folder.clone(), Some(Unpacked(folder))))
}
