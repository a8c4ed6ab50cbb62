//! What is served, to whom, and what clients said.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast, watch};

use super::ReceivedRequest;
use crate::pb;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use crate::xds::resource::{name_of, unwrap_resource};

/// How the server behaves where servers differ.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Keep what clients say, for [`super::ControlPlane::next_answer`] and the like.
    pub record: bool,
    /// Ignore a state-of-the-world request whose names leave out a resource that exists (EDS, RDS, ECDS), as
    /// go-control-plane's snapshot cache does in ADS mode.
    pub superset: bool,
    /// Tell delta clients of names that do not exist, as the protocol has it; go-control-plane does not.
    pub announce_absent: bool,
    /// Metadata that every stream must carry, as Consul's and Kuma's tokens.
    pub metadata: Option<(String, String)>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            record: false,
            superset: false,
            announce_absent: true,
            metadata: None,
        }
    }
}

/// A client's answer to one response.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// `node.id`.
    pub node: Arc<str>,
    /// The type.
    pub type_url: Arc<str>,
    /// The version that was answered.
    pub version: String,
    /// The response.
    pub nonce: String,
    /// Why it was refused; `None` for an acknowledgement.
    pub error: Option<String>,
    /// A newer response was out already: a server would not heed this one.
    pub stale: bool,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A stream said who it is.
    Opened(Box<pb::Node>),
    /// A request came.
    Request(Box<ReceivedRequest>),
    /// It answered a response.
    Answered(Answer),
    /// A stream ended.
    Closed(Arc<str>),
}

/// A response to send as it is.
#[derive(Clone, Debug)]
pub(super) enum Raw {
    Sotw(DiscoveryResponse),
    Delta(DeltaDiscoveryResponse),
}

/// All resources of a type.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Set {
    pub(super) version: String,
    pub(super) resources: BTreeMap<String, Stored>,
}

/// A resource and the version of its bytes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    pub(super) any: pb::Any,
    pub(super) version: String,
}

type Listener = Box<dyn Fn(&Event) + Send + Sync>;

type Sets = BTreeMap<String, Set>;

/// What the store tells those who serve from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Signal {
    /// Counts changes of resources.
    pub(super) change: u64,
    /// Counts disconnections.
    pub(super) epoch: u64,
    /// The end.
    pub(super) closed: bool,
}

#[derive(Debug, Default)]
struct Inner {
    shared: Sets,
    nodes: BTreeMap<String, Sets>,
    events: VecDeque<Event>,
    nonce: u64,
}

/// Shared by all streams.
pub(super) struct Store {
    pub(super) rules: Rules,
    inner: Mutex<Inner>,
    signal: watch::Sender<Signal>,
    raw: broadcast::Sender<Raw>,
    recorded: Notify,
    /// Is told every event.
    listener: Option<Listener>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("rules", &self.rules).finish()
    }
}

