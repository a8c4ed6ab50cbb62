//! Headers that a guest wrote before: most write the same few all the time, which need not be read and copied anew. Kept are
//! names, and the values of those that seem to have but one.

use http::header::{HeaderName, HeaderValue, InvalidHeaderValue};

use crate::http::joined::Joins;

/// So many are kept; a power of two.
const KEPT: usize = 32;
/// Longer names are not, nor longer values.
const LONGEST: usize = 64;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: [Option<Known>; KEPT],
    /// The last name that is not kept.
    long: Option<Known>,
}

/// A name.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) name: HeaderName,
    pub(super) joins: Joins,
    value: Value,
}

/// What was written below a name so far.
#[derive(Debug)]
enum Value {
    Nothing,
    /// One value, which is not kept: the name may not come again.
    Once,
    /// This alone, since it is kept.
    Same(HeaderValue),
    Several,
}

impl Known {
    /// The value that `bytes` are.
    #[inline]
    pub(super) fn value(&mut self, bytes: &[u8]) -> Result<HeaderValue, InvalidHeaderValue> {
        match &self.value {
            Value::Same(value) if value.as_bytes() == bytes => Ok(value.clone()),
            _ => self.read(bytes),
        }
    }

    fn read(&mut self, bytes: &[u8]) -> Result<HeaderValue, InvalidHeaderValue> {
        let value = HeaderValue::from_bytes(bytes)?;
        self.value = match &self.value {
            Value::Nothing => Value::Once,
            Value::Once if bytes.len() <= LONGEST => Value::Same(value.clone()),
            _ => Value::Several,
        };
        Ok(value)
    }
}

impl Names {
    /// The name that `bytes` are, whatever their case. `None`: they are none.
    #[inline]
    pub(super) fn parse(&mut self, bytes: &[u8]) -> Option<&mut Known> {
        let index = place(bytes);
        match &self.known[index] {
            Some(known) if known.name.as_str().as_bytes() == bytes => {}
            _ => return self.read(index, bytes),
        }
        self.known[index].as_mut()
    }

    #[cold]
    fn read(&mut self, index: usize, bytes: &[u8]) -> Option<&mut Known> {
        let name = HeaderName::from_bytes(bytes).ok()?;
        let place = if bytes.len() <= LONGEST {
            &mut self.known[index]
        } else {
            &mut self.long
        };
        let joins = Joins::of(&name);
        Some(place.insert(Known {
            name,
            joins,
            value: Value::Nothing,
        }))
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
                let name = names.parse(text.as_bytes()).map(|known| &known.name);
                assert_eq!(name, expected.as_ref(), "{text}");
            }
            for number in 0..200 {
                let text = format!("x-number-{number}");
                let known = names.parse(text.as_bytes()).expect("a name");
                assert_eq!(known.name.as_str(), text);
            }
        }
    }

    #[test]
    fn a_value_is_what_was_written() {
        let mut names = Names::default();
        let long = [b'v'; LONGEST + 1];
        for values in [["a", "a", "a", "b", "a"], ["", "\n", "", "", ""]] {
            for name in ["x-a", "x-b"] {
                for value in values.map(str::as_bytes).into_iter().chain([&long[..]]) {
                    let known = names.parse(name.as_bytes()).expect("a name");
                    let expected = HeaderValue::from_bytes(value).ok();
                    assert_eq!(known.value(value).ok(), expected, "{name}");
                }
            }
        }
        let known = names.parse(b"x-once").expect("a name");
        let [_, second, third] = [(); 3].map(|()| known.value(b"v").expect("a value"));
        assert_eq!(second.as_bytes().as_ptr(), third.as_bytes().as_ptr());
    }
}
