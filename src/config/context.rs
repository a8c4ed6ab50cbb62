//! What a parser of resources is told besides the message.

use super::extension::Extensions;

/// Given to every `parse` function of the model.
#[derive(Clone, Copy)]
pub struct ParseContext<'a> {
    /// What the build knows of filters.
    pub extensions: &'a dyn Extensions,
    /// Where the resource comes from.
    pub source: Source,
    /// Whether a cluster of that name exists (or is being warmed), for `validate_clusters`. `None`: not checked.
    pub clusters: Option<&'a (dyn Fn(&str) -> bool + Sync)>,
}

/// Where a resource comes from: some defaults and checks of Envoy's differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The bootstrap file.
    Static,
    /// A control plane, or a watched file.
    Dynamic,
}

impl<'a> ParseContext<'a> {
    /// A context that does not check cluster names.
    pub fn new(extensions: &'a dyn Extensions, source: Source) -> Self {
        Self {
            extensions,
            source,
            clusters: None,
        }
    }

    /// Checks cluster names with `known` where Envoy does.
    #[must_use]
    pub fn with_clusters(self, known: &'a (dyn Fn(&str) -> bool + Sync)) -> Self {
        Self {
            clusters: Some(known),
            ..self
        }
    }
}
