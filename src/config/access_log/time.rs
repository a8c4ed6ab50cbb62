//! Formats of points in time, as `%START_TIME(…)%` writes them: strftime, and fractions of a second.

/// A compiled time format.
#[derive(Clone, Debug, PartialEq)]
pub struct TimeFormat {
    /// In order.
    pub parts: Box<[TimePart]>,
}

/// A piece of a time format.
#[derive(Clone, Debug, PartialEq)]
pub enum TimePart {
    /// Written as is.
    Text(Box<str>),
    /// `2026-11-20T16:10:40.015`, the beginning of both default formats.
    IsoMillis,
    /// `%Y`.
    Year,
    /// `%y`.
    YearInCentury,
    /// `%C`.
    Century,
    /// `%m`.
    Month,
    /// `%b`, `%h`.
    MonthShort,
    /// `%B`.
    MonthLong,
    /// `%d`.
    Day,
    /// `%e`: padded with a space.
    DaySpaced,
    /// `%j`.
    DayOfYear,
    /// `%a`.
    WeekdayShort,
    /// `%A`.
    WeekdayLong,
    /// `%u`: Monday is 1.
    WeekdayFromMonday,
    /// `%w`: Sunday is 0.
    WeekdayFromSunday,
    /// `%H`.
    Hour,
    /// `%I`.
    Hour12,
    /// `%k`, `%l`: padded with a space.
    HourSpaced {
        /// Of twelve.
        twelve: bool,
    },
    /// `%p`, and `%P` in lower case.
    AmPm {
        /// `pm`.
        lower: bool,
    },
    /// `%U`: Sunday begins a week.
    WeekFromSunday,
    /// `%W`: Monday does.
    WeekFromMonday,
    /// `%V`: of ISO 8601.
    IsoWeek,
    /// `%G`, the year of that week, and `%g` without the century.
    IsoYear {
        /// Two digits.
        short: bool,
    },
    /// `%M`.
    Minute,
    /// `%S`, and `%E3S` with digits.
    Second(u8),
    /// `%E*S`: as many digits as are needed.
    SecondFull,
    /// `%f` (nine digits) and `%3f`.
    Fraction(u8),
    /// `%E*f`: as many digits as are needed.
    FractionFull,
    /// `%s`: since the epoch.
    Epoch,
    /// `%z` (`+0000`); with a colon for `%Ez`.
    Offset {
        /// `+00:00`.
        colon: bool,
    },
    /// `%Z`.
    ZoneName,
}

impl TimeFormat {
    /// Compiles `format`; the empty one is Envoy's default.
    pub fn parse(format: &str, local: bool) -> Self {
        if format.is_empty() {
            let end = if local {
                TimePart::Offset { colon: false }
            } else {
                TimePart::Text("Z".into())
            };
            return Self {
                parts: [TimePart::IsoMillis, end].into(),
            };
        }
        let mut parts = Vec::new();
        let mut text = String::new();
        compile(format, &mut text, &mut parts);
        if !text.is_empty() {
            parts.push(TimePart::Text(text.into()));
        }
        Self {
            parts: parts.into(),
        }
    }
}

fn compile(format: &str, text: &mut String, parts: &mut Vec<TimePart>) {
    let mut rest = format;
    while let Some(percent) = rest.find('%') {
        text.push_str(&rest[..percent]);
        rest = &rest[percent..];
        let mut push = |part: TimePart| {
            if !text.is_empty() {
                parts.push(TimePart::Text(std::mem::take(text).into()));
            }
            parts.push(part);
        };
        let Some(letter) = rest[1..].chars().next() else {
            break;
        };
        let mut used = 1 + letter.len_utf8();
        let digits = |text: &str| -> Option<u8> {
            let first = text.bytes().next()?;
            first.is_ascii_digit().then(|| first - b'0')
        };
        match letter {
            'Y' => push(TimePart::Year),
            'y' => push(TimePart::YearInCentury),
            'C' => push(TimePart::Century),
            'm' => push(TimePart::Month),
            'b' | 'h' => push(TimePart::MonthShort),
            'B' => push(TimePart::MonthLong),
            'd' => push(TimePart::Day),
            'e' => push(TimePart::DaySpaced),
            'j' => push(TimePart::DayOfYear),
            'a' => push(TimePart::WeekdayShort),
            'A' => push(TimePart::WeekdayLong),
            'u' => push(TimePart::WeekdayFromMonday),
            'w' => push(TimePart::WeekdayFromSunday),
            'H' => push(TimePart::Hour),
            'I' => push(TimePart::Hour12),
            'k' => push(TimePart::HourSpaced { twelve: false }),
            'l' => push(TimePart::HourSpaced { twelve: true }),
            'p' => push(TimePart::AmPm { lower: false }),
            'P' => push(TimePart::AmPm { lower: true }),
            'U' => push(TimePart::WeekFromSunday),
            'W' => push(TimePart::WeekFromMonday),
            'V' => push(TimePart::IsoWeek),
            'G' => push(TimePart::IsoYear { short: false }),
            'g' => push(TimePart::IsoYear { short: true }),
            'M' => push(TimePart::Minute),
            'S' => push(TimePart::Second(0)),
            'f' => push(TimePart::Fraction(9)),
            's' => push(TimePart::Epoch),
            'z' => push(TimePart::Offset { colon: false }),
            'Z' => push(TimePart::ZoneName),
            '%' => text.push('%'),
            't' => text.push('\t'),
            'F' => compile("%Y-%m-%d", text, parts),
            'T' => compile("%H:%M:%S", text, parts),
            'R' => compile("%H:%M", text, parts),
            'D' | 'x' => compile("%m/%d/%y", text, parts),
            'X' => compile("%H:%M:%S", text, parts),
            'r' => compile("%I:%M:%S %p", text, parts),
            'c' => compile("%a %b %e %H:%M:%S %Y", text, parts),
            '1'..='9' if rest[2..].starts_with('f') => {
                push(TimePart::Fraction(letter as u8 - b'0'));
                used += 1;
            }
            'E' => {
                let tail = &rest[2..];
                if tail.starts_with("*S") {
                    push(TimePart::SecondFull);
                    used += 2;
                } else if tail.starts_with("*f") {
                    push(TimePart::FractionFull);
                    used += 2;
                } else if tail.starts_with("4Y") {
                    push(TimePart::Year);
                    used += 2;
                } else if tail.starts_with('z') {
                    push(TimePart::Offset { colon: true });
                    used += 1;
                } else if tail.starts_with('T') {
                    text.push('T');
                    used += 1;
                } else if let Some(count) = digits(tail) {
                    match tail.as_bytes().get(1) {
                        Some(b'S') => {
                            push(TimePart::Second(count));
                            used += 2;
                        }
                        Some(b'f') => {
                            push(TimePart::Fraction(count));
                            used += 2;
                        }
                        _ => text.push_str("%E"),
                    }
                } else {
                    text.push_str("%E");
                }
            }
            // Unknown letters stay as they are.
            _ => text.push_str(&rest[..used]),
        }
        rest = &rest[used..];
    }
    text.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_command_stays_text() {
        for text in [
            "%E", "%E*s", "%E.", "%Ex", "%E3", "%E3x", "%3", "%Q", "%é", "%",
        ] {
            assert_eq!(
                *TimeFormat::parse(text, false).parts,
                [TimePart::Text(text.into())],
                "{text}"
            );
        }
    }
}
