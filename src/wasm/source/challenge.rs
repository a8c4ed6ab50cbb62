//! `WWW-Authenticate` of a registry: how it wants to be told who asks.
//!
//! A header may hold several challenges, and several headers may come; what is not understood is stepped over.
//! Grammar: RFC 9110, section 11.6.1.

use http::{HeaderMap, header};

/// What a registry wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token of this server.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
    /// Name and password.
    Basic,
}

impl Challenge {
    /// The one to answer: for a token, or else with a password.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for value in headers.get_all(header::WWW_AUTHENTICATE) {
            for (scheme, parameters) in parse(value.to_str().unwrap_or_default()) {
                let find = |name: &str| {
                    let mut named = parameters
                        .iter()
                        .filter(|(key, _)| key.eq_ignore_ascii_case(name));
                    named.next().map(|(_, value)| value.clone())
                };
                if scheme.eq_ignore_ascii_case("bearer") {
                    if let Some(realm) = find("realm") {
                        return Some(Self::Bearer {
                            realm,
                            service: find("service"),
                            scope: find("scope"),
                        });
                    }
                } else if scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
            }
        }
        basic
    }
}

type Parameters = Vec<(String, String)>;

/// Schemes with their parameters. A token68 is taken for nothing.
fn parse(text: &str) -> Vec<(String, Parameters)> {
    let mut challenges: Vec<(String, Parameters)> = Vec::new();
    let mut rest = text.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| c.is_ascii_whitespace() || matches!(c, '=' | ','))
            .unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            // A stray `=`.
            rest = after.trim_start_matches(['=', ' ', '\t', ',']);
            continue;
        }
        let unspaced = after.trim_start_matches([' ', '\t']);
        match unspaced.strip_prefix('=') {
            Some(value) if !challenges.is_empty() => {
                let (value, after) = value_of(value.trim_start_matches([' ', '\t']));
                if let Some((_, parameters)) = challenges.last_mut() {
                    parameters.push((word.to_owned(), value));
                }
                rest = after;
            }
            _ => {
                challenges.push((word.to_owned(), Vec::new()));
                rest = after;
            }
        }
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
    challenges
}

/// A token or a quoted string, and what follows it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text
            .find(|c: char| c.is_ascii_whitespace() || c == ',')
            .unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(values: &[&'static str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(
                header::WWW_AUTHENTICATE,
                http::HeaderValue::from_static(value),
            );
        }
        Challenge::of(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        })
    }

    #[test]
    fn what_registries_send_is_understood() {
        for (values, expected) in [
            (
                &[
                    "Bearer realm=\"https://auth.test/token\",service=\"reg.test\",scope=\"repository:a/b:pull,push\"",
                ][..],
                bearer(
                    "https://auth.test/token",
                    Some("reg.test"),
                    Some("repository:a/b:pull,push"),
                ),
            ),
            (
                &["bearer Realm = https://a.test/t , x=y"],
                bearer("https://a.test/t", None, None),
            ),
            (&["Basic realm=\"x\""], Some(Challenge::Basic)),
            (&["BASIC"], Some(Challenge::Basic)),
            (
                &["Basic realm=\"a, b=c\", Bearer realm=\"https://a.test/\\\"t\""],
                bearer("https://a.test/\"t", None, None),
            ),
            (&["Negotiate abc==, Basic realm=x"], Some(Challenge::Basic)),
            (
                &["Basic realm=x", "Bearer realm=y"],
                bearer("y", None, None),
            ),
            (&["Bearer service=x"], None),
            (&["Digest realm=x"], None),
            (&["", ",,,", "=", "a=\"", "\"\"="], None),
        ] {
            assert_eq!(challenge(values), expected, "{values:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_fail(text in "[a-z=,\" \\\\]{0,40}") {
            parse(&text);
        }
    }
}
