//! Tables of clusters.
