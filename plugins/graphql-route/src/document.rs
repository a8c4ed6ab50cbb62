//! The operations of a GraphQL document, without its selections: a lexer of the grammar's outermost level.

/// One operation.
pub(crate) struct Operation<'a> {
    pub(crate) kind: &'static str,
    pub(crate) name: Option<&'a str>,
}

/// All operations of `document`; `None` where it is no document.
pub(crate) fn operations(document: &str) -> Option<Vec<Operation<'_>>> {
    let mut lexer = Lexer {
        text: document,
        at: 0,
    };
    let mut operations = Vec::new();
    while let Some(token) = lexer.next()? {
        let kind = match token {
            Token::Open(b'{') => {
                operations.push(Operation {
                    kind: "query",
                    name: None,
                });
                lexer.skip_group()?;
                continue;
            }
            Token::Name("query") => "query",
            Token::Name("mutation") => "mutation",
            Token::Name("subscription") => "subscription",
            Token::Name("fragment") => {
                lexer.skip_selections()?;
                continue;
            }
            _ => return None,
        };
        let before = lexer.at;
        let name = match lexer.next()?? {
            Token::Name(name) => Some(name),
            _ => {
                lexer.at = before;
                None
            }
        };
        operations.push(Operation { kind, name });
        lexer.skip_selections()?;
    }
    Some(operations)
}

/// True for what the grammar calls a name.
pub(crate) fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(is_name_start) && bytes.all(is_name_part)
}

fn is_name_start(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphabetic()
}

fn is_name_part(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric()
}

enum Token<'a> {
    Name(&'a str),
    /// One of `{`, `(`, `[`.
    Open(u8),
    /// One of `}`, `)`, `]`.
    Close,
    /// Anything else: punctuation, a byte of a number, a string.
    Other,
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    /// The next token; `Some(None)` at the end, `None` where a string does not end.
    #[allow(clippy::option_option, reason = "an error and an end are two things")]
    fn next(&mut self) -> Option<Option<Token<'a>>> {
        let bytes = self.text.as_bytes();
        loop {
            let rest = &bytes[self.at..];
            match rest {
                [] => return Some(None),
                [b' ' | b'\t' | b'\r' | b'\n' | b',', ..] => self.at += 1,
                [0xef, 0xbb, 0xbf, ..] => self.at += 3,
                [b'#', ..] => {
                    let line = rest
                        .iter()
                        .take_while(|byte| !matches!(byte, b'\r' | b'\n'));
                    self.at += line.count();
                }
                _ => break,
            }
        }
        let rest = &bytes[self.at..];
        let first = rest[0];
        let (token, length) = match first {
            b'{' | b'(' | b'[' => (Token::Open(first), 1),
            b'}' | b')' | b']' => (Token::Close, 1),
            b'"' => (Token::Other, string(rest)?),
            _ if is_name_start(first) => {
                let length = rest.iter().take_while(|byte| is_name_part(**byte)).count();
                (Token::Name(&self.text[self.at..self.at + length]), length)
            }
            _ => (Token::Other, 1),
        };
        self.at += length;
        Some(Some(token))
    }

    /// Goes on to after the group whose opening was just read.
    fn skip_group(&mut self) -> Option<()> {
        let mut depth = 1;
        while depth > 0 {
            match self.next()?? {
                Token::Open(_) => depth += 1,
                Token::Close => depth -= 1,
                Token::Name(_) | Token::Other => {}
            }
        }
        Some(())
    }

    /// Goes on to after the next selection set: variables and directives come before it.
    fn skip_selections(&mut self) -> Option<()> {
        loop {
            match self.next()?? {
                Token::Open(b'{') => return self.skip_group(),
                Token::Open(_) => self.skip_group()?,
                Token::Close => return None,
                Token::Name(_) | Token::Other => {}
            }
        }
    }
}

/// The length of the string that `bytes` begin with.
fn string(bytes: &[u8]) -> Option<usize> {
    if bytes.starts_with(b"\"\"\"") {
        let mut at = 3;
        loop {
            match &bytes[at..] {
                [b'\\', b'"', b'"', b'"', ..] => at += 4,
                [b'"', b'"', b'"', ..] => return Some(at + 3),
                [_, ..] => at += 1,
                [] => return None,
            }
        }
    }
    let mut at = 1;
    loop {
        match &bytes[at..] {
            [b'\\', _, ..] => at += 2,
            [b'"', ..] => return Some(at + 1),
            [b'\r' | b'\n', ..] | [] => return None,
            [_, ..] => at += 1,
        }
    }
}
