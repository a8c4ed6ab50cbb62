//! Random: every host is as likely as every other; like Envoy's it looks at no weights.

/// Index of one of `count` hosts.
pub(super) fn pick(count: usize, rng: &mut fastrand::Rng) -> usize {
    rng.usize(..count)
}
