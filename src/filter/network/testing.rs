//! Scripted filters, for tests of what drives a chain.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::*;

/// What scripted filters have seen.
pub(crate) type Seen = Arc<Mutex<Vec<String>>>;

/// Does what its script says, callback by callback: `continue`, `stop`, `go on`, `close`, or what the client's data become;
/// continues when that is over.
struct Scripted {
    name: &'static str,
    script: VecDeque<&'static str>,
    handle: NetworkHandle,
    seen: Seen,
}

impl Scripted {
    fn play(&mut self, what: String) -> Status {
        self.seen.lock().push(format!("{} {what}", self.name));
        match self.script.pop_front() {
            None | Some("continue") => return Status::Continue,
            Some("stop") => {}
            Some("go on") => self.handle.go_on(),
            Some("close") => self.handle.close("because"),
            Some(data) => {
                self.handle.with_buffer(Towards::Upstream, |held| {
                    *held = bytes::Bytes::from_static(data.as_bytes());
                });
                return Status::Continue;
            }
        }
        Status::Stop
    }
}

impl ConnectionFilter for Scripted {
    fn new_connection(&mut self) -> Status {
        self.play("new".to_owned())
    }

    fn downstream_data(&mut self, len: usize, end: bool) -> Status {
        self.play(format!("down {len} {end}"))
    }

    fn upstream_data(&mut self, len: usize, end: bool) -> Status {
        self.play(format!("up {len} {end}"))
    }

    fn closed(&mut self, peer: Peer) {
        self.play(format!("closed {peer:?}"));
    }
}

/// A chain of filters with these scripts, called a, b, c.
pub(crate) fn chain(scripts: &[&[&'static str]]) -> (ConnectionFilters, Seen) {
    let seen = Seen::default();
    let held = Held::new(scripts.len());
    let filters = scripts
        .iter()
        .zip(["a", "b", "c"])
        .enumerate()
        .map(|(index, (script, name))| Active {
            filter: Box::new(Scripted {
                name,
                script: script.iter().copied().collect(),
                handle: held.handle(index),
                seen: Arc::clone(&seen),
            }),
            begun: false,
        })
        .collect();
    let chain = ConnectionFilters {
        held,
        filters,
        stopped: None,
        held_back: None,
        closed: false,
    };
    (chain, seen)
}

/// What the filters have seen since.
pub(crate) fn seen(seen: &Seen) -> String {
    std::mem::take(&mut *seen.lock()).join(", ")
}

/// The hand of filter number `index` on its connection.
pub(crate) fn handle(chain: &ConnectionFilters, index: usize) -> NetworkHandle {
    chain.held.handle(index)
}
