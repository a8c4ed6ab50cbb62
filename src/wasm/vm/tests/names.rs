//! Names, as a guest has them resolved.

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;

use super::*;
use crate::cluster::dns::{ResolveError, Resolved, Resolver, Silent};
use crate::config::cluster::DnsOptions;
use crate::wasm::abi::dns::Dns;

/// Knows one name.
#[derive(Debug)]
struct One;

impl Resolver for One {
    fn resolve<'a>(
        &'a self,
        name: &'a str,
        _: &'a DnsOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        let known = (name == "one.test").then(|| Resolved {
            addresses: vec!["10.0.0.1".parse().expect("an address")],
            ttl: Some(Duration::from_secs(9)),
        });
        let error = match name {
            "down.test" => ResolveError::Failed("nobody answers".into()),
            _ => ResolveError::NoAddresses,
        };
        Box::pin(async move { known.ok_or(error) })
    }
}

impl Bench {
    fn answering(resolver: Arc<dyn Resolver>) -> Self {
        let mut bench = Self::new();
        let env = Arc::get_mut(&mut bench.store.data_mut().env).expect("nobody else's");
        env.dns = Some(Dns::new(resolver, Handle::current()));
        bench
    }

    fn resolve(&mut self, at: i64, len: i64, token_out: i64) -> u32 {
        let status = self.call("envoy_resolve_dns", &[at, len, token_out]);
        status.expect("no trap")
    }
}

#[tokio::test]
async fn names_are_answered_by_their_token() {
    let mut bench = Bench::answering(Arc::new(One));
    bench.write(64, b"one.test two.test down.test");
    let mut asked = Vec::new();
    for (at, len, token_out, status) in [
        (64, 8, 128, 0),
        (-1, 8, 128, 6),
        (64, 8, -1, 6),
        (73, 8, 128, 0),
        (64, 17, 128, 0),
        (82, 9, 128, 0),
    ] {
        assert_eq!(bench.resolve(at, len, token_out), status);
        if status == 0 {
            asked.push(bench.word(128));
        }
    }
    assert_eq!(asked, [2, 4, 5, 6], "one is lost with its place");
    let mut answers = Vec::new();
    for _ in 0..asked.len() {
        let Some(Message::Resolved { token, answer }) = bench.inbox.recv().await else {
            panic!("no answer");
        };
        answers.push((token, answer));
    }
    answers.sort();
    let expected: [(u32, &[u8]); 4] = [
        (2, b"\x01\0\0\0\x09\0\0\x0010.0.0.1:0\0"),
        (4, b"\0\0\0\0"),
        (5, b""),
        (6, b""),
    ];
    assert_eq!(
        answers,
        expected.map(|(token, answer)| (token, Bytes::from_static(answer)))
    );
}

#[tokio::test]
async fn names_count_as_callouts_and_go_with_their_root_context() {
    let mut bench = Bench::answering(Arc::new(Silent));
    bench.write(64, b"one.test");
    let most = bench.store.data().env.policy.quotas.callouts;
    for number in 0..=most {
        let refused = if number < most { 0 } else { 10 };
        assert_eq!(bench.resolve(64, 8, 128), refused, "{number}");
    }
    let host = bench.store.data_mut();
    assert!(!host.awaits_nothing());
    host.lookups.cancel_root(ROOT + 1);
    assert_eq!(host.lookups.len(), most);
    assert_eq!(host.lookups.finish(2), Some(ROOT));
    assert_eq!(host.lookups.finish(2), None);
    host.lookups.cancel_root(ROOT);
    assert!(host.awaits_nothing());
}

#[test]
fn nobody_resolves_names_for_a_tool() {
    assert_eq!(Bench::new().resolve(64, 0, 128), 10);
}
