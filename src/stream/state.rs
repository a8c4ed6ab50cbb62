//! Filter state: named objects that filters leave for later filters, for the router and for the access log.
//!
//! An object belongs to a span of time from the moment that it is first set: to set it anew with another span has no
//! effect, as in Envoy. What belongs to the connection is seen by its later streams.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use prost_reflect::MessageDescriptor;

use crate::base::WorkerCell;

/// How long an object lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LifeSpan {
    /// The stream, as one filter chain serves it.
    #[default]
    FilterChain,
    /// The request.
    Request,
    /// The connection.
    Connection,
}

/// What an object is.
#[derive(Clone, Debug)]
pub enum StateKind {
    /// Bytes that a plugin set.
    Bytes,
    /// Text that a plugin set.
    Text,
    /// A FlatBuffers table that a plugin set; its schema is not read.
    FlatBuffers,
    /// A serialized message that a plugin set.
    Message {
        /// The type URL that was declared.
        type_url: Arc<str>,
        /// Its descriptor, where the type is known.
        descriptor: Option<MessageDescriptor>,
    },
    /// An object of Envoy's: its text.
    Object,
    /// Likewise a `StringAccessor`.
    String,
    /// An object of Envoy's without a form of its own.
    Opaque,
    /// An address, which has the fields `ip` and `port` and no form of its own.
    Address(SocketAddr),
}

/// One object.
#[derive(Clone, Debug)]
pub struct StateObject {
    /// Its serialized form.
    pub value: Bytes,
    /// What it is.
    pub kind: StateKind,
    /// How long it lives.
    pub span: LifeSpan,
    /// It is never set again.
    pub read_only: bool,
}

/// Objects by name. Few: looking through them is the quickest way to one.
#[derive(Debug, Default)]
pub struct FilterState(Vec<(Box<str>, StateObject)>);

impl FilterState {
    /// The object of that name.
    pub fn get(&self, name: &str) -> Option<&StateObject> {
        self.0
            .iter()
            .find(|(known, _)| &**known == name)
            .map(|(_, object)| object)
    }

    fn get_mut(&mut self, name: &str) -> Option<&mut StateObject> {
        self.0
            .iter_mut()
            .find(|(known, _)| &**known == name)
            .map(|(_, object)| object)
    }

    /// Bytes of their names and forms.
    pub fn bytes(&self) -> usize {
        let bytes = |(name, object): &(Box<str>, StateObject)| name.len() + object.value.len();
        self.0.iter().map(bytes).sum()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Runs `f` on the object of that name, of the stream or of its connection.
pub fn with_object<R>(
    stream: &FilterState,
    connection: &WorkerCell<FilterState>,
    name: &str,
    f: impl FnOnce(&StateObject) -> R,
) -> Option<R> {
    if let Some(object) = stream.get(name) {
        return Some(f(object));
    }
    connection.lock().get(name).map(f)
}

/// As [`with_object`], to be changed.
pub fn with_object_mut<R>(
    stream: &mut FilterState,
    connection: &WorkerCell<FilterState>,
    name: &str,
    f: impl FnOnce(&mut StateObject) -> R,
) -> Option<R> {
    if let Some(object) = stream.get_mut(name) {
        return Some(f(object));
    }
    connection.lock().get_mut(name).map(f)
}

/// Sets an object where there is none of that name, or one of the same span.
pub fn set_object(
    stream: &mut FilterState,
    connection: &WorkerCell<FilterState>,
    name: &str,
    object: StateObject,
) {
    let mut connection = connection.lock();
    match stream.get_mut(name).or_else(|| connection.get_mut(name)) {
        Some(present) if present.span == object.span => *present = object,
        Some(_) => {}
        None if object.span == LifeSpan::Connection => connection.0.push((name.into(), object)),
        None => stream.0.push((name.into(), object)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: &'static str, span: LifeSpan) -> StateObject {
        StateObject {
            value: Bytes::from_static(value.as_bytes()),
            kind: StateKind::Object,
            span,
            read_only: false,
        }
    }

    #[test]
    fn an_object_keeps_the_span_that_it_was_first_set_with() {
        let mut stream = FilterState::default();
        let connection = WorkerCell::new(FilterState::default());
        let read = |stream: &FilterState, name: &str| {
            with_object(stream, &connection, name, |object| object.value.clone())
        };
        for span in [
            LifeSpan::FilterChain,
            LifeSpan::Request,
            LifeSpan::Connection,
        ] {
            set_object(&mut stream, &connection, "a", object("first", span));
        }
        set_object(
            &mut stream,
            &connection,
            "a",
            object("again", LifeSpan::FilterChain),
        );
        assert_eq!(read(&stream, "a").as_deref(), Some(&b"again"[..]));
        set_object(
            &mut stream,
            &connection,
            "b",
            object("kept", LifeSpan::Connection),
        );
        set_object(
            &mut stream,
            &connection,
            "b",
            object("not", LifeSpan::Request),
        );
        // The next stream of the connection sees what is the connection's, and nothing else.
        let mut next = FilterState::default();
        assert_eq!(read(&next, "a"), None);
        assert_eq!(read(&next, "b").as_deref(), Some(&b"kept"[..]));
        assert!(next.is_empty());
        set_object(
            &mut next,
            &connection,
            "b",
            object("changed", LifeSpan::Connection),
        );
        assert_eq!(read(&stream, "b").as_deref(), Some(&b"changed"[..]));
        assert_eq!(connection.lock().len(), 1);
    }
}
