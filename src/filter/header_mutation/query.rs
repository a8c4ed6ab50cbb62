//! Mutations of the query.

use http::HeaderValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};

use crate::config::ConfigError;
use crate::config::access_log::Format;
use crate::config::error::At as _;
use crate::config::field::{enumeration, required};
use crate::config::header::AppendAction;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::core::v3::key_value_append::KeyValueAppendAction;
use crate::pb::google::protobuf::value::Kind;
use crate::stream::Stream;
use crate::stream::format::{LogType, Scope, write_text};

/// What Envoy encodes: all but letters, digits and `-._*`.
const ENCODED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'*');

/// One of `query_parameter_mutations`.
#[derive(Debug)]
pub(super) enum QueryMutation {
    Append {
        key: Box<str>,
        value: Format,
        action: AppendAction,
    },
    Remove(Box<str>),
}

impl QueryMutation {
    #[allow(deprecated, reason = "the deprecated form is refused")]
    pub(super) fn parse(proto: core::KeyValueMutation) -> Result<Self, ConfigError> {
        let core::KeyValueMutation { append, remove } = proto;
        let Some(append) = append else {
            if remove.is_empty() {
                return Err(ConfigError::invalid("neither append nor remove is set"));
            }
            return Ok(Self::Remove(remove.into()));
        };
        if !remove.is_empty() {
            return Err(ConfigError::invalid(
                "only one of append and remove can be set",
            ));
        }
        let core::KeyValueAppend {
            record,
            entry,
            action,
        } = append;
        if entry.is_some() {
            return Err(ConfigError::unsupported("entry", "use record").at("append"));
        }
        let core::KeyValuePair { key, value } = required(record, "record").at("append")?;
        if key.is_empty() {
            return Err(ConfigError::missing("key").at("record").at("append"));
        }
        let value = match value.and_then(|value| value.kind) {
            Some(Kind::StringValue(text)) => text,
            _ => {
                return Err(ConfigError::invalid("must be a string")
                    .at("value")
                    .at("record")
                    .at("append"));
            }
        };
        Ok(Self::Append {
            key: key.into(),
            value: Format::parse(&value)
                .at("value")
                .at("record")
                .at("append")?,
            action: match enumeration::<KeyValueAppendAction>(action, "action").at("append")? {
                KeyValueAppendAction::AppendIfExistsOrAdd => AppendAction::AppendIfExistsOrAdd,
                KeyValueAppendAction::AddIfAbsent => AppendAction::AddIfAbsent,
                KeyValueAppendAction::OverwriteIfExistsOrAdd => {
                    AppendAction::OverwriteIfExistsOrAdd
                }
                KeyValueAppendAction::OverwriteIfExists => AppendAction::OverwriteIfExists,
            },
        })
    }
}

/// Parameters as they stand, undecoded.
struct Query(Vec<Vec<u8>>);

impl Query {
    fn of(query: &[u8]) -> Self {
        Self(
            query
                .split(|byte| *byte == b'&')
                .filter(|parameter| !parameter.is_empty())
                .map(<[u8]>::to_vec)
                .collect(),
        )
    }

    fn is(parameter: &[u8], key: &str) -> bool {
        let name = parameter
            .split(|byte| *byte == b'=')
            .next()
            .unwrap_or_default();
        percent_decode(name).eq(key.bytes())
    }

    fn has(&self, key: &str) -> bool {
        self.0.iter().any(|parameter| Self::is(parameter, key))
    }

    fn remove(&mut self, key: &str) {
        self.0.retain(|parameter| !Self::is(parameter, key));
    }

    fn overwrite(&mut self, key: &str, value: &[u8]) {
        let mut first = true;
        self.0.retain_mut(|parameter| {
            if !Self::is(parameter, key) {
                return true;
            }
            if first {
                *parameter = pair(key, value);
            }
            std::mem::take(&mut first)
        });
    }

    fn add(&mut self, key: &str, value: &[u8]) {
        self.0.push(pair(key, value));
    }
}

fn pair(key: &str, value: &[u8]) -> Vec<u8> {
    let key = percent_encode(key.as_bytes(), &ENCODED);
    let value = percent_encode(value, &ENCODED);
    format!("{key}={value}").into_bytes()
}

/// Applies `mutations` in order to the path in `stream`.
pub(super) fn mutate(stream: &Stream, mutations: &[QueryMutation]) {
    if mutations.is_empty() {
        return;
    }
    let path = stream.request.lock().path.clone();
    let path = path.as_bytes();
    let end = memchr::memchr(b'#', path).unwrap_or(path.len());
    let (path, fragment) = path.split_at(end);
    let start = memchr::memchr(b'?', path).unwrap_or(path.len());
    let (path, query) = path.split_at(start);
    let mut query = Query::of(query.strip_prefix(b"?").unwrap_or(query));
    for mutation in mutations {
        match mutation {
            QueryMutation::Remove(key) => query.remove(key),
            QueryMutation::Append { key, value, action } => {
                let mut text = Vec::new();
                Scope::with(stream, LogType::NotSet, |scope| {
                    write_text(value, scope, true, &mut text);
                });
                match (action, query.has(key)) {
                    (AppendAction::AppendIfExistsOrAdd, _)
                    | (AppendAction::AddIfAbsent | AppendAction::OverwriteIfExistsOrAdd, false) => {
                        query.add(key, &text);
                    }
                    (
                        AppendAction::OverwriteIfExistsOrAdd | AppendAction::OverwriteIfExists,
                        true,
                    ) => {
                        query.overwrite(key, &text);
                    }
                    (AppendAction::AddIfAbsent, true)
                    | (AppendAction::OverwriteIfExists, false) => {}
                }
            }
        }
    }
    let mut changed = path.to_vec();
    if !query.0.is_empty() {
        changed.push(b'?');
        changed.extend_from_slice(&query.0.join(&b'&'));
    }
    changed.extend_from_slice(fragment);
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(changed)) {
        stream.request.lock().path = value;
    }
}
