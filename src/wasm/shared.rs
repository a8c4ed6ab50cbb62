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
use super::status::{QueueStatus, SharedStatus};
use super::vm::Message;

/// Most queues of all `vm_id`s together.
const MAX_QUEUES: usize = 10_000;
/// What a message costs beyond its bytes.
const MESSAGE: usize = 32;

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
    /// How many there are of each `vm_id`.
    counts: HashMap<Box<[u8]>, usize>,
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

    /// Makes a queue, of which a `vm_id` has no more than `quota`, or makes the caller the one who hears of it from
    /// now on.
    pub(crate) fn register_queue(
        &self,
        vm_id: &[u8],
        name: &[u8],
        consumer: UnboundedSender<Message>,
        root: u32,
        quota: usize,
    ) -> Result<u32, Status> {
        let mut queues = self.queues.lock();
        if let Some(&token) = queues.tokens.get(&(Box::from(vm_id), Box::from(name))) {
            let queue = &mut queues.queues[token as usize - 1];
            queue.consumer = consumer;
            queue.root = root;
            return Ok(token);
        }
        let own = queues.counts.get(vm_id).copied().unwrap_or(0);
        if own >= quota || queues.queues.len() >= MAX_QUEUES {
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
        *queues.counts.entry(vm_id.into()).or_default() += 1;
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

    /// For `/wasm`: the data in `space` and the queues of `vm_id`.
    pub(crate) fn status(&self, vm_id: &str, space: &Space) -> SharedStatus {
        let mut status = SharedStatus::default();
        {
            let entries = space.entries.lock();
            status.bytes = entries.bytes;
            status.count = entries.map.len();
            let mut sizes: Vec<_> = entries
                .map
                .iter()
                .map(|(key, (value, _))| (key, value.len()))
                .collect();
            sizes.sort_unstable();
            sizes.truncate(MAX_SHOWN);
            status.entries = sizes
                .into_iter()
                .map(|(key, size)| (shown(key), size))
                .collect();
        }
        let queues = self.queues.lock();
        for ((owner, name), token) in &queues.tokens {
            if **owner == *vm_id.as_bytes()
                && let Some(queue) = queues.queues.get(*token as usize - 1)
            {
                status.queues.push(QueueStatus {
                    name: shown(name),
                    messages: queue.items.len(),
                    bytes: queue.bytes,
                });
            }
        }
        status.queues.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        status.queues.truncate(MAX_SHOWN);
        status
    }

    /// Appends, where no more than `quota` bytes wait then, and tells the consumer.
    pub(crate) fn enqueue(&self, token: u32, data: Bytes, quota: usize) -> Result<(), Status> {
        let mut queues = self.queues.lock();
        let queue = queues.get(token).ok_or(Status::NotFound)?;
        let cost = data.len() + MESSAGE;
        if queue.bytes + cost > quota {
            return Err(Status::InternalFailure);
        }
        queue.bytes += cost;
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
        queue.bytes -= data.len() + MESSAGE;
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
            Some((old, _)) => key.len() + old.len(),
            None => 0,
        };
        let bytes = entries.bytes - old + key.len() + value.len();
        // What replaces and does not grow passes whatever the quota.
        if bytes > quota && bytes > entries.bytes {
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

    const QUOTA: usize = 1 << 20;

    #[test]
    fn a_value_is_replaced_only_under_its_number() {
        let shared = Shared::default();
        let space = shared.space(&"a".into());
        assert_eq!(
            space.set(b"k", b"1", 7, QUOTA),
            Ok(()),
            "a new key takes any number"
        );
        let (value, cas) = space.get(b"k").expect("set");
        assert_eq!((&*value, cas), (&b"1"[..], 1));
        assert_eq!(
            space.set(b"k", b"2", cas + 1, QUOTA),
            Err(Status::CasMismatch)
        );
        assert_eq!(space.set(b"k", b"2", cas, QUOTA), Ok(()));
        assert_eq!(space.set(b"k", b"3", 0, QUOTA), Ok(()));
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
        let half = vec![0; QUOTA / 2];
        assert_eq!(space.set(b"a", &half, 0, QUOTA), Ok(()));
        assert_eq!(
            space.set(b"b", &half, 0, QUOTA),
            Err(Status::InternalFailure)
        );
        for _ in 0..4 {
            assert_eq!(space.set(b"a", &half, 0, QUOTA), Ok(()));
        }
    }

    #[test]
    fn a_queue_tells_its_last_registrant() {
        let shared = Shared::default();
        let (first, mut old) = tokio::sync::mpsc::unbounded_channel();
        let (second, mut new) = tokio::sync::mpsc::unbounded_channel();
        let token = shared
            .register_queue(b"vm", b"q", first, 1, 10)
            .expect("room");
        assert_eq!(shared.register_queue(b"vm", b"q", second, 2, 10), Ok(token));
        assert_eq!(shared.resolve_queue(b"vm", b"q"), Some(token));
        assert_eq!(shared.resolve_queue(b"", b"q"), None);
        assert_eq!(
            shared.enqueue(token, Bytes::from_static(b"x"), QUOTA),
            Ok(())
        );
        assert!(old.try_recv().is_err());
        assert!(matches!(
            new.try_recv(),
            Ok(Message::QueueReady { root: 2, .. })
        ));
        assert_eq!(shared.dequeue(token), Ok(Bytes::from_static(b"x")));
        assert_eq!(shared.dequeue(token), Err(Status::Empty));
        assert_eq!(shared.dequeue(token + 1), Err(Status::NotFound));
        assert_eq!(
            shared.enqueue(0, Bytes::new(), QUOTA),
            Err(Status::NotFound)
        );
    }

    #[test]
    fn queues_are_bounded_in_number_and_bytes() {
        let shared = Shared::default();
        let (consumer, _inbox) = tokio::sync::mpsc::unbounded_channel();
        let register =
            |vm: &[u8], name: &[u8]| shared.register_queue(vm, name, consumer.clone(), 1, 2);
        let token = register(b"vm", b"a").expect("room");
        assert!(register(b"vm", b"b").is_ok());
        assert_eq!(register(b"vm", b"c"), Err(Status::InternalFailure));
        assert_eq!(register(b"vm", b"a"), Ok(token), "it is there already");
        assert!(register(b"other", b"c").is_ok());
        // Messages without a byte are not for nothing.
        for _ in 0..3 {
            assert_eq!(shared.enqueue(token, Bytes::new(), 3 * MESSAGE), Ok(()));
        }
        let full = shared.enqueue(token, Bytes::new(), 3 * MESSAGE);
        assert_eq!(full, Err(Status::InternalFailure));
        assert!(shared.dequeue(token).is_ok());
        assert_eq!(shared.enqueue(token, Bytes::new(), 3 * MESSAGE), Ok(()));
    }

    #[test]
    fn what_is_shared_is_shown() {
        let shared = Shared::default();
        let space = shared.space(&"a".into());
        space.set(b"key", b"12345", 0, QUOTA).expect("room");
        space.set(b"a\n", b"", 0, QUOTA).expect("room");
        let (consumer, _inbox) = tokio::sync::mpsc::unbounded_channel();
        let token = shared
            .register_queue(b"a", b"q", consumer.clone(), 1, 10)
            .expect("room");
        shared
            .register_queue(b"b", b"other", consumer, 1, 10)
            .expect("room");
        shared
            .enqueue(token, Bytes::from_static(b"x"), QUOTA)
            .expect("room");
        let status = shared.status("a", &space);
        assert_eq!((status.bytes, status.count), (10, 2));
        assert_eq!(
            status.entries,
            [("a\\n".to_owned(), 0), ("key".to_owned(), 5)]
        );
        let queue = QueueStatus {
            name: "q".to_owned(),
            messages: 1,
            bytes: 1 + MESSAGE,
        };
        assert_eq!(status.queues, [queue]);
    }
}
