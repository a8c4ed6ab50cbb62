//! What is kept, what is refused, what is deleted.

use super::*;
use crate::config::Endpoints;
use crate::pb;
use crate::pb::envoy::service::discovery::v3::DiscoveryResponse;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;
const SOURCE: SourceSpecifier = SourceSpecifier::Ads;

/// A value that depends on the weight alone; `bad…` is refused.
fn parse(name: &str, body: &Bytes, _: &mut Vec<String>) -> Result<Value, ConfigError> {
    if name.starts_with("bad") {
        return Err(ConfigError::invalid("is bad").at("field"));
    }
    Ok(Value::Endpoints(Arc::new(Endpoints {
        cluster_name: format!("{}", body.len() / 100).into(),
        ..Endpoints::default()
    })))
}

/// Resources as `name:padding`.
fn update(kind: ResourceType, version: &str, resources: &[&str]) -> Update {
    let resources = resources.iter().map(|resource| {
        let (name, padding) = resource.split_once(':').unwrap_or((resource, ""));
        let mut value = vec![0x0a, name.len() as u8];
        value.extend(name.as_bytes());
        value.extend([0x7a, padding.len() as u8]);
        value.extend(padding.as_bytes());
        pb::Any {
            type_url: kind.type_url().to_owned(),
            value,
        }
    });
    Update::of_sotw(
        kind,
        DiscoveryResponse {
            version_info: version.to_owned(),
            resources: resources.collect(),
            ..DiscoveryResponse::default()
        },
    )
}

fn apply(cache: &mut Cache, update: Update) -> (Option<String>, Committed) {
    let judgement = cache.judge(update, &SOURCE, NOW, |_| true, parse);
    (judgement.refusal(), cache.commit(judgement, NOW))
}

fn held(cache: &Cache, kind: ResourceType) -> Vec<(&str, &str)> {
    let entries = cache.entries(kind);
    entries
        .filter_map(|(name, entry)| Some((&**name, &*entry.current.as_ref()?.version)))
        .collect()
}

#[test]
fn a_refused_resource_keeps_its_value_and_spares_its_neighbours() {
    let kind = ResourceType::Cluster;
    let mut cache = Cache::default();
    apply(&mut cache, update(kind, "1", &["a", "bad-was-good", "c"]));
    let (refusal, committed) = apply(&mut cache, update(kind, "2", &["a:x", "bad", "d"]));
    assert_eq!(
        refusal.as_deref(),
        Some("Error adding/updating cluster(s) bad: field: is bad")
    );
    assert_eq!(committed.added, [Arc::from("d")]);
    assert_eq!(committed.removed, [Arc::from("c")]);
    assert_eq!(held(&cache, kind), [("a", "2"), ("d", "2")]);
    assert_eq!(
        cache.tables(kind)[&SOURCE].version,
        "",
        "neither response was accepted in full"
    );
    let rejection = cache.tables(kind)[&SOURCE].entries["bad"]
        .rejection
        .as_ref()
        .unwrap();
    assert_eq!(rejection.details, "field: is bad");
    apply(&mut cache, update(kind, "3", &["a:x", "d"]));
    assert!(
        !cache.tables(kind)[&SOURCE].entries.contains_key("bad"),
        "forgotten with its name"
    );
    assert_eq!(cache.tables(kind)[&SOURCE].version, "3");
}

#[test]
fn equal_bytes_are_not_parsed_and_equal_values_keep_their_identity() {
    let kind = ResourceType::Endpoints;
    let mut cache = Cache::default();
    apply(&mut cache, update(kind, "1", &["a", "b"]));
    let value = |cache: &Cache, name| cache.current(kind, &SOURCE, name).unwrap().value.clone();
    let before = value(&cache, "b");
    let parsed = std::cell::RefCell::new(Vec::new());
    let judgement = cache.judge(
        update(kind, "2", &["a", "b:x"]),
        &SOURCE,
        NOW,
        |_| true,
        |name, body, unknown| {
            parsed.borrow_mut().push(name.to_owned());
            parse(name, body, unknown)
        },
    );
    assert_eq!(*parsed.borrow(), ["b"]);
    let committed = cache.commit(judgement, NOW);
    assert!(committed.is_empty(), "nothing downstream has to look");
    assert!(value(&cache, "b").same(&before));
    assert_eq!(held(&cache, kind), [("a", "1"), ("b", "2")]);
}

#[test]
fn what_an_unreadable_response_leaves_out_stays() {
    let kind = ResourceType::Cluster;
    let mut cache = Cache::default();
    apply(&mut cache, update(kind, "1", &["a", "b"]));
    let (refusal, committed) = apply(&mut cache, update(kind, "2", &["a", ""]));
    assert!(refusal.unwrap().contains("resources[1].name"));
    assert!(committed.is_empty());
    assert_eq!(held(&cache, kind).len(), 2);
}

#[test]
fn what_was_not_asked_for_is_accepted_and_ignored() {
    let kind = ResourceType::Endpoints;
    let mut cache = Cache::default();
    let judgement = cache.judge(
        update(kind, "1", &["a", "bad"]),
        &SOURCE,
        NOW,
        |name| name == "a",
        parse,
    );
    assert_eq!(judgement.refusal(), None);
    cache.commit(judgement, NOW);
    assert_eq!(held(&cache, kind), [("a", "1")]);
}

#[test]
fn endpoints_outlive_their_removal_and_discovered_filters_do_not() {
    for (kind, stays) in [
        (ResourceType::Endpoints, true),
        (ResourceType::Route, true),
        (ResourceType::Extension, false),
        (ResourceType::Cluster, false),
    ] {
        let mut cache = Cache::default();
        apply(&mut cache, update(kind, "1", &["a"]));
        let removal = Update {
            removed: vec!["a".into()],
            full_state: false,
            ..update(kind, "2", &[])
        };
        let (_, committed) = apply(&mut cache, removal);
        assert_eq!(held(&cache, kind).len(), usize::from(stays), "{kind}");
        assert_eq!(committed.removed.is_empty(), stays, "{kind}");
        assert_eq!(committed.absent.is_empty(), kind == ResourceType::Cluster);
    }
}

#[test]
fn what_is_not_admitted_is_refused_alone() {
    let kind = ResourceType::Listener;
    let mut cache = Cache::default();
    let mut judgement = cache.judge(
        update(kind, "1", &["a", "b"]),
        &SOURCE,
        NOW,
        |_| true,
        parse,
    );
    judgement.refuse(
        "b",
        &ConfigError::invalid("traps").at("http_filters[0]"),
        NOW,
    );
    assert_eq!(
        judgement.refusal().as_deref(),
        Some("Error adding/updating listener(s) b: http_filters[0]: traps\n")
    );
    cache.commit(judgement, NOW);
    assert_eq!(held(&cache, kind), [("a", "1")]);
    assert!(cache.tables(kind)[&SOURCE].entries["b"].rejection.is_some());
}
