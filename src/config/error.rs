//! Why a resource was refused, and where.

use std::fmt;

/// The way to a field, as Envoy's JSON names it: `filter_chains[0].filters[0].typed_config.route_config`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldPath(String);

impl FieldPath {
    /// The path as text; empty for the resource itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn prepend(&mut self, segment: &str) {
        let joint = if self.0.is_empty() || self.0.starts_with('[') {
            ""
        } else {
            "."
        };
        self.0 = format!("{segment}{joint}{}", self.0);
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A required field is absent.
    Missing,
    /// The field asks for what this build does not do, and ignoring it would change security or routing.
    Unsupported(String),
    /// The value is not acceptable.
    Invalid(String),
}

/// A protobuf message that could not become its model: the field and the reason.
///
/// Made at the leaf; each caller adds its step with [`ConfigError::at`] or [`At::at`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The field.
    pub path: FieldPath,
    /// The reason.
    pub kind: ErrorKind,
}

impl ConfigError {
    /// A required `field` is absent.
    pub fn missing(field: &str) -> Self {
        Self {
            path: FieldPath::default(),
            kind: ErrorKind::Missing,
        }
        .at(field)
    }

    /// `field` is set, and not supported; `why` tells the operator what to do about it, or is empty.
    pub fn unsupported(field: &str, why: impl Into<String>) -> Self {
        Self {
            path: FieldPath::default(),
            kind: ErrorKind::Unsupported(why.into()),
        }
        .at(field)
    }

    /// The value at this place is not acceptable; add the place with [`ConfigError::at`].
    pub fn invalid(reason: impl Into<String>) -> Self {
        Self {
            path: FieldPath::default(),
            kind: ErrorKind::Invalid(reason.into()),
        }
    }

    /// Prepends the field that this error was found in.
    #[must_use]
    pub fn at(mut self, field: &str) -> Self {
        if !field.is_empty() {
            self.path.prepend(field);
        }
        self
    }

    /// Prepends `field[index]`.
    #[must_use]
    pub fn at_index(self, field: &str, index: usize) -> Self {
        self.at(&format!("{field}[{index}]"))
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.as_str().is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        match &self.kind {
            ErrorKind::Missing => f.write_str("value is required"),
            ErrorKind::Unsupported(why) if why.is_empty() => f.write_str("not supported"),
            ErrorKind::Unsupported(why) => write!(f, "not supported: {why}"),
            ErrorKind::Invalid(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for ConfigError {}

impl From<crate::pb::Error> for ConfigError {
    fn from(error: crate::pb::Error) -> Self {
        Self::invalid(error.to_string())
    }
}

/// Adds a step of the path to the error of a result.
pub trait At<T> {
    /// As [`ConfigError::at`].
    fn at(self, field: &str) -> Result<T, ConfigError>;
    /// As [`ConfigError::at_index`].
    fn at_index(self, field: &str, index: usize) -> Result<T, ConfigError>;
}

impl<T> At<T> for Result<T, ConfigError> {
    fn at(self, field: &str) -> Self {
        self.map_err(|error| error.at(field))
    }

    fn at_index(self, field: &str, index: usize) -> Self {
        self.map_err(|error| error.at_index(field, index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_reads_from_the_resource_to_the_field() {
        let error = ConfigError::invalid("must be below 65536")
            .at("port_value")
            .at("socket_address")
            .at_index("filter_chains", 2);
        assert_eq!(
            error.to_string(),
            "filter_chains[2].socket_address.port_value: must be below 65536"
        );
    }
}
