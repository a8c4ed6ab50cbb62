//! What plugins share: key-value data by `vm_id`, and message queues by (`vm_id`, name). Process-wide, as in Envoy, and both
//! gone with the last VM of the `vm_id`.
//!
//! A queue tells of its messages the VM that registered it last, of those that serve: one that is only tried, or whose
//! version waits or is on trial, takes nothing from those that serve, and where one is gone, the one before hears again. In
//! Envoy a VM that comes to nothing keeps the queue, and nobody hears of it.
//!
//! These are the named exceptions to "no lock is contended": each is held for one look-up or one copy. Sizes are
//! bounded, which Envoy's are not.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;

use super::abi::Status;
use super::status::{QueueStatus, SharedStatus};
use super::vm::Message;

/// Most queues of all `vm_id`s together.
const MAX_QUEUES: usize = 10_000;
/// What a message costs beyond its bytes.
const MESSAGE: usize = 32;
/// So many notices of a queue may be under way though its items are gone: as in Envoy, each item is told of. What a guest puts
/// there and takes out beyond that in one callback is not, so that its mailbox has an end.
const NOTICES: usize = 128;
/// What an entry of shared data costs beyond its key and value: its place in the table, and two allocations.
const ENTRY: usize = 128;

/// Keys and queues that `/wasm` shows of a `vm_id`.
const MAX_SHOWN: usize = 100;

/// A name as text, in a reasonable length.
fn shown(name: &[u8]) -> String {
    let name = &name[..name.len().min(128)];
    name.escape_ascii().to_string()
}

/// All of it, one a process.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    spaces: Mutex<HashMap<Arc<str>, Weak<Space>>>,
    queues: Arc<Mutex<Queues>>,
    /// Counts every write of the process; the first is 1.
    cas: Arc<AtomicU32>,
}

/// The data and queues of one `vm_id`; goes with the last VM that has it.
#[derive(Debug)]
pub(crate) struct Space {
    entries: Mutex<Entries>,
    /// The tokens of its queues, by name. Locked before `queues`.
    tokens: Mutex<HashMap<Box<[u8]>, u32>>,
    queues: Arc<Mutex<Queues>>,
    cas: Arc<AtomicU32>,
}

#[derive(Debug, Default)]
struct Entries {
    map: HashMap<Arc<[u8]>, (Bytes, u32), rustc_hash::FxBuildHasher>,
    bytes: usize,
    /// The first [`MAX_SHOWN`] keys in their order, so that who shows them holds no worker up. No key ever goes.
    first: BTreeSet<Arc<[u8]>>,
}

impl Entries {
    fn add(&mut self, key: &[u8], value: (Bytes, u32)) {
        let key: Arc<[u8]> = key.into();
        if self.first.len() < MAX_SHOWN {
            self.first.insert(Arc::clone(&key));
        } else if self.first.last().is_some_and(|last| key < *last) {
            self.first.insert(Arc::clone(&key));
            self.first.pop_last();
        }
        self.map.insert(key, value);
    }
}

/// All queues of the process, by token.
#[derive(Debug, Default)]
struct Queues {
    by_token: HashMap<u32, Queue>,
    last: u32,
}

#[derive(Debug)]
struct Queue {
    items: VecDeque<Bytes>,
    bytes: usize,
    /// Who registered it, the last one at the end.
    consumers: Vec<Consumer>,
}

/// Who wants to hear of a queue.
#[derive(Clone, Debug)]
pub(crate) struct Consumer {
    pub(crate) mailbox: UnboundedSender<Message>,
    pub(crate) root: u32,
    /// Its VM is in its place.
    pub(crate) adopted: Arc<AtomicBool>,
    /// As [`RootSpec::serves`](super::context::RootSpec::serves).
    pub(crate) serves: Arc<AtomicBool>,
    /// Notices of the queue that it was sent and has not had.
    pub(crate) told: usize,
}

impl Consumer {
    fn is(&self, mailbox: &UnboundedSender<Message>, root: u32) -> bool {
        self.root == root && self.mailbox.same_channel(mailbox)
    }

    /// In its place, and of a version that serves: the more, the better.
    fn standing(&self) -> (bool, bool) {
        let adopted = self.adopted.load(Relaxed);
        (adopted, adopted && self.serves.load(Relaxed))
    }
}

