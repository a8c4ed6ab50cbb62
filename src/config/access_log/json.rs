//! JSON templates (`json_format`): objects, lists and strings with operators.

use super::format::{Format, FormatPart};
use super::operator::Operator;
use crate::config::error::{At, ConfigError};
use crate::pb;
use crate::pb::google::protobuf::{self, value::Kind};

/// A JSON template.
#[derive(Clone, Debug, PartialEq)]
pub enum JsonFormat {
    /// By key, sorted; a key comes as it is written, quotes and colon included.
    Object(Vec<(Box<str>, JsonFormat)>),
    /// In order.
    List(Vec<JsonFormat>),
    /// A string with operators among text.
    String(Format),
    /// A string that is exactly one operator: its value keeps its type.
    Typed {
        /// The operator.
        operator: Operator,
        /// At most so many bytes.
        max_len: Option<usize>,
    },
    /// Written as is.
    Literal(Box<str>),
    /// A null of the template: left out where empty values are.
    Null,
}

impl JsonFormat {
    /// Validates the fields of a `json_format`.
    ///
    /// # Errors
    /// A bad format string.
    pub fn parse(fields: pb::Struct) -> Result<Self, ConfigError> {
        let mut entries = Vec::with_capacity(fields.fields.len());
        for (key, value) in fields.fields {
            let value = Self::parse_value(value).at(&key)?;
            entries.push((key, value));
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Self::Object(
            entries
                .into_iter()
                .map(|(key, value)| (format!("{}:", quoted(&key)).into(), value))
                .collect(),
        ))
    }

    fn parse_value(value: protobuf::Value) -> Result<Self, ConfigError> {
        match value.kind {
            Some(Kind::StringValue(text)) => {
                let format = Format::parse(&text)?;
                Ok(match &*format.parts {
                    [FormatPart::Operator { operator, max_len }] => Self::Typed {
                        operator: operator.clone(),
                        max_len: *max_len,
                    },
                    _ => match format.as_literal() {
                        Some(text) => Self::Literal(quoted(text).into()),
                        None => Self::String(format),
                    },
                })
            }
            Some(Kind::StructValue(fields)) => Self::parse(fields),
            Some(Kind::ListValue(list)) => list
                .values
                .into_iter()
                .enumerate()
                .map(|(index, value)| Self::parse_value(value).at_index("", index))
                .collect::<Result<_, _>>()
                .map(Self::List),
            Some(Kind::NumberValue(number)) => Ok(Self::Literal(number_text(number).into())),
            Some(Kind::BoolValue(value)) => Ok(Self::Literal(value.to_string().into())),
            Some(Kind::NullValue(_)) | None => Ok(Self::Null),
        }
    }
}

/// A number as JSON; integers without a fraction.
fn number_text(number: f64) -> String {
    if number.fract() == 0.0 && number.abs() < 9e15 {
        format!("{number:.0}")
    } else {
        serde_json::Number::from_f64(number)
            .map_or_else(|| "null".to_owned(), |number| number.to_string())
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
