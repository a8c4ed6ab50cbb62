//! spdlog's patterns: compiled once, rendered a line.

use std::cell::RefCell;
use std::fmt::Write as _;

use jiff::Zoned;

use super::Record;

/// A compiled pattern. Flags that are not known stay as they are written.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    pieces: Vec<Piece>,
    escaped: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String),
    Flag(char, Padding),
}

/// `%8l` right-aligns, `%-8l` left-aligns, `%=8l` centres; a trailing `!` also cuts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Padding {
    side: Side,
    width: usize,
    cut: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Side {
    #[default]
    Left,
    Right,
    Both,
}

const FLAGS: &str = "vnlLtPYCmdBbaAHIMSefFpTXRDzEgs#!@j_^$c%xrhu";

impl Pattern {
    /// Compiles `pattern`; `escaped` makes each line printable (`--log-format-escaped`).
    pub fn new(pattern: &str, escaped: bool) -> Self {
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut rest = pattern;
        while let Some(at) = rest.find('%') {
            text.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            let (padding, flagged) = padding(after);
            match flagged.chars().next() {
                Some('%') => text.push('%'),
                Some(flag) if FLAGS.contains(flag) => {
                    if !text.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut text)));
                    }
                    pieces.push(Piece::Flag(flag, padding));
                }
                Some(flag) => {
                    text.push('%');
                    text.push(flag);
                }
                None => {
                    text.push('%');
                    rest = "";
                    continue;
                }
            }
            let length = flagged.chars().next().map_or(0, char::len_utf8);
            rest = &flagged[length..];
        }
        text.push_str(rest);
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        Self { pieces, escaped }
    }

    /// The line, with its newline.
    pub(super) fn render(&self, record: &Record<'_>) -> String {
        self.render_at(record, &Zoned::now())
    }

    fn render_at(&self, record: &Record<'_>, now: &Zoned) -> String {
        let mut out = String::with_capacity(64 + record.message.len());
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Flag(flag, padding) => {
                    let start = out.len();
                    flag_text(*flag, record, now, &mut out);
                    padding.apply(&mut out, start);
                }
            }
        }
        if self.escaped {
            out = escape(&out);
        }
        out.push('\n');
        out
    }
}

fn padding(text: &str) -> (Padding, &str) {
    let (side, rest) = match text.as_bytes().first() {
        Some(b'-') => (Side::Right, &text[1..]),
        Some(b'=') => (Side::Both, &text[1..]),
        _ => (Side::Left, text),
    };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return (Padding::default(), text);
    }
    let width = rest[..digits].parse().unwrap_or(64).min(64);
    let rest = &rest[digits..];
    let (cut, rest) = match rest.strip_prefix('!') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    (Padding { side, width, cut }, rest)
}

impl Padding {
    fn apply(self, out: &mut String, start: usize) {
        if self.width == 0 {
            return;
        }
        let length = out[start..].chars().count();
        if length < self.width {
            let missing = self.width - length;
            let before = match self.side {
                Side::Left => missing,
                Side::Right => 0,
                Side::Both => missing / 2,
            };
            out.insert_str(start, &" ".repeat(before));
            out.push_str(&" ".repeat(missing - before));
        } else if self.cut {
            let end = out[start..].char_indices().nth(self.width);
            if let Some((end, _)) = end {
                out.truncate(start + end);
            }
        }
    }
}

/// Writing to a string cannot fail.
fn flag_text(flag: char, record: &Record<'_>, now: &Zoned, out: &mut String) {
    let nanos = now.subsec_nanosecond();
    let mut time = |format: &str| {
        let _ = write!(out, "{}", now.strftime(format));
    };
    match flag {
        'Y' => time("%Y"),
        'C' => time("%y"),
        'm' => time("%m"),
        'd' => time("%d"),
        'B' => time("%B"),
        'b' | 'h' => time("%b"),
        'a' => time("%a"),
        'A' => time("%A"),
        'H' => time("%H"),
        'I' => time("%I"),
        'M' => time("%M"),
        'S' => time("%S"),
        'p' => time("%p"),
        'T' | 'X' => time("%H:%M:%S"),
        'R' => time("%H:%M"),
        'r' => time("%I:%M:%S %p"),
        'D' | 'x' => time("%m/%d/%y"),
        'c' => time("%a %b %e %H:%M:%S %Y"),
        'z' => time("%:z"),
        'e' => {
            let _ = write!(out, "{:03}", nanos / 1_000_000);
        }
        'f' => {
            let _ = write!(out, "{:06}", nanos / 1_000);
        }
        'F' => {
            let _ = write!(out, "{nanos:09}");
        }
        'E' => {
            let _ = write!(out, "{}", now.timestamp().as_second());
        }
        'v' => out.push_str(record.message),
        'j' => {
            let json = serde_json::Value::from(record.message).to_string();
            out.push_str(&json[1..json.len() - 1]);
        }
        '_' => {
            for c in record.message.chars() {
                match c {
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    c => out.push(c),
                }
            }
        }
        'n' => out.push_str(record.component),
        'l' => out.push_str(record.level.name()),
        'L' => out.push(record.level.letter()),
        't' => thread_id(out),
        'P' => {
            let _ = write!(out, "{}", std::process::id());
        }
        'g' => out.push_str(record.file),
        's' => out.push_str(record.file.rsplit('/').next().unwrap_or("")),
        '#' => {
            let _ = write!(out, "{}", record.line);
        }
        '@' => {
            let _ = write!(out, "{}:{}", record.file, record.line);
        }
        // No function names here; colour ranges and elapsed time are not for machines.
        _ => {}
    }
}

