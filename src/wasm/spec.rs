//! `envoy.extensions.wasm.v3.PluginConfig` as believed.
//!
//! A spec is pure data, code at hand included: local sources are read here, at configuration time, as Envoy does. What a
//! watched file has later is [another spec](PluginSpec::with_code). Two specs with the same [`PluginSpec::key`] are the same plugin version.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::config::ConfigError;
use crate::config::error::At as _;
use crate::pb::envoy::extensions::wasm::v3 as wasm;
use crate::pb::{self, google};

mod code;

#[cfg(feature = "wasm")]
pub(crate) use code::MAX_CODE;
pub use code::{Code, Origin, Pull, PullPolicy, Remote, Secret, Watched};
use code::{parse_backoff, parse_code, take_pull};

/// Runtimes of Envoy's that one engine stands in for; empty is its first available one.
const RUNTIMES: &[&str] = &[
    "",
    "envoy.wasm.runtime.v8",
    "envoy.wasm.runtime.wasmtime",
    "envoy.wasm.runtime.wamr",
    "envoy.wasm.runtime.wavm",
];

/// A SHA-256 sum.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// From 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut digest = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(digest))
    }
}

/// Lower-case hexadecimal.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What happens to requests while a plugin has no working VM, and to those whose VM fails under them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailurePolicy {
    /// 503, details `wasm_fail_stream`; a fresh VM follows by itself.
    Closed,
    /// Bypass; `crashing` too: also the request whose callback failed (the deprecated `fail_open`).
    Open {
        /// The deprecated `fail_open: true` was used.
        crashing: bool,
    },
    /// As `Closed`, with this base back-off before the fresh VM.
    Reload {
        /// `reload_config.backoff.base_interval`; default 1 s.
        backoff: Duration,
    },
}

/// A plugin as configured.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginSpec {
    /// `name`.
    pub name: Arc<str>,
    /// `root_id`.
    pub root_id: Box<str>,
    /// `vm_config.vm_id`.
    pub vm_id: Arc<str>,
    /// `vm_config.runtime`, for statistics; resolved to Envoy's default.
    pub runtime: Box<str>,
    /// `vm_config.code`.
    pub code: Code,
    /// `vm_config.configuration` as the guest sees it.
    pub vm_configuration: Bytes,
    /// `configuration` as the guest sees it.
    pub configuration: Bytes,
    /// `failure_policy`, `fail_open`, `reload_config`.
    pub failure: FailurePolicy,
    /// `allow_on_headers_stop_iteration`.
    pub allow_on_headers_stop_iteration: bool,
    /// `vm_config.environment_variables`, resolved.
    pub environment: BTreeMap<Box<str>, Box<str>>,
    /// `capability_restriction_config`; empty allows everything.
    pub capabilities: BTreeSet<Box<str>>,
    /// `vm_config.nack_on_code_cache_miss`.
    pub nack_on_code_cache_miss: bool,
    /// One VM for the process, on the first worker, instead of one a worker; such VMs are shared with their like alone.
    pub singleton: bool,
    key: Digest,
    vm_key: Digest,
}

