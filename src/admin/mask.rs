//! Field masks on the JSON of messages: `?mask=cluster.name,cluster.type`.
//!
//! A path goes through singular messages only, `Any` included; a repeated field can only be its end.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::pb;

/// The fields to keep, and of each the fields to keep; none means all of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mask(BTreeMap<String, Mask>);

impl Mask {
    /// From its text form.
    pub(super) fn parse(text: &str) -> Self {
        let mut root = Self::default();
        for path in text
            .split(',')
            .map(str::trim)
            .filter(|path| !path.is_empty())
        {
            let mut at = &mut root;
            for field in path.split('.') {
                at = at.0.entry(field.to_owned()).or_default();
            }
        }
        root
    }

    /// The message with only the fields of the mask; `@type` stays. `None` where the mask does not fit the message,
    /// whose type is `type_url`.
    pub(super) fn apply(&self, type_url: &str, message: &Value) -> Option<Value> {
        if !pb::mask_fits(type_url, message, &self.paths()) {
            return None;
        }
        Some(self.trim(message))
    }

    fn paths(&self) -> Vec<Vec<&str>> {
        self.0
            .iter()
            .flat_map(|(field, inner)| {
                let below = inner.paths();
                if below.is_empty() {
                    return vec![vec![field.as_str()]];
                }
                below
                    .into_iter()
                    .map(|path| std::iter::once(field.as_str()).chain(path).collect())
                    .collect()
            })
            .collect()
    }

    fn trim(&self, value: &Value) -> Value {
        let Value::Object(fields) = value else {
            return value.clone();
        };
        if self.0.is_empty() {
            return value.clone();
        }
        let kept: Map<_, _> = fields
            .iter()
            .filter_map(|(name, value)| match self.0.get(name) {
                _ if name == "@type" => Some((name.clone(), value.clone())),
                Some(inner) => Some((name.clone(), inner.trim(value))),
                None => None,
            })
            .collect();
        Value::Object(kept)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DYNAMIC: &str = "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.DynamicCluster";

    fn cluster() -> Value {
        json!({"version_info": "v1", "cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": "a", "type": "EDS", "eds_cluster_config": {"service_name": "s"}}})
    }

    #[test]
    fn only_the_named_fields_stay() {
        let kept = |mask: &str| Mask::parse(mask).apply(DYNAMIC, &cluster());
        assert_eq!(
            kept("cluster.name,cluster.eds_cluster_config.service_name"),
            Some(
                json!({"cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
                "name": "a", "eds_cluster_config": {"service_name": "s"}}})
            )
        );
        assert_eq!(kept("version_info"), Some(json!({"version_info": "v1"})));
        assert_eq!(
            kept("error_state"),
            Some(json!({})),
            "a field that is not set"
        );
    }

    #[test]
    fn a_mask_that_does_not_fit_is_refused() {
        for mask in [
            "nope",
            "cluster.nope",
            "version_info.x",
            "cluster.health_checks.timeout",
        ] {
            assert_eq!(Mask::parse(mask).apply(DYNAMIC, &cluster()), None, "{mask}");
        }
        assert!(
            Mask::parse("cluster.health_checks")
                .apply(DYNAMIC, &cluster())
                .is_some()
        );
    }
}
