//! Callouts: HTTP requests of a plugin to a cluster. Their answers come to the root context.
//!
//! A call starts at once on the VM's worker, or when the VM is adopted if it was made while being configured. It ends
//! with its answer or its timeout, or with the root context that hears of it; not with the stream that asked for it, as in
//! Envoy.

use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use rustc_hash::FxHashMap;
use tokio::sync::mpsc::UnboundedSender;

use super::grpc::{self, Exchanges};
use super::headers::{add_to, authority_value, path_value, pseudo};
use super::{Guest, Outcome, Status, memory, pairs, put_u32, range};
use crate::base::task::{OwnedTask, spawn};
use crate::cluster::client::{self, Call};
use crate::http::joined::{self, Side};
use crate::http::{RequestHead, Scheme};
use crate::wasm::context::{Environment, Host};
use crate::wasm::meter::Quota;
use crate::wasm::payload::Charge;
use crate::wasm::vm::Message;

/// How long callouts go on whose VM has died.
const ORPHANED: Duration = Duration::from_secs(15);
/// Most bytes of names and values of a request.
pub(super) const MAX_HEAD: usize = 256 << 10;
/// Largest answer.
const MAX_ANSWER: usize = 16 << 20;

/// The callouts of one VM.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    /// Tokens are 4, 8, 12, … as in Envoy.
    last: u32,
    /// By token; the task, and the root context that its answer is for.
    active: FxHashMap<u32, (u32, OwnedTask)>,
    queued: Vec<(u32, u32, Request)>,
    /// The VM is on its worker.
    adopted: bool,
    /// Those of gRPC.
    pub(crate) grpc: Exchanges,
}

#[derive(Debug)]
struct Request {
    cluster: Box<str>,
    call: Call,
    /// What it holds of the VM's callout bytes.
    charge: Charge,
}

impl Calls {
    /// Calls under way.
    pub(crate) fn len(&self) -> usize {
        self.active.len() + self.queued.len() + self.grpc.len()
    }

    /// The call of `token` has ended; the root context that it was for. `None` where there is no such call.
    pub(crate) fn finish(&mut self, token: u32) -> Option<u32> {
        self.active.remove(&token).map(|(root, _)| root)
    }

    /// Gives up those of one root context.
    pub(crate) fn cancel_root(&mut self, root: u32) {
        self.active.retain(|_, (of, _)| *of != root);
        self.queued.retain(|(_, of, _)| *of != root);
        self.grpc.cancel_root(root);
    }

    /// The VM has died. What it asked for is asked still, as in Envoy, where a dead VM keeps its calls: a report that a
    /// plugin sends as a stream ends must not depend on what its next callback does. Nobody hears the answers, and
    /// nobody waits long for them.
    pub(crate) fn orphan(&mut self) {
        let active = std::mem::take(&mut self.active);
        if !active.is_empty() {
            drop(spawn("wasm orphans", async move {
                tokio::time::sleep(ORPHANED).await;
                drop(active);
            }));
        }
        self.queued.clear();
        self.grpc.cancel();
    }

    /// The VM is on its worker: calls start at once.
    pub(super) fn is_adopted(&self) -> bool {
        self.adopted
    }

    fn start(
        &mut self,
        token: u32,
        root: u32,
        request: Request,
        env: &std::sync::Arc<Environment>,
        mailbox: &UnboundedSender<Message>,
    ) {
        let clusters = env.clusters.load_full();
        let mailbox = mailbox.clone();
        let probe = env.probe.clone();
        let task = OwnedTask::spawn("wasm callout", async move {
            let Request {
                cluster,
                call,
                charge,
            } = request;
            let result = match probe {
                Some(probe) => probe.call(&cluster, call),
                None => {
                    let mut room = charge.another();
                    let more = |received| room.set(received);
                    let calling = client::call_within(&clusters, &cluster, call, more);
                    // An answer may take for ever, and a Generation's filters are held by their clusters.
                    drop(clusters);
                    calling.await.map(|mut response| {
                        // Until the guest has read it.
                        response.body = room.hold(response.body);
                        response
                    })
                }
            };
            drop(charge);
            // Nobody listens where the VM is gone.
            let _ = mailbox.send(Message::Called { token, result });
        });
        self.active.insert(token, (root, task));
    }
}

/// The VM is on its worker: calls that waited for that start now.
pub(crate) fn adopt(host: &mut Host) {
    host.calls.adopted = true;
    for (token, root, request) in std::mem::take(&mut host.calls.queued) {
        host.calls
            .start(token, root, request, &host.env, &host.mailbox);
    }
    grpc::adopt(host);
}

