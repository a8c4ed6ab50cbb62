//! Tests of `filter::upstream`.
