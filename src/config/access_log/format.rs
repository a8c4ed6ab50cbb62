//! Substitution formats: text with `%OPERATOR(arguments):LENGTH%` in it.

use super::operator::Operator;
use crate::config::ConfigError;

/// A parsed substitution format; equal when the text is.
#[derive(Clone, Debug)]
pub struct Format {
    /// As written.
    pub source: Box<str>,
    /// In order.
    pub parts: Box<[FormatPart]>,
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// A literal or an operator.
#[derive(Clone, Debug, PartialEq)]
pub enum FormatPart {
    /// Written as is.
    Text(Box<str>),
    /// `%OPERATOR(arguments):LENGTH%`.
    Operator {
        /// What to write.
        operator: Operator,
        /// At most so many bytes.
        max_len: Option<usize>,
    },
}

impl Format {
    /// Parses `source`.
    ///
    /// # Errors
    /// A `%` that begins no operator (`%%` is a percent sign), an unknown operator, and wrong arguments; in Envoy's words.
    pub fn parse(source: &str) -> Result<Self, ConfigError> {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut at = 0;
        while let Some(percent) = memchr::memchr(b'%', &source.as_bytes()[at..]) {
            text.push_str(&source[at..at + percent]);
            at += percent;
            if source.as_bytes().get(at + 1) == Some(&b'%') {
                text.push('%');
                at += 2;
                continue;
            }
            let Some(token) = Token::read(&source[at..]) else {
                return Err(ConfigError::invalid(format!(
                    "Incorrect configuration: {source}. Couldn't find valid command at position {at}"
                )));
            };
            if !text.is_empty() {
                parts.push(FormatPart::Text(std::mem::take(&mut text).into()));
            }
            parts.push(FormatPart::Operator {
                operator: Operator::parse(token.name, token.params, token.length)?,
                max_len: token.length,
            });
            at += token.len;
        }
        text.push_str(&source[at..]);
        if !text.is_empty() {
            parts.push(FormatPart::Text(text.into()));
        }
        Ok(Self {
            source: source.into(),
            parts: parts.into(),
        })
    }

    /// The text, where the format has no operators.
    pub fn as_literal(&self) -> Option<&str> {
        match &*self.parts {
            [] => Some(""),
            [FormatPart::Text(text)] => Some(text),
            _ => None,
        }
    }
}

/// `%NAME(params):length%` at the beginning of a text.
struct Token<'a> {
    name: &'a str,
    params: Option<&'a str>,
    length: Option<usize>,
    /// Bytes, both percent signs included.
    len: usize,
}

impl<'a> Token<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let body = &text[1..];
        let name_len = body
            .bytes()
            .take_while(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_')
            .count();
        let name = &body[..name_len];
        if name.is_empty() {
            return None;
        }
        let rest = &body[name_len..];
        if let Some(inner) = rest.strip_prefix('(') {
            // The arguments end at the first `)` after which the operator can end; they may hold `)` and `%`.
            for (close, _) in inner.match_indices(')') {
                let after = &inner[close + 1..];
                if let Some((length, tail)) = read_end(after) {
                    return Some(Self {
                        name,
                        params: Some(&inner[..close]),
                        length,
                        len: text.len() - tail.len(),
                    });
                }
            }
            return None;
        }
        let (length, tail) = read_end(rest)?;
        Some(Self {
            name,
            params: None,
            length,
            len: text.len() - tail.len(),
        })
    }
}

/// `%` or `:123%`: the length, and what follows.
fn read_end(text: &str) -> Option<(Option<usize>, &str)> {
    if let Some(tail) = text.strip_prefix('%') {
        return Some((None, tail));
    }
    let digits = text.strip_prefix(':')?;
    let end = digits.find('%')?;
    let number = &digits[..end];
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((Some(number.parse().ok()?), &digits[end + 1..]))
}

#[cfg(test)]
mod tests;
