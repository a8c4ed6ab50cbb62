//! A registry of images that lies, stalls and asks for passwords as it is told to.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Whom it lets in.
#[derive(Clone, Debug)]
pub enum Door {
    Open,
    /// `Authorization: Basic` of this, in base64.
    Basic(&'static str),
    /// A token of its own token server, which wants that.
    Token(&'static str),
}

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It closes every connection.
    Down,
    /// It takes requests and says nothing.
    Silent,
    /// Blobs are not what was asked for.
    WrongBlobs,
    /// Manifests are not what their digests say.
    WrongManifests,
    /// Blobs end in the middle.
    Short,
    /// Blobs are elsewhere, on this server.
    Redirect,
    /// Blobs are announced as larger than what anybody takes.
    Huge,
}

#[derive(Debug)]
struct State {
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, Vec<u8>>,
    door: Door,
    fault: Fault,
    requests: Vec<String>,
}

/// Listens on a port of its own; closes when dropped.
#[derive(Debug)]
pub struct FakeRegistry {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

/// How an image holds its module.
#[derive(Clone, Copy, Debug)]
pub enum Layout {
    Docker,
    Oci,
    Solo,
    Cncf,
    Content,
    Index,
    Zstd,
}

pub const LAYOUTS: [Layout; 7] = [
    Layout::Docker,
    Layout::Oci,
    Layout::Solo,
    Layout::Cncf,
    Layout::Content,
    Layout::Index,
    Layout::Zstd,
];

pub fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    let digits: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[156] = b'0';
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut tar = [&header[..], content].concat();
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

fn tar_gzip(name: &str, content: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar(name, content)).expect("into memory");
    gzip.finish().expect("into memory")
}

impl FakeRegistry {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State {
            blobs: HashMap::new(),
            manifests: HashMap::new(),
            door: Door::Open,
            fault: Fault::None,
            requests: Vec::new(),
        }));
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, address, Arc::clone(&shared)));
            }
        });
        Self {
            address,
            state,
            task,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    pub fn set_door(&self, door: Door) {
        self.state().door = door;
    }

    pub fn set_fault(&self, fault: Fault) {
        self.state().fault = fault;
    }

    /// `METHOD path` of each request so far.
    pub fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    /// How many of them were for manifests, and how many for blobs.
    pub fn counts(&self) -> (usize, usize) {
        let of_kind = |kind: &str| {
            let requests = self.requests();
            requests.iter().filter(|line| line.contains(kind)).count()
        };
        (of_kind("/manifests/"), of_kind("/blobs/"))
    }

    fn blob(&self, media_type: &str, content: &[u8]) -> Value {
        let name = digest(content);
        self.state().blobs.insert(name.clone(), content.to_vec());
        json!({"mediaType": media_type, "digest": name, "size": content.len()})
    }

    fn manifest(&self, name: &str, manifest: &Value) -> Value {
        let bytes = manifest.to_string().into_bytes();
        let media_type = manifest["mediaType"].clone();
        let (sum, size) = (digest(&bytes), bytes.len());
        let mut state = self.state();
        state.manifests.insert(sum.clone(), bytes.clone());
        state.manifests.insert(name.to_owned(), bytes);
        json!({"mediaType": media_type, "digest": sum, "size": size})
    }

    /// Tags an image of `module`, and tells the digests of its manifest and of its layer.
    pub fn push(&self, tag: &str, layout: Layout, module: &[u8]) -> (String, String) {
        let (image, config, layers) = match layout {
            Layout::Docker => (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
                vec![
                    self.blob("application/vnd.docker.image.rootfs.diff.tar.gzip", b"base"),
                    self.blob(
                        "application/vnd.docker.image.rootfs.diff.tar.gzip",
                        &tar_gzip("plugin.wasm", module),
                    ),
                ],
            ),
            Layout::Oci | Layout::Index => (
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.config.v1+json",
                vec![self.blob(
                    "application/vnd.oci.image.layer.v1.tar+gzip",
                    &tar_gzip("./plugin.wasm", module),
                )],
            ),
            Layout::Zstd => (
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.config.v1+json",
                vec![self.blob(
                    "application/vnd.oci.image.layer.v1.tar+zstd",
                    &ruzstd::encoding::compress_to_vec(
                        &*tar("plugin.wasm", module),
                        ruzstd::encoding::CompressionLevel::Fastest,
                    ),
                )],
            ),
            Layout::Solo => (
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.module.wasm.config.v1+json",
                vec![
                    self.blob("application/vnd.module.wasm.config.v1+json", b"{}"),
                    self.blob("application/vnd.module.wasm.content.layer.v1+wasm", module),
                ],
            ),
            Layout::Cncf => (
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.wasm.config.v0+json",
                vec![self.blob("application/wasm", module)],
            ),
            Layout::Content => (
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.wasm.config.v1+json",
                vec![self.blob("application/vnd.wasm.content.layer.v1+wasm", module)],
            ),
        };
        let layer = layers.last().expect("a layer")["digest"].clone();
        let config = self.blob(config, b"{}");
        let mut of_it = self.manifest(
            tag,
            &json!({"schemaVersion": 2, "mediaType": image, "config": config, "layers": layers}),
        );
        if matches!(layout, Layout::Index) {
            of_it["platform"] = json!({"architecture": "wasm", "os": "wasip1"});
            let other = json!({"mediaType": image, "digest": digest(b"x"), "size": 1, "platform": {"architecture": "unknown", "os": "unknown"}});
            of_it = self.manifest(
                tag,
                &json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [other, of_it]}),
            );
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&of_it["digest"]), text(&layer))
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The next head of a connection, its last line break left out; `buffer` holds what came behind it. `None` at the end.
pub async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<String> {
    let mut chunk = [0; 16384];
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        match stream.read(&mut chunk).await {
            Ok(read) if read > 0 => buffer.extend_from_slice(&chunk[..read]),
            _ => return None,
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end + 4);
    Some(head)
}

