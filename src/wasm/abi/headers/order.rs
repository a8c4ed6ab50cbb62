//! The order of a map's fields where one of them goes.

use http::{HeaderMap, HeaderName};

/// Takes out all values of a name; the other fields keep their order. The map's own way to do it puts the last field into
/// the gap.
pub(super) fn take_out(fields: &mut HeaderMap, name: &HeaderName) {
    if !fields.contains_key(name) {
        return;
    }
    if fields.keys().last() == Some(name) {
        fields.remove(name);
        return;
    }
    let mut rest = HeaderMap::with_capacity(fields.keys_len());
    let mut of = None;
    for (next, value) in std::mem::take(fields) {
        of = next.or(of);
        if let Some(of) = of.as_ref().filter(|of| *of != name) {
            // There is room: all of them had it.
            let _ = rest.try_append(of, value);
        }
    }
    *fields = rest;
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_name_may_have_more_values_than_a_map_has_names() {
        let mut fields = HeaderMap::new();
        fields.append("x-first", HeaderValue::from_static("1"));
        for number in 0..40_000 {
            fields.append("x-many", HeaderValue::from(number));
        }
        take_out(&mut fields, &HeaderName::from_static("x-first"));
        assert_eq!(fields.len(), 40_000);
        assert_eq!(fields["x-many"], "0");
    }
}
