//! Header mutations (`envoy.config.core.v3.HeaderValueOption`), with the values' substitution formats compiled.

mod parse;

use http::HeaderName;

use super::access_log::Format;

/// `HeaderValueOption.HeaderAppendAction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendAction {
    /// Adds a further value.
    AppendIfExistsOrAdd,
    /// Adds only where the header is absent.
    AddIfAbsent,
    /// Sets, whether present or not.
    OverwriteIfExistsOrAdd,
    /// Sets only where present.
    OverwriteIfExists,
}

/// One header to add or set.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderValueOption {
    /// The header (pseudo-headers are refused at parsing, but for `:path`, `:authority`, `:method` in header_mutation).
    pub name: HeaderTarget,
    /// The value, with `%OPERATORS%`.
    pub value: Format,
    /// What to do where it exists.
    pub action: AppendAction,
    /// Keep a header whose formatted value is empty.
    pub keep_empty_value: bool,
}

/// What a header mutation names.
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderTarget {
    /// An ordinary header.
    Header(HeaderName),
    /// `:authority` (or `host`).
    Authority,
    /// `:path`.
    Path,
    /// `:method`.
    Method,
    /// `:scheme`.
    Scheme,
    /// `:status` of a response.
    Status,
}

/// `request_headers_to_add` and `…_to_remove` (or the response's) of one level.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderMutations {
    /// Applied after the removals, in order.
    pub add: Vec<HeaderValueOption>,
    /// Removed first, as Envoy does.
    pub remove: Vec<HeaderName>,
}

impl HeaderMutations {
    /// True where there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}
