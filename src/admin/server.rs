//! The socket and the codec: requests in, answers out.

use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http_body_util::BodyExt as _;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use super::Context;
use super::counters::Stats;
use super::endpoints::{answer, find, shows_stats};
use super::request::{Request, Response};
use crate::base::drain::{self, DrainWatch};
use crate::base::task::OwnedTask;
use crate::bootstrap::{Admin, StatsFlush};
use crate::config::endpoint::Address;
use crate::config::http_connection_manager::{CodecType, Options};
use crate::http::codec::{ConnectionMeter, Exchange, Handler, Io, Malformed, Reply, Reset, server};
use crate::http::{Body, ResponseHead};

/// A form is not longer than this.
const MAX_FORM: usize = 64 * 1024;

/// A running admin interface; it ends, with its connections, when this is dropped.
#[derive(Debug)]
pub struct Running {
    /// Where it listens, with port 0 replaced.
    pub address: Address,
    _accept: OwnedTask,
}

/// Listens, writes the address to `address_file` (`--admin-address-path`), and serves on the current runtime.
///
/// That the file cannot be written is no reason not to serve, as in Envoy.
///
/// # Errors
/// The address is taken.
pub fn start(
    context: Arc<Context>,
    admin: &Admin,
    address_file: Option<&Path>,
) -> io::Result<Running> {
    let (socket, address) = bind(admin)?;
    if let Some(file) = address_file
        && let Err(error) = std::fs::write(file, address.to_string())
    {
        tracing::error!(
            target: "admin", critical = true,
            "cannot open admin address output file {} for writing: {error}", file.display()
        );
    }
    tracing::info!(target: "main", "admin address: {address}");
    let stats = Stats::new(&context.metrics);
    Ok(Running {
        address,
        _accept: OwnedTask::spawn("admin", accept(socket, context, stats)),
    })
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

fn bind(admin: &Admin) -> io::Result<(Socket, Address)> {
    match &admin.address {
        Address::Socket(address) => {
            let socket = socket2::Socket::new(
                socket2::Domain::for_address(*address),
                socket2::Type::STREAM,
                None,
            )?;
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&(*address).into())?;
            socket.listen(1024)?;
            let listener = TcpListener::from_std(socket.into())?;
            let bound = Address::Socket(listener.local_addr()?);
            Ok((Socket::Tcp(listener), bound))
        }
        Address::Pipe(path) => {
            let listener = match path.to_str().and_then(|path| path.strip_prefix('@')) {
                Some(name) => {
                    use std::os::linux::net::SocketAddrExt as _;
                    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                    let listener = std::os::unix::net::UnixListener::bind_addr(&address)?;
                    listener.set_nonblocking(true)?;
                    UnixListener::from_std(listener)?
                }
                None => {
                    // What a process before us left behind.
                    let _ = std::fs::remove_file(path);
                    UnixListener::bind(path)?
                }
            };
            if let Some(mode) = admin.pipe_mode {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
            }
            Ok((Socket::Unix(listener), admin.address.clone()))
        }
        Address::Name(name, _) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("malformed IP address: {name}"),
        )),
    }
}

async fn accept(socket: Socket, context: Arc<Context>, stats: Arc<Stats>) {
    let options = Arc::new(Options::default());
    // Never triggered: connections end with the task.
    let (_trigger, drain) = drain::channel();
    let mut connections = JoinSet::new();
    loop {
        let accepted = match &socket {
            Socket::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                let _ = stream.set_nodelay(true);
                Io::Tcp(stream)
            }),
            Socket::Unix(listener) => listener.accept().await.map(|(stream, _)| Io::Unix(stream)),
        };
        let io = match accepted {
            Ok(io) => io,
            Err(error) => {
                // Out of file descriptors, most likely: the next one may go.
                tracing::warn!(target: "admin", "cannot accept: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(serve(
            io,
            Arc::clone(&options),
            Admitted {
                context: Arc::clone(&context),
                stats: Arc::clone(&stats),
            },
            drain.clone(),
        ));
    }
}

