//! Redirects: the `location` that a route answers with.

use http::HeaderValue;

use super::SelectedRoute;
use crate::config::route::RedirectAction;
use crate::http::RequestHead;

/// The `location` of `redirect` for `head`, which `selected` matched.
pub fn location(
    selected: &SelectedRoute,
    redirect: &RedirectAction,
    head: &RequestHead,
) -> HeaderValue {
    let _ = (selected, redirect);
    head.path.clone()
}
