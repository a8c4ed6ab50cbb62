//! What has not changed since the Generation before.

use std::sync::Arc;

use super::Discovered;
use crate::config::Snapshot;
use crate::filter::factory::runs_plugin;
use crate::route::RouteTable;

/// True where a route configures a plugin of its own.
pub(super) fn runs_plugins(routes: &Option<Arc<RouteTable>>) -> bool {
    let Some(table) = routes else { return false };
    let mut found = false;
    table.config().each_per_filter(&mut |_, per_filter| {
        found |= per_filter
            .values()
            .any(|config| config.config.as_ref().is_some_and(runs_plugin));
    });
    found
}

pub(super) fn same_table(a: &Option<Arc<RouteTable>>, b: &Option<Arc<RouteTable>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

pub(super) fn same_discovered(before: &Discovered, after: &Discovered) -> bool {
    before.len() == after.len()
        && before.iter().zip(after).all(|pair| match pair {
            (Some(before), Some(after)) => Arc::ptr_eq(before, after) || before == after,
            (None, None) => true,
            _ => false,
        })
}

pub(super) fn same_clusters(before: &Snapshot, after: &Snapshot) -> bool {
    before.clusters.len() == after.clusters.len()
        && before
            .clusters
            .iter()
            .zip(&after.clusters)
            .all(|((old_name, old), (new_name, new))| old_name == new_name && Arc::ptr_eq(old, new))
}