impl PluginSpec {
    /// Validates `proto` and reads its local code.
    ///
    /// # Errors
    /// Names the field. A local source that is missing or empty is an error, as in Envoy.
    #[allow(deprecated, reason = "Envoy still accepts these fields, so we do")]
    pub fn parse(proto: wasm::PluginConfig) -> Result<Self, ConfigError> {
        let wasm::PluginConfig {
            name,
            root_id,
            configuration,
            fail_open,
            failure_policy,
            reload_config,
            capability_restriction_config,
            allow_on_headers_stop_iteration,
            vm,
        } = proto;
        let vm = match vm {
            Some(wasm::plugin_config::Vm::VmConfig(vm)) => vm,
            None => return Err(ConfigError::missing("vm_config")),
        };
        let wasm::VmConfig {
            vm_id,
            runtime,
            code,
            configuration: vm_configuration,
            // A section of foreign native code, which Envoy too skips unless its version matches.
            allow_precompiled: _,
            nack_on_code_cache_miss,
            environment_variables,
            capability_restriction_config: vm_capabilities,
        } = vm;
        if !RUNTIMES.contains(&runtime.as_str()) {
            return Err(ConfigError::invalid(format!(
                "No Wasm runtime found for '{runtime}'; available are v8, wasmtime, wamr, wavm"
            ))
            .at("runtime")
            .at("vm_config"));
        }
        let failure = parse_failure(failure_policy, fail_open, reload_config)?;
        let mut environment = environment_variables
            .map_or_else(|| Ok(BTreeMap::new()), parse_environment)
            .at("environment_variables")
            .at("vm_config")?;
        let pull = take_pull(&mut environment);
        let code = code
            .ok_or_else(|| ConfigError::missing("code"))
            .and_then(|code| parse_code(code, pull, &mut environment).at("code"))
            .at("vm_config")?;
        let capabilities = vm_capabilities
            .or(capability_restriction_config)
            .map(
                |wasm::CapabilityRestrictionConfig {
                     allowed_capabilities,
                 }| { allowed_capabilities.into_keys().map(Into::into).collect() },
            )
            .unwrap_or_default();
        let spec = Self {
            name: name.into(),
            root_id: root_id.into(),
            vm_id: vm_id.into(),
            runtime: if runtime.is_empty() {
                RUNTIMES[1].into()
            } else {
                runtime.into()
            },
            code,
            vm_configuration: configuration_bytes(vm_configuration)
                .at("configuration")
                .at("vm_config")?,
            configuration: configuration_bytes(configuration).at("configuration")?,
            failure,
            allow_on_headers_stop_iteration: allow_on_headers_stop_iteration
                .is_some_and(|value| value.value),
            environment,
            capabilities,
            nack_on_code_cache_miss,
            singleton: false,
            key: Digest([0; 32]),
            vm_key: Digest([0; 32]),
        };
        Ok(spec.with_keys())
    }

    /// The same as a singleton: another version than those of filters, in other VMs.
    #[must_use]
    pub fn into_singleton(mut self) -> Self {
        self.singleton = true;
        self.with_keys()
    }

    /// The same with other code: another version.
    #[must_use]
    pub fn with_code(&self, code: Code) -> Self {
        Self {
            code,
            ..self.clone()
        }
        .with_keys()
    }

    fn with_keys(mut self) -> Self {
        self.vm_key = self.compute_vm_key();
        self.key = self.compute_key();
        self
    }

    /// What a plugin version is: everything of it but the place where remote code comes from.
    pub fn key(&self) -> Digest {
        self.key
    }

    /// What a VM is: versions with the same one may share VMs, each with a root context of its own. Envoy's key is made
    /// of `vm_id`, VM configuration and code; environment and capabilities are the VM's too, so they belong to it here.
    pub fn vm_key(&self) -> Digest {
        self.vm_key
    }

    fn compute_vm_key(&self) -> Digest {
        let mut hash = Sha256::new();
        hash_field(&mut hash, self.vm_id.as_bytes());
        hash_field(&mut hash, &self.code.identity().0);
        hash_field(&mut hash, &self.vm_configuration);
        hash_field(&mut hash, &(self.environment.len() as u64).to_le_bytes());
        for (name, value) in &self.environment {
            hash_field(&mut hash, name.as_bytes());
            hash_field(&mut hash, value.as_bytes());
        }
        for name in &self.capabilities {
            hash_field(&mut hash, name.as_bytes());
        }
        if self.singleton {
            hash_field(&mut hash, b"singleton");
            hash_field(&mut hash, &[1]);
        }
        Digest(hash.finalize().into())
    }

    fn compute_key(&self) -> Digest {
        let mut hash = Sha256::new();
        hash_field(&mut hash, &self.vm_key.0);
        hash_field(&mut hash, self.name.as_bytes());
        hash_field(&mut hash, self.root_id.as_bytes());
        hash_field(&mut hash, self.runtime.as_bytes());
        hash_field(&mut hash, &self.configuration);
        hash_field(&mut hash, format!("{:?}", self.failure).as_bytes());
        hash_field(&mut hash, &[u8::from(self.allow_on_headers_stop_iteration)]);
        Digest(hash.finalize().into())
    }

    /// True where the capability restriction lets `name` (of a host function or a callback) through. What is Envoy's own is
    /// no capability.
    pub fn allows(&self, name: &str) -> bool {
        self.capabilities.is_empty()
            || self.capabilities.contains(name)
            || name.starts_with("envoy_")
    }
}

