//! Routes that answer by themselves: redirects and direct responses.

use http::header::LOCATION;

use crate::config::route::{DirectResponse, RedirectAction};
use crate::http::LocalReply;
use crate::route::{SelectedRoute, redirect as rules};
use crate::stream::Stream;

const DETAILS: &str = "direct_response";

/// `redirect`.
pub(super) fn redirect(
    stream: &Stream,
    route: &SelectedRoute,
    action: &RedirectAction,
) -> LocalReply {
    let location = rules::location(route, action, &stream.request.lock());
    let mut reply = LocalReply::new(action.status, "", DETAILS);
    if let Some(location) = location {
        reply.headers.insert(LOCATION, location);
    }
    reply
}

/// `direct_response`.
pub(super) fn response(response: &DirectResponse) -> LocalReply {
    LocalReply::new(response.status, response.body.clone(), DETAILS)
}
