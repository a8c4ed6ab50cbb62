//! Strings and numbers of a JSON text, changed in place: every other byte stays as it is.

use serde::de::IgnoredAny;

/// `body` with `redact` applied to each string (names of members too) and each number; `None` where nothing changed.
///
/// Strings are given without their escapes, so that none hides in them. A number that changes becomes a string. A body
/// that is not JSON is given to `redact` as a whole.
pub(crate) fn redact(body: &[u8], redact: impl Fn(&str) -> Option<String>) -> Option<Vec<u8>> {
    let text = match std::str::from_utf8(body) {
        Ok(text) if serde_json::from_str::<IgnoredAny>(text).is_ok() => text,
        _ => return redact(&String::from_utf8_lossy(body)).map(String::into_bytes),
    };
    let mut out = Vec::new();
    let mut copied = 0;
    let mut at = 0;
    while at < body.len() {
        let end = match body[at] {
            b'"' => end_of_string(body, at),
            b'-' | b'0'..=b'9' => end_of_number(body, at),
            _ => {
                at += 1;
                continue;
            }
        };
        let token = &text[at..end];
        let changed = if body[at] == b'"' {
            redact_string(token, &redact)
        } else {
            redact(token)
        };
        if let Some(changed) = changed {
            out.extend_from_slice(&body[copied..at]);
            out.extend_from_slice(quoted(&changed).as_bytes());
            copied = end;
        }
        at = end;
    }
    if copied == 0 {
        return None;
    }
    out.extend_from_slice(&body[copied..]);
    Some(out)
}

fn redact_string(token: &str, redact: impl Fn(&str) -> Option<String>) -> Option<String> {
    let inner = &token[1..token.len() - 1];
    if !inner.contains('\\') {
        return redact(inner);
    }
    match serde_json::from_str::<String>(token) {
        Ok(text) => redact(&text),
        // Half a surrogate pair: valid by the grammar, no text.
        Err(_) => redact(inner),
    }
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_else(|_| "\"\"".to_owned())
}

/// Just after the closing quote of the string at `at`. The text is valid JSON: there is one.
fn end_of_string(body: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < body.len() {
        match body[end] {
            b'\\' => end += 2,
            b'"' => return end + 1,
            _ => end += 1,
        }
    }
    body.len()
}

fn end_of_number(body: &[u8], at: usize) -> usize {
    let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
    at + body[at..].iter().take_while(|byte| is_part(byte)).count()
}
