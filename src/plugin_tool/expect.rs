//! What a case expects: compared with what came out, and written anew.
//!
//! Only what is written is compared, and of messages all of it: the first line, all headers in any order, the body.
//! `{{any}}` stands for anything within a line.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::bail;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::case::{of_keys, scalar};
use super::outcome::{End, Outcome};
use super::update::KEY;

/// Stands for anything within a line.
const ANY: &str = "{{any}}";

/// What a case expects. `None` is not compared.
#[derive(Debug, Default)]
pub(super) struct Expected {
    outcome: Option<String>,
    /// What the failure's first line contains.
    failure: Option<String>,
    /// `none`: the upstream sees nothing.
    request: Option<String>,
    response: Option<String>,
    /// Levels and lines.
    log: Option<Vec<(String, String)>>,
    /// Clusters and requests.
    callouts: Option<Vec<(String, String)>>,
    /// Others may be there as well.
    metrics: Option<BTreeMap<String, u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    outcome: Option<String>,
    failure: Option<String>,
    request: Option<Value>,
    response: Option<Value>,
    log: Option<Vec<Map<String, Value>>>,
    callouts: Option<Vec<Map<String, Value>>>,
    metrics: Option<BTreeMap<String, u64>>,
}

/// What is not as expected.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    /// The key.
    pub(super) what: &'static str,
    pub(super) expected: String,
    pub(super) found: String,
}

