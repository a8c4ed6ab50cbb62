//! `plenipo.extensions.wasm.v1.WasmSettings`: what bounds plugins, and how the Wasm host goes about them.
//!
//! A bootstrap without the entry has [`WasmSettings::default`]. `docs/wasm.md` lists the fields with units and defaults;
//! a test holds that list, the `.proto` and this file together.

use std::time::Duration;

use super::error::{At as _, ConfigError};
use super::field::{enumeration, flag, has_bad_port, positive, required, uint32, uint32_within};
use super::matcher::StringMatcher;
use crate::pb::google::protobuf::{self as well_known, UInt64Value};
use crate::pb::plenipo::extensions::wasm::v1 as proto;

/// The smallest memory that a VM may be given: one page.
const PAGE: u64 = 64 << 10;
/// The largest: what 32 bits address.
const MAX_MEMORY: u64 = 4 << 30;

/// The entry as believed.
#[derive(Clone, Debug, PartialEq)]
pub struct WasmSettings {
    /// For every plugin that no override is for.
    pub defaults: PluginPolicy,
    /// By `PluginConfig.name`; the first match holds, and is complete.
    pub overrides: Vec<(StringMatcher, PluginPolicy)>,
    /// Compiled modules kept in memory for versions to come: those used last, also where they are in use. At least 1.
    pub modules_in_memory: usize,
    /// Compiled modules kept on disk; the least recently used go.
    pub modules_on_disk: usize,
    /// Fetched code kept on disk, in bytes; the least recently used goes. 0: none is kept.
    pub source_bytes_on_disk: u64,
    /// How often a source is asked anew whose answer may change, under the pull policy `Always`; `None`: only with a new
    /// version of its resource.
    pub refresh_interval: Option<Duration>,
    /// Code of at least so many bytes is compiled to the baseline tier where nothing serves before it, and optimised
    /// behind it; `None`: none is.
    pub baseline_from: Option<usize>,
    /// Hosts that code may be fetched from without TLS: `host` or `host:port`. They are internal, too.
    pub insecure_registries: Vec<Box<str>>,
    /// Hosts that may send us on to private addresses: `host` or `host:port`.
    pub internal_registries: Vec<Box<str>>,
}

impl Default for WasmSettings {
    fn default() -> Self {
        Self {
            defaults: PluginPolicy::default(),
            overrides: Vec::new(),
            modules_in_memory: 16,
            modules_on_disk: 64,
            source_bytes_on_disk: 1 << 30,
            refresh_interval: None,
            baseline_from: Some(32 << 10),
            insecure_registries: Vec::new(),
            internal_registries: Vec::new(),
        }
    }
}

/// What bounds one plugin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PluginPolicy {
    /// A callback that computes for longer is counted and told of.
    pub callback_soft: Duration,
    /// A callback that computes for longer is stopped.
    pub callback_hard: Duration,
    /// How long a VM's start, `on_vm_start` and `on_configure` may compute together.
    pub start: Duration,
    /// Linear memory of one VM, in bytes.
    pub memory: usize,
    /// What the plugin may take of what is not its own.
    pub quotas: Quotas,
    /// What bounds the rebuilding of VMs.
    pub breaker: BreakerPolicy,
    /// How long a stream may be held; `None`: for ever.
    pub max_pause: Option<Duration>,
    /// Whose VMs it is in.
    pub vm_sharing: VmSharing,
    /// Whether a fresh VM follows a dead one.
    pub after_crash: AfterCrash,
    /// Headers that have gone on can still be read.
    pub lenient_header_reads: bool,
    /// How a new version takes the place of one that serves.
    pub rollout: RolloutPolicy,
}

impl Default for PluginPolicy {
    fn default() -> Self {
        Self {
            callback_soft: Duration::from_millis(10),
            callback_hard: Duration::from_millis(50),
            start: Duration::from_secs(10),
            memory: 256 << 20,
            quotas: Quotas::default(),
            breaker: BreakerPolicy::default(),
            max_pause: None,
            vm_sharing: VmSharing::default(),
            after_crash: AfterCrash::default(),
            lenient_header_reads: false,
            rollout: RolloutPolicy::default(),
        }
    }
}

