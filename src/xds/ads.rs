//! One stream of one control plane as a pure machine: bytes in order in, requests in order out. No IO, no clock.
//!
//! Both encodings are the same machine. What is wanted of a type is a set of names, `*` among them for a wildcard;
//! what the server was told is another; the difference becomes requests. The rules kept here:
//!
//! * one response of a type is judged at a time, later ones queue; one nonce, one answer, in order;
//! * state of the world: every request carries all names; none is sent between a response and its answer, since its
//!   nonce would be stale and servers drop such requests silently; a refusal carries the old version;
//! * delta: an answer carries no subscription change, a subscription change carries no nonce; after a reconnect the
//!   versions of acknowledged resources go out, never those of a refused response;
//! * a wildcard is an empty first subscription; once names were sent, an empty list unsubscribes;
//! * responses of types never asked for are ignored.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};
use sha2::{Digest as _, Sha256};

use super::ResourceType;
use super::resource::{name_of, unwrap_resource};
use crate::config::ConfigError;
use crate::pb;
use pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};

/// The name that stands for every resource of a type.
pub(super) const WILDCARD: &str = "*";

/// `google.rpc.Code.INTERNAL`: what Envoy puts into a refusal.
const CODE_INTERNAL: i32 = 13;

/// What is said on the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// State of the world.
    Sotw,
    /// Differences.
    Delta,
}

/// A request to send.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Request {
    Sotw(DiscoveryRequest),
    Delta(DeltaDiscoveryRequest),
}

/// A response that arrived.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Response {
    Sotw(DiscoveryResponse),
    Delta(DeltaDiscoveryResponse),
}

impl Response {
    /// Who says it comes from them; empty where nobody does.
    pub(super) fn identifier(&self) -> &str {
        let control_plane = match self {
            Self::Sotw(response) => &response.control_plane,
            Self::Delta(response) => &response.control_plane,
        };
        control_plane
            .as_ref()
            .map_or("", |plane| plane.identifier.as_str())
    }
}

/// A response in one form for both encodings.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Update {
    pub(super) kind: ResourceType,
    /// `version_info` or `system_version_info`.
    pub(super) version: Arc<str>,
    pub(super) resources: Vec<Received>,
    /// Authoritative removals (delta).
    pub(super) removed: Vec<Arc<str>>,
    /// What could not even be named, or is there twice: name (may be empty), bytes, and why.
    pub(super) unreadable: Vec<(Arc<str>, Option<Bytes>, ConfigError)>,
    /// What is absent is deleted. Never set where something is unreadable.
    pub(super) full_state: bool,
}

/// One resource of a response.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Received {
    pub(super) name: Arc<str>,
    pub(super) version: Arc<str>,
    /// `None` is a heartbeat: the resource has not changed.
    pub(super) body: Option<Bytes>,
}

/// The stream.
#[derive(Debug)]
pub(super) struct Conversation {
    encoding: Encoding,
    node: pb::Node,
    node_on_first_only: bool,
    open: bool,
    node_sent: bool,
    types: BTreeMap<ResourceType, Subscription>,
    outbox: VecDeque<Request>,
}

#[derive(Debug, Default)]
struct Subscription {
    wanted: BTreeSet<Arc<str>>,
    /// What the server was told on this stream; `None` before the first request.
    told: Option<BTreeSet<Arc<str>>>,
    /// Only ever the legacy wildcard was told on this stream.
    legacy_wildcard: bool,
    /// Of the last response accepted in full (state of the world).
    version: String,
    /// The versions of acknowledged resources (delta), kept across streams.
    acknowledged: FxHashMap<Arc<str>, Arc<str>>,
    /// Of the last response on this stream.
    nonce: String,
    judged: Option<Judged>,
    queue: VecDeque<(String, Update)>,
}

/// The response that is being judged: what its acknowledgement will make true.
#[derive(Debug)]
struct Judged {
    nonce: String,
    version: Arc<str>,
    versions: Vec<(Arc<str>, Arc<str>)>,
    /// Gone with it (delta).
    removed: Vec<Arc<str>>,
}

impl Conversation {
    /// A stream that is not open yet. `node` goes out with the first request of each stream, or with all.
    pub(super) fn new(encoding: Encoding, node: pb::Node, node_on_first_only: bool) -> Self {
        Self {
            encoding,
            node,
            node_on_first_only,
            open: false,
            node_sent: false,
            types: BTreeMap::new(),
            outbox: VecDeque::new(),
        }
    }

