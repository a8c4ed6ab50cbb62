//! The order of a map's fields where some of them go.
//!
//! The map's own way to remove a name puts the last field into the gap. Plugins, upstreams and clients see the order, and in
//! Envoy the other fields keep theirs.

use http::{HeaderMap, HeaderName};
use smallvec::SmallVec;

/// Takes out all values of a name; the other fields keep their order.
pub fn take_out(fields: &mut HeaderMap, name: &HeaderName) {
    if fields.contains_key(name) {
        take_out_all(fields, |other| other == name);
    }
}

/// Takes out all values of the names that `goes` is true for; the other fields keep their order.
pub fn take_out_all(fields: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    let (mut some, mut gap) = (false, false);
    for name in fields.keys() {
        if goes(name) {
            some = true;
        } else {
            gap |= some;
        }
    }
    match (some, gap) {
        (false, _) => {}
        (true, false) => {
            // The last ones leave no gap.
            let last: SmallVec<[HeaderName; 4]> =
                fields.keys().filter(|name| goes(name)).cloned().collect();
            for name in last.iter().rev() {
                fields.remove(name);
            }
        }
        (true, true) => rebuild(fields, goes),
    }
}

fn rebuild(fields: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    // With the room that there was: more is added to most of them.
    let Ok(mut rest) = HeaderMap::try_with_capacity(fields.capacity()) else {
        return;
    };
    let mut of = None;
    for (next, value) in std::mem::take(fields) {
        if let Some(next) = next {
            of = Some(next).filter(|name| !goes(name));
        }
        if let Some(of) = &of {
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

    fn map(names: &str) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (number, name) in names.split(' ').enumerate() {
            fields.append(
                name.parse::<HeaderName>().expect("a name"),
                HeaderValue::from(number),
            );
        }
        fields
    }

    fn names(fields: &HeaderMap) -> String {
        fields
            .iter()
            .map(|(name, value)| format!("{name}={}", value.to_str().expect("text")))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn room_stays_where_fields_go() {
        let mut fields = HeaderMap::with_capacity(24);
        fields.extend(map("a b c"));
        let room = fields.capacity();
        take_out(&mut fields, &HeaderName::from_static("b"));
        assert_eq!(
            (names(&fields).as_str(), fields.capacity()),
            ("a=0 c=2", room)
        );
    }

    #[test]
    fn what_stays_keeps_its_order() {
        for (before, gone, after) in [
            ("a b c d", "a", "b=1 c=2 d=3"),
            ("a b c d", "b c", "a=0 d=3"),
            ("a b c d", "d", "a=0 b=1 c=2"),
            ("a b c d", "a d", "b=1 c=2"),
            ("a b c d", "c d", "a=0 b=1"),
            ("a b c d", "a b c d", ""),
            ("a b c d", "e", "a=0 b=1 c=2 d=3"),
            ("a b a c b", "a", "b=1 b=4 c=3"),
            ("a b a c b", "c", "a=0 a=2 b=1 b=4"),
        ] {
            let mut fields = map(before);
            take_out_all(&mut fields, |name| gone.split(' ').any(|gone| gone == name));
            assert_eq!(names(&fields), after, "{before} without {gone}");
            let mut fields = map(before);
            for gone in gone.split(' ') {
                take_out(&mut fields, &gone.parse().expect("a name"));
            }
            assert_eq!(names(&fields), after, "{before} without {gone}, one by one");
        }
    }

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
