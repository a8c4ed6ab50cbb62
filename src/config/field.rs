//! Conversions and constraints that many messages share, in the words of Envoy's validation.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::error::{At, ConfigError};
use super::listener::IpRange;
use crate::base::file::read_regular;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::core::v3::data_source::Specifier;
use crate::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use crate::pb::envoy::r#type::v3::{FractionalPercent, Percent};
use crate::pb::google::protobuf as well_known;

/// What stands behind the refusals of what a later version will do.
pub(super) const LATER: &str = "not implemented by this build yet";

/// Protobuf's largest duration, in seconds.
const MAX_SECONDS: i64 = 315_576_000_000;

/// The value, which must be there.
pub(crate) fn required<T>(value: Option<T>, field: &str) -> Result<T, ConfigError> {
    value.ok_or_else(|| ConfigError::missing(field))
}

/// A `BoolValue`.
pub(crate) fn flag(value: Option<well_known::BoolValue>, default: bool) -> bool {
    value.map_or(default, |well_known::BoolValue { value }| value)
}

/// A `UInt32Value`.
pub(crate) fn uint32(value: Option<well_known::UInt32Value>) -> Option<u32> {
    value.map(|well_known::UInt32Value { value }| value)
}

/// A `UInt32Value` in `[min, max]`.
pub(crate) fn uint32_within(
    value: Option<well_known::UInt32Value>,
    min: u32,
    max: u32,
    field: &str,
) -> Result<Option<u32>, ConfigError> {
    let value = uint32(value);
    match value {
        Some(value) if value < min && max == u32::MAX => Err(ConfigError::invalid(format!(
            "value must be greater than or equal to {min}"
        ))
        .at(field)),
        Some(value) if value > max && min == 0 => Err(ConfigError::invalid(format!(
            "value must be less than or equal to {max}"
        ))
        .at(field)),
        Some(value) if !(min..=max).contains(&value) => Err(ConfigError::invalid(format!(
            "value must be inside range [{min}, {max}]"
        ))
        .at(field)),
        value => Ok(value),
    }
}

/// A number of an enumeration; `E` is its type.
pub(crate) fn enumeration<E: TryFrom<i32>>(value: i32, field: &str) -> Result<E, ConfigError> {
    E::try_from(value)
        .map_err(|_| ConfigError::invalid("value must be one of the defined enum values").at(field))
}

/// A duration; negative ones are refused.
pub(crate) fn duration(
    value: Option<well_known::Duration>,
    field: &str,
) -> Result<Option<Duration>, ConfigError> {
    let Some(well_known::Duration { seconds, nanos }) = value else {
        return Ok(None);
    };
    if seconds < 0 || nanos < 0 {
        return Err(ConfigError::invalid(format!(
            "Invalid duration: Expected positive duration: seconds: {seconds}, nanos: {nanos}"
        ))
        .at(field));
    }
    if seconds > MAX_SECONDS || nanos > 999_999_999 {
        return Err(ConfigError::invalid("Invalid duration: Duration out-of-range").at(field));
    }
    Ok(Some(Duration::new(
        seconds.unsigned_abs(),
        nanos.unsigned_abs(),
    )))
}

/// A duration where zero stands for "none", and absence for `default`.
pub(crate) fn timeout(
    value: Option<well_known::Duration>,
    default: Option<Duration>,
    field: &str,
) -> Result<Option<Duration>, ConfigError> {
    Ok(duration(value, field)?.map_or(default, |value| (!value.is_zero()).then_some(value)))
}

/// A duration that must be above zero.
pub(crate) fn positive(
    value: Option<well_known::Duration>,
    field: &str,
) -> Result<Option<Duration>, ConfigError> {
    match duration(value, field)? {
        Some(Duration::ZERO) => {
            Err(ConfigError::invalid("value must be greater than 0s").at(field))
        }
        value => Ok(value),
    }
}

/// A duration of at least a millisecond.
pub(crate) fn at_least_a_millisecond(
    value: Option<well_known::Duration>,
    field: &str,
) -> Result<Option<Duration>, ConfigError> {
    match duration(value, field)? {
        Some(value) if value < Duration::from_millis(1) => {
            Err(ConfigError::invalid("value must be greater than or equal to 1ms").at(field))
        }
        value => Ok(value),
    }
}

/// A duration of more than a millisecond.
pub(crate) fn above_a_millisecond(
    value: Option<well_known::Duration>,
    field: &str,
) -> Result<Option<Duration>, ConfigError> {
    match duration(value, field)? {
        Some(value) if value <= Duration::from_millis(1) => {
            Err(ConfigError::invalid("value must be greater than 1ms").at(field))
        }
        value => Ok(value),
    }
}

/// True where `authority` has a port that is none.
pub(crate) fn has_bad_port(authority: &http::uri::Authority) -> bool {
    authority.as_str().len() > authority.host().len() && authority.port_u16().is_none()
}

