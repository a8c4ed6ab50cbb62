//! What came of a request, for people, for programs, and to be compared.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;

use super::message::{Message, body_text};
use super::recorder::Record;
use super::{bytes, printable};
use crate::cli::plugin::LEVELS;
use crate::wasm::{ENDS, reset_details};

/// The details of the host's answer where a plugin has failed.
const FAILED: &str = "wasm_fail_stream";

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With the upstream's response.
    Answered,
    /// With a response of the plugin, or of the host in its stead.
    LocalReply,
    /// With a response that broke off.
    Cut,
    /// Without a response: the plugin reset it.
    Reset,
    /// The plugin held it, and nothing was going to let it go.
    Stalled,
    /// The plugin never came to be.
    NotLoaded,
}

impl End {
    const ALL: [Self; 6] = [
        Self::Answered,
        Self::LocalReply,
        Self::Cut,
        Self::Reset,
        Self::Stalled,
        Self::NotLoaded,
    ];

    /// As cases name it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::LocalReply => "local reply",
            Self::Cut => "cut",
            Self::Reset => "reset",
            Self::Stalled => "stalled",
            Self::NotLoaded => "not loaded",
        }
    }

    /// All names.
    pub(super) fn names() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|end| end.as_str() == name)
    }
}

/// A metric that the plugin defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metric {
    /// Without the `wasmcustom.` that it has in statistics.
    pub(super) name: String,
    pub(super) kind: &'static str,
    /// Of a histogram: how many values it has.
    pub(super) value: u64,
}

/// What came of a request.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) end: End,
    /// As the upstream saw it; `None`: it saw nothing.
    pub(super) request: Option<Message>,
    /// As the client saw it.
    pub(super) response: Option<Message>,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub(super) details: String,
    /// Why the VM is dead, or never was: a line, then the backtrace.
    pub(super) failure: Option<String>,
    /// What to do about that.
    pub(super) hint: Option<String>,
    pub(super) took: Duration,
    /// Linear memory, in bytes.
    pub(super) memory: u64,
    pub(super) metrics: Vec<Metric>,
    pub(super) compile: Option<Duration>,
    pub(super) unknown_imports: Vec<String>,
    pub(super) record: Record,
}

impl Outcome {
    /// The host would not have the plugin.
    pub(super) fn not_loaded(reason: String, code: &[u8], record: Record) -> Self {
        Self {
            end: End::NotLoaded,
            request: None,
            response: None,
            details: String::new(),
            hint: hint(&reason, Some(code)),
            failure: Some(reason),
            took: Duration::ZERO,
            memory: 0,
            metrics: Vec::new(),
            compile: None,
            unknown_imports: Vec::new(),
            record,
        }
    }

    /// The plugin did not do its part.
    pub(super) fn failed(&self) -> bool {
        self.failure.is_some() || matches!(self.end, End::Stalled | End::NotLoaded)
    }

    /// The first line of the failure.
    pub(super) fn failure_line(&self) -> Option<&str> {
        let failure = self.failure.as_deref()?;
        Some(failure.lines().next().unwrap_or_default())
    }

    /// True where a stream without a response is not the plugin's wish: it failed, and not at the end that it had brought about.
    fn is_reset_by_failure(&self) -> bool {
        let failure = self.failure.as_deref().unwrap_or_default();
        let at_end = |name: &&str| {
            failure
                .lines()
                .any(|line| line.trim() == format!("in {name}"))
        };
        !failure.is_empty() && self.details != reset_details(false) && !ENDS.iter().any(at_end)
    }

    /// What keeps the plugin from its part, in one line.
    pub(super) fn trouble(&self) -> Option<&str> {
        match self.end {
            End::Stalled if self.failure.is_none() => Some("the request is held for ever"),
            _ => self.failure_line(),
        }
    }

    /// Levels and lines of the log.
    pub(super) fn log(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let log = self.record.log.iter();
        log.map(|(level, line)| (level_name(*level), line.as_str()))
    }

