//! JSON texts: escaping in place, protobuf values, numbers.

use crate::pb::google::protobuf::value::Kind;
use crate::pb::google::protobuf::{Struct, Value};

/// Makes what follows `start` the inside of a JSON string. Bytes that are no UTF-8 become U+FFFD.
pub(super) fn escape_from(out: &mut Vec<u8>, start: usize) {
    let tail = &out[start..];
    let plain = tail
        .iter()
        .all(|byte| (0x20..0x7f).contains(byte) && *byte != b'"' && *byte != b'\\');
    if plain {
        return;
    }
    let text = String::from_utf8_lossy(tail).into_owned();
    out.truncate(start);
    escape(&text, out);
}

fn escape(text: &str, out: &mut Vec<u8>) {
    for character in text.chars() {
        match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            '\0'..='\u{1f}' | '\u{7f}' => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes());
            }
            other => {
                let mut buffer = [0; 4];
                out.extend_from_slice(other.encode_utf8(&mut buffer).as_bytes());
            }
        }
    }
}

/// Appends a protobuf value as JSON, keys sorted.
pub(super) fn write_value(value: &Value, out: &mut Vec<u8>) {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => out.extend_from_slice(b"null"),
        Some(Kind::BoolValue(value)) => {
            out.extend_from_slice(if *value { b"true" } else { b"false" });
        }
        Some(Kind::NumberValue(number)) => write_f64(*number, out),
        Some(Kind::StringValue(text)) => {
            out.push(b'"');
            escape(text, out);
            out.push(b'"');
        }
        Some(Kind::StructValue(fields)) => write_struct(fields, out),
        Some(Kind::ListValue(list)) => {
            out.push(b'[');
            for (index, value) in list.values.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_value(value, out);
            }
            out.push(b']');
        }
    }
}

/// Appends a protobuf struct as JSON, keys sorted.
pub(super) fn write_struct(fields: &Struct, out: &mut Vec<u8>) {
    let mut entries: Vec<_> = fields.fields.iter().collect();
    entries.sort_unstable_by_key(|(key, _)| *key);
    out.push(b'{');
    for (index, (key, value)) in entries.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.push(b'"');
        escape(key, out);
        out.extend_from_slice(b"\":");
        write_value(value, out);
    }
    out.push(b'}');
}

/// Appends a number; one without a fraction as an integer.
pub(super) fn write_f64(number: f64, out: &mut Vec<u8>) {
    if number.fract() == 0.0 && number.abs() < 9e15 {
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and small")]
        write_i64(number as i64, out);
    } else if let Some(number) = serde_json::Number::from_f64(number) {
        out.extend_from_slice(number.to_string().as_bytes());
    } else {
        out.extend_from_slice(b"null");
    }
}

/// Appends a decimal.
pub(super) fn write_u64(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a decimal with its sign.
pub(super) fn write_i64(number: i64, out: &mut Vec<u8>) {
    if number < 0 {
        out.push(b'-');
    }
    write_u64(number.unsigned_abs(), out);
}

/// Appends `number` with leading zeros to `width` digits.
pub(super) fn write_padded(number: u64, width: usize, pad: u8, out: &mut Vec<u8>) {
    let start = out.len();
    write_u64(number, out);
    let digits = out.len() - start;
    for _ in digits..width {
        out.insert(start, pad);
    }
}
