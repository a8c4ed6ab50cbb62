//! One stream as a pure machine: requests in, responses out, in both encodings.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ReceivedRequest;
use super::store::{Answer, Event, Raw, Set, Store};
use crate::pb;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use crate::xds::ResourceType;

const WILDCARD: &str = "*";

/// A response to send.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Out {
    Sotw(DiscoveryResponse),
    Delta(DeltaDiscoveryResponse),
}

/// One stream.
pub(super) struct Session {
    store: Arc<Store>,
    /// `None` before the first request.
    node: Option<Arc<str>>,
    /// The only type of a stream that is not aggregated.
    only: Option<&'static str>,
    types: BTreeMap<String, Topic>,
}

/// One type on a stream.
#[derive(Default)]
struct Topic {
    wildcard: bool,
    /// Names were sent once: an empty list no longer means all.
    named: bool,
    names: BTreeSet<String>,
    /// Responses that are not answered: nonce and version.
    out: Vec<(String, String)>,
    /// The last nonce sent.
    nonce: Option<String>,
    /// The version last sent (state of the world).
    version: Option<String>,
    /// What the client has, or was sent: names and versions.
    known: BTreeMap<String, String>,
    /// Names that the client was told not to exist (delta).
    absent: BTreeSet<String>,
    /// A first wildcard response is owed even if it is empty.
    owed: bool,
}

impl Session {
    pub(super) fn new(store: Arc<Store>, only: Option<&'static str>) -> Self {
        Self {
            store,
            node: None,
            only,
            types: BTreeMap::new(),
        }
    }

    /// Who asks, once known.
    pub(super) fn node(&self) -> Option<&Arc<str>> {
        self.node.as_ref()
    }

    /// Takes a request in. `Err` ends the stream.
    pub(super) fn request(&mut self, mut request: ReceivedRequest) -> Result<Vec<Out>, String> {
        let (type_url, node) = match &mut request {
            ReceivedRequest::Sotw(request) => (&mut request.type_url, &request.node),
            ReceivedRequest::Delta(request) => (&mut request.type_url, &request.node),
        };
        match self.only {
            Some(only) if type_url.is_empty() => only.clone_into(type_url),
            Some(only) if type_url != only => {
                return Err(format!("this service serves {only}, not {type_url}"));
            }
            None if type_url.is_empty() => return Err("type URL is required for ADS".to_owned()),
            _ => {}
        }
        if self.node.is_none() {
            let node = node.as_ref().ok_or("missing node information")?;
            self.node = Some(node.id.as_str().into());
            self.store.record(Event::Opened(Box::new(node.clone())));
        }
        self.store.record(Event::Request(Box::new(request.clone())));
        let type_url = request.type_url().to_owned();
        let out = match request {
            ReceivedRequest::Sotw(request) => self.sotw_request(&type_url, request),
            ReceivedRequest::Delta(request) => self.delta_request(&type_url, request),
        };
        Ok(out.into_iter().collect())
    }

    /// What is to be sent since resources have changed, in make-before-break order.
    pub(super) fn changed(&mut self, delta: bool) -> Vec<Out> {
        let mut urls: Vec<String> = self.types.keys().cloned().collect();
        urls.sort_by_key(|url| {
            ResourceType::of_url(url).map_or(ResourceType::ALL.len(), |kind| kind as usize)
        });
        urls.iter()
            .filter_map(|url| {
                if delta {
                    self.delta_response(url)
                } else {
                    let set = self.view(url)?;
                    let topic = self.types.get(url)?;
                    (topic.out.is_empty() && topic.version.as_ref() != Some(&set.version))
                        .then(|| self.sotw_response(url, &set))?
                }
            })
            .collect()
    }

