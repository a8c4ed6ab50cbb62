//! How a connection of the TCP proxy ends, and what the log says of it.

use std::io;

use crate::filter::network::Peer;
use crate::stream::CloseType;

/// Why a connection could not be joined, by the numbers of Envoy's log.
#[derive(Clone, Copy, Debug)]
pub(super) enum Failure {
    Connect,
    NoHealthyUpstream,
    Overload,
    NoCluster,
}

impl Failure {
    /// The word, misspelled, that Envoy's log has.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Connect => "tcp_initializion_failure:0",
            Self::NoHealthyUpstream => "tcp_initializion_failure:1",
            Self::Overload => "tcp_initializion_failure:2",
            Self::NoCluster => "tcp_initializion_failure:3",
        }
    }
}

/// How the client's connection ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closing {
    pub(super) peer: Peer,
    /// Why we close it; empty where that needs no reason.
    pub(super) reason: &'static str,
    /// What is on its way to the client is sent first.
    pub(super) flush: bool,
    /// What is on its way to the host is sent afterwards.
    pub(super) flush_upstream: bool,
    /// The host has closed its connection.
    pub(super) by_host: bool,
    pub(super) downstream: CloseType,
    pub(super) upstream: CloseType,
}

impl Closing {
    pub(super) fn local(reason: &'static str) -> Self {
        Self {
            peer: Peer::Local,
            reason,
            flush: true,
            flush_upstream: false,
            by_host: false,
            downstream: CloseType::Normal,
            upstream: CloseType::Normal,
        }
    }

    /// The upstream connection has ended.
    pub(super) fn without_upstream() -> Self {
        Self {
            by_host: true,
            ..Self::local("")
        }
    }

    /// At once.
    pub(super) fn abrupt(reason: &'static str) -> Self {
        Self {
            flush: false,
            ..Self::local(reason)
        }
    }

    /// Both sides have sent all that they had.
    pub(super) fn complete(peer: Peer) -> Self {
        Self {
            peer,
            flush_upstream: true,
            ..Self::local("")
        }
    }

    /// The client's connection failed.
    pub(super) fn by_client(error: &io::Error) -> Self {
        let reset = error.kind() == io::ErrorKind::ConnectionReset;
        Self {
            peer: Peer::Remote,
            flush: false,
            downstream: if reset {
                CloseType::RemoteReset
            } else {
                CloseType::Normal
            },
            upstream: if reset {
                CloseType::LocalReset
            } else {
                CloseType::Normal
            },
            ..Self::local("")
        }
    }
}
