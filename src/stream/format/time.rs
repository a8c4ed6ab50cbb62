//! Writes points in time. Microseconds are the finest grain, as in Envoy.

use std::time::{SystemTime, UNIX_EPOCH};

use super::value::{write_i64, write_padded};
use crate::config::access_log::{TimeFormat, TimePart};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// A moment broken down for a calendar.
struct Civil {
    epoch: i64,
    nanos: u64,
    year: i64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
    /// Sunday is 0.
    weekday: u64,
    /// From 0.
    day_of_year: u64,
    /// Seconds east of Greenwich.
    offset: i64,
    zone: Option<Box<str>>,
}

/// Appends `moment` in `format`.
pub(super) fn write(format: &TimeFormat, local: bool, moment: SystemTime, out: &mut Vec<u8>) {
    let civil = Civil::new(moment, local);
    for part in &format.parts {
        civil.write(part, out);
    }
}

impl Civil {
    fn new(moment: SystemTime, local: bool) -> Self {
        // Before 1970 there are no requests.
        let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch = i64::try_from(since.as_secs()).unwrap_or(i64::MAX / 2);
        let nanos = u64::from(since.subsec_micros()) * 1000;
        let (offset, zone) = if local { zone(epoch) } else { (0, None) };
        let shifted = epoch + offset;
        let days = shifted.div_euclid(86_400);
        let second_of_day = shifted.rem_euclid(86_400).unsigned_abs();
        let (year, month, day) = civil_from_days(days);
        let first = days_from_civil(year, 1, 1);
        Self {
            epoch,
            nanos,
            year,
            month,
            day,
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
            weekday: (days + 4).rem_euclid(7).unsigned_abs(),
            day_of_year: (days - first).unsigned_abs(),
            offset,
            zone,
        }
    }

    fn write(&self, part: &TimePart, out: &mut Vec<u8>) {
        let hour12 = match self.hour % 12 {
            0 => 12,
            hour => hour,
        };
        let two = |number: u64, out: &mut Vec<u8>| write_padded(number, 2, b'0', out);
        match part {
            TimePart::Text(text) => out.extend_from_slice(text.as_bytes()),
            TimePart::IsoMillis => self.write_iso_millis(out),
            TimePart::Year => write_i64(self.year, out),
            TimePart::YearInCentury => two(self.year.rem_euclid(100).unsigned_abs(), out),
            TimePart::Century => two(self.year.div_euclid(100).unsigned_abs(), out),
            TimePart::Month => two(self.month, out),
            TimePart::MonthShort => out.extend_from_slice(&name(&MONTHS, self.month - 1)[..3]),
            TimePart::MonthLong => out.extend_from_slice(name(&MONTHS, self.month - 1)),
            TimePart::Day => two(self.day, out),
            TimePart::DaySpaced => write_padded(self.day, 2, b' ', out),
            TimePart::DayOfYear => write_padded(self.day_of_year + 1, 3, b'0', out),
            TimePart::WeekdayShort => out.extend_from_slice(&name(&DAYS, self.weekday)[..3]),
            TimePart::WeekdayLong => out.extend_from_slice(name(&DAYS, self.weekday)),
            TimePart::WeekdayFromMonday => write_padded((self.weekday + 6) % 7 + 1, 1, b'0', out),
            TimePart::WeekdayFromSunday => write_padded(self.weekday, 1, b'0', out),
            TimePart::WeekFromSunday => two((self.day_of_year + 7 - self.weekday) / 7, out),
            TimePart::WeekFromMonday => {
                two((self.day_of_year + 7 - (self.weekday + 6) % 7) / 7, out);
            }
            TimePart::IsoWeek => two(self.iso_week().1, out),
            TimePart::IsoYear { short: false } => write_i64(self.iso_week().0, out),
            TimePart::IsoYear { short: true } => {
                two(self.iso_week().0.rem_euclid(100).unsigned_abs(), out);
            }
            TimePart::Hour => two(self.hour, out),
            TimePart::Hour12 => two(hour12, out),
            TimePart::HourSpaced { twelve } => {
                write_padded(if *twelve { hour12 } else { self.hour }, 2, b' ', out);
            }
            TimePart::AmPm { lower } => out.extend_from_slice(match (self.hour < 12, lower) {
                (true, false) => b"AM",
                (true, true) => b"am",
                (false, false) => b"PM",
                (false, true) => b"pm",
            }),
            TimePart::Minute => two(self.minute, out),
            TimePart::Second(digits) => {
                two(self.second, out);
                if *digits > 0 {
                    out.push(b'.');
                    self.write_fraction(*digits, out);
                }
            }
            TimePart::SecondFull => {
                two(self.second, out);
                if self.nanos > 0 {
                    out.push(b'.');
                    self.write_full_fraction(out);
                }
            }
            TimePart::Fraction(digits) => self.write_fraction(*digits, out),
            TimePart::FractionFull => self.write_full_fraction(out),
            TimePart::Epoch => write_i64(self.epoch, out),
            TimePart::Offset { colon } => {
                out.push(if self.offset < 0 { b'-' } else { b'+' });
                let minutes = self.offset.unsigned_abs() / 60;
                two(minutes / 60, out);
                if *colon {
                    out.push(b':');
                }
                two(minutes % 60, out);
            }
            TimePart::ZoneName => {
                out.extend_from_slice(self.zone.as_deref().unwrap_or("UTC").as_bytes());
            }
        }
    }

