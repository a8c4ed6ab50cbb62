//! Attributes as values of expressions, and back.
//!
//! What has fields stays a path until one is asked for: no expression pays for a map of all headers because it reads one.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use cel::ExecutionError;
use cel::common::traits::{Container, Indexer, Iterable, Iterator as Elements, Sizer};
use cel::common::types::{
    self, CelBool, CelBytes, CelDouble, CelDuration, CelInt, CelList, CelMap, CelMapKey, CelNull,
    CelString, CelTimestamp, CelUInt, Type,
};
use cel::common::value::{CowVal, StaticVal, Val};
use cel::context::VariableResolver;

use super::super::Status;
use super::super::attributes::{Scope, Value};
use super::budget::Budget;

/// What a value of a list or map weighs beyond its bytes.
pub(super) const VALUE: usize = 64;

/// What an evaluation sees, and what it may cost.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) scope: Scope,
    pub(super) budget: Budget,
}

/// The variables of an expression: attributes by their first name.
#[derive(Debug)]
pub(super) struct Variables(pub(super) Arc<Seen>);

impl VariableResolver for Variables {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        Some(CowVal::Owned(look_up(&self.0, &[], variable.as_bytes())?))
    }
}

/// The value at `path` and `name`; what has fields as an [`Attribute`]. Nothing once the budget is spent, which ends the
/// evaluation.
fn look_up<'v>(seen: &Arc<Seen>, path: &[Bytes], name: &[u8]) -> Option<Box<dyn Val + 'v>> {
    seen.budget.check().ok()?;
    let mut segments: Vec<&[u8]> = path.iter().map(|segment| &**segment).collect();
    segments.push(name);
    let value = seen.scope.find(&segments, false)?;
    seen.budget.copy(size(&value)).ok()?;
    Some(match value {
        Value::Group | Value::Map(_) | Value::Message(_) => {
            let mut path = path.to_vec();
            path.push(Bytes::copy_from_slice(name));
            Box::new(Attribute::new(Arc::clone(seen), path, value))
        }
        other => to_cel(other),
    })
}

/// An attribute with fields: a group, a map or a message.
#[derive(Clone, Debug)]
pub(super) struct Attribute {
    seen: Arc<Seen>,
    path: Vec<Bytes>,
    value: Value,
    /// Its keys, where it is a map.
    keys: Vec<CelString<'static>>,
}

static MESSAGE: Type = Type::new_unspecified_type("message");

impl Attribute {
    fn new(seen: Arc<Seen>, path: Vec<Bytes>, value: Value) -> Self {
        let keys = match &value {
            Value::Map(entries) => entries
                .iter()
                .map(|(key, _)| CelString::from(text(key)))
                .collect(),
            _ => Vec::new(),
        };
        Self {
            seen,
            path,
            value,
            keys,
        }
    }

    /// True for a message: its fields are always there, though perhaps empty.
    pub(super) fn is_message(value: &(dyn Val + '_)) -> bool {
        let attribute = value.downcast_ref::<Self>();
        attribute.is_some_and(|attribute| matches!(attribute.value, Value::Message(_)))
    }

    fn field<'v>(&self, key: &dyn Val) -> Option<Box<dyn Val + 'v>> {
        let name = key.downcast_ref::<CelString>()?;
        look_up(&self.seen, &self.path, name.inner().as_bytes())
    }
}

impl StaticVal for Attribute {}

impl Val for Attribute {
    fn get_type(&self) -> &Type {
        match self.value {
            Value::Message(_) => &MESSAGE,
            _ => Self::cel_type(),
        }
    }

    fn cel_type() -> &'static Type {
        &types::MAP_TYPE
    }

