//! Both sides of the codec as raw bytes see them.

#[rustfmt::skip]
mod requests;