impl Queue {
    /// Who hears of the next message: the last one that serves. Where nobody does, one whose version waits hears before
    /// one that may be tried and no more; that finds it in its mailbox when it is in its place.
    fn consumer(&mut self) -> Option<&mut Consumer> {
        let mut living = self.consumers.iter_mut().rev();
        let mut best = living.find(|consumer| !consumer.mailbox.is_closed())?;
        for consumer in living {
            if best.standing() < consumer.standing() && !consumer.mailbox.is_closed() {
                best = consumer;
            }
        }
        Some(best)
    }
}

impl Shared {
    /// The data of `vm_id`.
    pub(crate) fn space(&self, vm_id: &Arc<str>) -> Arc<Space> {
        let mut spaces = self.spaces.lock();
        if let Some(space) = spaces.get(vm_id).and_then(Weak::upgrade) {
            return space;
        }
        spaces.retain(|_, space| space.strong_count() > 0);
        let space = Arc::new(Space {
            entries: Mutex::default(),
            tokens: Mutex::default(),
            queues: Arc::clone(&self.queues),
            cas: Arc::clone(&self.cas),
        });
        spaces.insert(Arc::clone(vm_id), Arc::downgrade(&space));
        space
    }

    /// The data of `vm_id`, if a VM has it.
    pub(crate) fn find(&self, vm_id: &str) -> Option<Arc<Space>> {
        self.spaces.lock().get(vm_id).and_then(Weak::upgrade)
    }

    /// The token of a queue.
    pub(crate) fn resolve_queue(&self, vm_id: &[u8], name: &[u8]) -> Option<u32> {
        self.find(std::str::from_utf8(vm_id).ok()?)?.queue(name)
    }

    /// Appends, where no more than `quota` bytes wait then, and tells the consumer: of each item, as Envoy does, but with no
    /// more notices under way than there are items, however many came and went.
    pub(crate) fn enqueue(&self, token: u32, data: Bytes, quota: usize) -> Result<(), Status> {
        let mut queues = self.queues.lock();
        let queue = queues.by_token.get_mut(&token).ok_or(Status::NotFound)?;
        let cost = data.len() + MESSAGE;
        if queue.bytes + cost > quota {
            return Err(Status::InternalFailure);
        }
        queue.bytes += cost;
        queue.items.push_back(data);
        let items = queue.items.len();
        if let Some(consumer) = queue.consumer()
            && consumer.told < items.max(NOTICES)
        {
            consumer.told += 1;
            let root = consumer.root;
            // Nobody is told where it goes at this moment; the next registrant finds the items.
            let _ = consumer.mailbox.send(Message::QueueReady { root, token });
        }
        Ok(())
    }

    /// A notice has come to the root context `root` of the VM with that mailbox.
    pub(crate) fn heard(&self, token: u32, mailbox: &UnboundedSender<Message>, root: u32) {
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.by_token.get_mut(&token) {
            let mut consumers = queue.consumers.iter_mut();
            if let Some(known) = consumers.find(|known| known.is(mailbox, root)) {
                known.told = known.told.saturating_sub(1);
            }
        }
    }

    /// Takes the first item.
    pub(crate) fn dequeue(&self, token: u32) -> Result<Bytes, Status> {
        let mut queues = self.queues.lock();
        let queue = queues.by_token.get_mut(&token).ok_or(Status::NotFound)?;
        let data = queue.items.pop_front().ok_or(Status::Empty)?;
        queue.bytes -= data.len() + MESSAGE;
        Ok(data)
    }
}

impl Space {
    /// Makes a queue, of which there are no more than `quota`, or adds the caller to those who hear of it.
    pub(crate) fn register_queue(
        &self,
        name: &[u8],
        mut consumer: Consumer,
        quota: usize,
    ) -> Result<u32, Status> {
        let mut tokens = self.tokens.lock();
        let mut queues = self.queues.lock();
        if let Some(token) = tokens.get(name)
            && let Some(queue) = queues.by_token.get_mut(token)
        {
            queue.consumers.retain(|known| {
                let again = known.is(&consumer.mailbox, consumer.root);
                if again {
                    consumer.told = known.told;
                }
                !again && !known.mailbox.is_closed()
            });
            queue.consumers.push(consumer);
            return Ok(*token);
        }
        if tokens.len() >= quota || queues.by_token.len() >= MAX_QUEUES {
            return Err(Status::InternalFailure);
        }
        let token = queues.fresh_token();
        let queue = Queue {
            items: VecDeque::new(),
            bytes: 0,
            consumers: vec![consumer],
        };
        queues.by_token.insert(token, queue);
        tokens.insert(name.into(), token);
        Ok(token)
    }

