//! HTTP as both sides see it: heads, bodies, replies of our own, flags; and the [`codec`] seam below them.

pub mod body;
pub mod codec;
pub mod grpc;
pub mod head;
mod interim;
pub mod joined;
pub mod order;
pub mod reply;
pub mod router_headers;

pub use body::{Body, BodyError, TimedBody};
pub use head::{Lend, RequestHead, ResponseHead, Scheme};
pub use interim::Interim;
pub use reply::{LocalReply, ReplyReason, ResponseFlag, ResponseFlags};
