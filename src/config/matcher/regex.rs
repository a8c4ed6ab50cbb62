//! RE2 patterns as Envoy understands them, compiled by the `regex` crate.
//!
//! The two dialects are near each other, and where they differ silently the pattern is rewritten: in RE2 a `[`, `&&`,
//! `--` or `~~` inside a class is literal, so is a `{` that begins no repetition, `\<`, and what `\Q…\E` quotes. What
//! RE2 refuses (look-around, back references, `(?x)`, `a**`, repetitions above 1000) is refused here.
//!
//! Known differences: patterns are matched on bytes, so `.` is one byte of a non-ASCII character, unless the pattern
//! itself needs Unicode (`\pL`, a class with non-ASCII members). Envoy's limit of RE2's program size (100 by default)
//! is not kept: [`SIZE_LIMIT`] stands in for it.

use ::regex::bytes::{Regex, RegexBuilder};

use crate::config::ConfigError;

/// The compiled size, in bytes, above which a pattern is refused.
const SIZE_LIMIT: usize = 4 << 20;

/// The pattern's length, in bytes, above which it is refused unread.
const LENGTH_LIMIT: usize = 64 << 10;

/// RE2's highest repetition count.
const MAX_REPEAT: u32 = 1000;

/// Compiles a pattern that must match a value as a whole.
pub(super) fn full(pattern: &str) -> Result<Regex, ConfigError> {
    let translated = checked(pattern)?;
    build(pattern, &format!(r"\A(?:{translated})\z"))
}

/// Compiles a pattern to be searched for.
pub(in crate::config) fn search(pattern: &str) -> Result<Regex, ConfigError> {
    let translated = translate(pattern)?;
    build(pattern, &translated)
}

/// Translates, and makes sure that the pattern is complete in itself: `a)|(b` must not close our own group.
fn checked(pattern: &str) -> Result<String, ConfigError> {
    let translated = translate(pattern)?;
    build(pattern, &translated)?;
    Ok(translated)
}

fn build(source: &str, translated: &str) -> Result<Regex, ConfigError> {
    let compile = |unicode| {
        RegexBuilder::new(translated)
            .unicode(unicode)
            .size_limit(SIZE_LIMIT)
            .dfa_size_limit(SIZE_LIMIT)
            .build()
    };
    compile(false).or_else(|_| compile(true)).map_err(|error| {
        let reason = match error {
            ::regex::Error::CompiledTooBig(_) => "it is too large".to_owned(),
            other => {
                let text = other.to_string();
                let last = text.lines().last().unwrap_or_default();
                last.trim_start_matches("error: ").to_owned()
            }
        };
        ConfigError::invalid(format!("invalid regex '{source}': {reason}"))
    })
}

fn translate(pattern: &str) -> Result<String, ConfigError> {
    if pattern.is_empty() {
        return Err(ConfigError::invalid(
            "value length must be at least 1 characters",
        ));
    }
    if pattern.len() > LENGTH_LIMIT {
        return Err(ConfigError::invalid(format!(
            "a regex of {} bytes is too long",
            pattern.len()
        )));
    }
    Translator {
        rest: pattern,
        out: String::with_capacity(pattern.len() + 16),
    }
    .run()
}

struct Translator<'a> {
    rest: &'a str,
    out: String,
}

impl<'a> Translator<'a> {
    fn run(mut self) -> Result<String, ConfigError> {
        // The repetition operator before this place, lazy mark included.
        let mut repetition: Option<&str> = None;
        while let Some(next) = self.rest.chars().next() {
            let before = self.rest;
            let mut repeats = false;
            match next {
                '\\' => self.escape(false).map(drop)?,
                '[' => self.class()?,
                '(' => self.group()?,
                '*' | '+' | '?' => {
                    self.take(1);
                    repeats = true;
                }
                '{' => match repetition_len(self.rest) {
                    Some(len) => {
                        let counts = &self.rest[1..len - 1];
                        let too_many = counts.split(',').any(|n| {
                            !n.is_empty() && n.parse().map_or(true, |n: u32| n > MAX_REPEAT)
                        });
                        if too_many {
                            return Err(ConfigError::invalid(format!(
                                "invalid repetition size: {{{counts}}}"
                            )));
                        }
                        self.take(len);
                        repeats = true;
                    }
                    None => self.literal('{'),
                },
                '}' => self.literal('}'),
                other => self.take(other.len_utf8()),
            }
            if !repeats {
                repetition = None;
                continue;
            }
            if let Some(previous) = repetition {
                let operator = &before[..before.len() - self.rest.len()];
                return Err(ConfigError::invalid(format!(
                    "bad repetition operator: {previous}{operator}"
                )));
            }
            if self.rest.starts_with('?') {
                self.take(1);
            }
            repetition = Some(&before[..before.len() - self.rest.len()]);
        }
        Ok(self.out)
    }

