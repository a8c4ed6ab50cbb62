//! Both sides of the codec as raw bytes see them.

mod bodies;
#[rustfmt::skip]
mod client;
#[rustfmt::skip]
mod requests;
#[rustfmt::skip]
mod server;
