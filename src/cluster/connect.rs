//! Connections to hosts: TCP and unix sockets, with the cluster's socket options, and why one could not be made.

use std::io;
use std::time::Duration;

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The system refused: nobody listens, no route, no descriptor left.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// `connect_timeout` passed.
    #[error("connection timeout")]
    Timeout(Duration),
    /// A name that has not resolved.
    #[error("the name has not been resolved")]
    Unresolved,
    /// The connection was made, and the HTTP/2 preface was not answered.
    #[error("HTTP/2 handshake: {0}")]
    Handshake(Box<str>),
}

impl ConnectError {
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`, as Envoy writes it.
    pub fn transport_reason(&self) -> Box<str> {
        match self {
            Self::Io(error) => {
                format!("delayed_connect_error:_{}", reason(error).replace(' ', "_")).into()
            }
            Self::Timeout(_) => "".into(),
            Self::Unresolved => "".into(),
            Self::Handshake(text) => text.clone(),
        }
    }
}

/// The system's own words (`Connection refused`), without the number that Rust adds.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
