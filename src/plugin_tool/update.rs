//! `--update`: the key `expect` of a case's file written anew, the rest of the file as it was.

use anyhow::bail;

use super::case;

/// The key that is written.
pub(super) const KEY: &str = "expect";

/// `text` with `section`, which holds the key `expect` alone: where the key was, or at the end.
///
/// # Errors
/// Where lines do not tell where the key begins and ends, so that the file would say something else.
pub(super) fn updated(text: &str, section: &str) -> anyhow::Result<String> {
    let new = spliced(text, section);
    let mut wanted = case::read_keys(text)?;
    wanted.extend(case::read_keys(section)?);
    if !case::read_keys(&new).is_ok_and(|found| found == wanted) {
        bail!("write `{KEY}:` at the beginning of a line, with what belongs to it indented below");
    }
    Ok(new)
}

fn spliced(text: &str, section: &str) -> String {
    let lines: Vec<_> = text.split_inclusive('\n').collect();
    let key = lines.iter().position(|line| is_key(line));
    let (before, after) = match key {
        None => (&lines[..], &[][..]),
        Some(key) => {
            let rest = &lines[key + 1..];
            let next = rest.iter().position(|line| !is_within(line));
            let within = &rest[..next.unwrap_or(rest.len())];
            // What is commented at the end is the next key, or nothing.
            let begins = |line: &&str| is_blank(line) || line.starts_with('#');
            let ours = within.iter().rposition(|line| !begins(line));
            let ours = ours.map_or(0, |last| last + 1);
            let blank = rest[ours..].iter().take_while(|line| is_blank(line));
            (&lines[..key], &rest[ours + blank.count()..])
        }
    };
    let mut out = before.concat();
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    out + section + &after.concat()
}

/// True for the line that begins with the key.
fn is_key(line: &str) -> bool {
    let quoted = ['"', '\''].into_iter().find_map(|quote| {
        let inner = line.strip_prefix(quote)?.strip_prefix(KEY)?;
        inner.strip_prefix(quote)
    });
    let rest = quoted.or_else(|| line.strip_prefix(KEY));
    rest.is_some_and(|rest| rest.trim_start_matches([' ', '\t']).starts_with(':'))
}

/// True for a line that may go on with the value of a key that is above it: it is not the next key.
fn is_within(line: &str) -> bool {
    is_blank(line) || line.starts_with([' ', '\t', '-', '#', '}', ']'])
}

fn is_blank(line: &str) -> bool {
    line.trim_end_matches(['\r', '\n']).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTION: &str = "expect:\n  response: new\n";

    #[test]
    fn an_update_leaves_the_rest_of_the_file_alone() {
        for (text, wanted) in [
            (
                "request: GET /",
                "request: GET /\nexpect:\n  response: new\n",
            ),
            (
                "# why\nexpect:\n  response: |\n    200\n\n    old\n\n# of the request\nrequest: GET /\n",
                "# why\nexpect:\n  response: new\n# of the request\nrequest: GET /\n",
            ),
            (
                "request: GET /\nexpect:\n  log: []\n",
                "request: GET /\nexpect:\n  response: new\n",
            ),
            // A comment that is not indented ends nothing.
            (
                "expect:\n# of the log\n  log: []\n# of the response\n\n  response: old\n# the end\n",
                "expect:\n  response: new\n# the end\n",
            ),
            (
                "expect: {\n  log: [\n    {info: x}\n]\n}\nrequest: GET /\n",
                "expect:\n  response: new\nrequest: GET /\n",
            ),
            (
                "\"expect\": {log: []}\nrequest: GET /\n",
                "expect:\n  response: new\nrequest: GET /\n",
            ),
            (
                "'expect' :\n  log: []\nrequest: GET /\n",
                "expect:\n  response: new\nrequest: GET /\n",
            ),
            (
                "expect :\r\n  log: []\r\n\r\nrequest: GET /\r\n",
                "expect:\n  response: new\nrequest: GET /\r\n",
            ),
            (
                "expected: no\nexpect: {}\n",
                "expected: no\nexpect:\n  response: new\n",
            ),
        ] {
            assert_eq!(updated(text, SECTION).expect(text), wanted);
        }
    }

    #[test]
    fn a_file_that_would_say_something_else_is_left_alone() {
        for text in [
            "{request: GET /}\n",
            "  request: GET /\n  expect: {}\n",
            "? expect\n: {}\nrequest: GET /\n",
            "expect: &none {}\nconfig: *none\nrequest: GET /\n",
        ] {
            let error = updated(text, SECTION).expect_err(text).to_string();
            assert!(error.contains("beginning of a line"), "{text}: {error}");
        }
    }
}
