//! What was accepted and what was refused: the last good value of every resource, and its last refusal.
//!
//! Bytes that equal those of the last accepted value are not decoded again: one changed cluster among ten thousand
//! costs ten thousand comparisons and one parse. A value that parses to an equal one keeps its `Arc`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use rustc_hash::FxHashSet;

use super::ResourceType;
use super::ads::{Received, Update};
use super::resource::Value;
use super::status::Unready;
use crate::config::ConfigError;
use crate::config::cluster::SourceSpecifier;

/// All types. One name from two sources is two resources.
#[derive(Debug, Default)]
pub(super) struct Cache {
    tables: [BTreeMap<SourceSpecifier, Table>; ResourceType::ALL.len()],
    /// Kept here for [`super::Status`].
    pub(super) unready: Vec<Unready>,
}

/// One type of one source.
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
    /// Listeners that were active and may still be served, since their successors wait for plugins.
    pub(super) replaced: Vec<Arc<Accepted>>,
    /// The last refusal, where nothing was accepted since.
    pub(super) rejection: Option<Arc<Rejected>>,
}

impl Entry {
    /// Makes the current value active, and keeps those before it that somebody holds.
    pub(super) fn replace_active(&mut self) {
        self.forget_replaced();
        self.replaced.extend(self.active.take());
        self.active.clone_from(&self.current);
    }

    /// Lets go of what was replaced and is held by nobody else.
    pub(super) fn forget_replaced(&mut self) {
        self.replaced.retain(|accepted| accepted.value.is_held());
    }

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

/// What a response came to, before anything has changed.
#[derive(Debug)]
pub(super) struct Judgement {
    pub(super) kind: ResourceType,
    pub(super) source: SourceSpecifier,
    pub(super) version: Arc<str>,
    /// New or changed, and good.
    pub(super) fresh: Vec<Fresh>,
    /// Good as before.
    pub(super) confirmed: Vec<Arc<str>>,
    /// Refused; the name may be empty.
    pub(super) rejected: Vec<(Arc<str>, Rejected)>,
    /// To be deleted.
    pub(super) removed: Vec<Arc<str>>,
    /// What was not there is to be deleted, too.
    full_state: bool,
    /// Paths of fields that this build's API does not have, and that were accepted.
    pub(super) unknown_fields: Vec<String>,
}

/// A resource that is new or changed.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) name: Arc<str>,
    pub(super) version: Arc<str>,
    pub(super) body: Bytes,
    pub(super) value: Value,
}

/// What a commit did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Committed {
    /// Names that had no value before.
    pub(super) added: Vec<Arc<str>>,
    /// Names that have another one now.
    pub(super) modified: Vec<Arc<str>>,
    /// Names that have none any more.
    pub(super) removed: Vec<Arc<str>>,
    /// Names that the control plane says do not exist; what was known of them stays.
    pub(super) absent: Vec<Arc<str>>,
}

impl Committed {
    /// True where no value is new or gone.
    pub(super) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }
}

impl Judgement {
    /// The text of the refusal; `None` where nothing was refused.
    pub(super) fn refusal(&self) -> Option<String> {
        if self.rejected.is_empty() {
            return None;
        }
        let lines: Vec<String> = self
            .rejected
            .iter()
            .map(|(name, rejected)| {
                if name.is_empty() {
                    rejected.details.clone()
                } else {
                    format!("{name}: {}", rejected.details)
                }
            })
            .collect();
        Some(self.kind.nack_text(&lines))
    }

    /// Which names without a fresh value are still there once this is committed.
    pub(super) fn stays(&self) -> impl Fn(&str) -> bool {
        let rejected = self.rejected.iter().map(|(name, _)| name);
        let told: FxHashSet<&str> = if self.full_state {
            let names = rejected.chain(&self.confirmed);
            names.map(|name| &**name).collect()
        } else {
            self.removed.iter().map(|name| &**name).collect()
        };
        move |name| told.contains(name) == self.full_state
    }

    /// Lets go of resources that nobody wants any more.
    pub(super) fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        self.fresh.retain(|fresh| wanted(&fresh.name));
        self.confirmed.retain(|name| wanted(name));
        self.rejected
            .retain(|(name, _)| name.is_empty() || wanted(name));
    }

    /// Takes the fresh resources out that were not admitted.
    pub(super) fn refuse(&mut self, name: &str, error: &ConfigError, at: SystemTime) {
        if let Some(index) = self.fresh.iter().position(|fresh| &*fresh.name == name) {
            let fresh = self.fresh.remove(index);
            self.rejected.push((
                fresh.name,
                Rejected {
                    body: Some(fresh.body),
                    version: Arc::clone(&self.version),
                    at,
                    details: error.to_string(),
                },
            ));
        }
    }
}

impl Cache {
    /// The tables of a type. There is one of clusters and one of listeners: the bootstrap names one source of each.
    pub(super) fn tables(&self, kind: ResourceType) -> &BTreeMap<SourceSpecifier, Table> {
        &self.tables[kind.index()]
    }

    pub(super) fn tables_mut(
        &mut self,
        kind: ResourceType,
    ) -> &mut BTreeMap<SourceSpecifier, Table> {
        &mut self.tables[kind.index()]
    }

    /// All names of a type, source by source.
    pub(super) fn entries(&self, kind: ResourceType) -> impl Iterator<Item = (&Arc<str>, &Entry)> {
        let tables = self.tables(kind).values();
        tables.flat_map(|table| &table.entries)
    }

