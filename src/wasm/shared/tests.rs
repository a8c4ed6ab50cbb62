//! Shared data and queues as several VMs use them.

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
fn entries_without_a_byte_are_not_for_nothing() {
    let shared = Shared::default();
    let space = shared.space(&"a".into());
    let quota = 2 * ENTRY + 2;
    assert_eq!(space.set(b"a", b"", 0, quota), Ok(()));
    assert_eq!(space.set(b"b", b"", 0, quota), Ok(()));
    let third = space.set(b"", b"", 0, quota);
    assert_eq!(third, Err(Status::InternalFailure));
    assert_eq!(space.set(b"a", b"", 0, quota), Ok(()), "it replaces");
    assert_eq!(space.status().bytes, quota);
}

type Inbox = tokio::sync::mpsc::UnboundedReceiver<Message>;

/// A root context of a VM that serves, and its mailbox.
fn consumer(root: u32) -> (Consumer, Inbox) {
    let (mailbox, inbox) = tokio::sync::mpsc::unbounded_channel();
    let consumer = Consumer {
        mailbox,
        root,
        adopted: Arc::new(true.into()),
        serves: Arc::new(true.into()),
        told: 0,
    };
    (consumer, inbox)
}

/// The root context that hears of the next message.
fn hears(shared: &Shared, token: u32, inboxes: &mut [&mut Inbox]) -> Option<u32> {
    assert_eq!(shared.enqueue(token, Bytes::new(), QUOTA), Ok(()));
    let mut told = inboxes.iter_mut().filter_map(|inbox| inbox.try_recv().ok());
    let Some(Message::QueueReady { root, .. }) = told.next() else {
        return None;
    };
    assert!(told.next().is_none(), "one alone");
    Some(root)
}

#[test]
fn a_queue_tells_its_last_registrant() {
    let shared = Shared::default();
    let space = shared.space(&"vm".into());
    let ((first, mut old), (second, mut new)) = (consumer(1), consumer(2));
    let token = space.register_queue(b"q", first.clone(), 10).expect("room");
    assert_eq!(space.register_queue(b"q", second, 10), Ok(token));
    assert_eq!(shared.resolve_queue(b"vm", b"q"), Some(token));
    assert_eq!(shared.resolve_queue(b"", b"q"), None);
    assert_eq!(hears(&shared, token, &mut [&mut old, &mut new]), Some(2));
    assert_eq!(space.register_queue(b"q", first, 10), Ok(token));
    assert_eq!(hears(&shared, token, &mut [&mut old, &mut new]), Some(1));
    assert_eq!(shared.dequeue(token), Ok(Bytes::new()));
    assert_eq!(shared.dequeue(token), Ok(Bytes::new()));
    assert_eq!(shared.dequeue(token), Err(Status::Empty));
    assert_eq!(shared.dequeue(token + 1), Err(Status::NotFound));
    assert_eq!(
        shared.enqueue(0, Bytes::new(), QUOTA),
        Err(Status::NotFound)
    );
}

#[test]
fn what_does_not_serve_takes_no_queue() {
    let shared = Shared::default();
    let space = shared.space(&"vm".into());
    let ((serving, mut old), (tried, mut new)) = (consumer(1), consumer(2));
    tried.adopted.store(false, Relaxed);
    let token = space.register_queue(b"q", tried.clone(), 10).expect("room");
    let told = hears(&shared, token, &mut [&mut new]);
    assert_eq!(told, Some(2), "it has it when it is in its place");
    // Its version waits.
    let (waiting, mut inbox) = consumer(3);
    waiting.serves.store(false, Relaxed);
    assert_eq!(space.register_queue(b"q", waiting, 10), Ok(token));
    assert_eq!(space.register_queue(b"q", tried.clone(), 10), Ok(token));
    assert_eq!(hears(&shared, token, &mut [&mut inbox, &mut new]), Some(3));
    assert_eq!(space.register_queue(b"q", serving, 10), Ok(token));
    assert_eq!(space.register_queue(b"q", tried.clone(), 10), Ok(token));
    assert_eq!(hears(&shared, token, &mut [&mut old, &mut new]), Some(1));
    tried.adopted.store(true, Relaxed);
    assert_eq!(hears(&shared, token, &mut [&mut old, &mut new]), Some(2));
    tried.serves.store(false, Relaxed);
    assert_eq!(hears(&shared, token, &mut [&mut old, &mut new]), Some(1));
}

#[test]
fn where_the_last_registrant_is_gone_the_one_before_hears() {
    let shared = Shared::default();
    let space = shared.space(&"vm".into());
    let ((first, mut one), (second, mut two), (third, mut three)) =
        (consumer(1), consumer(2), consumer(3));
    let token = space.register_queue(b"q", first, 10).expect("room");
    for consumer in [&second, &third] {
        assert_eq!(space.register_queue(b"q", consumer.clone(), 10), Ok(token));
    }
    let told = hears(&shared, token, &mut [&mut one, &mut two, &mut three]);
    assert_eq!(told, Some(3));
    drop(three);
    assert_eq!(hears(&shared, token, &mut [&mut one, &mut two]), Some(2));
    space.leave_queues(&second.mailbox, 1);
    let told = hears(&shared, token, &mut [&mut one, &mut two]);
    assert_eq!(told, Some(2), "another root context left its VM");
    space.leave_queues(&second.mailbox, 2);
    assert_eq!(hears(&shared, token, &mut [&mut one, &mut two]), Some(1));
}

