//! Tables of route configurations.
