//! Routes that answer by themselves: redirects and direct responses.

use http::StatusCode;
use http::header::LOCATION;

use crate::config::route::{DirectResponse, RedirectAction};
use crate::http::LocalReply;
use crate::route::{SelectedRoute, redirect as rules};
use crate::stream::Stream;
use crate::stream::finalize::rewrite_for_redirect;

const DETAILS: &str = "direct_response";

/// `redirect`.
pub(super) fn redirect(
    stream: &Stream,
    route: &SelectedRoute,
    action: &RedirectAction,
    keep_original: bool,
) -> LocalReply {
    rewrite_for_redirect(stream, route, action, keep_original);
    let location = rules::location(route, action, &stream.request.lock());
    let mut reply = LocalReply::new(action.status, "", DETAILS);
    if let Some(location) = location {
        reply.headers.insert(LOCATION, location);
    }
    reply
}

/// `direct_response`.
pub(super) fn response(stream: &Stream, response: &DirectResponse) -> LocalReply {
    let mut reply = LocalReply::new(response.status, response.body.clone(), DETAILS);
    if (response.status == StatusCode::CREATED || response.status.is_redirection())
        && let Some(location) = rules::own_location(&stream.request.lock())
    {
        reply.headers.insert(LOCATION, location);
    }
    reply
}