/// Limits of what a plugin takes of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Metrics that one VM defines, and names of metrics that all plugins of one name have in the process.
    pub metrics: usize,
    /// Bytes of shared data of one `vm_id`, keys included; each entry counts 128 more than it has.
    pub shared_data: usize,
    /// Queues of one `vm_id`.
    pub queues: usize,
    /// Bytes waiting in one queue; each message counts 32 more than it has.
    pub queue_bytes: usize,
    /// Shortest period of a timer.
    pub min_tick_period: Duration,
    /// Callouts of one VM that are under way.
    pub callouts: usize,
    /// Bytes that they hold: of requests, and of answers until the guest has heard of them.
    pub callout_bytes: usize,
    /// Log lines of one VM a second.
    pub log_lines_per_second: u32,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            metrics: 10_000,
            shared_data: 64 << 20,
            queues: 1000,
            queue_bytes: 16 << 20,
            min_tick_period: Duration::from_millis(1),
            callouts: 1000,
            callout_bytes: 64 << 20,
            log_lines_per_second: 10_000,
        }
    }
}

/// What bounds the rebuilding of VMs that keep failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// VMs that are rebuilt at once, for each worker.
    pub tokens: u32,
    /// Time in which one of them comes back, and after which earlier failures are forgotten.
    pub token_interval: Duration,
    /// The first wait once they are spent.
    pub base: Duration,
    /// The longest wait.
    pub max: Duration,
    /// Streams that the one VM after a wait serves before the breaker closes.
    pub probe_streams: u32,
    /// The breaker closes, too, when that VM has lived for so long.
    pub probe_time: Duration,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            tokens: 1,
            token_interval: Duration::from_secs(60),
            base: Duration::from_secs(1),
            max: Duration::from_secs(60),
            probe_streams: 10,
            probe_time: Duration::from_secs(1),
        }
    }
}

/// How a new version takes the place of one that serves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RolloutPolicy {
    /// Percent of streams that begin with it while it is on trial; 0: it takes all at once.
    pub share_percent: u32,
    /// How long the trial is.
    pub window: Duration,
    /// Streams of the new version without which the trial goes on.
    pub min_streams: u32,
    /// Percent of its streams that it may break beyond what the old one does.
    pub max_broken_percent: f64,
    /// By how much the time of its streams may exceed that of the old one's.
    pub max_added_latency: Duration,
}

impl Default for RolloutPolicy {
    fn default() -> Self {
        Self {
            share_percent: 0,
            window: Duration::from_secs(60),
            min_streams: 100,
            max_broken_percent: 1.0,
            max_added_latency: Duration::from_millis(10),
        }
    }
}

impl RolloutPolicy {
    fn with(mut self, message: proto::Rollout) -> Result<Self, ConfigError> {
        let proto::Rollout {
            share_percent,
            window,
            min_streams,
            max_broken_percent,
            max_added_latency,
        } = message;
        if let Some(share) = uint32_within(share_percent, 0, 100, "share_percent")? {
            self.share_percent = share;
        }
        set(&mut self.window, window, "window")?;
        if let Some(streams) = uint32_within(min_streams, 1, u32::MAX, "min_streams")? {
            self.min_streams = streams;
        }
        if let Some(well_known::DoubleValue { value }) = max_broken_percent {
            if !(0.0..=100.0).contains(&value) {
                return Err(ConfigError::invalid("value must be inside range [0, 100]")
                    .at("max_broken_percent"));
            }
            self.max_broken_percent = value;
        }
        set(
            &mut self.max_added_latency,
            max_added_latency,
            "max_added_latency",
        )?;
        Ok(self)
    }
}

/// Whose VMs a plugin is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmSharing {
    /// Those of all plugins with the same VM key, as in Envoy.
    #[default]
    ByKey,
    /// Its own.
    Isolated,
}

/// Whether a fresh VM follows a dead one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterCrash {
    /// Under every failure policy.
    #[default]
    Rebuild,
    /// Under `FAIL_RELOAD` alone.
    Envoy,
}

