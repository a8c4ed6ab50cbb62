//! Tables of listeners.