impl Store {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            inner: Mutex::default(),
            signal: watch::Sender::new(Signal::default()),
            raw: broadcast::Sender::new(64),
            recorded: Notify::new(),
            listener: None,
        }
    }

    /// Calls `listener` for every event.
    pub(super) fn with_listener(self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self {
            listener: Some(Box::new(listener)),
            ..self
        }
    }

    pub(super) fn set(
        &self,
        node: Option<&str>,
        type_url: &str,
        resources: Vec<pb::Any>,
        version: &str,
    ) {
        let set = Set::new(resources, version);
        {
            let mut inner = self.inner.lock();
            let sets = match node {
                None => &mut inner.shared,
                Some(node) => inner.nodes.entry(node.to_owned()).or_default(),
            };
            sets.insert(type_url.to_owned(), set);
        }
        self.signal.send_modify(|signal| signal.change += 1);
    }

    /// Replaces everything; `false` where nothing differs.
    pub(super) fn replace(&self, shared: Sets, nodes: BTreeMap<String, Sets>) -> bool {
        {
            let mut inner = self.inner.lock();
            if inner.shared == shared && inner.nodes == nodes {
                return false;
            }
            // A type that is gone is an empty set: its clients must hear of it.
            let emptied = |old: &Sets, new: &mut Sets| {
                for type_url in old.keys() {
                    new.entry(type_url.clone())
                        .or_insert_with(|| Set::new(Vec::new(), "empty"));
                }
            };
            let (mut shared, mut nodes) = (shared, nodes);
            emptied(&inner.shared, &mut shared);
            for (node, old) in &inner.nodes {
                emptied(old, nodes.entry(node.clone()).or_default());
            }
            inner.shared = shared;
            inner.nodes = nodes;
        }
        self.signal.send_modify(|signal| signal.change += 1);
        true
    }

    /// What a node is served of a type; `None` where nothing was ever said of it.
    pub(super) fn view(&self, node: &str, type_url: &str) -> Option<Set> {
        let inner = self.inner.lock();
        let shared = inner.shared.get(type_url);
        let own = inner.nodes.get(node).and_then(|sets| sets.get(type_url));
        match (shared, own) {
            (None, None) => None,
            (Some(set), None) | (None, Some(set)) => Some(set.clone()),
            (Some(shared), Some(own)) => {
                let mut set = shared.clone();
                set.version = format!("{}+{}", shared.version, own.version);
                set.resources.extend(own.resources.clone());
                Some(set)
            }
        }
    }

    pub(super) fn next_nonce(&self) -> String {
        let mut inner = self.inner.lock();
        inner.nonce += 1;
        inner.nonce.to_string()
    }

    pub(super) fn record(&self, event: Event) {
        if let Some(listener) = &self.listener {
            listener(&event);
        }
        if self.rules.record {
            self.inner.lock().events.push_back(event);
            self.recorded.notify_waiters();
        }
    }

    /// Waits for the first event that `matches`, and takes it out.
    pub(super) async fn take<T>(&self, matches: impl Fn(&Event) -> Option<T>) -> T {
        loop {
            let recorded = self.recorded.notified();
            tokio::pin!(recorded);
            recorded.as_mut().enable();
            {
                let mut inner = self.inner.lock();
                let found = inner
                    .events
                    .iter()
                    .enumerate()
                    .find_map(|(index, event)| Some((index, matches(event)?)));
                if let Some((index, found)) = found {
                    inner.events.remove(index);
                    return found;
                }
            }
            recorded.await;
        }
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.inner.lock().events.drain(..).collect()
    }

    pub(super) fn push(&self, raw: Raw) {
        // Nobody listens where no stream is open.
        let _ = self.raw.send(raw);
    }

    pub(super) fn pushed(&self) -> broadcast::Receiver<Raw> {
        self.raw.subscribe()
    }

    pub(super) fn signal(&self) -> watch::Receiver<Signal> {
        self.signal.subscribe()
    }

    pub(super) fn disconnect(&self) {
        self.signal.send_modify(|signal| signal.epoch += 1);
    }

    pub(super) fn close(&self) {
        self.signal.send_modify(|signal| signal.closed = true);
    }
}

impl Set {
    pub(super) fn new(resources: Vec<pb::Any>, version: &str) -> Self {
        let resources = resources.into_iter().enumerate().map(|(index, any)| {
            let name = unwrap_resource(any.clone())
                .ok()
                .and_then(|resource| {
                    if resource.name.is_empty() {
                        let inner = resource.resource?;
                        name_of(&inner.value).ok().map(ToOwned::to_owned)
                    } else {
                        Some(resource.name)
                    }
                })
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| format!("#{index}"));
            let version = format!("{:016x}", twox_hash::XxHash64::oneshot(0, &any.value));
            (name, Stored { any, version })
        });
        Self {
            resources: resources.collect(),
            version: version.to_owned(),
        }
    }
}