impl WasmSettings {
    /// Validates the message.
    ///
    /// # Errors
    /// Names the field that is out of range.
    pub fn parse(message: proto::WasmSettings) -> Result<Self, ConfigError> {
        let proto::WasmSettings {
            defaults,
            overrides,
            cache,
            insecure_registries,
            internal_registries,
            compiler,
        } = message;
        let mut settings = Self::default();
        if let Some(defaults) = defaults {
            settings.defaults = settings.defaults.with(defaults).at("defaults")?;
        }
        for (index, entry) in overrides.into_iter().enumerate() {
            let entry = override_of(entry, settings.defaults).at_index("overrides", index)?;
            settings.overrides.push(entry);
        }
        let proto::Cache {
            modules_in_memory,
            modules_on_disk,
            source_bytes_on_disk,
            refresh_interval,
        } = cache.unwrap_or_default();
        if let Some(value) = uint32(modules_in_memory) {
            settings.modules_in_memory = value as usize;
        }
        if let Some(value) = uint32(modules_on_disk) {
            settings.modules_on_disk = value as usize;
        }
        if let Some(UInt64Value { value }) = source_bytes_on_disk {
            settings.source_bytes_on_disk = value;
        }
        settings.refresh_interval =
            super::field::timeout(refresh_interval, None, "refresh_interval").at("cache")?;
        let proto::Compiler {
            baseline_from_bytes,
        } = compiler.unwrap_or_default();
        if let Some(UInt64Value { value }) = baseline_from_bytes {
            let from = usize::try_from(value).unwrap_or(usize::MAX);
            settings.baseline_from = (from > 0).then_some(from);
        }
        settings.insecure_registries = hosts(insecure_registries, "insecure_registries")?;
        settings.internal_registries = hosts(internal_registries, "internal_registries")?;
        Ok(settings)
    }
}

fn hosts(values: Vec<String>, field: &str) -> Result<Vec<Box<str>>, ConfigError> {
    let checked = values.into_iter().enumerate().map(|(index, host)| {
        let is_good = |authority| !has_bad_port(&authority) && !host.contains('@');
        if !host.parse().is_ok_and(is_good) {
            return Err(ConfigError::invalid(
                "must be `host` or `host:port`, without scheme or path",
            )
            .at_index(field, index));
        }
        Ok(host.to_ascii_lowercase().into())
    });
    checked.collect()
}

fn override_of(
    entry: proto::Override,
    defaults: PluginPolicy,
) -> Result<(StringMatcher, PluginPolicy), ConfigError> {
    let proto::Override { plugin, settings } = entry;
    let plugin = StringMatcher::parse(required(plugin, "plugin")?).at("plugin")?;
    let policy = defaults
        .with(required(settings, "settings")?)
        .at("settings")?;
    Ok((plugin, policy))
}

impl PluginPolicy {
    /// True where plugins under this and under `other` may be in one VM: all that bounds a VM as a whole is equal.
    pub fn shares_vms_with(&self, other: &Self) -> bool {
        let of_vm = |policy: &Self| Self {
            vm_sharing: VmSharing::default(),
            rollout: RolloutPolicy::default(),
            ..*policy
        };
        of_vm(self) == of_vm(other)
    }

    /// These, with what the message sets in their place.
    fn with(mut self, message: proto::PluginSettings) -> Result<Self, ConfigError> {
        let proto::PluginSettings {
            deadlines,
            memory_limit_bytes,
            quotas,
            breaker,
            max_pause,
            vm_sharing,
            after_crash,
            lenient_header_reads,
            rollout,
        } = message;
        self.set_deadlines(deadlines.unwrap_or_default())
            .at("deadlines")?;
        if let Some(bytes) = bytes(memory_limit_bytes, PAGE..=MAX_MEMORY, "memory_limit_bytes")? {
            self.memory = bytes;
        }
        self.quotas = self.quotas.with(quotas.unwrap_or_default()).at("quotas")?;
        self.breaker = self
            .breaker
            .with(breaker.unwrap_or_default())
            .at("breaker")?;
        self.max_pause = super::field::timeout(max_pause, self.max_pause, "max_pause")?;
        match enumeration(vm_sharing, "vm_sharing")? {
            proto::VmSharing::Unspecified => {}
            proto::VmSharing::ByKey => self.vm_sharing = VmSharing::ByKey,
            proto::VmSharing::Isolated => self.vm_sharing = VmSharing::Isolated,
        }
        match enumeration(after_crash, "after_crash")? {
            proto::AfterCrash::Unspecified => {}
            proto::AfterCrash::Rebuild => self.after_crash = AfterCrash::Rebuild,
            proto::AfterCrash::Envoy => self.after_crash = AfterCrash::Envoy,
        }
        self.rollout = self
            .rollout
            .with(rollout.unwrap_or_default())
            .at("rollout")?;
        self.lenient_header_reads = flag(lenient_header_reads, self.lenient_header_reads);
        Ok(self)
    }