/// One request a connection.
async fn serve(mut stream: TcpStream, own: SocketAddr, state: Arc<Mutex<State>>) {
    let mut body = Vec::new();
    let mut chunk = [0; 4096];
    let Some(head) = read_head(&mut stream, &mut body).await else {
        return;
    };
    let length = head.to_lowercase();
    let length = length
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    while body.len() < length.unwrap_or(0) {
        match stream.read(&mut chunk).await {
            Ok(read) if read > 0 => body.extend_from_slice(&chunk[..read]),
            _ => return,
        }
    }
    let answer = {
        let mut state = state.lock().expect("no panic");
        answer(&head, &body, own, &mut state)
    };
    match answer {
        Some(bytes) => {
            let _ = stream.write_all(&bytes).await;
        }
        None => while !matches!(stream.read(&mut chunk).await, Ok(0) | Err(_)) {},
    }
}

/// What it answers; `None` is nothing, for as long as anybody waits.
fn answer(head: &str, body: &[u8], own: SocketAddr, state: &mut State) -> Option<Vec<u8>> {
    let mut words = head.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    state.requests.push(format!("{method} {path}"));
    match state.fault {
        Fault::Down => return Some(Vec::new()),
        Fault::Silent => return None,
        _ => {}
    }
    let respond = |status: &str, headers: &str, body: &[u8]| {
        let length = body.len();
        let mut bytes = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
        )
        .into_bytes();
        if method != "HEAD" {
            bytes.extend(body);
        }
        Some(bytes)
    };
    let authorization = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("authorization").then_some(value)
    });
    if path.starts_with("/token") {
        let Door::Token(wanted) = state.door else {
            return respond("404 Not Found", "", b"");
        };
        return match authorization == Some(&format!("Basic {wanted}")) {
            true => respond("200 OK", "", br#"{"token": "open-sesame"}"#),
            false => respond(
                "401 Unauthorized",
                "",
                br#"{"errors": [{"code": "DENIED", "message": "who?"}]}"#,
            ),
        };
    }
    let challenge = match state.door {
        Door::Open => None,
        Door::Basic(wanted) => (authorization != Some(&format!("Basic {wanted}")))
            .then(|| "Basic realm=\"fake\"".to_owned()),
        Door::Token(_) => (authorization != Some("Bearer open-sesame"))
            .then(|| format!("Bearer realm=\"http://{own}/token\",service=\"fake\"")),
    };
    if let Some(challenge) = challenge {
        return respond(
            "401 Unauthorized",
            &format!("www-authenticate: {challenge}\r\n"),
            b"",
        );
    }
    let name = path.rsplit('/').next()?;
    match method {
        "POST" => return respond("202 Accepted", "location: /upload?session=1\r\n", b""),
        "PUT" if path.contains("/manifests/") => {
            state.manifests.insert(digest(body), body.to_vec());
            state.manifests.insert(name.to_owned(), body.to_vec());
            return respond("201 Created", "", b"");
        }
        "PUT" => {
            let wanted = path.split("digest=").nth(1)?.replace("%3A", ":");
            if digest(body) != wanted {
                return respond(
                    "400 Bad Request",
                    "",
                    br#"{"errors": [{"code": "DIGEST_INVALID"}]}"#,
                );
            }
            state.blobs.insert(wanted, body.to_vec());
            return respond("201 Created", "", b"");
        }
        _ => {}
    }
    if path.contains("/manifests/") {
        let Some(mut manifest) = state.manifests.get(name).cloned() else {
            return respond(
                "404 Not Found",
                "",
                br#"{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no such tag"}]}"#,
            );
        };
        let told = format!("docker-content-digest: {}\r\n", digest(&manifest));
        if state.fault == Fault::WrongManifests {
            manifest.push(b' ');
        }
        return respond("200 OK", &told, &manifest);
    }
    let Some(mut blob) = state.blobs.get(name).cloned() else {
        return respond("404 Not Found", "", b"");
    };
    match state.fault {
        Fault::WrongBlobs => blob.push(0),
        Fault::Short => {
            let mut bytes = respond("200 OK", "", &blob)?;
            bytes.truncate(bytes.len() - blob.len() / 2);
            return Some(bytes);
        }
        Fault::Redirect if !path.starts_with("/elsewhere/") => {
            let location = format!("location: /elsewhere/blobs/{name}\r\n");
            return respond("307 Temporary Redirect", &location, b"");
        }
        Fault::Huge => {
            return Some(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n".to_vec());
        }
        _ => {}
    }
    respond("200 OK", "", &blob)
}
