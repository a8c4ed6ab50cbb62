//! Single words of text as values: numbers, booleans, durations, bytes, keys of maps.

use base64::Engine as _;
use prost_reflect::{Kind, MapKey, Value};

/// The field number in `google.protobuf.Value` and what it holds.
pub(super) fn scalar_value(text: &str, quoted: bool) -> (u32, Value) {
    const EXACT: i128 = 1 << 53;
    if !quoted {
        if let Some(value) = boolean(text) {
            return (4, Value::Bool(value));
        }
        if let Some(value) = integer(text, false) {
            return if (-EXACT..=EXACT).contains(&value) {
                #[allow(clippy::cast_precision_loss, reason = "within 2^53")]
                let value = value as f64;
                (2, Value::F64(value))
            } else {
                (3, Value::String(text.to_owned()))
            };
        }
        if let Some(value) = float(text).filter(|value| value.is_finite()) {
            return (2, Value::F64(value));
        }
    }
    (3, Value::String(text.to_owned()))
}

/// YAML 1.1's booleans.
pub(super) fn boolean(text: &str) -> Option<bool> {
    Some(match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => true,
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            false
        }
        _ => return None,
    })
}

/// An integer. Unquoted ones may be hexadecimal or, with a leading zero, octal, as yaml-cpp reads them; a fraction of
/// zeros and an exponent are allowed as in JSON.
pub(super) fn integer(text: &str, quoted: bool) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let first = *digits.as_bytes().first()?;
    if !first.is_ascii_digit() {
        return None;
    }
    let radix = |digits: &str, radix| i128::from_str_radix(digits, radix).ok();
    let value = if let Some(hex) = digits.strip_prefix("0x").filter(|_| !quoted) {
        radix(hex, 16)?
    } else if let Some(octal) = digits.strip_prefix("0o").filter(|_| !quoted) {
        radix(octal, 8)?
    } else if let Some(octal) = digits
        .strip_prefix('0')
        .filter(|rest| !quoted && !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    {
        radix(octal, 8)?
    } else if digits.bytes().all(|b| b.is_ascii_digit()) {
        digits.parse().ok()?
    } else {
        let value: f64 = digits.parse().ok()?;
        if value.fract() != 0.0 || value > 9e15 {
            return None;
        }
        #[allow(clippy::cast_possible_truncation, reason = "integral and below 2^53")]
        let value = value as i128;
        value
    };
    Some(if negative { -value } else { value })
}

pub(super) fn float(text: &str) -> Option<f64> {
    match text {
        "NaN" | ".nan" | ".NaN" => Some(f64::NAN),
        "Infinity" | ".inf" => Some(f64::INFINITY),
        "-Infinity" | "-.inf" => Some(f64::NEG_INFINITY),
        _ => {
            let first = text.bytes().next()?;
            // Rust also reads `inf` and `nan`.
            (first.is_ascii_digit() || matches!(first, b'-' | b'+' | b'.'))
                .then(|| text.parse().ok())
                .flatten()
                .filter(|value: &f64| value.is_finite())
        }
    }
}

/// `1.5s` as seconds and nanoseconds.
pub(super) fn duration(text: &str) -> Option<(i64, i32)> {
    let digits = text.strip_suffix('s')?;
    let (negative, digits) = match digits.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, digits),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.len() + fraction.len() == 0
        || fraction.len() > 9
        || !all_digits(whole)
        || !all_digits(fraction)
    {
        return None;
    }
    let seconds: i64 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let nanos: i32 = format!("{fraction:0<9}").parse().ok()?;
    (seconds <= 315_576_000_000).then_some(if negative {
        (-seconds, -nanos)
    } else {
        (seconds, nanos)
    })
}

pub(super) fn bytes(text: &str) -> Option<Vec<u8>> {
    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    let text = text.trim_end_matches('=');
    STANDARD_NO_PAD
        .decode(text)
        .or_else(|_| URL_SAFE_NO_PAD.decode(text))
        .ok()
}

pub(super) fn map_key(kind: &Kind, text: &str) -> Option<MapKey> {
    Some(match kind {
        Kind::String => MapKey::String(text.to_owned()),
        Kind::Bool => MapKey::Bool(text.parse().ok()?),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => MapKey::I32(text.parse().ok()?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => MapKey::I64(text.parse().ok()?),
        Kind::Uint32 | Kind::Fixed32 => MapKey::U32(text.parse().ok()?),
        Kind::Uint64 | Kind::Fixed64 => MapKey::U64(text.parse().ok()?),
        _ => return None,
    })
}

pub(super) fn snake_case(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 4);
    for c in text.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}