impl Expected {
    pub(super) fn parse(keys: Map<String, Value>) -> anyhow::Result<Self> {
        let keys: Keys = of_keys(keys)?;
        if let Some(outcome) = &keys.outcome
            && End::named(outcome).is_none()
        {
            bail!("outcome: {outcome:?} is none of: {}", End::names());
        }
        let message = |value: Option<Value>, what| -> anyhow::Result<Option<String>> {
            value.map(|value| scalar(&value, what)).transpose()
        };
        let pairs = |list: Option<Vec<Map<String, Value>>>, what: &'static str| {
            let Some(list) = list else { return Ok(None) };
            let mut pairs = Vec::new();
            for entry in list {
                let mut entry = entry.into_iter();
                match (entry.next(), entry.next()) {
                    (Some((name, value)), None) => pairs.push((name, scalar(&value, what)?)),
                    _ => bail!("{what}: every entry has the form 'name: text'"),
                }
            }
            Ok(Some(pairs))
        };
        Ok(Self {
            outcome: keys.outcome,
            failure: keys.failure,
            request: message(keys.request, "request")?,
            response: message(keys.response, "response")?,
            log: pairs(keys.log, "log")?,
            callouts: pairs(keys.callouts, "callouts")?,
            metrics: keys.metrics,
        })
    }

    /// True where it says whom the plugin calls.
    pub(super) fn names_callouts(&self) -> bool {
        self.callouts.is_some()
    }

    /// All that came out and is worth expecting: of a plugin that neither logs nor counts, no log and no metrics.
    pub(super) fn of(outcome: &Outcome) -> Self {
        let found = Found::of(outcome);
        let some = |pairs: Vec<(String, String)>| Some(pairs).filter(|pairs| !pairs.is_empty());
        let metrics: BTreeMap<_, _> = found
            .metrics
            .into_iter()
            .filter(|(_, value)| *value != 0)
            .collect();
        Self {
            outcome: (outcome.end != End::Answered).then(|| found.outcome.to_owned()),
            failure: outcome.failure.is_some().then_some(found.failure),
            request: Some(found.request),
            response: Some(found.response),
            log: some(found.log),
            callouts: some(found.callouts),
            metrics: Some(metrics).filter(|metrics| !metrics.is_empty()),
        }
    }

    /// Where `outcome` is not as expected.
    pub(super) fn compare(&self, outcome: &Outcome) -> Vec<Mismatch> {
        let found = Found::of(outcome);
        let mut wrong = Vec::new();
        let mut check = |what, same: bool, expected: String, found: String| {
            if !same {
                wrong.push(Mismatch {
                    what,
                    expected,
                    found,
                });
            }
        };
        // Nobody expects a failure without saying so; who does expects what a proxy makes of it.
        let same = match (&self.outcome, &self.failure) {
            (Some(expected), _) => expected == found.outcome,
            (None, Some(_)) => {
                matches!(outcome.end, End::Answered | End::LocalReply | End::Reset)
            }
            (None, None) => outcome.end == End::Answered,
        };
        let expected = self.outcome.as_deref().unwrap_or(End::Answered.as_str());
        let end = found.outcome.to_owned();
        check("outcome", same, expected.to_owned(), end);
        match &self.failure {
            Some(expected) => {
                let same = outcome.failure.is_some() && found.failure.contains(expected.as_str());
                check("failure", same, expected.clone(), found.failure.clone());
            }
            None => {
                let same = outcome.failure.is_none();
                let all = outcome.failure.clone().unwrap_or_default();
                check("failure", same, "none".to_owned(), all);
            }
        }
        if let Some(expected) = &self.request {
            let same = same_message(expected, &found.request);
            check("request", same, expected.clone(), found.request.clone());
        }
        if let Some(expected) = &self.response {
            let same = same_message(expected, &found.response);
            check("response", same, expected.clone(), found.response.clone());
        }
        if let Some(expected) = &self.log {
            let same = expected.len() == found.log.len()
                && expected
                    .iter()
                    .zip(&found.log)
                    .all(|(one, other)| one.0 == other.0 && fits(&one.1, &other.1));
            check("log", same, lines(expected), lines(&found.log));
        }
        if let Some(expected) = &self.callouts {
            let same = expected.len() == found.callouts.len()
                && expected
                    .iter()
                    .zip(&found.callouts)
                    .all(|(one, other)| one.0 == other.0 && same_message(&one.1, &other.1));
            check("callouts", same, lines(expected), lines(&found.callouts));
        }
        if let Some(expected) = &self.metrics {
            let of = |name: &String| found.metrics.get(name).copied();
            let same = expected
                .iter()
                .all(|(name, value)| of(name) == Some(*value));
            let said = expected
                .iter()
                .map(|(name, value)| format!("{name}: {value}\n"));
            let seen = expected.keys().map(|name| match of(name) {
                Some(value) => format!("{name}: {value}\n"),
                None => format!("{name}: not defined\n"),
            });
            check("metrics", same, said.collect(), seen.collect());
        }
        wrong
    }

    /// The same expectations, met by `outcome`: what it meets already stays as it was written.
    pub(super) fn renewed(&self, outcome: &Outcome) -> Self {
        let wrong = self.compare(outcome);
        let keeps = |what| !wrong.iter().any(|wrong| wrong.what == what);
        let found = Found::of(outcome);
        fn renew<T: Clone>(old: Option<&T>, keeps: bool, new: T) -> Option<T> {
            old.map(|old| if keeps { old.clone() } else { new })
        }
        let failure = outcome.failure.is_some().then(|| found.failure.clone());
        let names = self.metrics.iter().flatten();
        let metrics = names
            .filter_map(|(name, _)| Some((name.clone(), *found.metrics.get(name)?)))
            .collect();
        Self {
            outcome: if keeps("outcome") {
                self.outcome.clone()
            } else {
                Some(found.outcome.to_owned())
            },
            failure: if keeps("failure") {
                self.failure.clone()
            } else {
                failure
            },
            request: renew(self.request.as_ref(), keeps("request"), found.request),
            response: renew(self.response.as_ref(), keeps("response"), found.response),
            log: renew(self.log.as_ref(), keeps("log"), found.log),
            callouts: renew(self.callouts.as_ref(), keeps("callouts"), found.callouts),
            metrics: renew(self.metrics.as_ref(), keeps("metrics"), metrics),
        }
    }

    /// As YAML.
    pub(super) fn yaml(&self) -> String {
        let mut out = format!("{KEY}:\n");
        let pairs = |out: &mut String, what: &str, pairs: &Option<Vec<(String, String)>>| {
            let Some(pairs) = pairs else { return };
            if pairs.is_empty() {
                let _ = writeln!(out, "  {what}: []");
                return;
            }
            let _ = writeln!(out, "  {what}:");
            for (name, text) in pairs {
                let _ = write!(out, "  - {}: ", quoted(name));
                write_text(out, text, 6);
            }
        };
        let texts = [
            ("outcome", &self.outcome),
            ("failure", &self.failure),
            ("request", &self.request),
            ("response", &self.response),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                let _ = write!(out, "  {name}: ");
                write_text(&mut out, text, 4);
            }
        }
        pairs(&mut out, "callouts", &self.callouts);
        pairs(&mut out, "log", &self.log);
        if let Some(metrics) = &self.metrics {
            if metrics.is_empty() {
                out.push_str("  metrics: {}\n");
            } else {
                out.push_str("  metrics:\n");
            }
            for (name, value) in metrics {
                let _ = writeln!(out, "    {}: {value}", quoted(name));
            }
        }
        out
    }
}

/// What came out, in the words of a case.
struct Found {
    outcome: &'static str,
    failure: String,
    request: String,
    response: String,
    log: Vec<(String, String)>,
    callouts: Vec<(String, String)>,
    metrics: BTreeMap<String, u64>,
}