/// The kernel's id of the running thread.
fn thread_id(out: &mut String) {
    thread_local! {
        static ID: RefCell<String> = const { RefCell::new(String::new()) };
    }
    ID.with_borrow_mut(|id| {
        if id.is_empty() {
            // `<pid>/task/<tid>`
            *id = std::fs::read_link("/proc/thread-self")
                .ok()
                .and_then(|path| Some(path.file_name()?.to_str()?.to_owned()))
                .unwrap_or_else(|| std::process::id().to_string());
        }
        out.push_str(id);
    });
}

/// C's escapes, quotes included, as Envoy's option has it.
fn escape(line: &str) -> String {
    let mut out = String::with_capacity(line.len() + 8);
    for byte in line.bytes() {
        match byte {
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            b'"' | b'\'' | b'\\' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            0x20..=0x7e => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "\\{byte:03o}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::log::Level;

    fn render(pattern: &str, message: &str, escaped: bool) -> String {
        let now = jiff::Timestamp::new(1_795_190_232, 109_456_789)
            .unwrap()
            .to_zoned(jiff::tz::TimeZone::UTC);
        let record = Record {
            level: Level::Warning,
            component: "upstream",
            file: "src/cluster/pool.rs",
            line: 7,
            message,
        };
        Pattern::new(pattern, escaped).render_at(&record, &now)
    }

    #[test]
    fn patterns_of_real_launchers() {
        for (pattern, line) in [
            (
                "[%Y-%m-%d %T.%e][%l][%n] [%g:%#] %v",
                "[2026-11-20 15:57:12.109][warning][upstream] [src/cluster/pool.rs:7] a \"b\"\n",
            ),
            // Istio
            (
                "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v",
                "2026-11-20T15:57:12.109456Z\twarning\tenvoy upstream src/cluster/pool.rs:7\ta \"b\"\n",
            ),
            // Consul
            (
                "%Y-%m-%dT%T.%eZ%z [%l] envoy.%n %v",
                "2026-11-20T15:57:12.109Z+00:00 [warning] envoy.upstream a \"b\"\n",
            ),
            (
                r#"{"@timestamp":"%Y-%m-%dT%T.%fZ%z","@module":"envoy.%n","@level":"%l","@message":"%j"}"#,
                "{\"@timestamp\":\"2026-11-20T15:57:12.109456Z+00:00\",\"@module\":\"envoy.upstream\",\"@level\":\"warning\",\"@message\":\"a \\\"b\\\"\"}\n",
            ),
        ] {
            assert_eq!(render(pattern, "a \"b\"", false), line);
        }
    }

    #[test]
    fn single_flags() {
        for (pattern, text) in [
            ("%H-%M-%S", "15-57-12"),
            ("%F", "109456789"),
            ("%L|%s|%@|%!|%^x%$", "W|pool.rs|src/cluster/pool.rs:7||x"),
            ("100%%", "100%"),
            ("%?%", "%?%"),
            ("%P", &std::process::id().to_string()),
            (
                "[%10l][%-10l][%=9l][%3!l]",
                "[   warning][warning   ][ warning ][war]",
            ),
            ("%E", "1795190232"),
        ] {
            assert_eq!(render(pattern, "", false), format!("{text}\n"), "{pattern}");
        }
        let id = render("%t", "", false);
        assert!(id.trim_end().parse::<u64>().is_ok(), "{id}");
    }

    #[test]
    fn messages_are_escaped_where_asked() {
        assert_eq!(render("%_", "a\nb", false), "a\\nb\n");
        assert_eq!(render("%j", "a\nb\\", false), "a\\nb\\\\\n");
        assert_eq!(render("%v", "it's\n\u{e9}", true), "it\\'s\\n\\303\\251\n");
        assert_eq!(render("%v", "a\nb", false), "a\nb\n");
    }
}
