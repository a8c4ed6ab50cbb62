//! The serialized form of maps: a count, the lengths, then each key and value with a NUL after it; little-endian.

/// Longest form that is read.
const MAX_BYTES: usize = 1 << 20;
/// Most pairs that are read.
const MAX_PAIRS: usize = 1024;

/// Bytes that one pair takes besides its key and value.
pub(crate) const OVERHEAD: usize = 10;

/// Writes the form of `count` pairs into `block`, which has exactly the room; `each` is given a sink and calls it for
/// each pair, the same ones at each of its two runs.
pub(crate) fn write(
    block: &mut [u8],
    count: usize,
    mut each: impl FnMut(&mut dyn FnMut(&[u8], &[u8])),
) {
    fn copy(block: &mut [u8], at: &mut usize, data: &[u8]) {
        // A map that changed between measuring and writing cannot happen, and would not panic either.
        if let Some(to) = block.get_mut(*at..*at + data.len()) {
            to.copy_from_slice(data);
        }
        *at += data.len();
    }
    let mut at = 0;
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    copy(block, &mut at, &number(count));
    each(&mut |key, value| {
        copy(block, &mut at, &number(key.len()));
        copy(block, &mut at, &number(value.len()));
    });
    each(&mut |key, value| {
        for part in [key, b"\0", value, b"\0"] {
            copy(block, &mut at, part);
        }
    });
}

/// The form of `pairs` on its own.
pub(crate) fn to_bytes<K: AsRef<[u8]>, V: AsRef<[u8]>>(pairs: &[(K, V)]) -> Vec<u8> {
    let len = pairs
        .iter()
        .map(|(key, value)| key.as_ref().len() + value.as_ref().len() + OVERHEAD)
        .sum::<usize>();
    let mut block = vec![0; 4 + len];
    write(&mut block, pairs.len(), |sink| {
        for (key, value) in pairs {
            sink(key.as_ref(), value.as_ref());
        }
    });
    block
}

/// Reads the form. `None` where it is not exactly one: Envoy takes that for an empty map.
pub(crate) fn read(data: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    if data.is_empty() {
        return Some(Vec::new());
    }
    if data.len() > MAX_BYTES {
        return None;
    }
    let number = |at: usize| {
        let bytes = data.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    let count = number(0)?;
    if count > MAX_PAIRS {
        return None;
    }
    let mut at = 4 + 8 * count;
    let mut part = |len: usize| {
        let end = at.checked_add(len)?;
        let part = data.get(at..end)?;
        (*data.get(end)? == 0).then_some(())?;
        at = end + 1;
        Some(part)
    };
    let mut pairs = Vec::with_capacity(count);
    for index in 0..count {
        let key = part(number(4 + 8 * index)?)?;
        let value = part(number(8 + 8 * index)?)?;
        pairs.push((key, value));
    }
    (at == data.len()).then_some(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let pairs = [("a", "1"), ("", ""), ("long-name", "x\0y")];
        let bytes = to_bytes(&pairs);
        assert_eq!(bytes.len(), 4 + 3 * OVERHEAD + 2 + 12);
        let read = read(&bytes).expect("well-formed");
        let expected: Vec<_> = pairs
            .iter()
            .map(|(k, v)| (k.as_bytes(), v.as_bytes()))
            .collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn what_lies_is_no_map() {
        let good = to_bytes(&[("k", "v")]);
        let mut cases = vec![
            good[..good.len() - 1].to_vec(),
            [&good[..], b"x"].concat(),
            vec![0xff; 64],
            vec![1, 0, 0],
            [&2000u32.to_le_bytes()[..], &[0; 40000]].concat(),
            vec![0; MAX_BYTES + 1],
        ];
        let mut no_nul = good.clone();
        *no_nul.last_mut().expect("not empty") = b'x';
        cases.push(no_nul);
        let mut lying = good;
        lying[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        cases.push(lying);
        for case in cases {
            assert_eq!(read(&case), None, "{:?}", &case[..case.len().min(16)]);
        }
        assert_eq!(read(&0u32.to_le_bytes()), Some(Vec::new()));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(0u8..4, 0..64)) {
            let _ = read(&data);
        }
    }
}
