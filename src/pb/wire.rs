//! The encoding of messages, one field after another, without a schema.

/// What a field holds, as far as the encoding tells.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    /// A number, of 64 bits at most.
    Varint(u64),
    /// A text, a message, or a packed list.
    Bytes(&'a [u8]),
    /// A number of fixed width.
    Fixed,
}

/// Takes a field off, with its number. `None` at the end, and where it is malformed: then `rest` is not empty.
pub(super) fn next_field<'a>(rest: &mut &'a [u8]) -> Option<(u32, Value<'a>)> {
    let mut at = *rest;
    let key = varint(&mut at)?;
    let number = u32::try_from(key >> 3).ok().filter(|number| *number > 0)?;
    let value = match key & 7 {
        0 => Value::Varint(varint(&mut at)?),
        1 => {
            take(&mut at, 8)?;
            Value::Fixed
        }
        2 => {
            let length = usize::try_from(varint(&mut at)?).ok()?;
            Value::Bytes(take(&mut at, length)?)
        }
        5 => {
            take(&mut at, 4)?;
            Value::Fixed
        }
        // Groups are not part of the API.
        _ => return None,
    };
    *rest = at;
    Some((number, value))
}

/// The elements of the repeated message field `number`, and the message without them. `None` where that is malformed.
pub fn split_off(message: &[u8], number: u32) -> Option<(Vec<u8>, Vec<&[u8]>)> {
    let (mut others, mut elements) = (Vec::new(), Vec::new());
    let mut rest = message;
    while !rest.is_empty() {
        let before = rest;
        match next_field(&mut rest)? {
            (found, Value::Bytes(element)) if found == number => elements.push(element),
            (found, _) if found == number => return None,
            _ => others.extend_from_slice(&before[..before.len() - rest.len()]),
        }
    }
    Some((others, elements))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, left) = rest.split_first()?;
        *rest = left;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_taken_off_one_by_one() {
        let mut rest: &[u8] = &[
            0x08, 0x96, 0x01, // 1: 150
            0x12, 0x02, b'h', b'i', // 2: "hi"
            0x1d, 1, 0, 0, 0, // 3: fixed
            0x22, 0x05, b'x', // 4: cut short
        ];
        assert!(matches!(
            next_field(&mut rest),
            Some((1, Value::Varint(150)))
        ));
        assert!(matches!(
            next_field(&mut rest),
            Some((2, Value::Bytes(b"hi")))
        ));
        assert!(matches!(next_field(&mut rest), Some((3, Value::Fixed))));
        assert!(next_field(&mut rest).is_none());
        assert_eq!(rest, [0x22, 0x05, b'x']);
    }

    #[test]
    fn a_list_is_split_off() {
        let message = [0x0a, 1, b'n', 0x12, 1, b'a', 0x18, 7, 0x12, 0];
        let (others, elements) = split_off(&message, 2).expect("well-formed");
        assert_eq!(others, [0x0a, 1, b'n', 0x18, 7]);
        assert_eq!(elements, [&b"a"[..], b""]);
        assert!(split_off(&message[..5], 2).is_none());
        assert!(split_off(&message, 3).is_none(), "not a message field");
    }
}
