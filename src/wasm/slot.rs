//! The names of slots: what tells one place of a plugin from all others, and stays while configurations come and go.
//!
//! In its slot a plugin is followed by its next version, and what serves there serves while that one loads or fails. So a
//! slot is named for what makes the place what it is – the listener, what the chain matches, the filter's name, the plugin's
//! name and root –, not for what an update beside it moves: an index, a statistics prefix. And no two places have one name: a plugin
//! that took another's slot would serve in its place.
//!
//! Parts stand between slashes; [`part`] takes the signs with a meaning out of what is configured.

use std::fmt::Debug;

use super::spec::{Digest, PluginSpec};

/// Stands in the place of the listener's name for the filters of clusters; of no listener's is it the [`part`].
pub const CLUSTER: &str = "(cluster)";

/// A slot, and the key of the version that its place asks for there.
pub type Asked = (Box<str>, Digest);

/// A configured name as a part of a slot's.
pub fn part(name: &str) -> String {
    let mut part = String::with_capacity(name.len());
    for sign in name.chars() {
        match sign {
            '%' => part.push_str("%25"),
            '/' => part.push_str("%2F"),
            '(' => part.push_str("%28"),
            '#' => part.push_str("%23"),
            sign => part.push(sign),
        }
    }
    part
}

/// What `value`, a match, is told by.
pub fn sum(value: &impl Debug) -> String {
    let mut sum = Digest::of(format!("{value:?}").as_bytes()).to_string();
    sum.truncate(32);
    sum
}

/// The slot at these parts for a plugin of `spec`'s name and root: another plugin is no version of it.
pub fn of(parts: &[&str], spec: &PluginSpec) -> String {
    let mut slot = parts.join("/");
    slot.push('/');
    slot.push_str(&part(&spec.name));
    if !spec.root_id.is_empty() {
        slot.push('/');
        slot.push_str(&part(&spec.root_id));
    }
    slot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_names_make_one_slot() {
        assert_eq!(part("0.0.0.0:80"), "0.0.0.0:80");
        assert_eq!(part("a/b(c)#1%"), "a%2Fb%28c)%231%25");
        let places = [
            [part("a/b"), part("c")],
            [part("a"), part("b/c")],
            [part("a(x)"), part("c")],
            [part("a%2Fb"), part("c")],
            [part("a#2"), part("c")],
            [part(CLUSTER), part("c")],
            [CLUSTER.to_owned(), part("c")],
        ];
        let slots: std::collections::BTreeSet<_> =
            places.iter().map(|parts| parts.join("/")).collect();
        assert_eq!(slots.len(), places.len());
    }

    #[test]
    fn matches_are_told_by_what_they_hold() {
        assert_eq!(sum(&["a"]), sum(&["a"]));
        assert_ne!(sum(&["a", "b"]), sum(&["a, b"]));
        assert_eq!(sum(&"").len(), 32);
    }
}