    /// Sets what is wanted of a type: names, or `*`.
    pub(super) fn want(&mut self, kind: ResourceType, names: BTreeSet<Arc<str>>) {
        let subscription = self.types.entry(kind).or_default();
        if subscription.wanted == names {
            return;
        }
        // What is no longer wanted is no longer held: asking again must bring it again.
        if !names.contains(WILDCARD) {
            subscription
                .acknowledged
                .retain(|name, _| names.contains(name));
        }
        subscription.wanted = names;
        self.tell(kind);
    }

    /// A stream has opened: what is wanted is asked for, in make-before-break order. `held` says whether a name's
    /// value is at hand: a version is only claimed where all that is wanted is.
    pub(super) fn opened(&mut self, held: impl Fn(ResourceType, &str) -> bool) {
        self.closed();
        self.open = true;
        for (kind, subscription) in &mut self.types {
            if !kind.is_full_state()
                && !subscription
                    .wanted
                    .iter()
                    .all(|name| &**name == WILDCARD || held(*kind, name))
            {
                subscription.version.clear();
            }
        }
        for kind in ResourceType::ALL {
            self.tell(kind);
        }
    }

    /// The stream is gone, and with it everything that was said on it.
    pub(super) fn closed(&mut self) {
        self.open = false;
        self.node_sent = false;
        self.outbox.clear();
        for subscription in self.types.values_mut() {
            subscription.told = None;
            subscription.nonce.clear();
            subscription.judged = None;
            subscription.queue.clear();
        }
    }

    /// True where the stream is open.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Takes a response in. Ignored, with `false`, where its type was never asked for.
    pub(super) fn receive(&mut self, response: Response) -> bool {
        let type_url = match &response {
            Response::Sotw(response) => &response.type_url,
            Response::Delta(response) => &response.type_url,
        };
        let Some(kind) = ResourceType::of_url(type_url) else {
            return false;
        };
        let Some(subscription) = self.types.get_mut(&kind) else {
            return false;
        };
        if subscription.told.is_none() {
            return false;
        }
        let (nonce, update) = match response {
            Response::Sotw(mut response) => {
                let nonce = std::mem::take(&mut response.nonce);
                (nonce, Update::of_sotw(kind, response))
            }
            Response::Delta(mut response) => {
                let nonce = std::mem::take(&mut response.nonce);
                (nonce, Update::of_delta(kind, response))
            }
        };
        subscription.nonce.clone_from(&nonce);
        subscription.queue.push_back((nonce, update));
        true
    }

    /// The next response to judge, of the first type in order that has none in judgement.
    pub(super) fn next_update(&mut self) -> Option<Update> {
        self.types.values_mut().find_map(|subscription| {
            if subscription.judged.is_some() {
                return None;
            }
            let (nonce, update) = subscription.queue.pop_front()?;
            subscription.judged = Some(Judged {
                nonce,
                version: Arc::clone(&update.version),
                versions: match self.encoding {
                    Encoding::Sotw => Vec::new(),
                    Encoding::Delta => update
                        .resources
                        .iter()
                        .map(|resource| (Arc::clone(&resource.name), Arc::clone(&resource.version)))
                        .collect(),
                },
                removed: update.removed.clone(),
            });
            Some(update)
        })
    }

    /// Answers the response in judgement: `Err` holds the text of the refusal. Nothing where the stream has changed
    /// meanwhile: its server will send again.
    pub(super) fn answer(&mut self, kind: ResourceType, verdict: Result<(), String>) {
        let Some(subscription) = self.types.get_mut(&kind) else {
            return;
        };
        let Some(judged) = subscription.judged.take() else {
            return;
        };
        // Removals hold whatever becomes of the rest; not before, since a stream that breaks under judgement must make
        // the server say them again.
        for name in &judged.removed {
            subscription.acknowledged.remove(name);
        }
        let error_detail = match verdict {
            Ok(()) => {
                judged
                    .version
                    .as_ref()
                    .clone_into(&mut subscription.version);
                let wildcard = subscription.wanted.contains(WILDCARD);
                for (name, version) in judged.versions {
                    if wildcard || subscription.wanted.contains(&name) {
                        subscription.acknowledged.insert(name, version);
                    }
                }
                None
            }
            Err(message) => Some(pb::google::rpc::Status {
                code: CODE_INTERNAL,
                message,
                details: Vec::new(),
            }),
        };
        match self.encoding {
            Encoding::Sotw => self.push_sotw(kind, judged.nonce, error_detail),
            Encoding::Delta => self.push_delta(
                kind,
                DeltaDiscoveryRequest {
                    response_nonce: judged.nonce,
                    error_detail,
                    ..DeltaDiscoveryRequest::default()
                },
            ),
        }
    }