    /// Who made the response, for people.
    fn end_text(&self, given: &Given<'_>) -> String {
        match self.end {
            End::Answered => "the upstream's, as the client sees it".to_owned(),
            End::LocalReply if self.details == FAILED => {
                "the host's, since the plugin has failed".to_owned()
            }
            End::LocalReply if self.details.is_empty() => "the plugin's own".to_owned(),
            End::LocalReply => format!("the plugin's own ({})", printable(&self.details)),
            End::Cut => "it breaks off".to_owned(),
            End::Reset if self.is_reset_by_failure() => {
                "none: the stream is reset, since the plugin has failed".to_owned()
            }
            End::Reset => "none: the plugin resets the stream".to_owned(),
            End::Stalled => format!(
                "none: the plugin holds the {}, and nothing let it go within {} s (--timeout)",
                if self.request.is_some() {
                    "response"
                } else {
                    "request"
                },
                given.timeout.as_secs_f64(),
            ),
            End::NotLoaded => "none: the plugin does not load".to_owned(),
        }
    }

    /// For people. Lines of messages that the plugin added or changed begin with `+`, those that it removed with `-`.
    pub(super) fn text(&self, given: &Given<'_>) -> String {
        let mut out = String::new();
        self.messages(given, &mut out);
        let record = &self.record;
        if !(record.callouts.is_empty() && record.unanswered.is_empty() && record.grpc.is_empty()) {
            out.push_str("callouts\n");
            for callout in &record.callouts {
                let _ = writeln!(out, "    to {}:", printable(&callout.cluster));
                for line in callout.request.text().trim_end().lines() {
                    let _ = writeln!(out, "        {}", printable(line));
                }
            }
            for cluster in &record.unanswered {
                let cluster = printable(cluster);
                let _ = writeln!(
                    out,
                    "    to {cluster}: NO ANSWER WAS GIVEN, so the plugin was told that there is no such cluster; \
                     give one with --callout '{cluster}=200'",
                );
            }
            for service in &record.grpc {
                let service = printable(service);
                let _ = writeln!(
                    out,
                    "    to {service}: GRPC IS NOT ANSWERED HERE, so the plugin was told that the call failed",
                );
            }
            out.push('\n');
        }
        if !record.log.is_empty() {
            out.push_str("log\n");
            for (level, message) in self.log() {
                for (index, line) in message.split('\n').enumerate() {
                    let level = if index == 0 { level } else { "" };
                    let _ = writeln!(out, "    {level:<8} {}", printable(line));
                }
            }
            out.push('\n');
        }
        if !self.metrics.is_empty() {
            out.push_str("metrics\n");
            let width = self.metrics.iter().map(|metric| metric.name.len()).max();
            let width = width.unwrap_or(0);
            for Metric { name, kind, value } in &self.metrics {
                let name = printable(name);
                let unit = match (*kind, *value) {
                    ("histogram", 1) => " value",
                    ("histogram", _) => " values",
                    _ => "",
                };
                let _ = writeln!(out, "    {name:<width$}  {kind:<9}  {value}{unit}");
            }
            out.push('\n');
        }
        if !self.unknown_imports.is_empty() {
            out.push_str("imports that the host does not know\n");
            for name in &self.unknown_imports {
                let (module, function) = name.split_once('.').unwrap_or((name, ""));
                let hint = crate::wasm::import_hint(module, function);
                let _ = writeln!(out, "    {}: {hint}", printable(name));
            }
            out.push('\n');
        }
        if !record.calls.is_empty() {
            out.push_str("time\n");
            let mut line = |what: &str, time: String, count: usize| {
                let count = match count {
                    1 => String::new(),
                    count => format!("  in {count} calls"),
                };
                let _ = writeln!(out, "    {what:<36} {time:>10}{count}");
            };
            if let Some(compile) = self.compile {
                line("compilation", time(nanos(compile)), 1);
            }
            for (name, times) in &record.calls {
                line(name, time(times.iter().sum()), times.len());
            }
            if self.end != End::NotLoaded {
                line("the whole request", time(nanos(self.took)), 1);
                let _ = writeln!(out, "\nmemory: {} of the VM\n", bytes(self.memory));
            }
        }
        if let Some(failure) = &self.failure {
            if self.end == End::NotLoaded && !record.calls.is_empty() {
                out.push('\n');
            }
            out.push_str("the plugin has failed\n");
            for line in failure.lines() {
                let _ = writeln!(out, "    {}", printable(line));
            }
            if let Some(hint) = &self.hint {
                let _ = writeln!(out, "hint: {hint}");
            }
        }
        out.trim_end().to_owned() + "\n"
    }