    fn set_deadlines(&mut self, message: proto::Deadlines) -> Result<(), ConfigError> {
        let proto::Deadlines {
            callback_soft,
            callback_hard,
            start,
        } = message;
        let soft_set = callback_soft.is_some();
        set(&mut self.callback_hard, callback_hard, "callback_hard")?;
        set(&mut self.callback_soft, callback_soft, "callback_soft")?;
        set(&mut self.start, start, "start")?;
        if self.callback_soft > self.callback_hard {
            if soft_set {
                return Err(
                    ConfigError::invalid("must not exceed callback_hard").at("callback_soft")
                );
            }
            self.callback_soft = self.callback_hard;
        }
        Ok(())
    }
}

impl Quotas {
    fn with(mut self, message: proto::Quotas) -> Result<Self, ConfigError> {
        let proto::Quotas {
            metrics,
            shared_data_bytes,
            queues,
            queue_bytes,
            min_tick_period,
            callouts,
            log_lines_per_second,
            callout_bytes,
        } = message;
        let count = |value, to: &mut usize| {
            if let Some(value) = uint32(value) {
                *to = value as usize;
            }
        };
        count(metrics, &mut self.metrics);
        count(queues, &mut self.queues);
        count(callouts, &mut self.callouts);
        let any = 0..=MAX_MEMORY;
        if let Some(value) = bytes(shared_data_bytes, any.clone(), "shared_data_bytes")? {
            self.shared_data = value;
        }
        if let Some(value) = bytes(queue_bytes, any.clone(), "queue_bytes")? {
            self.queue_bytes = value;
        }
        if let Some(value) = bytes(callout_bytes, any, "callout_bytes")? {
            self.callout_bytes = value;
        }
        if let Some(period) =
            super::field::at_least_a_millisecond(min_tick_period, "min_tick_period")?
        {
            self.min_tick_period = period;
        }
        if let Some(lines) = uint32(log_lines_per_second) {
            self.log_lines_per_second = lines;
        }
        Ok(self)
    }
}

impl BreakerPolicy {
    fn with(mut self, message: proto::Breaker) -> Result<Self, ConfigError> {
        let proto::Breaker {
            tokens,
            token_interval,
            base_interval,
            max_interval,
            probe_streams,
            probe_time,
        } = message;
        if let Some(tokens) = uint32_within(tokens, 0, 1000, "tokens")? {
            self.tokens = tokens;
        }
        let max_set = max_interval.is_some();
        set(&mut self.token_interval, token_interval, "token_interval")?;
        set(&mut self.base, base_interval, "base_interval")?;
        set(&mut self.max, max_interval, "max_interval")?;
        set(&mut self.probe_time, probe_time, "probe_time")?;
        if let Some(streams) = uint32_within(probe_streams, 1, u32::MAX, "probe_streams")? {
            self.probe_streams = streams;
        }
        if self.max < self.base {
            if max_set {
                return Err(
                    ConfigError::invalid("must not be below base_interval").at("max_interval")
                );
            }
            self.max = self.base;
        }
        Ok(self)
    }
}

fn set(
    to: &mut Duration,
    value: Option<well_known::Duration>,
    field: &str,
) -> Result<(), ConfigError> {
    if let Some(value) = positive(value, field)? {
        *to = value;
    }
    Ok(())
}

fn bytes(
    value: Option<UInt64Value>,
    range: std::ops::RangeInclusive<u64>,
    field: &str,
) -> Result<Option<usize>, ConfigError> {
    let Some(UInt64Value { value }) = value else {
        return Ok(None);
    };
    if !range.contains(&value) {
        let (min, max) = range.into_inner();
        return Err(
            ConfigError::invalid(format!("value must be inside range [{min}, {max}]")).at(field),
        );
    }
    Ok(usize::try_from(value).ok())
}

#[cfg(test)]
#[path = "wasm_settings/tests.rs"]
mod tests;
