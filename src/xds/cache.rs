//! What was accepted and what was refused: the last good value of every resource, and its last refusal.
//!
//! Bytes that equal those of the last accepted value are not decoded again: one changed cluster among ten thousand
//! costs ten thousand comparisons and one parse. A value that parses to an equal one keeps its `Arc`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::ResourceType;
use super::resource::Value;
use super::status::Unready;

/// All types.
#[derive(Debug, Default)]
pub(super) struct Cache {
    tables: [Table; ResourceType::ALL.len()],
    /// Kept here for [`super::Status`].
    pub(super) unready: Vec<Unready>,
}

/// One type.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// By name.
    pub(super) entries: BTreeMap<Arc<str>, Entry>,
    /// Of the last response that was accepted in full.
    pub(super) version: String,
}

/// One name.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// The last accepted value.
    pub(super) current: Option<Arc<Accepted>>,
    /// The last one that was warm: what the snapshot holds.
    pub(super) active: Option<Arc<Accepted>>,
    /// The last refusal, where nothing was accepted since.
    pub(super) rejection: Option<Arc<Rejected>>,
}

impl Entry {
    /// What waits to become active.
    pub(super) fn warming(&self) -> Option<&Arc<Accepted>> {
        self.current.as_ref().filter(|current| {
            self.active
                .as_ref()
                .is_none_or(|active| !Arc::ptr_eq(active, current))
        })
    }
}

/// An accepted resource.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) value: Value,
    /// As it came.
    pub(super) body: Bytes,
    pub(super) version: Arc<str>,
    pub(super) updated: SystemTime,
}

/// A refused resource.
#[derive(Debug)]
pub(super) struct Rejected {
    pub(super) body: Option<Bytes>,
    pub(super) version: Arc<str>,
    pub(super) at: SystemTime,
    /// `field path: reason`.
    pub(super) details: String,
}

impl Cache {
    pub(super) fn table(&self, kind: ResourceType) -> &Table {
        &self.tables[kind.index()]
    }
}
