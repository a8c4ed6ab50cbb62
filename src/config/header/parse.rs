//! Protobuf to header mutations.

#![allow(
    deprecated,
    reason = "Envoy still honours its deprecated fields, and control planes send them"
)]

use http::HeaderName;

use super::{AppendAction, HeaderMutations, HeaderTarget, HeaderValueOption};
use crate::config::ConfigError;
use crate::config::access_log::Format;
use crate::config::error::At;
use crate::config::field::{each, enumeration, header_text, non_empty, required};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use crate::pb::google::protobuf::BoolValue;

/// Envoy's limit of `…_headers_to_add`.
const MAX_HEADERS: usize = 1000;

/// Envoy's limit of a header's name and of its value, in bytes.
const MAX_LENGTH: usize = 16384;

impl HeaderMutations {
    /// Validates `…_headers_to_add` and `…_headers_to_remove`; `prefix` (`request_headers` and the like) begins their
    /// names in errors.
    ///
    /// # Errors
    /// A bad name, value or format, or a header that must not be touched here.
    pub fn parse(
        add: Vec<core::HeaderValueOption>,
        remove: Vec<String>,
        prefix: &str,
    ) -> Result<Self, ConfigError> {
        let to_add = format!("{prefix}_to_add");
        if add.len() > MAX_HEADERS {
            return Err(ConfigError::invalid(format!(
                "value must contain no more than {MAX_HEADERS} item(s)"
            ))
            .at(&to_add));
        }
        let add = each(add, &to_add, |option| {
            let option = HeaderValueOption::parse(option)?;
            match option.name {
                HeaderTarget::Header(_) => Ok(option),
                HeaderTarget::Authority
                | HeaderTarget::Path
                | HeaderTarget::Method
                | HeaderTarget::Scheme
                | HeaderTarget::Status => Err(ConfigError::invalid(
                    ":-prefixed or host headers may not be modified",
                )),
            }
        })?;
        let remove = each(remove, &format!("{prefix}_to_remove"), |name| {
            let name = non_empty(name, "")?;
            if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
                return Err(ConfigError::invalid(
                    ":-prefixed or host headers may not be removed",
                ));
            }
            HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| ConfigError::invalid(format!("'{name}' is not a header name")))
        })?;
        Ok(Self { add, remove })
    }
}

impl HeaderValueOption {
    /// Validates one `HeaderValueOption`.
    ///
    /// # Errors
    /// A bad name, value or format.
    pub fn parse(proto: core::HeaderValueOption) -> Result<Self, ConfigError> {
        let core::HeaderValueOption {
            header,
            append,
            append_action,
            keep_empty_value,
        } = proto;
        let core::HeaderValue {
            key,
            value,
            raw_value,
        } = required(header, "header")?;
        let key = short(
            header_text(non_empty(key, "key").at("header")?, "key").at("header")?,
            "key",
        )?;
        let name = HeaderTarget::parse(&key).at("key").at("header")?;
        let value = if value.is_empty() {
            String::from_utf8(raw_value).map_err(|_| {
                ConfigError::unsupported("raw_value", "a value that is not UTF-8").at("header")
            })?
        } else {
            value
        };
        let value = short(header_text(value, "value").at("header")?, "value")?;
        let value = Format::parse(&value).at("value").at("header")?;
        let action = enumeration::<HeaderAppendAction>(append_action, "append_action")?;
        let action = match (append, action) {
            (Some(_), action) if action != HeaderAppendAction::AppendIfExistsOrAdd => {
                return Err(ConfigError::invalid(
                    "Both append and append_action are set and it's not allowed",
                ));
            }
            (Some(BoolValue { value: false }), _) => AppendAction::OverwriteIfExistsOrAdd,
            (_, HeaderAppendAction::AppendIfExistsOrAdd) => AppendAction::AppendIfExistsOrAdd,
            (_, HeaderAppendAction::AddIfAbsent) => AppendAction::AddIfAbsent,
            (_, HeaderAppendAction::OverwriteIfExistsOrAdd) => AppendAction::OverwriteIfExistsOrAdd,
            (_, HeaderAppendAction::OverwriteIfExists) => AppendAction::OverwriteIfExists,
        };
        Ok(Self {
            name,
            value,
            action,
            keep_empty_value,
        })
    }
}

impl HeaderTarget {
    /// Reads a header name; pseudo-headers by their names, `host` is `:authority`.
    ///
    /// # Errors
    /// No header name.
    pub fn parse(name: &str) -> Result<Self, ConfigError> {
        Ok(match name.to_ascii_lowercase().as_str() {
            ":authority" | "host" => Self::Authority,
            ":path" => Self::Path,
            ":method" => Self::Method,
            ":scheme" => Self::Scheme,
            ":status" => Self::Status,
            lower => Self::Header(
                HeaderName::from_bytes(lower.as_bytes())
                    .map_err(|_| ConfigError::invalid(format!("'{name}' is not a header name")))?,
            ),
        })
    }
}

