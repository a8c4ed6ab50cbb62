//! What discovered filters are made of.

use super::*;
use crate::config::cluster::{ConfigSource, SourceSpecifier};

fn config(type_name: &str) -> Arc<HttpFilterConfig> {
    let type_url = format!("type.googleapis.com/{type_name}");
    Arc::new(HttpFilterConfig {
        type_url: type_url.as_str().into(),
        source: pb::Any {
            type_url,
            value: Vec::new(),
        },
        parsed: Arc::new(()),
    })
}

fn filter(type_name: &str) -> HttpFilter {
    HttpFilter {
        name: "f".into(),
        config: FilterSource::Discovered {
            source: ConfigSource {
                specifier: SourceSpecifier::Ads,
                initial_fetch_timeout: None,
            },
            type_urls: vec![format!("type.googleapis.com/{type_name}").into()],
            default: None,
            apply_default_without_warming: false,
        },
        disabled: false,
    }
}

#[test]
fn a_discovered_filter_is_of_a_type_that_its_own_chain_allows_and_may_be_kept() {
    let (a, b) = (config("test.A"), config("test.B"));
    let filters = [filter("test.A"), filter("test.B")];
    let snapshot = |value: Option<&Arc<HttpFilterConfig>>| {
        let mut snapshot = Snapshot::default();
        if let Some(value) = value {
            let source = SourceSpecifier::Ads;
            snapshot
                .extensions
                .insert(&source, "f".into(), Arc::clone(value));
        }
        snapshot
    };
    let kept = vec![Some(Arc::clone(&a)), None];
    let types = |found: Discovered| -> Vec<Option<String>> {
        found
            .iter()
            .map(|config| config.as_ref().map(|config| config.type_url.to_string()))
            .collect()
    };
    let of = |config: &Arc<HttpFilterConfig>| Some(config.type_url.to_string());
    for (now, kept, expected) in [
        (Some(&a), None, [of(&a), None]),
        (Some(&b), None, [None, of(&b)]),
        (Some(&b), Some(&kept), [None, of(&b)]),
        (None, Some(&kept), [of(&a), None]),
        (None, None, [None, None]),
    ] {
        assert_eq!(types(discovered(&filters, &snapshot(now), kept)), expected);
    }
}
