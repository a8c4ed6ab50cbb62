//! Every field arrives, what is wrong is named, and the documents keep up.

use std::collections::BTreeMap;

use prost::{Message as _, Name as _};
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor};

use super::*;
use crate::pb;

fn parse(yaml: &str) -> Result<WasmSettings, String> {
    let message = pb::from_yaml::<proto::WasmSettings>(yaml).map_err(|error| error.to_string())?;
    WasmSettings::parse(message).map_err(|error| error.to_string())
}

/// Every field, set to what is not its default.
const EVERYTHING: &str = "
defaults:
  deadlines: {callback_soft: 5s, callback_hard: 6s, start: 7s}
  memory_limit_bytes: 65536
  quotas: {metrics: 1, shared_data_bytes: 2, queues: 3, queue_bytes: 4, min_tick_period: 0.005s, callouts: 6, log_lines_per_second: 7, callout_bytes: 8}
  breaker: {tokens: 2, token_interval: 3s, base_interval: 4s, max_interval: 5s, probe_streams: 6, probe_time: 7s}
  max_pause: 8s
  vm_sharing: ISOLATED
  after_crash: ENVOY
  lenient_header_reads: true
  rollout: {share_percent: 10, window: 2s, min_streams: 3, max_broken_percent: 4.5, max_added_latency: 6s}
overrides: [{plugin: {prefix: a}, settings: {max_pause: 0s, vm_sharing: BY_KEY, after_crash: REBUILD}}]
cache: {modules_in_memory: 1, modules_on_disk: 2, source_bytes_on_disk: 3, refresh_interval: 4s}
insecure_registries: ['registry.test:5000']
internal_registries: ['Internal.test']
compiler: {baseline_from_bytes: 5}
";

#[test]
fn every_field_arrives() {
    let policy = PluginPolicy {
        callback_soft: Duration::from_secs(5),
        callback_hard: Duration::from_secs(6),
        start: Duration::from_secs(7),
        memory: 65536,
        quotas: Quotas {
            metrics: 1,
            shared_data: 2,
            queues: 3,
            queue_bytes: 4,
            min_tick_period: Duration::from_millis(5),
            callouts: 6,
            callout_bytes: 8,
            log_lines_per_second: 7,
        },
        breaker: BreakerPolicy {
            tokens: 2,
            token_interval: Duration::from_secs(3),
            base: Duration::from_secs(4),
            max: Duration::from_secs(5),
            probe_streams: 6,
            probe_time: Duration::from_secs(7),
        },
        max_pause: Some(Duration::from_secs(8)),
        vm_sharing: VmSharing::Isolated,
        after_crash: AfterCrash::Envoy,
        lenient_header_reads: true,
        rollout: RolloutPolicy {
            share_percent: 10,
            window: Duration::from_secs(2),
            min_streams: 3,
            max_broken_percent: 4.5,
            max_added_latency: Duration::from_secs(6),
        },
    };
    let settings = parse(EVERYTHING).unwrap();
    assert_eq!(settings.defaults, policy);
    // What an override leaves out is that of the defaults.
    let laid_over = PluginPolicy {
        max_pause: None,
        vm_sharing: VmSharing::ByKey,
        after_crash: AfterCrash::Rebuild,
        ..policy
    };
    assert_eq!(settings.overrides.len(), 1);
    assert_eq!(settings.overrides[0].1, laid_over);
    assert_eq!(
        (settings.modules_in_memory, settings.modules_on_disk),
        (1, 2)
    );
    assert_eq!(settings.source_bytes_on_disk, 3);
    assert_eq!(settings.refresh_interval, Some(Duration::from_secs(4)));
    assert_eq!(settings.baseline_from, Some(5));
    let never = parse("compiler: {baseline_from_bytes: 0}").unwrap();
    assert_eq!(never.baseline_from, None);
    assert_eq!(settings.internal_registries, [Box::from("internal.test")]);
    assert_eq!(
        settings.insecure_registries,
        [Box::from("registry.test:5000")]
    );
    assert_eq!(parse("{}").unwrap(), WasmSettings::default());
}