/// A string that must not be empty.
pub(crate) fn non_empty(value: String, field: &str) -> Result<String, ConfigError> {
    if value.is_empty() {
        return Err(ConfigError::invalid("value length must be at least 1 characters").at(field));
    }
    Ok(value)
}

/// A list that must not be empty.
pub(crate) fn non_empty_list<T>(value: Vec<T>, field: &str) -> Result<Vec<T>, ConfigError> {
    if value.is_empty() {
        return Err(ConfigError::invalid("value must contain at least 1 item(s)").at(field));
    }
    Ok(value)
}

/// A string without the bytes that end a header line.
pub(crate) fn header_text(value: String, field: &str) -> Result<String, ConfigError> {
    if value.contains(['\0', '\n', '\r']) {
        return Err(
            ConfigError::invalid(r#"value does not match regex pattern "^[^\x00\n\r]*$""#)
                .at(field),
        );
    }
    Ok(value)
}

/// A header's name, in any case.
pub(crate) fn header_name(value: String, field: &str) -> Result<http::HeaderName, ConfigError> {
    let value = header_text(non_empty(value, field)?, field)?;
    http::HeaderName::from_bytes(value.as_bytes())
        .map_err(|_| ConfigError::invalid(format!("'{value}' is not a header name")).at(field))
}

/// A header's value.
pub(crate) fn header_value(value: String, field: &str) -> Result<http::HeaderValue, ConfigError> {
    let value = header_text(value, field)?;
    http::HeaderValue::from_bytes(value.as_bytes())
        .map_err(|_| ConfigError::invalid(format!("'{value}' is not a header value")).at(field))
}

/// A `Percent`, 0 to 100.
pub(crate) fn percent(value: Option<Percent>, field: &str) -> Result<Option<f64>, ConfigError> {
    match value {
        Some(Percent { value }) if !(0.0..=100.0).contains(&value) => {
            Err(ConfigError::invalid("value must be inside range [0, 100]")
                .at("value")
                .at(field))
        }
        value => Ok(value.map(|Percent { value }| value)),
    }
}

/// A `FractionalPercent` as parts of a million; more than all is all.
pub(crate) fn per_million(value: FractionalPercent) -> Result<u32, ConfigError> {
    let FractionalPercent {
        numerator,
        denominator,
    } = value;
    let factor = match enumeration::<DenominatorType>(denominator, "denominator")? {
        DenominatorType::Hundred => 10_000,
        DenominatorType::TenThousand => 100,
        DenominatorType::Million => 1,
    };
    Ok(numerator.saturating_mul(factor).min(1_000_000))
}

/// A `RuntimeFractionalPercent`: its default, as there is no runtime to look its key up in.
pub(crate) fn runtime_per_million(
    value: core::RuntimeFractionalPercent,
) -> Result<u32, ConfigError> {
    let core::RuntimeFractionalPercent {
        default_value,
        runtime_key: _,
    } = value;
    per_million(required(default_value, "default_value")?).at("default_value")
}

/// A `CidrRange`, masked.
pub(crate) fn cidr(value: core::CidrRange) -> Result<IpRange, ConfigError> {
    let core::CidrRange {
        address_prefix,
        prefix_len,
    } = value;
    let address_prefix = non_empty(address_prefix, "address_prefix")?;
    let prefix_len = uint32_within(prefix_len, 0, 128, "prefix_len")?.unwrap_or(0);
    let address = address_prefix.parse::<IpAddr>().map_err(|_| {
        ConfigError::invalid(format!("malformed IP address: {address_prefix}")).at("address_prefix")
    })?;
    // Too long a prefix is the whole address, as in Envoy.
    let bits = |width: u32| prefix_len.min(width);
    Ok(match address {
        IpAddr::V4(address) => {
            let len = bits(32);
            let mask = u32::MAX.checked_shl(32 - len).unwrap_or(0);
            IpRange {
                address: IpAddr::V4((u32::from(address) & mask).into()),
                prefix_len: u8::try_from(len).unwrap_or(32),
            }
        }
        IpAddr::V6(address) => {
            let len = bits(128);
            let mask = u128::MAX.checked_shl(128 - len).unwrap_or(0);
            IpRange {
                address: IpAddr::V6((u128::from(address) & mask).into()),
                prefix_len: u8::try_from(len).unwrap_or(128),
            }
        }
    })
}

/// Converts each of a list; errors name `field[index]`.
pub(crate) fn each<T, U>(
    values: Vec<T>,
    field: &str,
    mut convert: impl FnMut(T) -> Result<U, ConfigError>,
) -> Result<Vec<U>, ConfigError> {
    // Not collected: that would keep the memory of the messages, many times as large, for as long as the model lives.
    let mut converted = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        converted.push(convert(value).at_index(field, index)?);
    }
    Ok(converted)
}

/// Refuses a field that is set.
pub(crate) fn refuse(set: bool, field: &str, why: &str) -> Result<(), ConfigError> {
    if set {
        return Err(ConfigError::unsupported(field, why));
    }
    Ok(())
}

