//! The surroundings of a plugin under the tool: clusters answer what was written down, and everything that the plugin
//! does is kept.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;

use super::message::{Message, Response};
use crate::cluster::client::{Call, CallError, CallResponse};
use crate::wasm::{BuildTimes, Probe};

/// Calls into one callback, in nanoseconds each.
pub(super) type Calls = Vec<(&'static str, Vec<u64>)>;

/// How a cluster answers.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Response(Box<Response>),
    /// Not in time: the plugin gets what Envoy makes of it.
    Timeout,
    /// It breaks off: the plugin gets no headers.
    Reset,
}

/// An HTTP call that a plugin made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Callout {
    pub(super) cluster: String,
    pub(super) request: Message,
}

/// What a plugin did.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Levels and lines.
    pub(super) log: Vec<(u32, String)>,
    pub(super) calls: Calls,
    pub(super) built: Option<BuildTimes>,
    pub(super) callouts: Vec<Callout>,
    /// Clusters that it called and that nobody speaks for.
    pub(super) unanswered: Vec<String>,
    /// Whom it called by gRPC, which nobody answers.
    pub(super) grpc: Vec<String>,
}

/// The surroundings, for one host.
#[derive(Debug)]
pub(super) struct Recorder {
    log_level: u32,
    /// Lines of the log are kept.
    keeps_log: bool,
    answers: Mutex<BTreeMap<String, VecDeque<Answer>>>,
    record: Mutex<Record>,
}

impl Recorder {
    /// Keeps all that is written from `log_level` on.
    pub(super) fn new(log_level: u32, answers: BTreeMap<String, VecDeque<Answer>>) -> Self {
        Self {
            log_level,
            keeps_log: true,
            answers: Mutex::new(answers),
            record: Mutex::default(),
        }
    }

    /// Without a log: for measurements.
    pub(super) fn without_log(mut self) -> Self {
        self.keeps_log = false;
        self
    }

    /// What was recorded since it was last taken.
    pub(super) fn take(&self) -> Record {
        std::mem::take(&mut self.record.lock())
    }
}

impl Probe for Recorder {
    fn log_level(&self) -> u32 {
        self.log_level
    }

    fn log(&self, level: u32, message: &str) {
        if level >= self.log_level && self.keeps_log {
            let line = message.trim_start_matches(['\r', '\n']).trim_end();
            self.record.lock().log.push((level, line.to_owned()));
        }
    }

    fn called(&self, callback: &'static str, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let calls = &mut self.record.lock().calls;
        match calls.iter_mut().find(|(name, _)| *name == callback) {
            Some((_, times)) => times.push(nanos),
            None => calls.push((callback, vec![nanos])),
        }
    }

    fn built(&self, times: BuildTimes) {
        self.record.lock().built = Some(times);
    }

    fn has_cluster(&self, cluster: &str) -> bool {
        let known = self.answers.lock().contains_key(cluster);
        if !known {
            self.record.lock().unanswered.push(cluster.to_owned());
        }
        known
    }

    fn grpc(&self, service: &str) {
        let known = &mut self.record.lock().grpc;
        // Once for many calls.
        if known.last().is_none_or(|last| last != service) {
            known.push(service.to_owned());
        }
    }

    fn call(&self, cluster: &str, call: Call) -> Result<CallResponse, CallError> {
        let trailers = Some(&call.trailers).filter(|trailers| !trailers.is_empty());
        let callout = Callout {
            cluster: cluster.to_owned(),
            request: Message::request(&call.head, &call.body, trailers),
        };
        if self.keeps_log {
            self.record.lock().callouts.push(callout);
        }
        let answer = {
            let mut answers = self.answers.lock();
            let answers = answers.get_mut(cluster);
            answers.and_then(|answers| match answers.len() {
                0 | 1 => answers.front().cloned(),
                _ => answers.pop_front(),
            })
        };
        match answer {
            Some(Answer::Response(response)) => Ok(CallResponse {
                head: response.head,
                body: response.body,
                trailers: None,
            }),
            Some(Answer::Timeout) => Ok(timeout()),
            Some(Answer::Reset) => Err(CallError::Timeout),
            None => Err(CallError::UnknownCluster(cluster.into())),
        }
    }
}

/// What a plugin sees where a cluster does not answer in time.
fn timeout() -> CallResponse {
    let body = "upstream request timeout";
    let mut head = crate::http::ResponseHead::new(http::StatusCode::GATEWAY_TIMEOUT);
    head.headers.insert(
        http::header::CONTENT_LENGTH,
        http::HeaderValue::from(body.len()),
    );
    head.headers.insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("text/plain"),
    );
    CallResponse {
        head,
        body: bytes::Bytes::from_static(body.as_bytes()),
        trailers: None,
    }
}