#[allow(clippy::too_many_arguments, reason = "the ABI's")]
pub(super) fn http_call(
    guest: &mut Guest<'_>,
    upstream: u32,
    upstream_len: u32,
    headers: u32,
    headers_len: u32,
    body: u32,
    body_len: u32,
    trailers: u32,
    trailers_len: u32,
    timeout: u32,
    token_out: u32,
) -> Outcome {
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let data = &*data;
    let cluster = range(data, upstream, upstream_len)?;
    let headers = pairs::read(range(data, headers, headers_len)?).unwrap_or_default();
    let body = range(data, body, body_len)?;
    let copied = [headers_len, body_len, trailers_len];
    let copied = copied.iter().map(|len| *len as usize).sum();
    let trailers = pairs::read(range(data, trailers, trailers_len)?).unwrap_or_default();
    // The place of the token is checked before anything happens.
    range(data, token_out, 4)?;
    let known = std::str::from_utf8(cluster)
        .ok()
        .filter(|name| match &host.env.probe {
            Some(probe) => probe.has_cluster(name),
            None => host.env.clusters.load().get(name).is_some(),
        });
    let request = known
        .zip(head(&headers))
        .filter(|_| i32::try_from(timeout).is_ok());
    let Some((cluster, head)) = request else {
        put_u32(guest, token_out, 0)?;
        return Err(Status::BadArgument.into());
    };
    let hostless = host
        .env
        .clusters
        .load()
        .get(cluster)
        .is_some_and(|cluster| cluster.endpoints().hosts().next().is_none());
    if hostless {
        // Envoy's client answers such a call before it has begun, and nothing comes of it.
        put_u32(guest, token_out, 0)?;
        return Err(Status::InternalFailure.into());
    }
    if host.under_way() >= host.env.policy.quotas.callouts {
        host.meter().refuse(Quota::Callouts);
        return Err(Status::InternalFailure.into());
    }
    let charge = host.charge_call(copied)?;
    let request = Request {
        charge,
        cluster: cluster.into(),
        call: Call {
            head,
            body: Bytes::copy_from_slice(body),
            trailers: fields(&trailers),
            timeout: Duration::from_millis(u64::from(timeout)),
            limit: MAX_ANSWER,
        },
    };
    host.calls.last = host.calls.last.wrapping_add(4);
    let token = host.calls.last;
    if host.calls.adopted {
        host.calls
            .start(token, host.root_id, request, &host.env, &host.mailbox);
    } else {
        host.calls.queued.push((token, host.root_id, request));
    }
    host.count_calls();
    put_u32(guest, token_out, token)?;
    Ok(())
}

/// The head of a request; `None` where what it must have is missing or cannot be sent. One with the method CONNECT has a path,
/// and so comes no further than to the codec.
fn head(pairs: &[(&[u8], &[u8])]) -> Option<RequestHead> {
    let (mut method, mut path, mut authority) = (None, None::<Vec<u8>>, None::<Vec<u8>>);
    let mut head = RequestHead::new(Method::GET, "", "/");
    if pairs::size(pairs) > MAX_HEAD {
        return None;
    }
    for (name, value) in pairs {
        let lower = pseudo(name);
        match lower.as_deref().unwrap_or(name) {
            b":method" => method = Some(Method::from_bytes(value).ok()?),
            // As Envoy joins what it keeps once.
            b":path" => add_to(path.get_or_insert_default(), value),
            b":authority" | b"host" => add_to(authority.get_or_insert_default(), value),
            b":scheme" if *value == b"https" => head.scheme = Scheme::Https,
            [b':', ..] => {}
            name => {
                if let Some((name, value)) = field(name, value) {
                    joined::append(Side::Request, &mut head.headers, name, value);
                }
            }
        }
    }
    head.method = method?;
    head.path = path_value(&path?).ok()?;
    head.authority = authority_value(&authority?).ok()?;
    head.has_host = true;
    Some(head)
}

fn fields(pairs: &[(&[u8], &[u8])]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in pairs {
        if let Some((name, value)) = field(name, value) {
            // Past the map's capacity nothing is added.
            let _ = fields.try_append(name, value);
        }
    }
    fields
}

/// `None`: it is not a header, and left out.
fn field(name: &[u8], value: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(name).ok()?;
    Some((name, HeaderValue::from_bytes(value).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_authorities_are_one() {
        let pairs: [(&[u8], &[u8]); 4] = [
            (b":method", b"GET"),
            (b":path", b"/"),
            (b":authority", b"a"),
            (b"host", b"b"),
        ];
        assert_eq!(head(&pairs).expect("complete").authority, "a,b");
    }

    #[test]
    fn a_head_is_bounded() {
        let long = vec![b'a'; MAX_HEAD - 30];
        let of = |long| {
            [
                (&b":method"[..], &b"GET"[..]),
                (b":path", b"/"),
                (b"host", b"a"),
                (b"x", long),
            ]
        };
        assert!(head(&of(&long)).is_some());
        let longer = vec![b'a'; MAX_HEAD];
        assert!(head(&of(&longer)).is_none());
    }

    #[test]
    fn what_a_request_line_cannot_hold_is_no_head() {
        for (path, authority, good) in [
            ("/", "a", true),
            ("no-slash", "", true),
            ("", "a", false),
            ("/a b", "a", false),
            ("/a\tb", "a", false),
            ("/\u{7f}", "a", false),
            ("/", "a b", false),
            ("/", "a\tb", false),
            ("/", "a\r\nb: c", false),
        ] {
            for method in ["GET", "CONNECT"] {
                let pairs = [
                    (":method", method),
                    (":path", path),
                    (":authority", authority),
                ];
                let pairs = pairs.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
                let made = head(&pairs);
                assert_eq!(made.is_some(), good, "{method} {path:?} {authority:?}");
                // A CONNECT without a path would be sent.
                assert!(made.is_none_or(|head| !head.path.is_empty()));
            }
        }
    }
}
