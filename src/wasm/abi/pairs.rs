//! The serialized form of maps: a count, the lengths, then each key and value with a NUL after it; little-endian.

/// Longest form that is read.
const MAX_BYTES: usize = 1 << 20;
/// Most pairs that are read.
const MAX_PAIRS: usize = 1024;

/// Bytes that one pair takes besides its key and value.
pub(crate) const OVERHEAD: usize = 10;

/// Writes the form of some pairs into a block that has exactly the room.
pub(crate) struct Writer<'a> {
    /// Where the lengths of the next pair go.
    lengths: &'a mut [u8],
    /// Where the pair itself goes.
    texts: &'a mut [u8],
}

impl<'a> Writer<'a> {
    /// For `count` pairs.
    pub(crate) fn new(block: &'a mut [u8], count: usize) -> Self {
        // A map that changed between measuring and writing cannot happen, and would not panic either.
        let (lengths, texts) = block
            .split_at_mut_checked(4 + 8 * count)
            .unwrap_or_default();
        let mut writer = Self { lengths, texts };
        writer.number(count);
        writer
    }

    /// The next one.
    #[inline]
    pub(crate) fn pair(&mut self, key: &[u8], value: &[u8]) {
        self.number(key.len());
        self.number(value.len());
        let texts = std::mem::take(&mut self.texts);
        if let Some((to, rest)) = texts.split_at_mut_checked(key.len() + value.len() + 2) {
            let (to_key, to_value) = to.split_at_mut(key.len() + 1);
            for (to, part) in [(to_key, key), (to_value, value)] {
                if let [to @ .., end] = to {
                    to.copy_from_slice(part);
                    *end = 0;
                }
            }
            self.texts = rest;
        }
    }

    #[inline]
    fn number(&mut self, number: usize) {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        if let Some((to, rest)) = std::mem::take(&mut self.lengths).split_first_chunk_mut() {
            *to = number.to_le_bytes();
            self.lengths = rest;
        }
    }
}

/// The form of `pairs` on its own.
pub(crate) fn to_bytes<K: AsRef<[u8]>, V: AsRef<[u8]>>(pairs: &[(K, V)]) -> Vec<u8> {
    let len = pairs
        .iter()
        .map(|(key, value)| key.as_ref().len() + value.as_ref().len() + OVERHEAD)
        .sum::<usize>();
    let mut block = vec![0; 4 + len];
    let mut writer = Writer::new(&mut block, pairs.len());
    for (key, value) in pairs {
        writer.pair(key.as_ref(), value.as_ref());
    }
    block
}

/// Bytes of all names and values.
pub(crate) fn size(pairs: &[(&[u8], &[u8])]) -> usize {
    let sizes = pairs.iter().map(|(name, value)| name.len() + value.len());
    sizes.sum()
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