    /// The token of a queue.
    pub(crate) fn queue(&self, name: &[u8]) -> Option<u32> {
        self.tokens.lock().get(name).copied()
    }

    /// The root context `root` of the VM with that mailbox hears of no queue any more.
    pub(crate) fn leave_queues(&self, mailbox: &UnboundedSender<Message>, root: u32) {
        let tokens = self.tokens.lock();
        let mut queues = self.queues.lock();
        for token in tokens.values() {
            if let Some(queue) = queues.by_token.get_mut(token) {
                queue.consumers.retain(|known| !known.is(mailbox, root));
            }
        }
    }

    /// For `/wasm`: its data and queues. Workers wait meanwhile: it looks at no more keys than it shows, and sorts no more
    /// queues.
    pub(crate) fn status(&self) -> SharedStatus {
        let mut status = SharedStatus::default();
        {
            let entries = self.entries.lock();
            status.bytes = entries.bytes;
            status.count = entries.map.len();
            let size = |key| Some((shown(key), entries.map.get(key)?.0.len()));
            status.entries = entries
                .first
                .iter()
                .filter_map(|key| size(&**key))
                .collect();
        }
        let tokens = self.tokens.lock();
        let queues = self.queues.lock();
        let mut all: Vec<(&[u8], &Queue)> = tokens
            .iter()
            .filter_map(|(name, token)| Some((&**name, queues.by_token.get(token)?)))
            .collect();
        status.queue_count = all.len();
        let bytes = all.iter().map(|(_, queue)| queue.bytes);
        status.fullest_queue = bytes.max().unwrap_or(0);
        status.messages = all.iter().map(|(_, queue)| queue.items.len()).sum();
        if all.len() > MAX_SHOWN {
            all.select_nth_unstable_by_key(MAX_SHOWN, |(name, _)| *name);
            all.truncate(MAX_SHOWN);
        }
        all.sort_unstable_by_key(|(name, _)| *name);
        let show = |(name, queue): (&[u8], &Queue)| QueueStatus {
            name: shown(name),
            messages: queue.items.len(),
            bytes: queue.bytes,
        };
        status.queues = all.into_iter().map(show).collect();
        status
    }

    /// A value and its number.
    pub(crate) fn get(&self, key: &[u8]) -> Option<(Bytes, u32)> {
        self.entries.lock().map.get(key).cloned()
    }

    /// Sets a value; a `cas` other than 0 must be the number of the present one, if there is one.
    /// There are no more than `quota` bytes then.
    pub(crate) fn set(
        &self,
        key: &[u8],
        value: &[u8],
        cas: u32,
        quota: usize,
    ) -> Result<(), Status> {
        let mut entries = self.entries.lock();
        let old = match entries.map.get(key) {
            Some((_, present)) if cas != 0 && *present != cas => return Err(Status::CasMismatch),
            Some((old, _)) => ENTRY + key.len() + old.len(),
            None => 0,
        };
        let bytes = entries.bytes - old + ENTRY + key.len() + value.len();
        // What replaces and does not grow passes whatever the quota.
        if bytes > quota && bytes > entries.bytes {
            return Err(Status::InternalFailure);
        }
        entries.bytes = bytes;
        let number = self.cas.fetch_add(1, Relaxed).wrapping_add(1);
        let value = (Bytes::copy_from_slice(value), number);
        match entries.map.get_mut(key) {
            Some(entry) => *entry = value,
            None => entries.add(key, value),
        }
        Ok(())
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let mut queues = self.queues.lock();
        for token in self.tokens.get_mut().values() {
            queues.by_token.remove(token);
        }
    }
}

impl Queues {
    /// A token that no queue has.
    fn fresh_token(&mut self) -> u32 {
        loop {
            self.last = self.last.wrapping_add(1).max(1);
            if !self.by_token.contains_key(&self.last) {
                return self.last;
            }
        }
    }
}

#[cfg(test)]
#[path = "shared/tests.rs"]
mod tests;
