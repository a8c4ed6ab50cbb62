//! The one integration binary: whole proxies in process, protocol tables, and laws of the tree.

mod layering;
