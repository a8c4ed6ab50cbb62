//! What a guest is told of its context, sees of a body, and answers.

use super::foreign::{STREAM, connection, stream};
use super::*;
use crate::wasm::context::{BodyView, Effect};

const AT: i64 = 16;
const LEN: i64 = 20;

impl Bench {
    /// Makes a root context more.
    fn add_root(&mut self) -> u32 {
        let host = self.store.data_mut();
        let id = host.fresh_id();
        let made_for = Arc::clone(&host.roots[0].made_for);
        host.roots.push(Root::new(id, made_for));
        id
    }

    fn set_effective(&mut self, id: u32) {
        let status = self.call("proxy_set_effective_context", &[i64::from(id)]);
        assert_eq!(status.ok(), Some(0));
    }
}

#[test]
fn a_status_is_that_of_the_root_context() {
    let mut bench = Bench::new();
    let other = bench.add_root();
    let status = |bench: &mut Bench, of: u32| {
        bench.set_effective(of);
        let called = bench.call("proxy_get_status", &[64, AT, LEN]);
        assert_eq!(called.ok(), Some(0));
        (bench.word(64), bench.given(AT as usize, LEN as usize))
    };
    let host = bench.store.data_mut();
    host.set_status(ROOT, 14, "gone".to_owned());
    assert_eq!(status(&mut bench, ROOT), (14, b"gone".to_vec()));
    assert_eq!(status(&mut bench, other), (0, Vec::new()));
    bench.store.data_mut().clear_status(ROOT);
    assert_eq!(status(&mut bench, ROOT), (14, Vec::new()), "the code stays");
}

#[test]
fn a_guest_of_abi_0_1_0_sees_one_of_two_configurations() {
    let mut bench = Bench::with_stream(&stream(&connection()));
    let other = bench.add_root();
    for (configuring, context, expected) in [
        (false, ROOT, "vm's"),
        (false, STREAM, "vm's"),
        (true, ROOT, "plugin's"),
        (true, STREAM, "vm's"),
        (true, other, "vm's"),
    ] {
        bench.store.data_mut().roots[0].configuring = configuring;
        bench.set_effective(context);
        let status = bench.call("proxy_get_configuration", &[AT, LEN]);
        assert_eq!(status.ok(), Some(0));
        let given = bench.given(AT as usize, LEN as usize);
        assert_eq!(
            String::from_utf8_lossy(&given),
            expected,
            "{configuring} {context}"
        );
    }
}

#[test]
fn a_body_that_goes_on_is_not_shown_any_more() {
    for direction in [0, 1] {
        for (kept, shown, status) in [(false, &b""[..], 2), (true, b"body", 0)] {
            let mut bench = Bench::with_stream(&stream(&connection()));
            let streams = &mut bench.store.data_mut().streams;
            let context = streams.get_mut(STREAM).expect("made");
            context.callback = Some(Direction::Request);
            context.bodies[0] = BodyView {
                data: Some(Bytes::from_static(b"body")),
                kept,
                hidden: false,
            };
            let body = |bench: &mut Bench| {
                let status = bench.call("proxy_get_buffer_bytes", &[0, 0, 10, AT, LEN]);
                assert_eq!(status.ok(), Some(0));
                bench.given(AT as usize, LEN as usize)
            };
            assert_eq!(body(&mut bench), b"body");
            bench
                .call("proxy_continue_stream", &[direction])
                .expect("no trap");
            assert_eq!(body(&mut bench), shown, "{direction} {kept}");
            let written = bench.call("proxy_set_buffer_bytes", &[0, 0, 0, 0, 1]);
            assert_eq!(written.ok(), Some(status), "{direction} {kept}");
        }
    }
}

#[test]
fn the_details_of_a_reply_are_one_word() {
    let mut bench = Bench::with_stream(&stream(&connection()));
    bench.write(64, b"a b\tc\nd\re\x0bf\x0cg");
    let reply = [403, 64, 13, 0, 0, 0, 0, -1];
    assert_eq!(
        bench.call("proxy_send_local_response", &reply).ok(),
        Some(0)
    );
    let effects = &bench.store.data().effects;
    let [Effect::Reply(STREAM, reply)] = &effects[..] else {
        panic!("no reply");
    };
    assert_eq!(reply.details, "a_b_c_d_e_f_g");
}

/// However often it is said in a callback.
#[test]
fn the_timer_is_looked_at_once_and_effects_have_an_end() {
    let mut bench = Bench::with_stream(&stream(&connection()));
    for _ in 0..3 {
        let set = bench.call("proxy_set_tick_period_milliseconds", &[100]);
        assert_eq!(set.expect("no trap"), 0);
    }
    assert_eq!(bench.store.data().effects.len(), 1);
    let mut refused = 0;
    for _ in 0..20_000 {
        refused += bench.call("proxy_continue_stream", &[1]).expect("no trap");
    }
    assert!(refused > 0, "for ever");
    let effects = bench.store.data().effects.len();
    assert!((10_000..11_000).contains(&effects), "{effects}");
}

#[test]
fn a_reply_that_cannot_be_sent_as_it_was_meant_is_a_500() {
    let long = "v".repeat(300 << 10);
    for (name, value, status, grpc_status, sent) in [
        ("x-good", "v", 200, Some(0), 1),
        // As in Envoy these do not count.
        (":status", "404", 200, Some(0), 0),
        (":nosuch", "v", 200, Some(0), 0),
        ("x-bad\r\nset-cookie", "v", 500, None, 0),
        ("x-bad", "v\r\nset-cookie: v", 500, None, 0),
        ("x bad", "v", 500, None, 0),
        ("", "v", 500, None, 0),
        ("x-long", &long, 500, None, 0),
    ] {
        let mut bench = Bench::with_stream(&stream(&connection()));
        let headers = abi::pairs::to_bytes(&[(name, value)]);
        let memory = bench.store.data().memory.expect("exported");
        memory.grow(&mut bench.store, 8).expect("room");
        bench.write(64, &[b'd'; 2000]);
        bench.write(4096, &headers);
        let args = [200, 64, 2000, 64, 4, 4096, headers.len() as i64, 0];
        let called = bench.call("proxy_send_local_response", &args);
        assert_eq!(called.expect("no trap"), 0, "{name:?}");
        let Some(Effect::Reply(STREAM, reply)) = bench.store.data_mut().effects.pop() else {
            panic!("no reply");
        };
        assert_eq!(reply.status, status, "{name:?}");
        assert_eq!(reply.grpc_status, grpc_status, "{name:?}");
        assert_eq!(reply.headers.len(), sent, "{name:?}");
        assert_eq!((&*reply.body, reply.details.len()), (&b"dddd"[..], 1024));
    }
}