#[test]
fn no_notices_pile_up_whose_items_are_gone() {
    let shared = Shared::default();
    let space = shared.space(&"vm".into());
    let (consumer, mut inbox) = consumer(1);
    let token = space
        .register_queue(b"q", consumer.clone(), 10)
        .expect("room");
    let enqueue = || {
        let sent = shared.enqueue(token, Bytes::new(), 1 << 20);
        sent.expect("room");
    };
    for _ in 0..10 * NOTICES {
        enqueue();
        assert!(shared.dequeue(token).is_ok());
        // Who registers again has what it was sent.
        let again = space.register_queue(b"q", consumer.clone(), 10);
        assert_eq!(again, Ok(token));
    }
    assert_eq!(inbox.len(), NOTICES);
    // Each item is told of nevertheless, at first by the notices at hand.
    for _ in 0..NOTICES {
        enqueue();
    }
    assert_eq!(inbox.len(), NOTICES);
    enqueue();
    assert_eq!(inbox.len(), NOTICES + 1);
    let mut hear = || {
        assert!(inbox.try_recv().is_ok());
        shared.heard(token, &consumer.mailbox, 1);
        inbox.len()
    };
    assert_eq!(hear(), NOTICES);
    // One comes while the notice of another is heard.
    enqueue();
    assert_eq!(hear(), NOTICES);
    while hear() > 0 {}
    for _ in 0..NOTICES + 2 {
        assert!(shared.dequeue(token).is_ok());
    }
    // What it leaves there it was told of.
    enqueue();
    assert_eq!(hear(), 0);
    enqueue();
    assert_eq!(inbox.len(), 1);
}

#[test]
fn queues_go_with_the_last_vm_of_their_vm_id() {
    let shared = Shared::default();
    let (space, other) = (shared.space(&"a".into()), shared.space(&"b".into()));
    let (consumer, _inbox) = consumer(1);
    let token = space
        .register_queue(b"q", consumer.clone(), 10)
        .expect("room");
    let kept = other
        .register_queue(b"q", consumer.clone(), 10)
        .expect("room");
    assert_eq!(shared.enqueue(token, Bytes::new(), QUOTA), Ok(()));
    drop(space);
    assert_eq!(shared.resolve_queue(b"a", b"q"), None);
    let gone = shared.enqueue(token, Bytes::new(), QUOTA);
    assert_eq!(gone, Err(Status::NotFound));
    assert_eq!(shared.enqueue(kept, Bytes::new(), QUOTA), Ok(()));
    let again = shared.space(&"a".into());
    let fresh = again.register_queue(b"q", consumer, 10).expect("room");
    assert_ne!(fresh, token);
    assert_eq!(shared.dequeue(fresh), Err(Status::Empty));
}

#[test]
fn queues_are_bounded_in_number_and_bytes() {
    let shared = Shared::default();
    let (space, other) = (shared.space(&"vm".into()), shared.space(&"other".into()));
    let (consumer, _inbox) = consumer(1);
    let register = |space: &Space, name: &[u8]| space.register_queue(name, consumer.clone(), 2);
    let token = register(&space, b"a").expect("room");
    assert!(register(&space, b"b").is_ok());
    assert_eq!(register(&space, b"c"), Err(Status::InternalFailure));
    assert_eq!(register(&space, b"a"), Ok(token), "it is there already");
    assert!(register(&other, b"c").is_ok());
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
    let (space, other) = (shared.space(&"a".into()), shared.space(&"b".into()));
    space.set(b"key", b"12345", 0, QUOTA).expect("room");
    space.set(b"a\n", b"", 0, QUOTA).expect("room");
    let (consumer, _inbox) = consumer(1);
    let token = space
        .register_queue(b"q", consumer.clone(), 10)
        .expect("room");
    other.register_queue(b"other", consumer, 10).expect("room");
    shared
        .enqueue(token, Bytes::from_static(b"x"), QUOTA)
        .expect("room");
    let status = space.status();
    assert_eq!((status.bytes, status.count), (10 + 2 * ENTRY, 2));
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

#[test]
fn what_is_shown_is_the_beginning_and_what_is_counted_is_all() {
    let shared = Shared::default();
    let space = shared.space(&"a".into());
    let (consumer, _inbox) = consumer(1);
    // In no order: 7 and 300 have no common divisor.
    for number in (0..300).map(|step| step * 7 % 300) {
        let name = format!("{number:03}");
        let value = vec![0; number];
        space.set(name.as_bytes(), &value, 0, QUOTA).expect("room");
        let queue = space.register_queue(name.as_bytes(), consumer.clone(), 300);
        for _ in 0..number {
            let token = queue.expect("room");
            let sent = shared.enqueue(token, Bytes::new(), QUOTA);
            sent.expect("room");
        }
    }
    let status = space.status();
    assert_eq!((status.count, status.queue_count), (300, 300));
    assert_eq!(status.fullest_queue, 299 * MESSAGE);
    let first = (0..MAX_SHOWN).map(|number| (format!("{number:03}"), number));
    assert_eq!(status.entries, first.clone().collect::<Vec<_>>());
    let queues = status.queues.into_iter();
    let queues = queues.map(|queue| (queue.name, queue.messages));
    assert_eq!(queues.collect::<Vec<_>>(), first.collect::<Vec<_>>());
    space.set(b"000", b"new", 0, QUOTA).expect("room");
    assert_eq!(space.status().entries[0], ("000".to_owned(), 3));
    let looked_at = space.entries.lock().first.len();
    assert_eq!(looked_at, MAX_SHOWN, "of whatever number");
}
