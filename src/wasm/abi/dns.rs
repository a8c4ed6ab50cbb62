//! Names that a guest has resolved (`envoy_resolve_dns`): Envoy's own. The answer comes to the root context.
//!
//! Names are asked for on the control side, as those of clusters are, in Envoy's default order: IPv6, and IPv4 where there
//! is none. A question ends with its answer or with its root context.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tokio::runtime::Handle;

use super::{Guest, Outcome, Status, memory, put_u32, range};
use crate::base::task::OwnedTask;
use crate::cluster::dns::{ResolveError, Resolver, literal};
use crate::config::cluster::{DnsFamily, DnsOptions};
use crate::wasm::meter::Quota;
use crate::wasm::vm::Message;

/// Longest name.
const MAX_NAME: usize = 255;

/// Who answers.
#[derive(Clone)]
pub(crate) struct Dns {
    resolver: Arc<dyn Resolver>,
    control: Handle,
    options: Arc<DnsOptions>,
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dns({:?})", self.resolver)
    }
}

impl Dns {
    /// Asks `resolver`, in the runtime `control`.
    pub(crate) fn new(resolver: Arc<dyn Resolver>, control: Handle) -> Self {
        Self {
            resolver,
            control,
            options: Arc::new(DnsOptions {
                refresh: Duration::ZERO,
                respect_ttl: false,
                failure_refresh: (Duration::ZERO, Duration::ZERO),
                jitter: Duration::ZERO,
                family: DnsFamily::Auto,
                resolvers: Vec::new(),
            }),
        }
    }

    /// What the guest is told of `name`.
    async fn answer(self, name: Option<Box<str>>) -> Bytes {
        let Some(name) = name else {
            return Bytes::new();
        };
        let resolved = match literal(&name, self.options.family) {
            Some(resolved) => Ok(resolved),
            None => self.resolver.resolve(&name, &self.options).await,
        };
        match resolved {
            Ok(resolved) => encode(&resolved.addresses, resolved.ttl.unwrap_or_default()),
            Err(ResolveError::NoAddresses) => encode(&[], Duration::ZERO),
            Err(ResolveError::Failed(_)) => Bytes::new(),
        }
    }
}

/// Their number, how many seconds each holds, and each as text with a port and a NUL.
fn encode(addresses: &[IpAddr], ttl: Duration) -> Bytes {
    let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
    let mut bytes = number(addresses.len() as u64).to_vec();
    for _ in addresses {
        bytes.extend(number(ttl.as_secs()));
    }
    for address in addresses {
        bytes.extend(SocketAddr::new(*address, 0).to_string().as_bytes());
        bytes.push(0);
    }
    bytes.into()
}

/// `None` where it cannot be asked for: the answer to it is no bytes at all.
fn name_of(bytes: &[u8]) -> Option<Box<str>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.*/".contains(&byte);
    let name = text.len() <= MAX_NAME && text.bytes().all(plain);
    (name || text.parse::<IpAddr>().is_ok()).then(|| text.into())
}

/// What one VM has asked for.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    /// Tokens are 2, 3, 4, … as in Envoy.
    last: u32,
    /// By token; the task, and the root context that its answer is for.
    active: FxHashMap<u32, (u32, OwnedTask)>,
}

impl Lookups {
    /// Those without an answer.
    pub(crate) fn len(&self) -> usize {
        self.active.len()
    }

    /// There is one for `token`; the root context that it is for. `None` where nobody waits for it.
    pub(crate) fn finish(&mut self, token: u32) -> Option<u32> {
        self.active.remove(&token).map(|(root, _)| root)
    }

    /// Gives up those of one root context.
    pub(crate) fn cancel_root(&mut self, root: u32) {
        self.active.retain(|_, (of, _)| *of != root);
    }

    /// Gives up all.
    pub(crate) fn cancel(&mut self) {
        self.active.clear();
    }

    fn fresh_token(&mut self) -> u32 {
        loop {
            self.last = self.last.wrapping_add(1).max(2);
            if !self.active.contains_key(&self.last) {
                return self.last;
            }
        }
    }
}

pub(super) fn resolve(guest: &mut Guest<'_>, at: u32, len: u32, token_out: u32) -> Outcome {
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let name = name_of(range(data, at, len)?);
    // Also a place that is none takes one.
    let token = host.lookups.fresh_token();
    put_u32(guest, token_out, token)?;
    let host = guest.data_mut();
    // A tool has nobody to ask.
    let dns = host.env.dns.clone().ok_or(Status::InternalFailure)?;
    if host.under_way() >= host.env.policy.quotas.callouts {
        host.meter().refuse(Quota::Callouts);
        return Err(Status::InternalFailure.into());
    }
    let mailbox = host.mailbox.clone();
    let control = dns.control.clone();
    let _entered = control.enter();
    let task = OwnedTask::spawn("wasm name", async move {
        let answer = dns.answer(name).await;
        // Nobody listens where the VM is gone.
        let _ = mailbox.send(Message::Resolved { token, answer });
    });
    host.lookups.active.insert(token, (host.root_id, task));
    host.count_calls();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a running Envoy told of them.
    #[test]
    fn answers_have_envoys_form() {
        let encoded = |addresses: &[&str], ttl| {
            let addresses: Vec<IpAddr> = addresses.iter().flat_map(|text| text.parse()).collect();
            encode(&addresses, Duration::from_secs(ttl))
        };
        assert_eq!(
            encoded(&["127.0.0.9"], 0),
            &b"\x01\0\0\0\0\0\0\x00127.0.0.9:0\0"[..]
        );
        assert_eq!(
            encoded(&["::1", "1.2.3.4"], 300),
            &b"\x02\0\0\0\x2c\x01\0\0\x2c\x01\0\0[::1]:0\x001.2.3.4:0\0"[..]
        );
        assert_eq!(encoded(&[], 0), &[0; 4][..]);
    }

    #[test]
    fn what_is_no_name_is_not_asked_for() {
        for name in ["localhost", "a-b.c_d.", "127.0.0.1", "::1", "1", ""] {
            assert!(name_of(name.as_bytes()).is_some(), "{name}");
        }
        let long = "a".repeat(256);
        for name in ["a b", "127.0.0.1:80", "[::1]", "ä", "a\0", &long] {
            assert!(name_of(name.as_bytes()).is_none(), "{name}");
        }
        assert!(name_of(b"\xff").is_none());
    }
}