    /// What is to be sent now, in order.
    pub(super) fn take_requests(&mut self) -> impl Iterator<Item = Request> + '_ {
        self.outbox.drain(..)
    }

    /// Tells the server what has changed in what is wanted, if that may be said now.
    fn tell(&mut self, kind: ResourceType) {
        let Some(subscription) = self.types.get_mut(&kind) else {
            return;
        };
        let changed = match &subscription.told {
            None => !subscription.wanted.is_empty(),
            Some(told) => *told != subscription.wanted,
        };
        if !self.open || !changed {
            return;
        }
        match self.encoding {
            Encoding::Sotw => {
                // The answer to what is unanswered will carry the names.
                if subscription.judged.is_none() && subscription.queue.is_empty() {
                    let nonce = subscription.nonce.clone();
                    self.push_sotw(kind, nonce, None);
                }
            }
            Encoding::Delta => {
                let request = subscription.delta_change();
                self.push_delta(kind, request);
            }
        }
    }

    fn push_sotw(
        &mut self,
        kind: ResourceType,
        nonce: String,
        error_detail: Option<pb::google::rpc::Status>,
    ) {
        let node = self.node_for_next();
        let Some(subscription) = self.types.get_mut(&kind) else {
            return;
        };
        let wildcard_only =
            subscription.wanted.len() == 1 && subscription.wanted.contains(WILDCARD);
        subscription.legacy_wildcard =
            wildcard_only && (subscription.told.is_none() || subscription.legacy_wildcard);
        let resource_names = if subscription.legacy_wildcard {
            Vec::new()
        } else {
            subscription
                .wanted
                .iter()
                .map(|name| name.to_string())
                .collect()
        };
        subscription.told = Some(subscription.wanted.clone());
        let request = DiscoveryRequest {
            version_info: subscription.version.clone(),
            node,
            resource_names,
            type_url: kind.type_url().to_owned(),
            response_nonce: nonce,
            error_detail,
            ..DiscoveryRequest::default()
        };
        self.outbox.push_back(Request::Sotw(request));
    }

    fn push_delta(&mut self, kind: ResourceType, mut request: DeltaDiscoveryRequest) {
        request.node = self.node_for_next();
        request.type_url = kind.type_url().to_owned();
        self.outbox.push_back(Request::Delta(request));
    }

    fn node_for_next(&mut self) -> Option<pb::Node> {
        if self.node_sent && self.node_on_first_only {
            return None;
        }
        self.node_sent = true;
        Some(self.node.clone())
    }
}

impl Subscription {
    fn delta_change(&mut self) -> DeltaDiscoveryRequest {
        let strings = |names: &mut dyn Iterator<Item = &Arc<str>>| -> Vec<String> {
            names.map(|name| name.to_string()).collect()
        };
        let wildcard_only = self.wanted.len() == 1 && self.wanted.contains(WILDCARD);
        let request = match &self.told {
            None => {
                self.legacy_wildcard = wildcard_only;
                DeltaDiscoveryRequest {
                    resource_names_subscribe: if wildcard_only {
                        Vec::new()
                    } else {
                        strings(&mut self.wanted.iter())
                    },
                    initial_resource_versions: self
                        .acknowledged
                        .iter()
                        .map(|(name, version)| (name.to_string(), version.to_string()))
                        .collect(),
                    ..DeltaDiscoveryRequest::default()
                }
            }
            Some(told) => DeltaDiscoveryRequest {
                resource_names_subscribe: strings(&mut self.wanted.difference(told)),
                resource_names_unsubscribe: strings(&mut told.difference(&self.wanted)),
                ..DeltaDiscoveryRequest::default()
            },
        };
        self.told = Some(self.wanted.clone());
        request
    }
}

impl Update {
    /// From a state-of-the-world response, or a file that holds one.
    pub(super) fn of_sotw(kind: ResourceType, response: DiscoveryResponse) -> Self {
        let version: Arc<str> = response.version_info.into();
        let mut update = Self::new(kind, Arc::clone(&version), response.resources.len());
        let mut seen = FxHashSet::default();
        for (index, any) in response.resources.into_iter().enumerate() {
            match unwrap_resource(any) {
                Ok(resource) => update.add(index, resource, Some(&version), &mut seen),
                Err(error) => update.unreadable.push((
                    Arc::default(),
                    None,
                    ConfigError::invalid(error.to_string()).at_index("resources", index),
                )),
            }
        }
        update.full_state = kind.is_full_state() && update.unreadable.is_empty();
        update
    }

