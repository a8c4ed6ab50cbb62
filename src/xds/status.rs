//! What the admin endpoints read of the control side: `/config_dump`, `/init_dump`, and who was refused why.
//!
//! Nothing is copied for an update; a reader takes a short read lock and clones pointers.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::RwLock;

use super::ResourceType;
use super::cache::{Accepted, Cache, Entry};
use super::resource::Value;
use crate::config::Listener;
use crate::pb;

/// A handle on the state of the control side. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Status(pub(super) Arc<RwLock<Cache>>);

/// One dynamic resource.
#[derive(Clone, Debug, Default)]
pub struct ResourceStatus {
    /// Its name; empty where a refused one has none.
    pub name: Arc<str>,
    /// What is served.
    pub active: Option<ResourceState>,
    /// What is accepted, and waits for what it refers to.
    pub warming: Option<ResourceState>,
    /// The last refusal, where nothing was accepted since.
    pub error: Option<ErrorState>,
}

/// An accepted resource.
#[derive(Clone, Debug)]
pub struct ResourceState {
    /// `version_info`: that of the response that brought it or last changed it.
    pub version: Arc<str>,
    /// When it was accepted.
    pub last_updated: SystemTime,
    /// As it came.
    pub resource: pb::Any,
}

/// A refused resource.
#[derive(Clone, Debug)]
pub struct ErrorState {
    /// `version_info` of the response.
    pub version: Arc<str>,
    /// When it was refused.
    pub last_update_attempt: SystemTime,
    /// As it came, where there were bytes to keep.
    pub failed_configuration: Option<pb::Any>,
    /// `field path: reason`.
    pub details: String,
}

/// What `/init_dump` shows: who waits, and for what. The names are Envoy's, without the hashes that it puts behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unready {
    /// `init manager Listener-local-init-manager NAME`, or `cluster NAME`.
    pub name: String,
    /// Of a listener `shared target RdsRouteConfigSubscription RDS init NAME`, `shared target FilterConfigSubscription
    /// init NAME` or, for a plugin's code, `target RemoteAsyncDataProvider`; of a cluster `EDS NAME`.
    pub targets: Vec<String>,
}

impl Unready {
    /// A listener that waits.
    pub fn listener(name: &str, targets: Vec<String>) -> Self {
        Self {
            name: format!("init manager Listener-local-init-manager {name}"),
            targets,
        }
    }
}

impl ResourceState {
    fn of(kind: ResourceType, accepted: &Accepted) -> Self {
        Self {
            version: Arc::clone(&accepted.version),
            last_updated: accepted.updated,
            resource: pb::Any {
                type_url: kind.type_url().to_owned(),
                value: accepted.body.to_vec(),
            },
        }
    }
}

impl Status {
    /// The version of the last fully accepted response of a type that has one source (clusters, listeners); empty before
    /// one.
    pub fn version(&self, kind: ResourceType) -> String {
        let cache = self.0.read();
        let table = cache.tables(kind).values().next();
        table.map_or_else(String::new, |table| table.version.clone())
    }

    /// Every resource of a type, by name.
    pub fn resources(&self, kind: ResourceType) -> Vec<ResourceStatus> {
        let state = |accepted: &Arc<Accepted>| ResourceState::of(kind, accepted);
        let cache = self.0.read();
        let mut resources: Vec<_> = cache
            .entries(kind)
            .map(|(name, entry)| ResourceStatus {
                name: Arc::clone(name),
                active: entry.active.as_ref().map(state),
                warming: entry.warming().map(state),
                error: entry.rejection.as_ref().map(|rejection| ErrorState {
                    version: Arc::clone(&rejection.version),
                    last_update_attempt: rejection.at,
                    failed_configuration: rejection.body.as_ref().map(|body| pb::Any {
                        type_url: kind.type_url().to_owned(),
                        value: body.to_vec(),
                    }),
                    details: rejection.details.clone(),
                }),
            })
            .collect();
        // They are sorted within their sources.
        resources.sort_by(|a, b| a.name.cmp(&b.name));
        resources
    }

    /// How a listener came that was active once, and that is still served as `listener` while what replaced it waits.
    pub fn replaced_listener(&self, name: &str, listener: &Arc<Listener>) -> Option<ResourceState> {
        let kind = ResourceType::Listener;
        let cache = self.0.read();
        let replaced = &cache.sole(kind, name)?.replaced;
        let is_it = |accepted: &&Arc<Accepted>| matches!(&accepted.value, Value::Listener(known) if Arc::ptr_eq(known, listener));
        Some(ResourceState::of(kind, replaced.iter().find(is_it)?))
    }

    /// Lets go of replaced listeners that are served no more.
    pub fn forget_replaced(&self) {
        let mut cache = self.0.write();
        for table in cache.tables_mut(ResourceType::Listener).values_mut() {
            table.entries.values_mut().for_each(Entry::forget_replaced);
        }
    }

    /// What is still waited for.
    pub fn unready(&self) -> Vec<Unready> {
        self.0.read().unready.clone()
    }
}