    /// A response sent as it is.
    pub(super) fn raw(&mut self, raw: Raw, delta: bool) -> Option<Out> {
        let (url, nonce, version) = match &raw {
            Raw::Sotw(response) if !delta => {
                (&response.type_url, &response.nonce, &response.version_info)
            }
            Raw::Delta(response) if delta => (
                &response.type_url,
                &response.nonce,
                &response.system_version_info,
            ),
            _ => return None,
        };
        let nonce = if nonce.is_empty() {
            self.store.next_nonce()
        } else {
            nonce.clone()
        };
        self.types.get_mut(url)?.sent(&nonce, version);
        Some(match raw {
            Raw::Sotw(response) => Out::Sotw(DiscoveryResponse { nonce, ..response }),
            Raw::Delta(response) => Out::Delta(DeltaDiscoveryResponse { nonce, ..response }),
        })
    }

    fn view(&self, type_url: &str) -> Option<Set> {
        self.store.view(self.node.as_deref()?, type_url)
    }

    /// Records an answer; `false` where it is stale or answers nothing.
    fn answer(
        &mut self,
        type_url: &str,
        nonce: &str,
        error: Option<pb::google::rpc::Status>,
    ) -> bool {
        let Some(topic) = self.types.get_mut(type_url) else {
            return false;
        };
        let Some(index) = topic.out.iter().position(|(out, _)| out == nonce) else {
            return topic.nonce.as_deref() == Some(nonce);
        };
        let (_, version) = topic.out.remove(index);
        let stale = topic.nonce.as_deref() != Some(nonce);
        self.store.record(Event::Answered(Answer {
            node: self.node.clone().unwrap_or_default(),
            type_url: type_url.into(),
            version,
            nonce: nonce.to_owned(),
            error: error.map(|status| status.message),
            stale,
        }));
        !stale
    }

    fn sotw_request(&mut self, type_url: &str, request: DiscoveryRequest) -> Option<Out> {
        let first = !self.types.contains_key(type_url);
        self.types.entry(type_url.to_owned()).or_default();
        let nonce = request.response_nonce;
        if !nonce.is_empty() && !self.answer(type_url, &nonce, request.error_detail) {
            return None;
        }
        let topic = self.types.get_mut(type_url)?;
        let names: BTreeSet<String> = request.resource_names.into_iter().collect();
        topic.named |= !names.is_empty();
        topic.wildcard = names.contains(WILDCARD) || !topic.named;
        topic.names = names;
        topic.names.remove(WILDCARD);
        // What is asked for no longer is sent again when it is asked for again.
        topic
            .known
            .retain(|name, _| topic.wildcard || topic.names.contains(name));
        if first && !request.version_info.is_empty() && topic.wildcard {
            // A client that comes back with the current version has it.
            topic.version = Some(request.version_info);
        }
        if !topic.out.is_empty() {
            return None;
        }
        let set = self.view(type_url)?;
        let topic = self.types.get(type_url)?;
        let new_names = topic
            .names
            .iter()
            .any(|name| set.resources.contains_key(name) && !topic.known.contains_key(name));
        let new_version = topic.version.as_ref() != Some(&set.version);
        (new_version || new_names)
            .then(|| self.sotw_response(type_url, &set))
            .flatten()
    }

    fn sotw_response(&mut self, type_url: &str, set: &Set) -> Option<Out> {
        let superset = self.store.rules.superset;
        let nonce = self.store.next_nonce();
        let topic = self.types.get_mut(type_url)?;
        let full_state = ResourceType::of_url(type_url).is_some_and(ResourceType::is_full_state);
        if superset
            && !full_state
            && !topic.wildcard
            && set.resources.keys().any(|name| !topic.names.contains(name))
        {
            return None;
        }
        let served: BTreeMap<&String, _> = set
            .resources
            .iter()
            .filter(|(name, _)| topic.wildcard || topic.names.contains(*name))
            .collect();
        if served.is_empty() && !full_state {
            return None;
        }
        topic.known = served
            .iter()
            .map(|(name, stored)| ((*name).clone(), stored.version.clone()))
            .collect();
        topic.version = Some(set.version.clone());
        topic.sent(&nonce, &set.version);
        Some(Out::Sotw(DiscoveryResponse {
            version_info: set.version.clone(),
            resources: served.values().map(|stored| stored.any.clone()).collect(),
            type_url: type_url.to_owned(),
            nonce,
            control_plane: Some(identity()),
            ..DiscoveryResponse::default()
        }))
    }