/// Lengths go first, so that no two lists of fields hash alike.
fn hash_field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn parse_failure(
    policy: i32,
    fail_open: bool,
    reload: Option<wasm::ReloadConfig>,
) -> Result<FailurePolicy, ConfigError> {
    use wasm::FailurePolicy as P;
    let policy = P::try_from(policy).map_err(|_| {
        ConfigError::invalid(format!("unknown value {policy}")).at("failure_policy")
    })?;
    if fail_open && policy != P::Unspecified {
        return Err(
            ConfigError::invalid("only one of fail_open or failure_policy can be set")
                .at("failure_policy"),
        );
    }
    let backoff = match reload.and_then(|wasm::ReloadConfig { backoff }| backoff) {
        Some(backoff) => {
            // Envoy looks at the base alone.
            let (base, _) = parse_backoff(backoff).at("backoff").at("reload_config")?;
            base
        }
        None => Duration::from_secs(1),
    };
    Ok(match policy {
        P::Unspecified if fail_open => FailurePolicy::Open { crashing: true },
        P::Unspecified | P::FailClosed => FailurePolicy::Closed,
        P::FailOpen => FailurePolicy::Open { crashing: false },
        P::FailReload => FailurePolicy::Reload { backoff },
    })
}

fn parse_environment(
    proto: wasm::EnvironmentVariables,
) -> Result<BTreeMap<Box<str>, Box<str>>, ConfigError> {
    let wasm::EnvironmentVariables {
        host_env_keys,
        key_values,
    } = proto;
    let mut environment = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (index, key) in host_env_keys.into_iter().enumerate() {
        if key_values.contains_key(&key) || !seen.insert(key.clone()) {
            return Err(ConfigError::invalid(format!(
                "Key {key} is duplicated in envoy.extensions.wasm.v3.VmConfig.environment_variables"
            ))
            .at_index("host_env_keys", index));
        }
        // A variable that the host does not have is skipped, as in Envoy.
        if let Ok(value) = std::env::var(&key) {
            environment.insert(key.into(), value.into());
        }
    }
    for (key, value) in key_values {
        environment.insert(key.into(), value.into());
    }
    Ok(environment)
}

/// What the guest sees of a configuration `Any`: a `Struct` as JSON, wrapped strings and bytes bare, anything else as
/// the bytes of the message.
fn configuration_bytes(any: Option<pb::Any>) -> Result<Bytes, ConfigError> {
    let Some(any) = any else {
        return Ok(Bytes::new());
    };
    let malformed = |error: prost::DecodeError| ConfigError::invalid(error.to_string());
    Ok(match pb::type_name(&any.type_url) {
        "google.protobuf.Struct" => {
            let value = pb::Struct::decode(any.value.as_slice()).map_err(malformed)?;
            serde_json::Value::Object(json_object(value))
                .to_string()
                .into()
        }
        "google.protobuf.StringValue" => String::decode(any.value.as_slice())
            .map_err(malformed)?
            .into(),
        "google.protobuf.BytesValue" => Vec::<u8>::decode(any.value.as_slice())
            .map_err(malformed)?
            .into(),
        _ => any.value.into(),
    })
}

/// As JSON, its keys sorted; whole numbers are integers.
pub(crate) fn json_object(value: pb::Struct) -> serde_json::Map<String, serde_json::Value> {
    // Sorted, so that equal configurations are equal bytes.
    let sorted: BTreeMap<_, _> = value.fields.into_iter().collect();
    sorted
        .into_iter()
        .map(|(name, value)| (name, json_value(value)))
        .collect()
}

fn json_value(value: google::protobuf::Value) -> serde_json::Value {
    use google::protobuf::value::Kind;
    use serde_json::Value;
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        // Protobuf's JSON prints whole numbers without a fraction.
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() < 9e15 => {
            Value::from(number as i64)
        }
        Some(Kind::NumberValue(number)) => Value::from(number),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::BoolValue(value)) => Value::Bool(value),
        Some(Kind::StructValue(value)) => Value::Object(json_object(value)),
        Some(Kind::ListValue(list)) => {
            Value::Array(list.values.into_iter().map(json_value).collect())
        }
    }
}

#[cfg(test)]
#[path = "spec/tests.rs"]
mod tests;