    fn of_delta(kind: ResourceType, response: DeltaDiscoveryResponse) -> Self {
        let version: Arc<str> = response.system_version_info.into();
        let mut update = Self::new(kind, version, response.resources.len());
        let mut seen = FxHashSet::default();
        for (index, resource) in response.resources.into_iter().enumerate() {
            update.add(index, resource, None, &mut seen);
        }
        let removed = response
            .removed_resources
            .into_iter()
            .chain(
                response
                    .removed_resource_names
                    .into_iter()
                    .map(|name| name.name),
            )
            .map(Arc::<str>::from);
        for name in removed {
            if seen.contains(&name) {
                let error = ConfigError::invalid(format!(
                    "duplicate name {name} found in the union of added+removed resources"
                ));
                update.unreadable.push((name, None, error));
            } else {
                update.removed.push(name);
            }
        }
        update
    }

    fn new(kind: ResourceType, version: Arc<str>, resources: usize) -> Self {
        Self {
            kind,
            version,
            resources: Vec::with_capacity(resources),
            removed: Vec::new(),
            unreadable: Vec::new(),
            full_state: false,
        }
    }

    /// `sotw` is the version of a state-of-the-world response.
    fn add(
        &mut self,
        index: usize,
        resource: Resource,
        sotw: Option<&Arc<str>>,
        seen: &mut FxHashSet<Arc<str>>,
    ) {
        let Resource {
            name: outer,
            resource_name,
            version,
            resource: any,
            // A resource lives until it is replaced or removed, whatever its time to live says.
            ttl: _,
            aliases: _,
            cache_control: _,
            metadata: _,
        } = resource;
        let outer = match resource_name {
            Some(located) if outer.is_empty() => located.name,
            _ => outer,
        };
        let mut wrong = |name: &str, body: Option<Bytes>, error: ConfigError| {
            let error = if name.is_empty() {
                error.at_index("resources", index)
            } else {
                error
            };
            self.unreadable.push((name.into(), body, error));
        };
        let mut unnamed = false;
        let (name, body) = match any {
            None => (outer, None),
            Some(any) => {
                if pb::type_name(&any.type_url) != pb::type_name(self.kind.type_url()) {
                    return wrong(
                        &outer,
                        None,
                        ConfigError::invalid(format!(
                            "expected {}, got '{}'",
                            self.kind.type_url(),
                            any.type_url
                        )),
                    );
                }
                let body = Bytes::from(any.value);
                match name_of(&body) {
                    Ok("") if self.kind == ResourceType::Listener => {
                        unnamed = true;
                        (outer, Some(body))
                    }
                    Err(reason) => return wrong(&outer, Some(body), ConfigError::invalid(reason)),
                    // As Envoy: a cluster or listener is called what it calls itself; the rest must be what the wrapper
                    // says, by which they are told apart.
                    Ok(inner) if inner.is_empty() || inner == outer => (outer, Some(body)),
                    Ok(inner) if outer.is_empty() || self.kind.is_full_state() => {
                        (inner.to_owned(), Some(body))
                    }
                    Ok(inner) => {
                        let error = ConfigError::invalid(self.kind.unexpected(&outer, inner));
                        return wrong(&outer, Some(body), error);
                    }
                }
            }
        };
        let (name, body) = match body {
            Some(body) if unnamed => named(name, &body),
            body => (name, body),
        };
        if name.is_empty() {
            return wrong("", body, ConfigError::missing("name"));
        }
        let name: Arc<str> = name.into();
        if !seen.insert(Arc::clone(&name)) {
            // As Envoy: of what is asked for by name the first counts, and nothing is wrong.
            if sotw.is_some() && !self.kind.is_full_state() {
                tracing::warn!(target: "config", kind = self.kind.noun(), %name, "sent twice in one response: the first counts");
                return;
            }
            return wrong(
                &name,
                body,
                ConfigError::invalid(format!("duplicate {} found", self.kind.noun())),
            );
        }
        self.resources.push(Received {
            name,
            version: match sotw {
                Some(default) if version.is_empty() => Arc::clone(default),
                _ => version.into(),
            },
            body,
        });
    }
}

/// A listener that has no name is called as the response calls it, or else has one made up, as in Envoy. Here it is made
/// of what the listener says, so that it stays the same listener for as long as that does.
fn named(name: String, body: &Bytes) -> (String, Option<Bytes>) {
    let name = if name.is_empty() {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&Sha256::digest(body)[..16]);
        uuid::Builder::from_random_bytes(bytes)
            .into_uuid()
            .to_string()
    } else {
        name
    };
    // Every message may be continued by more of its fields.
    let mut whole = Vec::with_capacity(body.len() + name.len() + 4);
    prost::encoding::string::encode(1, &name, &mut whole);
    whole.extend_from_slice(body);
    (name, Some(whole.into()))
}

#[cfg(test)]
mod tests;
