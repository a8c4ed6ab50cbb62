//! A [`Snapshot`](crate::config::Snapshot) brought to life: what a request pins, swapped as one pointer.

pub mod chain_match;