impl Found {
    fn of(outcome: &Outcome) -> Self {
        let none = || "none".to_owned();
        let text = |message: Option<&super::message::Message>| {
            message.map_or_else(none, super::message::Message::text)
        };
        let record = &outcome.record;
        let mut callouts: Vec<_> = record
            .callouts
            .iter()
            .map(|callout| (callout.cluster.clone(), callout.request.text()))
            .collect();
        let unanswered = [
            (&record.unanswered, "no answer is given"),
            (&record.grpc, "gRPC is not answered"),
        ];
        for (clusters, text) in unanswered {
            let clusters = clusters.iter();
            callouts.extend(clusters.map(|cluster| (cluster.clone(), text.to_owned())));
        }
        Self {
            outcome: outcome.end.as_str(),
            failure: outcome.failure_line().unwrap_or("none").to_owned(),
            request: text(outcome.request.as_ref()),
            response: text(outcome.response.as_ref()),
            log: outcome
                .log()
                .map(|(level, line)| (level.to_owned(), line.to_owned()))
                .collect(),
            callouts,
            metrics: outcome
                .metrics
                .iter()
                .map(|metric| (metric.name.clone(), metric.value))
                .collect(),
        }
    }
}

/// A text as the value of a key: in a block where it has lines, its lines indented by so many spaces.
fn write_text(out: &mut String, text: &str, indent: usize) {
    let plain = text
        .chars()
        .all(|c| c == '\n' || c == '\t' || !(c.is_control() || c == '\u{feff}'));
    // A block's indentation is that of its first line.
    let fits = plain && !text.starts_with([' ', '\t', '\n']);
    let ends = text.len() - text.trim_end_matches('\n').len();
    if !text.contains('\n') || !fits {
        let _ = writeln!(out, "{}", quoted(text));
        return;
    }
    let _ = writeln!(out, "|{}", ["-", "", "+"][ends.min(2)]);
    for line in text.split_inclusive('\n') {
        if line == "\n" {
            out.push('\n');
        } else {
            let _ = writeln!(out, "{:indent$}{}", "", line.trim_end_matches('\n'));
        }
    }
}

/// A text in one line, quoted where YAML could take it for something else.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ' ');
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(plain)
        && !text.ends_with(' ');
    // `none` and the like are texts; `null`, `true`, `no` are not for every reader.
    let read_otherwise = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    if word && !read_otherwise.contains(&text.to_ascii_lowercase().as_str()) {
        return text.to_owned();
    }
    Value::String(text.to_owned()).to_string()
}

fn lines(pairs: &[(String, String)]) -> String {
    let pairs = pairs.iter();
    pairs
        .map(|(name, text)| format!("{name}: {}\n", text.trim_end()))
        .collect()
}

/// The same message: the order of headers, the version and the reason phrase say nothing.
fn same_message(expected: &str, found: &str) -> bool {
    let (expected, found) = (normal(expected), normal(found));
    expected.len() == found.len()
        && expected
            .iter()
            .zip(&found)
            .all(|(one, other)| fits(one, other))
}

fn normal(text: &str) -> Vec<String> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.trim_end().lines();
    let start = lines.next().unwrap_or_default().trim();
    let is_version = |word: &str| word.starts_with("HTTP/");
    let start = match (start.split_once(' '), start.rsplit_once(' ')) {
        (Some((version, rest)), _) if is_version(version) => {
            rest.trim_start().split(' ').next().unwrap_or_default()
        }
        (_, Some((rest, version))) if is_version(version) => rest.trim_end(),
        _ => start,
    };
    // A status alone, with its reason.
    let start = match start.split_once(' ') {
        Some((status, _)) if status.len() == 3 && status.bytes().all(|b| b.is_ascii_digit()) => {
            status
        }
        _ => start,
    };
    let mut headers: Vec<_> = lines
        .map(|line| match line.split_once(':') {
            Some((name, value)) => {
                format!("{}: {}", name.trim().to_ascii_lowercase(), value.trim())
            }
            None => line.to_owned(),
        })
        .collect();
    // Stable, and by name alone: values of one header keep their order.
    headers.sort_by(|one, other| {
        let name = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
        name(one).cmp(&name(other))
    });
    let mut all = vec![start.to_owned()];
    all.extend(headers);
    all.push(String::new());
    all.extend(body.split('\n').map(str::to_owned));
    all
}

