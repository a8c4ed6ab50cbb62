//! What plugins share: key-value data by `vm_id`, and message queues by (`vm_id`, name). Process-wide, as in Envoy.
//!
//! These are the named exceptions to "no lock is contended": each is held for one look-up or one copy. Sizes are
//! bounded, which Envoy's are not.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;

use super::abi::Status;
use super::vm::Message;

/// Most bytes, keys included, that the VMs of one `vm_id` keep.
const MAX_DATA: usize = 64 << 20;
/// Most bytes waiting in one queue.
const MAX_QUEUE: usize = 16 << 20;
/// Most queues.
const MAX_QUEUES: usize = 10_000;

/// All of it, one a process.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    spaces: Mutex<HashMap<Arc<str>, Weak<Space>>>,
    queues: Mutex<Queues>,
    /// Counts every write of the process; the first is 1.
    cas: Arc<AtomicU32>,
}

/// The data of one `vm_id`; goes with the last VM that has it.
#[derive(Debug)]
pub(crate) struct Space {
    entries: Mutex<Entries>,
    cas: Arc<AtomicU32>,
}

#[derive(Debug, Default)]
struct Entries {
    map: HashMap<Box<[u8]>, (Bytes, u32), rustc_hash::FxBuildHasher>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Queues {
    tokens: HashMap<(Box<[u8]>, Box<[u8]>), u32>,
    /// Token n is at n − 1.
    queues: Vec<Queue>,
}

#[derive(Debug)]
struct Queue {
    items: VecDeque<Bytes>,
    bytes: usize,
    consumer: UnboundedSender<Message>,
    root: u32,
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
            cas: Arc::clone(&self.cas),
        });
        spaces.insert(Arc::clone(vm_id), Arc::downgrade(&space));
        space
    }

    /// The data of `vm_id`, if a VM has it.
    pub(crate) fn find(&self, vm_id: &str) -> Option<Arc<Space>> {
        self.spaces.lock().get(vm_id).and_then(Weak::upgrade)
    }

    /// Makes a queue, or makes the caller the one who hears of it from now on.
    pub(crate) fn register_queue(
        &self,
        vm_id: &[u8],
        name: &[u8],
        consumer: UnboundedSender<Message>,
        root: u32,
    ) -> Result<u32, Status> {
        let mut queues = self.queues.lock();
        if let Some(&token) = queues.tokens.get(&(Box::from(vm_id), Box::from(name))) {
            let queue = &mut queues.queues[token as usize - 1];
            queue.consumer = consumer;
            queue.root = root;
            return Ok(token);
        }
        if queues.queues.len() >= MAX_QUEUES {
            return Err(Status::InternalFailure);
        }
        queues.queues.push(Queue {
            items: VecDeque::new(),
            bytes: 0,
            consumer,
            root,
        });
        let token = u32::try_from(queues.queues.len()).map_err(|_| Status::InternalFailure)?;
        queues.tokens.insert((vm_id.into(), name.into()), token);
        Ok(token)
    }

    /// The token of a queue.
    pub(crate) fn resolve_queue(&self, vm_id: &[u8], name: &[u8]) -> Option<u32> {
        let queues = self.queues.lock();
        queues
            .tokens
            .get(&(Box::from(vm_id), Box::from(name)))
            .copied()
    }

    /// Appends, and tells the consumer.
    pub(crate) fn enqueue(&self, token: u32, data: Bytes) -> Result<(), Status> {
        let mut queues = self.queues.lock();
        let queue = queues.get(token).ok_or(Status::NotFound)?;
        if queue.bytes + data.len() > MAX_QUEUE {
            return Err(Status::InternalFailure);
        }
        queue.bytes += data.len();
        queue.items.push_back(data);
        // Nobody is told where the consumer is gone; the next registrant finds the items.
        let _ = queue.consumer.send(Message::QueueReady {
            root: queue.root,
            token,
        });
        Ok(())
    }

    /// Takes the first item.
    pub(crate) fn dequeue(&self, token: u32) -> Result<Bytes, Status> {
        let mut queues = self.queues.lock();
        let queue = queues.get(token).ok_or(Status::NotFound)?;
        let data = queue.items.pop_front().ok_or(Status::Empty)?;
        queue.bytes -= data.len();
        Ok(data)
    }
}