#[test]
fn what_is_wrong_is_named() {
    for (yaml, error) in [
        (
            "defaults: {memory_limit_bytes: 1}",
            "defaults.memory_limit_bytes: value must be inside range [65536, 4294967296]",
        ),
        (
            "defaults: {deadlines: {callback_hard: 0s}}",
            "defaults.deadlines.callback_hard: value must be greater than 0s",
        ),
        (
            "defaults: {deadlines: {callback_soft: 60ms}}",
            "defaults.deadlines.callback_soft: must not exceed callback_hard",
        ),
        (
            "defaults: {breaker: {max_interval: 0.5s}}",
            "defaults.breaker.max_interval: must not be below base_interval",
        ),
        (
            "defaults: {breaker: {probe_streams: 0}}",
            "defaults.breaker.probe_streams: value must be greater than or equal to 1",
        ),
        (
            "defaults: {quotas: {min_tick_period: 0s}}",
            "defaults.quotas.min_tick_period: value must be greater than or equal to 1ms",
        ),
        (
            "defaults: {quotas: {queue_bytes: 99999999999}}",
            "defaults.quotas.queue_bytes: value must be inside range [0, 4294967296]",
        ),
        (
            "defaults: {rollout: {share_percent: 101}}",
            "defaults.rollout.share_percent: value must be less than or equal to 100",
        ),
        (
            "defaults: {rollout: {max_broken_percent: -1}}",
            "defaults.rollout.max_broken_percent: value must be inside range [0, 100]",
        ),
        (
            "overrides: [{plugin: {exact: a}, settings: {}}, {settings: {}}]",
            "overrides[1].plugin: value is required",
        ),
        (
            "overrides: [{plugin: {exact: a}}]",
            "overrides[0].settings: value is required",
        ),
        (
            "overrides: [{plugin: {exact: a}, settings: {max_pause: -1s}}]",
            "overrides[0].settings.max_pause: Invalid duration: Expected positive duration: seconds: -1, nanos: 0",
        ),
        (
            "insecure_registries: ['http://a']",
            "insecure_registries[0]: must be `host` or `host:port`, without scheme or path",
        ),
        (
            "internal_registries: ['a:1', 'a:99999']",
            "internal_registries[1]: must be `host` or `host:port`, without scheme or path",
        ),
    ] {
        assert_eq!(parse(&yaml.replace("60ms", "0.06s")).unwrap_err(), error);
    }
    assert!(parse("defaults: {vm_sharing: SOMETIMES}").is_err());
}

#[test]
fn a_hard_deadline_below_the_soft_one_takes_it_along() {
    let settings = parse("defaults: {deadlines: {callback_hard: 0.005s}}").unwrap();
    assert_eq!(settings.defaults.callback_soft, Duration::from_millis(5));
}

#[test]
fn the_structs_are_those_of_the_descriptors() {
    let message = pb::from_yaml::<proto::WasmSettings>(EVERYTHING).unwrap();
    let bytes = message.encode_to_vec();
    let descriptor = pb::descriptors()
        .get_message_by_name(&proto::WasmSettings::full_name())
        .unwrap();
    let dynamic = DynamicMessage::decode(descriptor.clone(), &*bytes).unwrap();
    assert_eq!(dynamic.unknown_fields().count(), 0);
    assert_eq!(dynamic.encode_to_vec(), bytes);
    let mut fields = Vec::new();
    leaves(&descriptor, "", &mut fields);
    // A field that the text above leaves out would go unnoticed.
    for field in fields {
        let last = field.rsplit('.').next().unwrap();
        assert!(EVERYTHING.contains(last), "{field}");
    }
}

fn leaves(message: &MessageDescriptor, path: &str, found: &mut Vec<String>) {
    for field in message.fields() {
        let path = format!("{path}{}", field.name());
        match field.kind() {
            Kind::Message(inner) if inner.full_name().starts_with("plenipo.") => {
                if inner.name() != "Override" {
                    leaves(&inner, &format!("{path}."), found);
                }
            }
            _ => found.push(path),
        }
    }
}