fn short(value: String, field: &str) -> Result<String, ConfigError> {
    if value.len() > MAX_LENGTH {
        return Err(ConfigError::invalid(format!(
            "value length must be at most {MAX_LENGTH} bytes"
        ))
        .at(field)
        .at("header"));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb;

    fn add(yaml: &str) -> Result<HeaderMutations, String> {
        let option = pb::from_yaml::<core::HeaderValueOption>(yaml).expect("a HeaderValueOption");
        HeaderMutations::parse(vec![option], Vec::new(), "request_headers")
            .map_err(|error| error.to_string())
    }

    #[test]
    fn both_ways_of_saying_append_are_understood() {
        for (yaml, action) in [
            ("{}", AppendAction::AppendIfExistsOrAdd),
            ("{append: true}", AppendAction::AppendIfExistsOrAdd),
            ("{append: false}", AppendAction::OverwriteIfExistsOrAdd),
            ("{append_action: ADD_IF_ABSENT}", AppendAction::AddIfAbsent),
            (
                "{append_action: OVERWRITE_IF_EXISTS_OR_ADD}",
                AppendAction::OverwriteIfExistsOrAdd,
            ),
            (
                "{append_action: OVERWRITE_IF_EXISTS}",
                AppendAction::OverwriteIfExists,
            ),
        ] {
            let yaml = yaml.replacen('{', "{header: {key: X-A, value: '%REQ(b)%'}, ", 1);
            let mutations = add(&yaml).expect("valid");
            assert_eq!(mutations.add[0].action, action, "{yaml}");
            assert_eq!(
                mutations.add[0].name,
                HeaderTarget::Header(HeaderName::from_static("x-a"))
            );
        }
    }

    #[test]
    fn a_raw_value_stands_in_for_an_absent_one() {
        let raw = add("{header: {key: a, raw_value: Yg==}}").expect("valid");
        assert_eq!(raw.add[0].value.as_literal(), Some("b"));
        let both = add("{header: {key: a, value: x, raw_value: Yg==}}").expect("valid");
        assert_eq!(both.add[0].value.as_literal(), Some("x"));
    }

    #[test]
    fn wrong_additions_are_refused_by_field() {
        for (yaml, error) in [
            ("{}", "request_headers_to_add[0].header: value is required"),
            (
                "{header: {key: ''}}",
                "request_headers_to_add[0].header.key: value length must be at least 1 characters",
            ),
            (
                "{header: {key: ':path', value: b}}",
                "request_headers_to_add[0]: :-prefixed or host headers may not be modified",
            ),
            (
                "{header: {key: Host, value: b}}",
                "request_headers_to_add[0]: :-prefixed or host headers may not be modified",
            ),
            (
                "{header: {key: 'a b', value: b}}",
                "request_headers_to_add[0].header.key: 'a b' is not a header name",
            ),
            (
                "{header: {key: a, value: \"b\\nc\"}}",
                "request_headers_to_add[0].header.value: value does not match regex pattern \"^[^\\x00\\n\\r]*$\"",
            ),
            (
                "{header: {key: a, value: b}, append: true, append_action: ADD_IF_ABSENT}",
                "request_headers_to_add[0]: Both append and append_action are set and it's not allowed",
            ),
        ] {
            assert_eq!(add(yaml), Err(error.to_owned()), "{yaml}");
        }
        assert!(
            add("{header: {key: a, value: '%NOPE%'}}").is_err_and(|error| {
                error.starts_with("request_headers_to_add[0].header.value: ")
            })
        );
    }

    #[test]
    fn removals_spare_what_a_request_needs() {
        let remove = |name: &str| {
            HeaderMutations::parse(Vec::new(), vec![name.to_owned()], "response_headers")
                .map_err(|error| error.to_string())
        };
        assert!(remove("X-A").is_ok_and(|m| m.remove == [HeaderName::from_static("x-a")]));
        for name in ["host", "Host", ":path", ":status"] {
            assert_eq!(
                remove(name),
                Err(
                    "response_headers_to_remove[0]: :-prefixed or host headers may not be removed"
                        .to_owned()
                )
            );
        }
        assert!(remove("").is_err());
    }

    #[test]
    fn no_more_than_a_thousand_are_added() {
        let option = pb::from_yaml::<core::HeaderValueOption>("{header: {key: a, value: b}}")
            .expect("a HeaderValueOption");
        let many = |count| {
            HeaderMutations::parse(vec![option.clone(); count], Vec::new(), "request_headers")
        };
        assert!(many(1000).is_ok());
        assert!(many(1001).is_err());
    }
}