    /// Copies `len` bytes.
    fn take(&mut self, len: usize) {
        let (taken, rest) = self.rest.split_at(len);
        self.out.push_str(taken);
        self.rest = rest;
    }

    /// Takes one character, and writes it so that it stands for itself.
    fn literal(&mut self, c: char) {
        self.rest = &self.rest[c.len_utf8()..];
        push_literal(&mut self.out, c);
    }

    /// At a backslash. True where it stands for one character, which may begin a range.
    fn escape(&mut self, in_class: bool) -> Result<bool, ConfigError> {
        let mut chars = self.rest.chars();
        chars.next();
        let Some(c) = chars.next() else {
            return Err(ConfigError::invalid(r"trailing \"));
        };
        match c {
            'Q' if !in_class => {
                let quoted = &self.rest[2..];
                let (text, rest) = quoted.split_once(r"\E").unwrap_or((quoted, ""));
                for c in text.chars() {
                    push_literal(&mut self.out, c);
                }
                self.rest = rest;
            }
            'C' if !in_class => {
                self.out.push_str("(?s-u:.)");
                self.rest = &self.rest[2..];
            }
            'p' | 'P' | 'x' => {
                let braced = self.rest[2..].starts_with('{');
                let len = if braced {
                    self.rest.find('}').map_or(self.rest.len(), |end| end + 1)
                } else {
                    2
                };
                self.take(len);
                return Ok(c == 'x');
            }
            'd' | 'D' | 's' | 'S' | 'w' | 'W' => {
                self.take(2);
                return Ok(false);
            }
            'A' | 'z' | 'b' | 'B' if !in_class => self.take(2),
            'a' | 'f' | 't' | 'n' | 'r' | 'v' => self.take(2),
            c if c.is_ascii_alphanumeric() => {
                return Err(ConfigError::invalid(format!(
                    r"invalid escape sequence: \{c}"
                )));
            }
            c => {
                self.rest = &self.rest[1 + c.len_utf8()..];
                push_literal(&mut self.out, c);
            }
        }
        Ok(true)
    }

    /// At `(`.
    fn group(&mut self) -> Result<(), ConfigError> {
        let Some(operator) = self.rest.strip_prefix("(?") else {
            self.take(1);
            return Ok(());
        };
        let named = operator.starts_with("P<")
            || (operator.starts_with('<')
                && !operator.starts_with("<=")
                && !operator.starts_with("<!"));
        let flags = operator.find([':', ')']).map_or("", |end| &operator[..end]);
        let flagged = operator.starts_with([':', ')'])
            || (!flags.is_empty() && flags.chars().all(|c| "imsU-".contains(c)));
        if !named && !flagged {
            let shown: String = operator.chars().take(1).collect();
            return Err(ConfigError::invalid(format!(
                "invalid perl operator: (?{shown}"
            )));
        }
        // The name or the flags are copied too, so that a `?` or `-` in them is not read again.
        let end = operator
            .find([':', ')', '>'])
            .map_or(operator.len(), |end| end + 1);
        self.take(2 + end);
        Ok(())
    }

    /// At `[`.
    fn class(&mut self) -> Result<(), ConfigError> {
        let source = self.rest;
        let missing = || ConfigError::invalid(format!("missing ]: {source}"));
        self.take(1);
        if self.rest.starts_with('^') {
            self.take(1);
        }
        let mut first = true;
        // True after a character that may begin a range.
        let mut low = false;
        loop {
            let c = self.rest.chars().next().ok_or_else(missing)?;
            match c {
                ']' if !first => {
                    self.take(1);
                    return Ok(());
                }
                '[' if self.rest.starts_with("[:") => {
                    let len = self.rest.find(":]").ok_or_else(missing)? + 2;
                    self.take(len);
                    low = false;
                }
                '\\' => low = self.escape(true)?,
                '-' if low && !self.rest[1..].starts_with(']') => {
                    self.take(1);
                    match self.rest.chars().next().ok_or_else(missing)? {
                        '\\' => self.escape(true).map(drop)?,
                        high => self.literal(high),
                    }
                    low = false;
                }
                c => {
                    self.literal(c);
                    low = true;
                }
            }
            first = false;
        }
    }
}

/// Writes a character that stands for itself, inside a class or outside.
fn push_literal(out: &mut String, c: char) {
    // `\<` and `\>` are word boundaries of the `regex` crate; bare they are literal.
    if c.is_ascii_punctuation() && c != '<' && c != '>' {
        out.push('\\');
    }
    out.push(c);
}

/// The length of `{n}`, `{n,}` or `{n,m}` at the beginning of `text`.
fn repetition_len(text: &str) -> Option<usize> {
    let end = text.find('}')?;
    let (low, high) = text[1..end].split_once(',').unwrap_or((&text[1..end], ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    (!low.is_empty() && digits(low) && digits(high)).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_re2() {
        for (pattern, matching, other) in [
            ("a|ab", "ab", "abc"),
            ("/u/{id}", "/u/{id}", "/u/x"),
            ("[a[b]", "[", "c"),
            ("[a&&b]", "&", "x"),
            ("[+--]", ",", "/"),
            ("[a~~b]", "~", "c"),
            ("[]a]", "]", "b"),
            ("[^]a]", "b", "]"),
            ("[a-]", "-", "b"),
            ("[[:digit:]x]+", "1x2", "y"),
            (r"[\w.-]+", "a.b-c", "a b"),
            (r"\<a\>", "<a>", "a"),
            (r"\Qa.b*\E+", "a.b**", "axb"),
            (r"\_x", "_x", "x"),
            ("(?i)abc", "ABC", "abd"),
            ("(?P<m>a)(?<n>b)", "ab", "a"),
            ("a{2,3}", "aa", "a"),
            ("a{,3}", "a{,3}", "aa"),
            (r"\x41\x{42}", "AB", "41"),
            (r"\pL+", "é", "1"),
            ("[é]", "é", "e"),
            (".*", "a/b", "a\nb"),
            ("a?b*?c+?", "abc", "ab"),
            ("^/a$", "/a", "/ab"),
        ] {
            let regex = full(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            assert!(
                regex.is_match(matching.as_bytes()),
                "{pattern} ~ {matching}"
            );
            assert!(!regex.is_match(other.as_bytes()), "{pattern} !~ {other}");
        }
    }

    #[test]
    fn what_re2_refuses_is_refused() {
        for (pattern, reason) in [
            ("", "value length must be at least 1 characters"),
            ("a**", "bad repetition operator: **"),
            ("a++", "bad repetition operator: ++"),
            ("a{2}{3}", "bad repetition operator: {2}{3}"),
            ("a{2000}", "invalid repetition size: {2000}"),
            ("(?=a)", "invalid perl operator: (?="),
            ("(?<=a)", "invalid perl operator: (?<"),
            ("(?x)a", "invalid perl operator: (?x"),
            (r"(a)\1", r"invalid escape sequence: \1"),
            (r"a\Z", r"invalid escape sequence: \Z"),
            (r"a\", r"trailing \"),
            ("[a", "missing ]: [a"),
            ("(a", "invalid regex '(a': unclosed group"),
            ("a)|(b", "invalid regex 'a)|(b': unopened group"),
        ] {
            match full(pattern) {
                Ok(_) => panic!("{pattern} compiled"),
                Err(error) => assert_eq!(error.to_string(), reason),
            }
        }
        assert!(full(&"a".repeat(LENGTH_LIMIT + 1)).is_err());
        assert!(
            full("((a{100}){100}){1000}")
                .is_err_and(|error| error.to_string().ends_with("it is too large"))
        );
    }
}
