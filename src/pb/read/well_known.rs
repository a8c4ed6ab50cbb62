//! Google's well-known types, whose JSON is not an object of their fields.

use prost_reflect::{DynamicMessage, MapKey, MessageDescriptor, Value};

use super::super::Error;
use super::super::node::{Data, Node};
use super::Reader;
use super::scalar::{duration, scalar_value, snake_case};

impl Reader<'_> {
    /// The well-known types whose JSON is not an object of their fields; `None` for others.
    pub(super) fn well_known(
        &mut self,
        descriptor: &MessageDescriptor,
        node: &Node,
    ) -> Result<Option<DynamicMessage>, Error> {
        let mut message = DynamicMessage::new(descriptor.clone());
        let kind = descriptor.full_name();
        let text = match &node.data {
            Data::Scalar { text, .. } => text.as_str(),
            _ => "",
        };
        let invalid = |what| self.mismatch(node, format_args!("message {kind}"), what);
        match descriptor.name() {
            // Envoy's parser reads these as messages, too.
            "Duration" | "Timestamp" | "DoubleValue" | "FloatValue" | "Int64Value"
            | "UInt64Value" | "Int32Value" | "UInt32Value" | "BoolValue" | "StringValue"
            | "BytesValue"
                if matches!(node.data, Data::Map(_)) =>
            {
                return Ok(None);
            }
            "DoubleValue" | "FloatValue" | "Int64Value" | "UInt64Value" | "Int32Value"
            | "UInt32Value" | "BoolValue" | "StringValue" | "BytesValue" => {
                let Some(field) = descriptor.get_field(1) else {
                    return Ok(None);
                };
                let value = self.single(&field.kind(), node)?;
                message.set_field(&field, value);
            }
            "Duration" => {
                let (seconds, nanos) = duration(text)
                    .ok_or_else(|| invalid(format!("invalid duration {}", node.describe())))?;
                message.set_field_by_number(1, Value::I64(seconds));
                message.set_field_by_number(2, Value::I32(nanos));
            }
            "Timestamp" => {
                let time: jiff::Timestamp = text
                    .parse()
                    .map_err(|_| invalid(format!("invalid timestamp {}", node.describe())))?;
                let (mut seconds, mut nanos) = (time.as_second(), time.subsec_nanosecond());
                if nanos < 0 {
                    (seconds, nanos) = (seconds - 1, nanos + 1_000_000_000);
                }
                message.set_field_by_number(1, Value::I64(seconds));
                message.set_field_by_number(2, Value::I32(nanos));
            }
            "FieldMask" => {
                let paths = text
                    .split(',')
                    .map(str::trim)
                    .filter(|path| !path.is_empty());
                let paths = paths.map(|path| Value::String(snake_case(path))).collect();
                message.set_field_by_number(1, Value::List(paths));
            }
            "Struct" => {
                let map = self.struct_fields(descriptor, node)?;
                message.set_field_by_number(1, Value::Map(map));
            }
            "ListValue" => {
                let Data::List(items) = &node.data else {
                    return Err(invalid(format!(
                        "unexpected {}; expected '['",
                        node.describe()
                    )));
                };
                let list = self.values(descriptor, items)?;
                message.set_field_by_number(1, Value::List(list));
            }
            "Value" => return self.value(descriptor, node).map(Some),
            _ => return Ok(None),
        }
        Ok(Some(message))
    }

    fn struct_fields(
        &mut self,
        descriptor: &MessageDescriptor,
        node: &Node,
    ) -> Result<std::collections::HashMap<MapKey, Value>, Error> {
        let value_type = self.value_type(descriptor, node)?;
        let mut map = std::collections::HashMap::new();
        for (key, value) in self.entries(node, descriptor)? {
            let value = self.message(&value_type, value)?;
            map.insert(MapKey::String(key.clone()), Value::Message(value));
        }
        Ok(map)
    }

    fn values(
        &mut self,
        descriptor: &MessageDescriptor,
        items: &[Node],
    ) -> Result<Vec<Value>, Error> {
        let mut list = Vec::with_capacity(items.len());
        for item in items {
            let value_type = self.value_type(descriptor, item)?;
            list.push(Value::Message(self.message(&value_type, item)?));
        }
        Ok(list)
    }

    fn value_type(
        &self,
        descriptor: &MessageDescriptor,
        node: &Node,
    ) -> Result<MessageDescriptor, Error> {
        descriptor
            .parent_pool()
            .get_message_by_name("google.protobuf.Value")
            .ok_or_else(|| self.mismatch(node, "message", "google.protobuf.Value is not known"))
    }

    /// A `Value`. Unquoted scalars become what Envoy makes of them: YAML 1.1 booleans, integers that a double holds
    /// exactly, other numbers, else text.
    fn value(
        &mut self,
        descriptor: &MessageDescriptor,
        node: &Node,
    ) -> Result<DynamicMessage, Error> {
        let pool = descriptor.parent_pool();
        let mut message = DynamicMessage::new(descriptor.clone());
        let (number, value) = match &node.data {
            Data::Scalar { .. } if node.is_null() => (1, Value::EnumNumber(0)),
            Data::Scalar { text, quoted } => scalar_value(text, *quoted),
            Data::Map(_) => {
                let inner = pool
                    .get_message_by_name("google.protobuf.Struct")
                    .ok_or_else(|| {
                        self.mismatch(node, "message", "google.protobuf.Struct is not known")
                    })?;
                (5, Value::Message(self.message(&inner, node)?))
            }
            Data::List(_) => {
                let inner = pool
                    .get_message_by_name("google.protobuf.ListValue")
                    .ok_or_else(|| {
                        self.mismatch(node, "message", "google.protobuf.ListValue is not known")
                    })?;
                (6, Value::Message(self.message(&inner, node)?))
            }
        };
        message.set_field_by_number(number, value);
        Ok(message)
    }
}

/// Types whose JSON inside an `Any` stands under `value`.
pub(in crate::pb) fn has_special_json(name: &str) -> bool {
    name.strip_prefix("google.protobuf.").is_some_and(|name| {
        matches!(
            name,
            "Any" | "Duration" | "Timestamp" | "FieldMask" | "Struct" | "Value" | "ListValue"
        ) || name.ends_with("Value")
    })
}