impl Queues {
    fn get(&mut self, token: u32) -> Option<&mut Queue> {
        self.queues.get_mut((token as usize).checked_sub(1)?)
    }
}

impl Space {
    /// A value and its number.
    pub(crate) fn get(&self, key: &[u8]) -> Option<(Bytes, u32)> {
        self.entries.lock().map.get(key).cloned()
    }

    /// Sets a value; a `cas` other than 0 must be the number of the present one, if there is one.
    pub(crate) fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), Status> {
        let mut entries = self.entries.lock();
        let old = match entries.map.get(key) {
            Some((_, present)) if cas != 0 && *present != cas => return Err(Status::CasMismatch),
            Some((old, _)) => key.len() + old.len(),
            None => 0,
        };
        let bytes = entries.bytes - old + key.len() + value.len();
        if bytes > MAX_DATA {
            return Err(Status::InternalFailure);
        }
        entries.bytes = bytes;
        let number = self.cas.fetch_add(1, Relaxed).wrapping_add(1);
        let value = (Bytes::copy_from_slice(value), number);
        match entries.map.get_mut(key) {
            Some(entry) => *entry = value,
            None => {
                entries.map.insert(key.into(), value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_replaced_only_under_its_number() {
        let shared = Shared::default();
        let space = shared.space(&"a".into());
        assert_eq!(
            space.set(b"k", b"1", 7),
            Ok(()),
            "a new key takes any number"
        );
        let (value, cas) = space.get(b"k").expect("set");
        assert_eq!((&*value, cas), (&b"1"[..], 1));
        assert_eq!(space.set(b"k", b"2", cas + 1), Err(Status::CasMismatch));
        assert_eq!(space.set(b"k", b"2", cas), Ok(()));
        assert_eq!(space.set(b"k", b"3", 0), Ok(()));
        assert_eq!(shared.space(&"a".into()).get(b"k").expect("set").0, "3");
        assert!(
            shared.space(&"b".into()).get(b"k").is_none(),
            "another vm_id"
        );
        drop(space);
        assert!(
            shared.space(&"a".into()).get(b"k").is_none(),
            "gone with its last VM"
        );
    }

    #[test]
    fn data_is_bounded_and_replacing_frees() {
        let shared = Shared::default();
        let space = shared.space(&"a".into());
        let half = vec![0; MAX_DATA / 2];
        assert_eq!(space.set(b"a", &half, 0), Ok(()));
        assert_eq!(space.set(b"b", &half, 0), Err(Status::InternalFailure));
        for _ in 0..4 {
            assert_eq!(space.set(b"a", &half, 0), Ok(()));
        }
    }

    #[test]
    fn a_queue_tells_its_last_registrant() {
        let shared = Shared::default();
        let (first, mut old) = tokio::sync::mpsc::unbounded_channel();
        let (second, mut new) = tokio::sync::mpsc::unbounded_channel();
        let token = shared.register_queue(b"vm", b"q", first, 1).expect("room");
        assert_eq!(shared.register_queue(b"vm", b"q", second, 2), Ok(token));
        assert_eq!(shared.resolve_queue(b"vm", b"q"), Some(token));
        assert_eq!(shared.resolve_queue(b"", b"q"), None);
        assert_eq!(shared.enqueue(token, Bytes::from_static(b"x")), Ok(()));
        assert!(old.try_recv().is_err());
        assert!(matches!(
            new.try_recv(),
            Ok(Message::QueueReady { root: 2, .. })
        ));
        assert_eq!(shared.dequeue(token), Ok(Bytes::from_static(b"x")));
        assert_eq!(shared.dequeue(token), Err(Status::Empty));
        assert_eq!(shared.dequeue(token + 1), Err(Status::NotFound));
        assert_eq!(shared.enqueue(0, Bytes::new()), Err(Status::NotFound));
    }
}
