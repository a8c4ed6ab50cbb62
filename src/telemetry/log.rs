//! The process log, as Envoy writes it: one pattern, one threshold a component, never a wait on the writing side.

pub mod level;

pub use level::{Component, Level, Levels};