    fn delta_request(&mut self, type_url: &str, request: DeltaDiscoveryRequest) -> Option<Out> {
        let first = !self.types.contains_key(type_url);
        let topic = self.types.entry(type_url.to_owned()).or_default();
        if first {
            topic.known = request.initial_resource_versions.into_iter().collect();
            if request.resource_names_subscribe.is_empty() {
                topic.wildcard = true;
                topic.owed = true;
            }
        }
        // A subscription holds whatever the nonce.
        for name in request.resource_names_subscribe {
            if name == WILDCARD {
                topic.wildcard = true;
                topic.owed = true;
                continue;
            }
            if !first {
                topic.known.remove(&name);
            }
            topic.absent.remove(&name);
            topic.names.insert(name);
        }
        for name in request.resource_names_unsubscribe {
            if name == WILDCARD {
                topic.wildcard = false;
            } else {
                topic.names.remove(&name);
                topic.absent.remove(&name);
            }
        }
        let (wildcard, names) = (topic.wildcard, &topic.names);
        topic
            .known
            .retain(|name, _| wildcard || names.contains(name));
        if !request.response_nonce.is_empty() {
            self.answer(type_url, &request.response_nonce, request.error_detail);
        }
        self.delta_response(type_url)
    }

    fn delta_response(&mut self, type_url: &str) -> Option<Out> {
        let announce_absent = self.store.rules.announce_absent;
        let known_set = self.view(type_url);
        let nothing_said = known_set.is_none();
        let set = known_set.unwrap_or_default();
        let nonce = self.store.next_nonce();
        let topic = self.types.get_mut(type_url)?;
        if !topic.out.is_empty() || nothing_said {
            return None;
        }
        let mut resources = Vec::new();
        for (name, stored) in &set.resources {
            if !topic.wildcard && !topic.names.contains(name) {
                continue;
            }
            if topic.known.get(name) != Some(&stored.version) {
                topic.known.insert(name.clone(), stored.version.clone());
                topic.absent.remove(name);
                resources.push(Resource {
                    name: name.clone(),
                    version: stored.version.clone(),
                    resource: Some(stored.any.clone()),
                    ..Resource::default()
                });
            }
        }
        let gone = |name: &String| !set.resources.contains_key(name);
        let mut removed: BTreeSet<String> = topic
            .known
            .keys()
            .filter(|name| gone(name))
            .cloned()
            .collect();
        topic.known.retain(|name, _| !removed.contains(name));
        if announce_absent {
            let absent = topic.names.iter().filter(|name| gone(name));
            let untold: Vec<String> = absent
                .filter(|name| !topic.absent.contains(*name))
                .cloned()
                .collect();
            removed.extend(untold);
        }
        topic.absent.extend(removed.iter().cloned());
        if resources.is_empty() && removed.is_empty() && !topic.owed {
            return None;
        }
        topic.owed = false;
        topic.version = Some(set.version.clone());
        topic.sent(&nonce, &set.version);
        Some(Out::Delta(DeltaDiscoveryResponse {
            system_version_info: set.version,
            resources,
            type_url: type_url.to_owned(),
            removed_resources: removed.into_iter().collect(),
            nonce,
            control_plane: Some(identity()),
            ..DeltaDiscoveryResponse::default()
        }))
    }
}

impl Topic {
    fn sent(&mut self, nonce: &str, version: &str) {
        self.nonce = Some(nonce.to_owned());
        self.out.push((nonce.to_owned(), version.to_owned()));
    }
}

fn identity() -> pb::envoy::config::core::v3::ControlPlane {
    pb::envoy::config::core::v3::ControlPlane {
        identifier: "plenipo".to_owned(),
    }
}