    /// The name of a type whose tables are one.
    pub(super) fn sole(&self, kind: ResourceType, name: &str) -> Option<&Entry> {
        let mut tables = self.tables(kind).values();
        tables.find_map(|table| table.entries.get(name))
    }

    /// The last accepted value.
    pub(super) fn current(
        &self,
        kind: ResourceType,
        source: &SourceSpecifier,
        name: &str,
    ) -> Option<&Arc<Accepted>> {
        let table = self.tables(kind).get(source)?;
        table.entries.get(name)?.current.as_ref()
    }

    /// Forgets a name.
    pub(super) fn remove(&mut self, kind: ResourceType, source: &SourceSpecifier, name: &str) {
        let tables = self.tables_mut(kind);
        let Some(table) = tables.get_mut(source) else {
            return;
        };
        table.entries.remove(name);
        if table.entries.is_empty() && !kind.is_full_state() {
            tables.remove(source);
        }
    }

    /// Decides what of a response of `source` is good. `wanted` says which names were asked for; others are ignored. `parse`
    /// makes a value of bytes, and collects unknown fields.
    pub(super) fn judge(
        &self,
        update: Update,
        source: &SourceSpecifier,
        at: SystemTime,
        wanted: impl Fn(&str) -> bool,
        parse: impl Fn(&str, &Bytes, &mut Vec<String>) -> Result<Value, ConfigError>,
    ) -> Judgement {
        let known = self.tables(update.kind).get(source);
        let mut judgement = Judgement {
            kind: update.kind,
            source: source.clone(),
            version: update.version,
            fresh: Vec::new(),
            confirmed: Vec::new(),
            rejected: Vec::new(),
            removed: update.removed,
            full_state: update.full_state,
            unknown_fields: Vec::new(),
        };
        for (name, body, error) in update.unreadable {
            let version = Arc::clone(&judgement.version);
            judgement.rejected.push((
                name,
                Rejected {
                    body,
                    version,
                    at,
                    details: error.to_string(),
                },
            ));
        }
        for Received {
            name,
            version,
            body,
        } in update.resources
        {
            if !wanted(&name) {
                continue;
            }
            let current = known
                .and_then(|table| table.entries.get(&name))
                .and_then(|entry| entry.current.as_ref());
            let Some(body) = body else {
                judgement.confirmed.push(name);
                continue;
            };
            if current.is_some_and(|current| current.body == body) {
                judgement.confirmed.push(name);
                continue;
            }
            match parse(&name, &body, &mut judgement.unknown_fields) {
                Ok(value) => judgement.fresh.push(Fresh {
                    name,
                    version,
                    body,
                    // An equal value keeps its identity: nothing downstream has to look at it.
                    value: match current {
                        Some(current) if current.value == value => current.value.clone(),
                        _ => value,
                    },
                }),
                Err(error) => judgement.rejected.push((
                    name,
                    Rejected {
                        body: Some(body),
                        version: Arc::clone(&judgement.version),
                        at,
                        details: error.to_string(),
                    },
                )),
            }
        }
        judgement
    }

    /// Makes a judgement true.
    pub(super) fn commit(&mut self, judgement: Judgement, at: SystemTime) -> Committed {
        let kind = judgement.kind;
        let table = self.tables_mut(kind).entry(judgement.source).or_default();
        let mut committed = Committed::default();
        table.entries.remove("");
        if judgement.rejected.is_empty() {
            judgement.version.as_ref().clone_into(&mut table.version);
        }
        let keep: FxHashSet<Arc<str>> = if judgement.full_state {
            let fresh = judgement.fresh.iter().map(|fresh| &fresh.name);
            let rejected = judgement.rejected.iter().map(|(name, _)| name);
            let names = fresh.chain(&judgement.confirmed).chain(rejected);
            names.cloned().collect()
        } else {
            FxHashSet::default()
        };
        for name in judgement.confirmed {
            if let Some(entry) = table.entries.get_mut(&name) {
                entry.rejection = None;
            }
        }
        for fresh in judgement.fresh {
            let entry = table.entries.entry(Arc::clone(&fresh.name)).or_default();
            entry.rejection = None;
            let same = |old: &Arc<Accepted>| old.value.same(&fresh.value);
            match &entry.current {
                None => committed.added.push(fresh.name),
                Some(old) if same(old) => {}
                Some(_) => committed.modified.push(fresh.name),
            }
            let accepted = Arc::new(Accepted {
                value: fresh.value,
                body: fresh.body,
                version: fresh.version,
                updated: at,
            });
            if entry
                .active
                .as_ref()
                .is_some_and(|active| active.value.same(&accepted.value))
            {
                entry.active = Some(Arc::clone(&accepted));
            }
            entry.current = Some(accepted);
        }
        for (name, rejected) in judgement.rejected {
            table.entries.entry(name).or_default().rejection = Some(Arc::new(rejected));
        }
        let mut gone = judgement.removed;
        if matches!(kind, ResourceType::Endpoints | ResourceType::Route) {
            // As Envoy: endpoints and routes in use outlive their removal; who waits for them waits no more.
            committed.absent = gone;
            return committed;
        }
        if judgement.full_state {
            let absent = table.entries.keys().filter(|name| !keep.contains(*name));
            gone.extend(absent.cloned());
        }
        for name in gone {
            if kind == ResourceType::Extension {
                committed.absent.push(Arc::clone(&name));
            }
            if let Some(entry) = table.entries.remove(&name)
                && entry.current.is_some()
            {
                committed.removed.push(name);
            }
        }
        committed
    }
}

#[cfg(test)]
mod tests;