/// No text of a configuration is larger, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// Reads a `DataSource`, on the control side.
pub(crate) fn data_source(value: core::DataSource) -> Result<bytes::Bytes, ConfigError> {
    let core::DataSource {
        // The file is read once.
        watched_directory: _,
        specifier,
    } = value;
    Ok(match required(specifier, "specifier")? {
        Specifier::Filename(path) => {
            let path = non_empty(path, "filename")?;
            read_regular(Path::new(&path), MAX_FILE)
                .map_err(|error| {
                    let reason = if error.kind() == std::io::ErrorKind::NotFound {
                        format!("file {path} does not exist")
                    } else {
                        format!("unable to read file: {path} ({error})")
                    };
                    ConfigError::invalid(reason).at("filename")
                })?
                .into()
        }
        Specifier::InlineBytes(bytes) => bytes.into(),
        Specifier::InlineString(text) => text.into_bytes().into(),
        Specifier::EnvironmentVariable(name) => {
            let name = non_empty(name, "environment_variable")?;
            std::env::var(&name)
                .map_err(|_| {
                    ConfigError::invalid(format!("Environment variable doesn't exist: {name}"))
                        .at("environment_variable")
                })?
                .into_bytes()
                .into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_positive_and_in_range() {
        let of =
            |seconds, nanos| duration(Some(well_known::Duration { seconds, nanos }), "timeout");
        assert_eq!(of(1, 500_000_000), Ok(Some(Duration::from_millis(1500))));
        assert!(of(-1, 0).is_err_and(|e| {
            e.to_string()
                .starts_with("timeout: Invalid duration: Expected positive duration")
        }));
        assert!(of(0, -1).is_err());
        assert!(of(MAX_SECONDS, 0).is_ok());
        assert!(of(MAX_SECONDS + 1, 0).is_err());
        assert!(of(0, 1_000_000_000).is_err());
    }

    #[test]
    fn zero_switches_a_timeout_off_and_absence_is_the_default() {
        let zero = Some(well_known::Duration::default());
        let default = Some(Duration::from_secs(15));
        assert_eq!(timeout(zero, default, "t"), Ok(None));
        assert_eq!(timeout(None, default, "t"), Ok(default));
    }

    #[test]
    fn ranges_are_masked_and_long_prefixes_cut() {
        let of = |address: &str, len: Option<u32>| {
            cidr(core::CidrRange {
                address_prefix: address.to_owned(),
                prefix_len: len.map(|value| well_known::UInt32Value { value }),
            })
            .map(|range| format!("{}/{}", range.address, range.prefix_len))
            .map_err(|error| error.to_string())
        };
        assert_eq!(of("10.1.2.3", Some(8)), Ok("10.0.0.0/8".to_owned()));
        assert_eq!(of("10.1.2.3", None), Ok("0.0.0.0/0".to_owned()));
        assert_eq!(of("10.1.2.3", Some(33)), Ok("10.1.2.3/32".to_owned()));
        assert_eq!(of("fe80::1:2", Some(16)), Ok("fe80::/16".to_owned()));
        assert_eq!(of("::1", Some(128)), Ok("::1/128".to_owned()));
        assert_eq!(
            of("x", Some(8)),
            Err("address_prefix: malformed IP address: x".to_owned())
        );
        assert_eq!(
            of("::1", Some(129)),
            Err("prefix_len: value must be less than or equal to 128".to_owned())
        );
    }

    #[test]
    fn fractions_become_parts_of_a_million() {
        let of = |numerator, denominator: DenominatorType| {
            per_million(FractionalPercent {
                numerator,
                denominator: denominator.into(),
            })
        };
        assert_eq!(of(50, DenominatorType::Hundred), Ok(500_000));
        assert_eq!(of(1, DenominatorType::TenThousand), Ok(100));
        assert_eq!(of(7, DenominatorType::Million), Ok(7));
        assert_eq!(of(u32::MAX, DenominatorType::Hundred), Ok(1_000_000));
    }

    #[test]
    fn sources_are_read_or_their_absence_told() {
        let of = |specifier| {
            data_source(core::DataSource {
                watched_directory: None,
                specifier,
            })
            .map_err(|error| error.to_string())
        };
        assert_eq!(
            of(Some(Specifier::InlineString("x".to_owned()))),
            Ok(bytes::Bytes::from_static(b"x"))
        );
        assert_eq!(of(None), Err("specifier: value is required".to_owned()));
        assert_eq!(
            of(Some(Specifier::Filename("/no/such/file".to_owned()))),
            Err("filename: file /no/such/file does not exist".to_owned())
        );
        assert_eq!(
            of(Some(Specifier::EnvironmentVariable(
                "NO_SUCH_VARIABLE_HERE".to_owned()
            ))),
            Err(
                "environment_variable: Environment variable doesn't exist: NO_SUCH_VARIABLE_HERE"
                    .to_owned()
            )
        );
    }
}