#[test]
fn the_documents_list_every_field_with_its_default() {
    let descriptor = pb::descriptors()
        .get_message_by_name(&proto::WasmSettings::full_name())
        .unwrap();
    let mut fields = Vec::new();
    leaves(&descriptor, "", &mut fields);
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/wasm.md"))
        .expect("the document");
    let (_, rest) = text.split_once("<!-- wasm settings -->").expect("a marker");
    let (table, _) = rest.split_once("<!-- /wasm settings -->").expect("its end");
    let rows: BTreeMap<&str, &str> = table
        .lines()
        .filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let field = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
            Some((field, cells.next()?))
        })
        .collect();
    let settings = WasmSettings::default();
    let policy = settings.defaults;
    let mut wanted = BTreeMap::new();
    for field in &fields {
        let default = match field.as_str() {
            "defaults.deadlines.callback_soft" => time(policy.callback_soft),
            "defaults.deadlines.callback_hard" => time(policy.callback_hard),
            "defaults.deadlines.start" => time(policy.start),
            "defaults.memory_limit_bytes" => size(policy.memory),
            "defaults.quotas.metrics" => policy.quotas.metrics.to_string(),
            "defaults.quotas.shared_data_bytes" => size(policy.quotas.shared_data),
            "defaults.quotas.queues" => policy.quotas.queues.to_string(),
            "defaults.quotas.queue_bytes" => size(policy.quotas.queue_bytes),
            "defaults.quotas.min_tick_period" => time(policy.quotas.min_tick_period),
            "defaults.quotas.callouts" => policy.quotas.callouts.to_string(),
            "defaults.quotas.callout_bytes" => size(policy.quotas.callout_bytes),
            "defaults.quotas.log_lines_per_second" => {
                policy.quotas.log_lines_per_second.to_string()
            }
            "defaults.breaker.tokens" => policy.breaker.tokens.to_string(),
            "defaults.breaker.token_interval" => time(policy.breaker.token_interval),
            "defaults.breaker.base_interval" => time(policy.breaker.base),
            "defaults.breaker.max_interval" => time(policy.breaker.max),
            "defaults.breaker.probe_streams" => policy.breaker.probe_streams.to_string(),
            "defaults.breaker.probe_time" => time(policy.breaker.probe_time),
            "defaults.max_pause" => policy.max_pause.map_or("none".to_owned(), time),
            "defaults.vm_sharing" => match policy.vm_sharing {
                VmSharing::ByKey => "`BY_KEY`".to_owned(),
                VmSharing::Isolated => "`ISOLATED`".to_owned(),
            },
            "defaults.after_crash" => match policy.after_crash {
                AfterCrash::Rebuild => "`REBUILD`".to_owned(),
                AfterCrash::Envoy => "`ENVOY`".to_owned(),
            },
            "defaults.rollout.share_percent" => policy.rollout.share_percent.to_string(),
            "defaults.rollout.window" => time(policy.rollout.window),
            "defaults.rollout.min_streams" => policy.rollout.min_streams.to_string(),
            "defaults.rollout.max_broken_percent" => policy.rollout.max_broken_percent.to_string(),
            "defaults.rollout.max_added_latency" => time(policy.rollout.max_added_latency),
            "defaults.lenient_header_reads" => policy.lenient_header_reads.to_string(),
            "cache.modules_in_memory" => settings.modules_in_memory.to_string(),
            "cache.modules_on_disk" => settings.modules_on_disk.to_string(),
            "cache.source_bytes_on_disk" => {
                size(usize::try_from(settings.source_bytes_on_disk).expect("64 bits"))
            }
            "cache.refresh_interval" => settings.refresh_interval.map_or("none".to_owned(), time),
            "compiler.baseline_from_bytes" => {
                settings.baseline_from.map_or("none".to_owned(), size)
            }
            "insecure_registries" | "internal_registries" => "none".to_owned(),
            other => panic!("{other} has no default here"),
        };
        wanted.insert(field.as_str(), default);
    }
    let wanted: BTreeMap<&str, &str> = wanted
        .iter()
        .map(|(field, value)| (*field, &**value))
        .collect();
    assert_eq!(rows, wanted);
}

fn time(value: Duration) -> String {
    if value.subsec_millis() == 0 {
        format!("{} s", value.as_secs())
    } else {
        format!("{} ms", value.as_millis())
    }
}

fn size(bytes: usize) -> String {
    match bytes >> 20 {
        0 => format!("{} KiB", bytes >> 10),
        whole => format!("{whole} MiB"),
    }
}