/// True where `line` is `pattern`, whose [`ANY`]s stand for anything.
fn fits(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split(ANY);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<_> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_the_same_but_for_what_says_nothing() {
        let found = "HTTP/1.1 200 OK\nx-b: 2\nx-a: 1\nx-a: 0\n\nbody\n";
        for same in [
            found,
            "200\nX-A: 1\nx-a: 0\nx-b:   2\n\nbody\n",
            "200 Fine\nx-a: {{any}}\nx-a: {{any}}\nx-b: 2\n\nb{{any}}y\n",
            "HTTP/2 200 OK\nx-a: 1\nx-a: 0\nx-b: 2\n\nbody\n",
            "HTTP/1.0 200\nx-a: 1\nx-a: 0\nx-b: 2\n\nbody\n",
        ] {
            assert!(same_message(same, found), "{same}");
        }
        for other in [
            "200\nx-a: 0\nx-a: 1\nx-b: 2\n\nbody\n",
            "200\nx-a: 1\nx-a: 0\n\nbody\n",
            "200\nx-a: 1\nx-a: 0\nx-b: 2\nx-c: 3\n\nbody\n",
            "200\nx-a: 1\nx-a: 0\nx-b: 2\n\nbody",
            "201\nx-a: 1\nx-a: 0\nx-b: 2\n\nbody\n",
            "200\nx-a: 1\nx-a: 0\nx-b: 2\n",
        ] {
            assert!(!same_message(other, found), "{other}");
        }
        for version in ["", " HTTP/1.0", " HTTP/1.1", " HTTP/2", " HTTP/3"] {
            let expected = format!("GET /a{version}\nhost: b");
            assert!(same_message(&expected, "GET /a HTTP/1.1\nhost: b\n"));
            assert!(!same_message(&expected, "GET /b HTTP/1.1\nhost: b\n"));
        }
        let found = "200\nx-a: 1\ntrailer x-sum: 7\n";
        assert!(same_message("200\ntrailer X-Sum: 7\nx-a: 1\n", found));
        assert!(!same_message("200\nx-a: 1\n", found));
        assert!(same_message("none", "none"));
        assert!(!same_message("none", "GET / HTTP/1.1\n"));
    }

    #[test]
    fn any_stands_for_anything_within_a_line() {
        for (pattern, line) in [
            ("a", "a"),
            ("{{any}}", ""),
            ("a{{any}}c", "abc"),
            ("{{any}}b{{any}}c", "abbc"),
            ("{{any}}{{any}}", "x"),
        ] {
            assert!(fits(pattern, line), "{pattern} {line}");
        }
        for (pattern, line) in [("a", "ab"), ("a{{any}}c", "ac!"), ("aa{{any}}aa", "aaa")] {
            assert!(!fits(pattern, line), "{pattern} {line}");
        }
    }

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let texts = [
            "none",
            "",
            "no",
            "7",
            "HTTP/1.1 200 OK\nx: 1\n",
            "200\n\nno end",
            "200\n\n  indented\n\n\n",
            "200\n\ntwo ends\n\n",
            "a: b # c",
            " begins with a space\nand goes on\n",
            "carriage\r\nreturn\n",
            "\u{1b}[1mbold",
            "\"quotes\" and \\",
            "- a\n- b",
        ];
        for text in texts {
            let expected = Expected {
                response: Some(text.to_owned()),
                log: Some(vec![("info".to_owned(), text.to_owned())]),
                metrics: Some([("a b:c".to_owned(), 3)].into()),
                ..Expected::default()
            };
            let yaml = expected.yaml();
            let parsed = crate::pb::from_yaml::<crate::pb::Struct>(&yaml).expect(&yaml);
            let mut keys = crate::wasm::spec::json_object(parsed);
            let Some(Value::Object(keys)) = keys.remove("expect") else {
                panic!("{yaml}");
            };
            let read = Expected::parse(keys).expect(&yaml);
            assert_eq!(read.response.as_deref(), Some(text), "{yaml}");
            assert_eq!(read.log, expected.log, "{yaml}");
            assert_eq!(read.metrics, expected.metrics, "{yaml}");
        }
    }

    #[test]
    fn keys_that_do_not_exist_are_named() {
        for (keys, reason) in [
            (serde_json::json!({"respons": "200"}), "respons"),
            (serde_json::json!({"outcome": "fine"}), "local reply"),
            (
                serde_json::json!({"log": [{"info": "a", "warn": "b"}]}),
                "log",
            ),
            (serde_json::json!({"response": []}), "response"),
            (serde_json::json!({"failure": 503}), "failure: invalid type"),
        ] {
            let Value::Object(keys) = keys else { panic!() };
            let error = format!("{:#}", Expected::parse(keys).unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
    }
}
