//! Tests of `wasm::source::download`, against servers on loopback.

use parking_lot::Mutex;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::base::task::OwnedTask;

/// Answers each request by its head; what was asked is kept.
struct Server {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    _task: OwnedTask,
}

impl Server {
    async fn start(answer: impl Fn(&str) -> String + Send + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("bound");
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&heads);
        let task = OwnedTask::spawn("server", async move {
            while let Ok((mut io, _)) = listener.accept().await {
                let mut buffer = [0; 4096];
                let read = io.read(&mut buffer).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&buffer[..read]).to_lowercase();
                let answer = answer(&head);
                kept.lock().push(head);
                let _ = io.write_all(answer.as_bytes()).await;
            }
        });
        Self {
            address,
            heads,
            _task: task,
        }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().clone()
    }
}

fn ok(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn redirect(to: &str) -> String {
    format!(
        "HTTP/1.1 302 Found\r\nconnection: close\r\ncontent-length: 0\r\nlocation: {to}\r\n\r\n"
    )
}

fn downloader(insecure: &[&str], internal: &[&str]) -> Downloader {
    let list = |hosts: &[&str]| hosts.iter().map(|host| Box::from(*host)).collect();
    Downloader::new(&WasmSettings {
        insecure_registries: list(insecure),
        internal_registries: list(internal),
        ..WasmSettings::default()
    })
    .expect("made")
}

fn ask(url: &str, limit: usize, verified: bool) -> Ask {
    let url: Url = url.parse().expect("a URL");
    let mut headers = HeaderMap::new();
    headers.insert(
        header::AUTHORIZATION,
        http::HeaderValue::from_static("Bearer secret"),
    );
    Ask {
        method: Method::GET,
        configured: url.clone(),
        url,
        headers,
        body: Bytes::new(),
        limit,
        verified,
    }
}

fn error(result: Result<Answer, DownloadError>) -> String {
    result.expect_err("refused").to_string()
}

#[tokio::test]
async fn without_tls_go_only_hosts_of_the_settings_and_what_has_a_sum() {
    let server = Server::start(|_| ok("code")).await;
    let url = format!("http://{}/a", server.address);
    let strict = downloader(&[], &[]);
    let refused = strict.send(ask(&url, 100, false)).await;
    assert!(error(refused).contains("not in insecure_registries"));
    assert!(server.heads().is_empty());
    let answer = strict.send(ask(&url, 100, true)).await.expect("asked");
    assert_eq!(&answer.body[..], b"code");
    let listed = downloader(&[&server.address.to_string()], &[]);
    let answer = listed.send(ask(&url, 100, false)).await.expect("asked");
    assert_eq!(
        (answer.status, &answer.body[..]),
        (StatusCode::OK, &b"code"[..])
    );
    // Its name without a port is another host's.
    let other = downloader(&["127.0.0.1"], &[]);
    assert!(other.send(ask(&url, 100, false)).await.is_err());
}

#[tokio::test]
async fn bodies_are_bounded_whether_announced_or_not() {
    let server = Server::start(|head| {
        if head.contains("/announced") {
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n".to_owned()
        } else if head.contains("/refusal") {
            let body = "x".repeat(100_000);
            format!("HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n{body}")
        } else {
            format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{}",
                "x".repeat(200)
            )
        }
    })
    .await;
    let downloader = downloader(&[&server.address.to_string()], &[]);
    for path in ["announced", "chunk"] {
        let url = format!("http://{}/{path}", server.address);
        let refused = downloader.send(ask(&url, 100, false)).await;
        assert!(error(refused).contains("more than 100 bytes"), "{path}");
    }
    // What HEAD tells of is not what comes.
    let head = Ask {
        method: Method::HEAD,
        ..ask(&format!("http://{}/announced", server.address), 100, false)
    };
    let answer = downloader.send(head).await.expect("an answer");
    assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 0));
    let url = format!("http://{}/refusal", server.address);
    let answer = downloader
        .send(ask(&url, 1 << 30, false))
        .await
        .expect("an answer");
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.body.len() <= MAX_REFUSAL);
}