    fn messages(&self, given: &Given<'_>, out: &mut String) {
        if self.end == End::NotLoaded {
            return;
        }
        match &self.request {
            Some(seen) => {
                out.push_str("request, as the upstream sees it\n");
                write_message(out, given.request, seen);
            }
            None => out.push_str("request: it does not reach the upstream\n\n"),
        }
        let _ = writeln!(out, "response: {}", self.end_text(given));
        if let Some(seen) = &self.response {
            let own;
            let given = match self.end {
                // The upstream's response, or the echo of what it saw.
                End::Answered | End::Cut => match (given.response, &self.request) {
                    (Some(given), _) => given,
                    (None, request) => {
                        own = Message {
                            start: "HTTP/1.1 200 OK".to_owned(),
                            body: request
                                .as_ref()
                                .map_or(Vec::new(), |seen| seen.body.clone()),
                            ..Message::default()
                        };
                        &own
                    }
                },
                _ => seen,
            };
            write_message(out, given, seen);
        } else {
            out.push('\n');
        }
    }

    /// For programs.
    pub(super) fn json(&self) -> serde_json::Value {
        let micros = |time: Duration| time.as_nanos() as f64 / 1000.0;
        let record = &self.record;
        json!({
            "outcome": self.end.as_str(),
            "failure": self.failure,
            "hint": self.hint,
            "request": self.request.as_ref().map(Message::json),
            "response": self.response.as_ref().map(Message::json),
            "details": self.details,
            "callouts": record.callouts.iter().map(|callout| json!({
                "cluster": callout.cluster,
                "request": callout.request.json(),
            })).collect::<Vec<_>>(),
            "unanswered_callouts": record.unanswered,
            "grpc_callouts": record.grpc,
            "log": self.log().map(|(level, line)| json!({"level": level, "message": line})).collect::<Vec<_>>(),
            "metrics": self.metrics.iter().map(|metric| json!({
                "name": metric.name,
                "kind": metric.kind,
                "value": metric.value,
            })).collect::<Vec<_>>(),
            "unknown_imports": self.unknown_imports,
            "callbacks": record.calls.iter().map(|(name, times)| json!({
                "name": name,
                "calls": times.len(),
                "nanoseconds": times.iter().sum::<u64>(),
            })).collect::<Vec<_>>(),
            "request_microseconds": micros(self.took),
            "compile_microseconds": self.compile.map(micros),
            "instantiate_microseconds": record.built.map(|built| micros(built.instantiate + built.start)),
            "configure_microseconds": record.built.map(|built| micros(built.configure)),
            "memory_bytes": self.memory,
        })
    }

    /// True where they differ in nothing but times, sizes and places in the code.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        let (own, others) = (&self.record, &other.record);
        self.end == other.end
            && self.failure_line() == other.failure_line()
            && self.request == other.request
            && self.response == other.response
            && own.callouts == others.callouts
            && own.unanswered == others.unanswered
            && own.grpc == others.grpc
            && own.log == others.log
            && self.metrics == other.metrics
    }

    /// What [`Outcome::is_as`] looks at, to be compared line by line.
    pub(super) fn comparable(&self) -> String {
        let mut out = format!("outcome: {}\n", self.end.as_str());
        if let Some(line) = self.failure_line() {
            let _ = writeln!(out, "failure: {line}");
        }
        for (name, message) in [("request", &self.request), ("response", &self.response)] {
            match message {
                None => {
                    let _ = writeln!(out, "{name}: none");
                }
                Some(message) => {
                    let _ = writeln!(out, "{name}:");
                    write_lines(&mut out, message, "    ");
                }
            }
        }
        out.push_str("callouts:\n");
        for callout in &self.record.callouts {
            let _ = writeln!(out, "    to {}:", callout.cluster);
            write_lines(&mut out, &callout.request, "        ");
        }
        for cluster in &self.record.unanswered {
            let _ = writeln!(out, "    to {cluster}: no answer was given");
        }
        for service in &self.record.grpc {
            let _ = writeln!(out, "    to {service}: gRPC is not answered");
        }
        out.push_str("log:\n");
        for (level, message) in self.log() {
            // Of a message of several lines the first has the level.
            let lines = message.replace('\n', "\n        ");
            let _ = writeln!(out, "    {level}: {lines}");
        }
        out.push_str("metrics:\n");
        for Metric { name, kind, value } in &self.metrics {
            let _ = writeln!(out, "    {name}: {kind} {value}");
        }
        out
    }
}

