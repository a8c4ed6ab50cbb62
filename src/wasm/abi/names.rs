//! Names of headers that a guest wrote before: most write the same few all the time, which need not be read and copied anew.

use http::header::HeaderName;

/// So many are kept; a power of two.
const KEPT: usize = 32;
/// Longer names are not.
const LONGEST: usize = 64;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Names([Option<HeaderName>; KEPT]);

impl Names {
    /// The name that `bytes` are, whatever their case. `None`: they are none.
    #[inline]
    pub(super) fn parse(&mut self, bytes: &[u8]) -> Option<HeaderName> {
        let place = &mut self.0[place(bytes)];
        match place {
            Some(known) if known.as_str().as_bytes() == bytes => Some(known.clone()),
            _ => {
                let name = HeaderName::from_bytes(bytes).ok()?;
                if bytes.len() <= LONGEST {
                    *place = Some(name.clone());
                }
                Some(name)
            }
        }
    }
}

/// Names differ in their lengths and last letters.
fn place(bytes: &[u8]) -> usize {
    match bytes {
        [first, .., before, last] => {
            let letters = usize::from(*first) ^ usize::from(*before) << 1 ^ usize::from(*last) << 2;
            (letters ^ bytes.len()) % KEPT
        }
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_it_was_the_first_time() {
        let mut names = Names::default();
        let texts = [
            "x-a",
            "x-b",
            "X-A",
            "x-c",
            "a",
            "b",
            "ab",
            "content-type",
            "Content-Type",
            "",
            "x y",
            "é",
            ":path",
            "x-a",
        ];
        let long = "x".repeat(LONGEST + 1);
        for _ in 0..3 {
            for text in texts.into_iter().chain([&*long]) {
                let expected = HeaderName::from_bytes(text.as_bytes()).ok();
                assert_eq!(names.parse(text.as_bytes()), expected, "{text}");
            }
            for number in 0..200 {
                let text = format!("x-number-{number}");
                let name = names.parse(text.as_bytes()).expect("a name");
                assert_eq!(name.as_str(), text);
            }
        }
    }
}
