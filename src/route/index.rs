//! Finds the candidate routes of a path among thousands, in the order of the configuration.
//!
//! Exact paths are hashed; prefixes are sorted, each with a link to the longest other prefix of itself; what is
//! neither (regular expressions, ignored case, CONNECT) is tried one after the other. A merge of these lists keeps
//! the order, so that the first candidate that fits is Envoy's first match.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;

use crate::config::route::{PathMatch, Route};

/// Below this a plain walk is quicker than an index.
const WALK: usize = 8;
const NONE: u32 = u32::MAX;

/// The index of one virtual host's routes.
#[derive(Debug)]
pub(super) enum RouteIndex {
    /// Few routes.
    Walk,
    /// Many.
    Indexed(Box<Indexed>),
}

#[derive(Debug)]
pub(super) struct Indexed {
    /// By hash of the path: the first route.
    exact: HashMap<u64, u32, FxBuildHasher>,
    /// Distinct prefixes, sorted.
    prefixes: Box<[PrefixNode]>,
    /// The first route that is neither.
    other: u32,
    /// By position: the next route of the same list.
    next: Box<[u32]>,
}

#[derive(Debug)]
struct PrefixNode {
    /// The first route with this prefix.
    first: u32,
    /// Position in `prefixes` of the longest proper prefix of this one.
    parent: u32,
}

enum Key<'a> {
    Exact(&'a [u8]),
    Prefix(&'a [u8]),
    Other,
}

fn key(route: &Route) -> Key<'_> {
    if route.matcher.ignore_case {
        return Key::Other;
    }
    match &route.matcher.path {
        PathMatch::Exact(path) => Key::Exact(path.as_bytes()),
        PathMatch::Prefix(prefix) | PathMatch::SeparatedPrefix(prefix) => {
            Key::Prefix(prefix.as_bytes())
        }
        PathMatch::Regex(_) | PathMatch::Connect => Key::Other,
    }
}

/// The prefix of a route in the list of prefixes, which holds prefix routes only.
fn prefix_of(routes: &[Arc<Route>], position: u32) -> &[u8] {
    match key(&routes[position as usize]) {
        Key::Prefix(prefix) => prefix,
        Key::Exact(_) | Key::Other => b"",
    }
}

impl RouteIndex {
    pub(super) fn new(routes: &[Arc<Route>]) -> Self {
        if routes.len() <= WALK {
            return Self::Walk;
        }
        let mut next = vec![NONE; routes.len()].into_boxed_slice();
        let mut exact: HashMap<u64, u32, FxBuildHasher> = HashMap::default();
        let mut prefixes: Vec<u32> = Vec::new();
        let mut other = NONE;
        // From the back, so that each list is built by prepending and ends in ascending order.
        for position in (0..u32::try_from(routes.len()).unwrap_or(NONE)).rev() {
            match key(&routes[position as usize]) {
                Key::Exact(path) => {
                    let head = exact.entry(FxBuildHasher.hash_one(path)).or_insert(NONE);
                    next[position as usize] = std::mem::replace(head, position);
                }
                Key::Prefix(_) => prefixes.push(position),
                Key::Other => next[position as usize] = std::mem::replace(&mut other, position),
            }
        }
        prefixes.sort_unstable_by(|a, b| {
            prefix_of(routes, *a)
                .cmp(prefix_of(routes, *b))
                .then(a.cmp(b))
        });
        let mut nodes: Vec<PrefixNode> = Vec::new();
        let mut ancestors: Vec<u32> = Vec::new();
        let mut last = NONE;
        for position in prefixes {
            let prefix = prefix_of(routes, position);
            if last != NONE && prefix_of(routes, last) == prefix {
                next[last as usize] = position;
                last = position;
                continue;
            }
            while let Some(top) = ancestors.last() {
                if prefix.starts_with(prefix_of(routes, nodes[*top as usize].first)) {
                    break;
                }
                ancestors.pop();
            }
            let node = u32::try_from(nodes.len()).unwrap_or(NONE);
            nodes.push(PrefixNode {
                first: position,
                parent: ancestors.last().copied().unwrap_or(NONE),
            });
            ancestors.push(node);
            last = position;
        }
        exact.shrink_to_fit();
        Self::Indexed(Box::new(Indexed {
            exact,
            prefixes: nodes.into(),
            other,
            next,
        }))
    }

    /// The first position whose route may match `path` and for which `fits` holds.
    pub(super) fn find(
        &self,
        routes: &[Arc<Route>],
        path: &[u8],
        mut fits: impl FnMut(&Route) -> bool,
    ) -> Option<usize> {
        match self {
            Self::Walk => routes.iter().position(|route| fits(route)),
            Self::Indexed(index) => {
                let mut lists: SmallVec<[u32; 16]> = SmallVec::new();
                index.lists(routes, path, &mut lists);
                while let Some((slot, position)) = lists
                    .iter()
                    .copied()
                    .enumerate()
                    .min_by_key(|(_, position)| *position)
                {
                    if position == NONE {
                        return None;
                    }
                    if fits(&routes[position as usize]) {
                        return Some(position as usize);
                    }
                    lists[slot] = index.next[position as usize];
                }
                None
            }
        }
    }
}

impl Indexed {
    /// The heads of all lists that may hold a route for `path`.
    fn lists(&self, routes: &[Arc<Route>], path: &[u8], lists: &mut SmallVec<[u32; 16]>) {
        lists.push(self.other);
        if let Some(first) = self.exact.get(&FxBuildHasher.hash_one(path)) {
            lists.push(*first);
        }
        // Every prefix of the path is the last entry not above it, or an ancestor of that.
        let above = self
            .prefixes
            .partition_point(|node| prefix_of(routes, node.first) <= path);
        let mut node = above.checked_sub(1).map(|at| &self.prefixes[at]);
        while let Some(at) = node {
            if path.starts_with(prefix_of(routes, at.first)) {
                lists.push(at.first);
            }
            node = self.prefixes.get(at.parent as usize);
        }
    }
}
