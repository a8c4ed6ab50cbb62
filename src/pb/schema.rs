//! The API's messages and the fields of each: all that the search for unknown fields asks.
//!
//! Read from the bytes of the descriptor sets in `proto`, which it borrows from: a few hundred KiB and 2 ms, where the
//! pool of descriptors takes 10 MiB and 35 ms. So a process that gets its configuration by xDS does without the pool.

use std::sync::OnceLock;

use super::wire::{Value, next_field};

/// The API.
#[derive(Debug)]
pub(super) struct Schema {
    /// By name.
    messages: Vec<Message>,
}

/// A message of the API.
#[derive(Debug)]
pub(super) struct Message {
    /// With its package.
    name: Box<str>,
    /// Its `DescriptorProto`.
    descriptor: &'static [u8],
    /// By number; read when the message is first met.
    fields: OnceLock<Box<[Field]>>,
}

/// A field of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    number: u32,
    /// As in the `.proto` file.
    pub(super) name: &'static str,
    /// A list or a map.
    pub(super) repeated: bool,
    /// Where in the API the message is that it holds, unless that is opaque.
    pub(super) message: Option<u32>,
}

impl Schema {
    /// The one of the descriptor sets in `proto`.
    pub(super) fn embedded() -> &'static Self {
        static EMBEDDED: OnceLock<Schema> = OnceLock::new();
        EMBEDDED.get_or_init(|| Self::read(super::DESCRIPTOR_SETS))
    }

    fn read(sets: impl IntoIterator<Item = &'static [u8]>) -> Self {
        const FILE: u32 = 1;
        let mut messages = Vec::new();
        for mut set in sets {
            while let Some((FILE, Value::Bytes(file))) = next_field(&mut set) {
                read_file(file, &mut messages);
            }
        }
        messages.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        messages.shrink_to_fit();
        Self { messages }
    }

    /// A message by its full name.
    pub(super) fn find(&self, name: &str) -> Option<&Message> {
        self.index(name).map(|index| self.at(index))
    }

    /// A message by what [`Field::message`] says.
    pub(super) fn at(&self, index: u32) -> &Message {
        &self.messages[index as usize]
    }

    fn index(&self, name: &str) -> Option<u32> {
        let index = self
            .messages
            .binary_search_by(|message| (*message.name).cmp(name))
            .ok()?;
        u32::try_from(index).ok()
    }

    /// The field of `message` with this number.
    pub(super) fn field(&self, message: &Message, number: u32) -> Option<Field> {
        let fields = message
            .fields
            .get_or_init(|| self.read_fields(message.descriptor));
        let index = fields
            .binary_search_by_key(&number, |field| field.number)
            .ok()?;
        Some(fields[index])
    }

    fn read_fields(&self, mut descriptor: &'static [u8]) -> Box<[Field]> {
        const FIELD: u32 = 2;
        let mut fields = Vec::new();
        while let Some((number, value)) = next_field(&mut descriptor) {
            if let (FIELD, Value::Bytes(field)) = (number, value) {
                fields.push(self.read_field(field));
            }
        }
        fields.sort_unstable_by_key(|field| field.number);
        fields.into()
    }

    fn read_field(&self, mut descriptor: &'static [u8]) -> Field {
        const NAME: u32 = 1;
        const NUMBER: u32 = 3;
        const LABEL: u32 = 4;
        const TYPE: u32 = 5;
        const TYPE_NAME: u32 = 6;
        const LABEL_REPEATED: u64 = 3;
        const TYPE_MESSAGE: u64 = 11;
        let mut field = Field {
            number: 0,
            name: "",
            repeated: false,
            message: None,
        };
        let (mut is_message, mut type_name) = (false, "");
        while let Some(next) = next_field(&mut descriptor) {
            match next {
                (NAME, Value::Bytes(bytes)) => field.name = text(bytes),
                (NUMBER, Value::Varint(number)) => {
                    field.number = u32::try_from(number).unwrap_or_default();
                }
                (LABEL, Value::Varint(label)) => field.repeated = label == LABEL_REPEATED,
                (TYPE, Value::Varint(kind)) => is_message = kind == TYPE_MESSAGE,
                (TYPE_NAME, Value::Bytes(bytes)) => type_name = text(bytes),
                _ => {}
            }
        }
        let type_name = type_name.trim_start_matches('.');
        if is_message && !is_opaque(type_name) {
            field.message = self.index(type_name);
        }
        field
    }
}

impl Message {
    /// With its package.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Holds no messages of the API.
    pub(super) fn is_opaque(&self) -> bool {
        is_opaque(&self.name)
    }
}

fn is_opaque(name: &str) -> bool {
    name.starts_with("google.protobuf.") && name != "google.protobuf.Any"
}

fn read_file(file: &'static [u8], messages: &mut Vec<Message>) {
    const PACKAGE: u32 = 2;
    const MESSAGE: u32 = 4;
    let mut package = "";
    let mut rest = file;
    while let Some((number, value)) = next_field(&mut rest) {
        if let (PACKAGE, Value::Bytes(bytes)) = (number, value) {
            package = text(bytes);
        }
    }
    let mut rest = file;
    while let Some((number, value)) = next_field(&mut rest) {
        if let (MESSAGE, Value::Bytes(descriptor)) = (number, value) {
            read_message(package, descriptor, messages);
        }
    }
}

fn read_message(scope: &str, descriptor: &'static [u8], messages: &mut Vec<Message>) {
    const NAME: u32 = 1;
    const NESTED: u32 = 3;
    let (mut name, mut nested) = ("", Vec::new());
    let mut rest = descriptor;
    while let Some(next) = next_field(&mut rest) {
        match next {
            (NAME, Value::Bytes(bytes)) => name = text(bytes),
            (NESTED, Value::Bytes(descriptor)) => nested.push(descriptor),
            _ => {}
        }
    }
    let joint = if scope.is_empty() { "" } else { "." };
    let name = format!("{scope}{joint}{name}");
    for descriptor in nested {
        read_message(&name, descriptor, messages);
    }
    messages.push(Message {
        name: name.into(),
        descriptor,
        fields: OnceLock::new(),
    });
}

/// The embedded set is valid (a test decodes it); an invalid name would be a field without a name.
fn text(bytes: &'static [u8]) -> &'static str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use prost_reflect::Kind;

    use super::*;

    #[test]
    fn it_is_what_the_descriptors_say() {
        let schema = Schema::embedded();
        let pool = crate::pb::descriptors();
        let mut checked = 0;
        for message in pool.all_messages() {
            let found = schema.find(message.full_name()).expect("every message");
            assert_eq!(found.name(), message.full_name());
            for field in message.fields() {
                let known = schema.field(found, field.number()).expect("every field");
                assert_eq!(known.name, field.name());
                assert_eq!(known.repeated, field.is_list() || field.is_map());
                let inner = match field.kind() {
                    Kind::Message(inner) if !is_opaque(inner.full_name()) => Some(inner),
                    _ => None,
                };
                assert_eq!(
                    known.message.map(|index| schema.at(index).name()),
                    inner.as_ref().map(|inner| inner.full_name()),
                );
                checked += 1;
            }
            assert!(schema.field(found, 99_999).is_none());
        }
        assert_eq!(schema.messages.len(), pool.all_messages().count());
        assert!(checked > 5000, "{checked}");
    }
}