    fn as_container(&self) -> Option<&dyn Container> {
        (!matches!(self.value, Value::Message(_))).then_some(self)
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_iterable<'b, 'v>(&'b self) -> Option<&'b (dyn Iterable + 'v)>
    where
        Self: 'v,
    {
        (!matches!(self.value, Value::Message(_))).then_some(self)
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        (!matches!(self.value, Value::Message(_))).then_some(self)
    }

    fn equals(&self, other: &dyn Val) -> bool {
        match (&self.value, other.downcast_ref::<Self>()) {
            (Value::Group, Some(other)) => matches!(other.value, Value::Group),
            (Value::Message(bytes), Some(other)) => {
                matches!(&other.value, Value::Message(theirs) if theirs == bytes)
            }
            (Value::Map(_), Some(other)) => {
                to_cel(self.value.clone()).equals(&*to_cel(other.value.clone()))
            }
            (Value::Map(_), None) => to_cel(self.value.clone()).equals(other),
            _ => false,
        }
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl Indexer for Attribute {
    fn get<'b, 'v>(&'b self, key: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let found = self.field(key);
        found.map(CowVal::Owned).ok_or_else(|| {
            let name = key.downcast_ref::<CelString>();
            ExecutionError::no_such_key(name.map_or("", |name| name.inner()))
        })
    }

    fn steal<'v>(self: Box<Self>, key: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(key).map(CowVal::into_owned)
    }
}

impl Container for Attribute {
    fn contains(&self, value: &dyn Val) -> Result<bool, ExecutionError> {
        Ok(self.field(value).is_some())
    }
}

impl Sizer for Attribute {
    fn size(&self) -> CelInt {
        CelInt::from(i64::try_from(self.keys.len()).unwrap_or(i64::MAX))
    }
}

impl Iterable for Attribute {
    fn iter<'b, 'v>(&'b self) -> Box<dyn Elements<'b, 'v> + 'b>
    where
        Self: 'v,
    {
        Box::new(Keys(self.keys.iter()))
    }
}

struct Keys<'b>(std::slice::Iter<'b, CelString<'static>>);

impl<'b, 'v> Elements<'b, 'v> for Keys<'b> {
    fn next(&mut self) -> Option<&'b (dyn Val + 'v)> {
        self.0.next().map(|key| key as &dyn Val)
    }
}

/// Text that is no UTF-8 becomes text all the same: strings of expressions are.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn to_cel<'v>(value: Value) -> Box<dyn Val + 'v> {
    match value {
        Value::Null | Value::Group => Box::new(CelNull),
        Value::Bool(value) => Box::new(CelBool::from(value)),
        Value::Int(number) => Box::new(CelInt::from(number)),
        Value::Uint(number) => Box::new(CelUInt::from(number)),
        Value::Double(number) => Box::new(CelDouble::from(number)),
        Value::Text(bytes) => Box::new(CelString::from(text(&bytes))),
        Value::Bytes(bytes) | Value::Message(bytes) => Box::new(CelBytes::from(bytes.to_vec())),
        Value::Time(nanos) => {
            let time = chrono::DateTime::from_timestamp_nanos(nanos);
            Box::new(CelTimestamp::from(time.fixed_offset()))
        }
        Value::Span(nanos) => Box::new(CelDuration::from(chrono::Duration::nanoseconds(nanos))),
        Value::List(elements) => {
            let elements: Vec<Box<dyn Val + 'v>> = elements.into_iter().map(to_cel).collect();
            Box::new(CelList::from(elements))
        }
        Value::Map(entries) => {
            let entries: std::collections::HashMap<CelMapKey<'v>, Box<dyn Val + 'v>> = entries
                .into_iter()
                .map(|(key, value)| (CelMapKey::from(text(&key)), to_cel(value)))
                .collect();
            Box::new(CelMap::from(entries))
        }
    }
}

/// Bytes that a copy of the value takes.
fn size(value: &Value) -> usize {
    match value {
        Value::Text(bytes) | Value::Bytes(bytes) | Value::Message(bytes) => bytes.len(),
        Value::List(elements) => elements.iter().map(|it| VALUE + size(it)).sum(),
        Value::Map(entries) => {
            let sizes = entries
                .iter()
                .map(|(key, value)| 2 * VALUE + key.len() + size(value));
            sizes.sum()
        }
        _ => 0,
    }
}

/// Bytes that a copy of the value takes.
pub(super) fn weight(value: &(dyn Val + '_)) -> usize {
    if let Some(text) = value.downcast_ref::<CelString>() {
        text.inner().len()
    } else if let Some(bytes) = value.downcast_ref::<CelBytes>() {
        bytes.inner().len()
    } else if let Some(list) = value.downcast_ref::<CelList>() {
        let elements = list.inner().iter();
        elements.map(|it| VALUE + weight(&**it)).sum()
    } else if let Some(map) = value.downcast_ref::<CelMap>() {
        let entries = map.inner().iter();
        let weights =
            entries.map(|(key, value)| 2 * VALUE + weight(key.inner()) + weight(&**value));
        weights.sum()
    } else if let Some(attribute) = value.downcast_ref::<Attribute>() {
        size(&attribute.value)
    } else {
        0
    }
}

/// The result of an expression, in the form that it will be encoded from.
pub(super) fn from_cel(value: &(dyn Val + '_)) -> Result<Value, Status> {
    if let Some(attribute) = value.downcast_ref::<Attribute>() {
        return Ok(attribute.value.clone());
    }
    Ok(if let Some(value) = value.downcast_ref::<CelBool>() {
        Value::Bool(*value.inner())
    } else if let Some(number) = value.downcast_ref::<CelInt>() {
        Value::Int(*number.inner())
    } else if let Some(number) = value.downcast_ref::<CelUInt>() {
        Value::Uint(*number.inner())
    } else if let Some(number) = value.downcast_ref::<CelDouble>() {
        Value::Double(*number.inner())
    } else if let Some(text) = value.downcast_ref::<CelString>() {
        Value::text(text.inner())
    } else if let Some(bytes) = value.downcast_ref::<CelBytes>() {
        Value::Bytes(Bytes::copy_from_slice(bytes.inner()))
    } else if let Some(span) = value.downcast_ref::<CelDuration>() {
        let nanos = span.inner().num_nanoseconds();
        Value::Span(nanos.unwrap_or_else(|| ends(span.inner().num_seconds())))
    } else if let Some(time) = value.downcast_ref::<CelTimestamp>() {
        let nanos = time.inner().timestamp_nanos_opt();
        Value::Time(nanos.unwrap_or_else(|| ends(time.inner().timestamp())))
    } else if let Some(list) = value.downcast_ref::<CelList>() {
        let elements = list.inner().iter();
        Value::List(
            elements
                .map(|it| from_cel(&**it))
                .collect::<Result<_, _>>()?,
        )
    } else if let Some(map) = value.downcast_ref::<CelMap>() {
        let entries = map.inner().iter().map(|(key, value)| {
            let key = from_cel(key.inner())?.encode()?.to_vec();
            Ok((key, from_cel(&**value)?))
        });
        Value::Map(entries.collect::<Result<_, Status>>()?)
    } else {
        // Types, and null.
        Value::Null
    })
}

/// True for the value of a field of a message that is not set.
pub(super) fn is_empty(value: &(dyn Val + '_)) -> bool {
    match from_cel(value) {
        Ok(Value::Text(bytes) | Value::Bytes(bytes) | Value::Message(bytes)) => bytes.is_empty(),
        Ok(Value::Int(0) | Value::Uint(0) | Value::Bool(false) | Value::Null) => true,
        Ok(Value::List(list)) => list.is_empty(),
        Ok(Value::Map(map)) => map.is_empty(),
        _ => false,
    }
}

/// A number as Envoy's `string` writes it: the fewest digits that mean it, with an exponent where that is less than -4
/// or more than 5.
pub(super) fn shown_double(number: f64) -> String {
    if number.is_nan() {
        // Of the C++ library.
        return if number.is_sign_negative() {
            "-nan(ind)"
        } else {
            "nan"
        }
        .to_owned();
    }
    if number.is_infinite() {
        return if number < 0.0 { "-inf" } else { "inf" }.to_owned();
    }
    // `d.ddde-x`
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return format!("{number}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// A duration as Envoy's `string` writes it: seconds with no, three, six or nine digits after the point.
pub(super) fn shown_duration(span: &chrono::Duration) -> String {
    let (seconds, nanos) = (span.num_seconds(), span.subsec_nanos().unsigned_abs());
    let sign = if *span < chrono::Duration::zero() {
        "-"
    } else {
        ""
    };
    let seconds = seconds.unsigned_abs();
    format!("{sign}{seconds}{}s", fraction(nanos))
}

/// A time as Envoy's `string` writes it.
pub(super) fn shown_time(time: &chrono::DateTime<chrono::FixedOffset>) -> String {
    let time = time.to_utc();
    let fraction = fraction(time.timestamp_subsec_nanos());
    format!("{}{fraction}Z", time.format("%Y-%m-%dT%H:%M:%S"))
}

/// No, three, six or nine digits and the point before them.
fn fraction(nanos: u32) -> String {
    match nanos {
        0 => String::new(),
        nanos if nanos % 1_000_000 == 0 => format!(".{:03}", nanos / 1_000_000),
        nanos if nanos % 1_000 == 0 => format!(".{:06}", nanos / 1_000),
        nanos => format!(".{nanos:09}"),
    }
}

/// Where nanoseconds do not fit they end, as in Envoy.
fn ends(sign: i64) -> i64 {
    if sign < 0 { i64::MIN } else { i64::MAX }
}