    fn write_iso_millis(&self, out: &mut Vec<u8>) {
        write_padded(self.year.unsigned_abs(), 4, b'0', out);
        for (separator, number) in [
            (b'-', self.month),
            (b'-', self.day),
            (b'T', self.hour),
            (b':', self.minute),
            (b':', self.second),
        ] {
            out.push(separator);
            out.push(b'0' + (number / 10) as u8);
            out.push(b'0' + (number % 10) as u8);
        }
        out.push(b'.');
        self.write_fraction(3, out);
    }

    fn write_fraction(&self, digits: u8, out: &mut Vec<u8>) {
        let digits = digits.min(9);
        let value = self.nanos / 10u64.pow(9 - u32::from(digits));
        write_padded(value, usize::from(digits), b'0', out);
    }

    fn write_full_fraction(&self, out: &mut Vec<u8>) {
        self.write_fraction(9, out);
        for _ in 0..8 {
            if out.last() == Some(&b'0') {
                out.pop();
            }
        }
    }

    /// The year and number of the ISO 8601 week: that of its Thursday.
    fn iso_week(&self) -> (i64, u64) {
        let days = days_from_civil(self.year, self.month, self.day);
        let thursday = days + 3 - (self.weekday as i64 + 6) % 7;
        let (year, _, _) = civil_from_days(thursday);
        let first = days_from_civil(year, 1, 1);
        (year, ((thursday - first) / 7 + 1).unsigned_abs())
    }
}

fn name<'a>(names: &[&'a str], index: u64) -> &'a [u8] {
    usize::try_from(index)
        .ok()
        .and_then(|index| names.get(index))
        .map_or(b"???", |name| name.as_bytes())
}

/// The local offset at a moment, and the zone's abbreviation.
fn zone(epoch: i64) -> (i64, Option<Box<str>>) {
    let Ok(timestamp) = jiff::Timestamp::from_second(epoch) else {
        return (0, None);
    };
    let zone = jiff::tz::TimeZone::system();
    let info = zone.to_offset_info(timestamp);
    (
        i64::from(info.offset().seconds()),
        Some(info.abbreviation().into()),
    )
}

/// Days since 1970-01-01 to year, month, day (proleptic Gregorian; eras of 400 years, years from March).
fn civil_from_days(days: i64) -> (i64, u64, u64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month.unsigned_abs(), day.unsigned_abs())
}

fn days_from_civil(year: i64, month: u64, day: u64) -> i64 {
    let (month, day) = (month as i64, day as i64);
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}
