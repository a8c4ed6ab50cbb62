//! The demonstration's own servers: two upstreams, and the files of the plugins. They speak through our codec.

use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderValue, StatusCode};
use tokio::net::TcpListener;

use crate::base::drain::{self, DrainTrigger};
use crate::base::task::{self, OwnedTask};
use crate::config::http_connection_manager::{CodecType, Options};
use crate::http::codec::server;
use crate::http::codec::{ConnectionMeter, Exchange, Handler, Io, Malformed, Reply, Reset};
use crate::http::{Body, ResponseHead};

/// What a server answers.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Its name.
    Name(&'static str),
    /// The files of a folder.
    Files(PathBuf),
}

/// A server; dropping it closes it.
#[derive(Debug)]
pub(super) struct Server {
    _drain: DrainTrigger,
    _task: OwnedTask,
}

impl Server {
    /// Serves `content` on `listener`.
    pub(super) fn start(listener: TcpListener, content: Content) -> std::io::Result<Self> {
        let (trigger, watch) = drain::channel();
        let content = Arc::new(content);
        let options = Arc::new(Options::default());
        let accept = async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::task::yield_now().await;
                    continue;
                };
                let _ = stream.set_nodelay(true);
                let handler = Answers(Arc::clone(&content));
                let meter = Arc::new(ConnectionMeter::default());
                let (options, watch) = (Arc::clone(&options), watch.clone());
                task::spawn("demo connection", async move {
                    let io = Io::Tcp(stream);
                    server::serve(io, CodecType::Http1, options, handler, watch, meter).await
                });
            }
        };
        Ok(Self {
            _drain: trigger,
            _task: OwnedTask::spawn("demo server", accept),
        })
    }
}

struct Answers(Arc<Content>);

impl Handler for Answers {
    type Head = ResponseHead;

    fn request(
        &self,
        exchange: Exchange,
    ) -> impl Future<Output = Result<Reply, Reset>> + Send + 'static {
        let content = Arc::clone(&self.0);
        async move {
            let path = String::from_utf8_lossy(exchange.head.path_only()).into_owned();
            let (status, body) = match &*content {
                Content::Name(name) => (StatusCode::OK, format!("I am {name}.\n").into_bytes()),
                Content::Files(folder) => {
                    let name = path.trim_start_matches('/');
                    // One level of plain names: nothing above the folder can be asked for.
                    let file = (!name.contains(['/', '\\'])).then(|| folder.join(name));
                    let read = tokio::task::spawn_blocking(move || {
                        file.and_then(|file| std::fs::read(file).ok())
                    });
                    match read.await.ok().flatten() {
                        Some(bytes) => (StatusCode::OK, bytes),
                        None => (StatusCode::NOT_FOUND, Vec::new()),
                    }
                }
            };
            let mut head = ResponseHead::new(status);
            head.headers
                .insert("content-length", HeaderValue::from(body.len()));
            if let Content::Name(name) = &*content {
                head.headers
                    .insert("x-upstream", HeaderValue::from_static(name));
            }
            Ok(Reply {
                head,
                body: Body::full(body),
                close: false,
            })
        }
    }

    fn malformed(&self, malformed: Malformed) -> Reply {
        Reply {
            head: ResponseHead::new(malformed.reply.status),
            body: Body::empty(),
            close: true,
        }
    }
}
