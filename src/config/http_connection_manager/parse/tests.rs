//! Tables of connection managers.
