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
    let mut rest = HeaderMap::with_capacity(fields.len());
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