/// All lines of a message as they are, a carriage return at their end with them.
fn write_lines(out: &mut String, message: &Message, indent: &str) {
    let text = message.text();
    for line in text.strip_suffix('\n').unwrap_or(&text).split('\n') {
        let _ = writeln!(out, "{indent}{line}");
    }
    if !text.ends_with('\n') {
        let _ = writeln!(out, "{indent}(the last line does not end)");
    }
}

/// What the request and its surroundings were.
pub(super) struct Given<'a> {
    pub(super) request: &'a Message,
    /// `None`: an echo.
    pub(super) response: Option<&'a Message>,
    pub(super) timeout: Duration,
}

/// The message with what was done to it.
fn write_message(out: &mut String, given: &Message, seen: &Message) {
    let (before, after) = (given.head(), seen.head());
    let mut left: Vec<Option<&String>> = before.iter().map(Some).collect();
    let mut lines = Vec::new();
    for line in &after {
        let place = left.iter().position(|old| *old == Some(line));
        let mark = match place {
            Some(place) => {
                left[place] = None;
                ' '
            }
            None => '+',
        };
        lines.push((mark, line));
    }
    lines.extend(left.into_iter().flatten().map(|line| ('-', line)));
    for (mark, line) in lines {
        let _ = writeln!(out, "  {mark} {}", printable(line));
    }
    let write = |out: &mut String, mark: char, body: &[u8]| {
        for line in body_text(body).lines() {
            let _ = writeln!(out, "  {mark} {}", printable(line));
        }
    };
    if !seen.body.is_empty() || !given.body.is_empty() {
        out.push('\n');
        if seen.body == given.body {
            write(out, ' ', &seen.body);
        } else {
            write(out, '+', &seen.body);
            write(out, '-', &given.body);
        }
    }
    for (name, value) in &seen.trailers {
        let _ = writeln!(out, "  + trailer {}: {}", printable(name), printable(value));
    }
    out.push('\n');
}

/// What to do about it, where that is known. Code that the host did not take is looked into.
pub(super) fn hint(failure: &str, refused: Option<&[u8]>) -> Option<String> {
    const HINTS: [(&str, &str); 8] = [
        (
            "is not known to this host",
            "the plugin called a function that the host lacks: `plenipo plugin inspect` lists it under `missing`",
        ),
        (
            "Bad function signature",
            "an exported callback has another type than the ABI's: the SDK is of another version than its marker says",
        ),
        (
            "proxy_on_vm_start returned false",
            "the plugin refuses the configuration of its VM (--vm-config)",
        ),
        (
            "proxy_on_configure returned false",
            "the plugin refuses its configuration (--config)",
        ),
        (
            "time budget is exhausted",
            "a callback computed for longer than its budget: 50 ms, and 10 s for the start (docs/wasm.md)",
        ),
        (
            "Missing root context factory",
            "the plugin has no root context of that id: give the one that it registers (--root-id)",
        ),
        (
            "`unreachable` instruction",
            "the plugin panicked or aborted; what it said last, if anything, is in brackets",
        ),
        (
            "restricted while the module starts",
            "host functions cannot be called before proxy_on_vm_start: move that out of static initialisers",
        ),
    ];
    let first = failure.lines().next().unwrap_or_default();
    let mut hints = HINTS.iter();
    let known = hints.find(|(text, _)| first.contains(text));
    known.map(|(_, hint)| (*hint).to_owned()).or_else(|| {
        // What a look into the code alone says is more than why it does not load.
        let found = crate::wasm::inspect(refused?).ok()?;
        found.refused
    })
}

fn level_name(level: u32) -> &'static str {
    let level = usize::try_from(level).unwrap_or(usize::MAX);
    LEVELS.get(level).copied().unwrap_or("critical")
}

/// A time for people.
pub(super) fn time(nanos: u64) -> String {
    let (unit, name) = match nanos {
        0..10_000_000 => (1000, "µs"),
        10_000_000..10_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    format!("{}.{} {name}", nanos / unit, nanos % unit / (unit / 10))
}

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "outcome/tests.rs"]
mod tests;
