//! Constant load on the proxy: keep-alive connections that count every answer which is not the one wanted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::base::task::OwnedTask;
use crate::config::cluster::Http1Options;
use crate::http::codec::client::Http1;
use crate::http::codec::{ConnectionMeter, Io};
use crate::http::{Body, RequestHead};

/// A reply, as far as the tour looks at it.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Answer {
    /// A header's value, or nothing.
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }
}

/// A keep-alive client of one connection.
#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    idle: Option<mpsc::UnboundedReceiver<Http1>>,
}

impl Client {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            idle: None,
        }
    }

    /// One request.
    ///
    /// # Errors
    /// What went wrong, as a sentence.
    pub(super) async fn get(&mut self, path: &str) -> Result<Answer, String> {
        let mut known = self.idle.take().and_then(|mut idle| idle.try_recv().ok());
        let known = known.take_if(|connection| connection.is_open());
        let connection = match known {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect(self.address)
                    .await
                    .map_err(|error| format!("connect: {error}"))?;
                let _ = stream.set_nodelay(true);
                Http1::new(
                    Io::Tcp(stream),
                    &Http1Options::default(),
                    Arc::new(ConnectionMeter::default()),
                )
            }
        };
        let (back, idle) = mpsc::unbounded_channel();
        let head = RequestHead::new(Method::GET, "demo.test", path);
        let exchange = async {
            let (head, body) = connection
                .send(head, Body::empty(), move |connection| {
                    // Nobody wants it back where the client is gone.
                    let _ = back.send(connection);
                })
                .await
                .map_err(|error| error.to_string())?;
            let body = body
                .collect()
                .await
                .map_err(|error| error.to_string())?
                .to_bytes();
            Ok(Answer {
                status: head.status,
                headers: head.headers,
                body: String::from_utf8_lossy(&body).into_owned(),
            })
        };
        let answer = tokio::time::timeout(Duration::from_secs(10), exchange)
            .await
            .unwrap_or_else(|_| Err("no answer within 10 s".to_owned()))?;
        self.idle = Some(idle);
        Ok(answer)
    }
}

/// What the load has seen so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    sent: AtomicU64,
    failed: AtomicU64,
    first_failure: Mutex<Option<String>>,
}

impl Counts {
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    pub(super) fn first_failure(&self) -> Option<String> {
        self.first_failure.lock().clone()
    }
}

/// Running load; dropping it stops it.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) counts: Arc<Counts>,
    _clients: Vec<OwnedTask>,
}

impl Load {
    /// `clients` connections, each with a request about every `pause`.
    pub(super) fn start(address: SocketAddr, clients: usize, pause: Duration) -> Self {
        let counts = Arc::new(Counts::default());
        let clients = (0..clients)
            .map(|_| {
                let counts = Arc::clone(&counts);
                OwnedTask::spawn("demo load", async move {
                    let mut client = Client::new(address);
                    loop {
                        let result = client.get("/load").await.and_then(wanted);
                        counts.sent.fetch_add(1, Relaxed);
                        if let Err(reason) = result {
                            counts.failed.fetch_add(1, Relaxed);
                            counts.first_failure.lock().get_or_insert(reason);
                        }
                        tokio::time::sleep(pause).await;
                    }
                })
            })
            .collect();
        Self {
            counts,
            _clients: clients,
        }
    }
}

/// Every answer must be an upstream's, and must have passed the plugin.
fn wanted(answer: Answer) -> Result<(), String> {
    if answer.status != StatusCode::OK {
        return Err(format!("status {}: {}", answer.status, answer.body));
    }
    if answer.header("x-hello").is_empty() {
        return Err("an answer that the plugin did not see".to_owned());
    }
    Ok(())
}
