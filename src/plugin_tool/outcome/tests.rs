//! Outcomes that differ, and who made an answer.

use super::*;
use crate::plugin_tool::diff::difference;
use crate::plugin_tool::recorder::Callout;

fn outcome(end: End) -> Outcome {
    Outcome {
        end,
        failure: None,
        ..Outcome::not_loaded(String::new(), b"", Record::default())
    }
}

fn message(body: &[u8]) -> Message {
    Message {
        start: "GET / HTTP/1.1".to_owned(),
        body: body.to_vec(),
        ..Message::default()
    }
}

#[test]
fn nothing_that_differs_is_the_same() {
    let logged = |lines: &[&str]| {
        let mut outcome = outcome(End::Answered);
        let lines = lines.iter().map(|line| (2, (*line).to_owned()));
        outcome.record.log = lines.collect();
        outcome
    };
    let sent = |body: &[u8]| Outcome {
        request: Some(message(body)),
        ..outcome(End::Answered)
    };
    let called = |trailers: &[(&str, &str)]| {
        let mut outcome = outcome(End::Answered);
        let pairs = trailers.iter();
        let pairs = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        outcome.record.callouts.push(Callout {
            cluster: "auth".to_owned(),
            request: Message {
                trailers: pairs.collect(),
                ..message(b"x")
            },
        });
        outcome
    };
    let by_grpc = || {
        let mut outcome = outcome(End::Answered);
        outcome.record.grpc.push("auth".to_owned());
        outcome
    };
    for (one, other) in [
        (sent(b"a\r\nb\r\n"), sent(b"a\nb\n")),
        (sent(b"a\r\n"), sent(b"a\n")),
        (sent(b"\n"), sent(b"")),
        (sent(b"a"), sent(b"a\n")),
        (logged(&[""]), logged(&[])),
        (logged(&["a\nb"]), logged(&["a", "b"])),
        (logged(&["a\ninfo: b"]), logged(&["a", "b"])),
        (called(&[]), called(&[("x-sum", "1")])),
        (called(&[("x-sum", "2")]), called(&[("x-sum", "1")])),
        (by_grpc(), outcome(End::Answered)),
    ] {
        assert!(one.is_as(&one) && other.is_as(&other));
        assert!(!one.is_as(&other), "{one:?} {other:?}");
        let (one, other) = (one.comparable(), other.comparable());
        let shown = difference(&one, &other, 0);
        assert!(
            shown.lines().any(|line| line.starts_with(['-', '+'])),
            "{shown}"
        );
    }
}

#[test]
fn who_ended_it_is_told() {
    let own = message(b"");
    let given = Given {
        request: &own,
        response: None,
        timeout: Duration::ZERO,
    };
    let trap = |place: &str| Some(format!("wasm trap\n      0: 0x1\n  in {place}"));
    for (end, details, failure, said) in [
        (End::LocalReply, "", None, "the plugin's own"),
        (End::LocalReply, "denied", None, "the plugin's own (denied)"),
        // It answers, and then fails as it logs.
        (
            End::LocalReply,
            "denied",
            trap("proxy_on_log"),
            "the plugin's own (denied)",
        ),
        (
            End::LocalReply,
            FAILED,
            trap("proxy_on_request_headers"),
            "the host's",
        ),
        (End::Reset, "", None, "the plugin resets"),
        (
            End::Reset,
            "",
            trap("proxy_on_response_headers"),
            "since the plugin has failed",
        ),
        (End::Reset, "", trap("proxy_on_done"), "the plugin resets"),
        (
            End::Reset,
            "wasm_close_stream",
            trap("proxy_on_http_call_response"),
            "the plugin resets",
        ),
    ] {
        let outcome = Outcome {
            details: details.to_owned(),
            failure,
            ..outcome(end)
        };
        let text = outcome.end_text(&given);
        assert!(text.contains(said), "{text}");
    }
}