#[tokio::test]
async fn redirects_are_bounded_watched_and_told_no_secret() {
    let inner = Server::start(|_| ok("inner")).await;
    let target = inner.address;
    let outer = Server::start(move |head| match head {
        _ if head.contains("/loop") => redirect("/loop"),
        _ if head.contains("/nowhere") => redirect("data:x"),
        _ if head.contains("/file") => redirect("file:///etc/passwd"),
        _ if head.contains("/named") => redirect(&format!("http://localhost:{}/b", target.port())),
        _ if head.contains("/relative") => redirect("there"),
        _ if head.contains("/there") => ok("there"),
        _ => redirect(&format!("http://{target}/b?signature=secret")),
    })
    .await;
    let url = |path: &str| format!("http://{}/{path}", outer.address);
    let strict = downloader(&[], &[]);
    for (path, why) in [
        ("loop", "more than 5 redirects"),
        ("nowhere", "is not a URL"),
        ("file", "is not a URL"),
        ("private", "sent us to a private address"),
        ("named", "no public address"),
    ] {
        let refused = error(strict.send(ask(&url(path), 100, true)).await);
        assert!(refused.contains(why), "{path}: {refused}");
        assert!(!refused.contains("secret"), "{refused}");
    }
    assert!(inner.heads().is_empty());
    let answer = strict
        .send(ask(&url("relative"), 100, true))
        .await
        .expect("followed");
    assert_eq!(&answer.body[..], b"there");
    assert!(
        outer
            .heads()
            .last()
            .expect("asked")
            .contains("bearer secret")
    );
    // An internal host may send us there; what is told to it is not told there.
    let trusting = downloader(&[], &[&outer.address.to_string()]);
    let answer = trusting
        .send(ask(&url("private"), 100, true))
        .await
        .expect("followed");
    assert_eq!(&answer.body[..], b"inner");
    assert!(!inner.heads()[0].contains("authorization"));
}

#[test]
fn hosts_are_compared_as_urls_have_them() {
    let url = |text: &str| -> Url { text.parse().expect("a URL") };
    for (named, is_of, is_not) in [
        (
            "127.0.0.1:80",
            "http://127.0.0.1/x",
            "http://127.0.0.1:81/x",
        ),
        (
            "LocalHost:18500",
            "http://localhost:18500/x",
            "http://localhost/x",
        ),
        (
            "reg.example:443",
            "https://REG.example/x",
            "http://reg.example/x",
        ),
        (
            "reg.example",
            "https://reg.example:443/x",
            "https://reg.example:80/x",
        ),
        (
            "reg.example",
            "http://reg.example/x",
            "http://reg.example:443/x",
        ),
        (
            "reg.example:80",
            "https://reg.example:80/x",
            "https://reg.example/x",
        ),
        ("[::0:1]:80", "http://[::1]/", "http://[::2]/"),
    ] {
        let host = Named::parse(named).expect("a host");
        assert!(host.is_of(&url(is_of)), "{named} {is_of}");
        assert!(!host.is_of(&url(is_not)), "{named} {is_not}");
    }
    assert!(Named::parse("a b").is_none());
    assert!(is_same_host(&url("https://a:443/x"), &url("http://A/y")));
    assert!(!is_same_host(&url("https://a:444/x"), &url("https://a/y")));
}

#[test]
fn what_is_asked_with_is_not_shown() {
    let mut ask = ask("https://me:secret@h.test/p?secret", 1, false);
    ask.body = Bytes::from_static(b"refresh_token=secret");
    assert_eq!(format!("{ask:?}"), "Ask(GET https://h.test/p)");
}

#[test]
fn only_what_the_configuration_named_is_refused_for_good() {
    let strict = downloader(&[], &[]);
    let refused = |url: &str, configured: &str| {
        let [url, configured] = [url, configured].map(|url| url.parse().expect("a URL"));
        match strict.client(&url, &configured, false, true) {
            Err(DownloadError::Refused { configured, .. }) => configured,
            other => panic!("not refused: {other:?}"),
        }
    };
    assert!(refused("http://h.test/a", "http://h.test/b"));
    // A token server, or a redirect, of the host that the configuration names.
    assert!(!refused("http://h.test/token", "https://h.test/v2/"));
    assert!(!refused(
        "http://h.test:5000/token",
        "https://h.test:5000/v2/"
    ));
    assert!(!refused("https://10.0.0.1/", "https://h.test/"));
}

#[test]
fn the_token_server_of_a_registry_without_tls_may_be_at_another_port() {
    let plain = downloader(&["h.test:5000", "s.test"], &[]);
    let taken = |url: &str, configured: &str, first: bool| {
        let [url, configured] = [url, configured].map(|url| url.parse().expect("a URL"));
        plain.client(&url, &configured, false, first).is_ok()
    };
    let registry = "http://h.test:5000/v2/";
    assert!(taken("http://h.test:5001/token", registry, true));
    // No redirect, no other host, and none where TLS is spoken.
    assert!(!taken("http://h.test:5001/token", registry, false));
    assert!(!taken("http://i.test:5001/token", registry, true));
    assert!(!taken("http://s.test:81/token", "https://s.test/v2/", true));
}