async fn serve(io: Io, options: Arc<Options>, handler: Admitted, drain: DrainWatch) {
    let meter = Arc::new(ConnectionMeter::default());
    // Counts also where the task is cut.
    let _open = handler.stats.opened(Arc::clone(&meter));
    server::serve(io, CodecType::Auto, options, handler, drain, meter).await;
}

/// One connection's handler.
struct Admitted {
    context: Arc<Context>,
    stats: Arc<Stats>,
}

impl Handler for Admitted {
    type Head = ResponseHead;

    fn request(
        &self,
        exchange: Exchange,
    ) -> impl Future<Output = Result<Reply, Reset>> + Send + 'static {
        let context = Arc::clone(&self.context);
        let active = self.stats.asked(exchange.head.version);
        async move {
            let response = respond(context, exchange).await;
            active.answered(response.status.as_u16());
            Ok(reply(response))
        }
    }

    fn malformed(&self, malformed: Malformed) -> Reply {
        let mut reply = reply(Response::error(
            malformed.reply.status,
            String::from_utf8_lossy(&malformed.reply.body),
        ));
        reply.close = true;
        reply
    }
}

async fn respond(context: Arc<Context>, exchange: Exchange) -> Response {
    let Exchange { head, body } = exchange;
    let post = head.method == http::Method::POST;
    let target = String::from_utf8_lossy(head.path.as_bytes()).into_owned();
    let mut request = Request::new(head.method.clone(), &target);
    let is_form = head
        .headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|value| {
            value
                .as_bytes()
                .starts_with(b"application/x-www-form-urlencoded")
        });
    if post && is_form {
        match http_body_util::Limited::new(body, MAX_FORM).collect().await {
            Ok(form) => request.add_params(&String::from_utf8_lossy(&form.to_bytes())),
            Err(_) => return Response::bad("cannot read the form"),
        }
    }
    // On this thread, the one that writes what the flush writes.
    if context.bootstrap.stats.flush == StatsFlush::OnAdmin && shows_stats(&context, &request) {
        context.proxy.flush_stats();
    }
    if !find(&request.path).is_some_and(|endpoint| endpoint.heavy) {
        return answer(&context, &request);
    }
    // The control side has more to do than to print.
    let done = tokio::task::spawn_blocking(move || answer(&context, &request)).await;
    done.unwrap_or_else(|_| {
        Response::error(
            http::StatusCode::INTERNAL_SERVER_ERROR,
            "the endpoint failed\n",
        )
    })
}

fn reply(response: Response) -> Reply {
    let mut head = ResponseHead::new(response.status);
    let headers: [(HeaderName, HeaderValue); 5] = [
        (
            http::header::CONTENT_TYPE,
            HeaderValue::from_static(response.kind.content_type()),
        ),
        (
            http::header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, max-age=0"),
        ),
        (
            http::header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (http::header::DATE, date()),
        (http::header::SERVER, HeaderValue::from_static("envoy")),
    ];
    head.headers.extend(headers);
    Reply {
        head,
        body: Body::new(Chunk(Some(response.body.into()))),
        close: false,
    }
}

fn date() -> HeaderValue {
    let now = jiff::Timestamp::now()
        .strftime("%a, %d %b %Y %H:%M:%S GMT")
        .to_string();
    HeaderValue::try_from(now).unwrap_or(HeaderValue::from_static(""))
}

/// A body whose length is not told beforehand: Envoy's answers are chunked.
struct Chunk(Option<Bytes>);

impl http_body::Body for Chunk {
    type Data = Bytes;
    type Error = crate::http::body::BodyError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(
            self.0
                .take()
                .filter(|data| !data.is_empty())
                .map(|data| Ok(http_body::Frame::data(data))),
        )
    }
}
