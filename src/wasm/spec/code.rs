//! Where a plugin's code comes from, and what istiod's agent would make of it.
//!
//! `oci://` sources, and `https://` and `http://` ones of the cluster `_`, are fetched without a cluster: that is what
//! istiod sends, and what its agent would take out of the configuration before Envoy sees it. They need no sum (`sha256`
//! empty, or `nil`, as istiod writes it), and variables whose names begin with `ISTIO_META_` are for us, not for the guest.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{Digest, hash_field};
use crate::base::file::read_regular;
use crate::config::ConfigError;
use crate::config::error::At as _;
use crate::config::field::{has_bad_port, non_empty};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::google;
use crate::wasm::source::reference::Reference;

/// The cluster of sources that are fetched without one.
const NO_CLUSTER: &str = "_";
/// What istiod writes for no sum, where Envoy wants one.
const NO_SUM: &str = "nil";
/// Variables of istiod's for its agent.
const AGENT: &str = "ISTIO_META_";
const PULL_SECRET: &str = "ISTIO_META_WASM_IMAGE_PULL_SECRET";
const PULL_POLICY: &str = "ISTIO_META_WASM_IMAGE_PULL_POLICY";
const RESOURCE_VERSION: &str = "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION";

/// Where the code comes from.
#[derive(Clone, PartialEq)]
pub enum Code {
    /// It is at hand.
    Local {
        /// The module.
        bytes: Bytes,
        /// Its sum.
        digest: Digest,
        /// For status and logs: the file's name, `inline`, or `env:NAME`.
        origin: Box<str>,
        /// The file is read again when something comes into a directory.
        watched: Option<Watched>,
    },
    /// It is to be fetched.
    Remote(Remote),
}

/// `watched_directory` of a file of code.
#[derive(Clone, Debug)]
pub struct Watched {
    /// What is moved into it has the file read again.
    pub directory: Arc<str>,
    /// `watch_modify`: so does what is written there.
    pub writes: bool,
    /// When the code that goes with this was read.
    pub read: Instant,
}

/// When a file was read is no part of what is configured.
impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        (&self.directory, self.writes) == (&other.directory, other.writes)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { digest, origin, .. } => write!(f, "Local({origin}, {digest})"),
            Self::Remote(remote) => remote.fmt(f),
        }
    }
}

impl Code {
    /// What tells it from other code: the sum that it has or must have, or else where it comes from.
    pub fn identity(&self) -> Digest {
        match self {
            Self::Local { digest, .. } => *digest,
            Self::Remote(remote) => remote.identity(),
        }
    }
}

/// `RemoteDataSource`.
#[derive(Clone, Debug, PartialEq)]
pub struct Remote {
    /// `http_uri.uri`.
    pub uri: Box<str>,
    /// The way to it.
    pub origin: Origin,
    /// `http_uri.timeout`, of one attempt; zero is for ever.
    pub timeout: Duration,
    /// `sha256`: of the bytes that come, or of the module in them; for an image, of its manifest (as Istio has it) or of
    /// its layer. `None`: whatever the source gives, which only sources without a cluster may.
    pub sha256: Option<Digest>,
    /// When to ask the source anew, and with what.
    pub pull: Pull,
    /// `retry_policy.retry_back_off.base_interval`; default 1 s.
    pub backoff_base: Duration,
    /// `retry_policy.retry_back_off.max_interval`; default ten times the base. Without `retry_back_off` 10 s, without a
    /// cluster 30 s.
    pub backoff_cap: Duration,
    /// `retry_policy.num_retries`; default 1. After so many the failure is counted and shown; we go on trying.
    pub retries: u32,
}

/// The way to remote code.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// Through a cluster, as Envoy does.
    Cluster {
        /// `http_uri.cluster`.
        cluster: Arc<str>,
        /// The URI's scheme is `https`.
        https: bool,
        /// The URI's host, with its port if given.
        authority: Box<str>,
        /// The URI's path and query; at least `/`.
        path: Box<str>,
    },
    /// From the URI itself.
    Direct,
    /// An image in a registry.
    Image(Reference),
}

/// What istiod's variables say of pulling.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pull {
    /// When to ask the source anew.
    pub policy: PullPolicy,
    /// The version of the resource that the plugin is of: with [`PullPolicy::Always`] a new one asks the source anew.
    pub resource_version: Box<str>,
    /// What the registry wants to know; `None`: see the files of this host.
    pub secret: Option<Secret>,
}

/// When a source whose answer may change is asked anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// Once there is code of this source, it is that.
    #[default]
    IfNotPresent,
    /// Whenever the resource changes; the default for the tag `latest`.
    Always,
}

/// A docker configuration (JSON) with credentials. It is not shown.
#[derive(Clone, PartialEq)]
pub struct Secret(pub Box<str>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Remote {
    /// The sum that its code must have in one way or another.
    pub fn pin(&self) -> Option<Digest> {
        match &self.origin {
            Origin::Image(reference) => self.sha256.or(reference.digest),
            Origin::Cluster { .. } | Origin::Direct => self.sha256,
        }
    }

    /// What tells its code from other code.
    pub fn identity(&self) -> Digest {
        if let Some(pin) = self.pin() {
            return pin;
        }
        let mut hash = Sha256::new();
        hash_field(&mut hash, &self.place().0);
        if self.pull.policy == PullPolicy::Always {
            hash_field(&mut hash, self.pull.resource_version.as_bytes());
        }
        Digest(hash.finalize().into())
    }

    /// What tells its place from other places: the place and the sum that the code there must have.
    pub fn place(&self) -> Digest {
        let mut hash = Sha256::new();
        match &self.origin {
            Origin::Cluster { .. } => hash_field(&mut hash, b"cluster"),
            Origin::Direct => hash_field(&mut hash, self.uri.as_bytes()),
            Origin::Image(reference) => {
                hash_field(&mut hash, format!("oci://{reference}").as_bytes())
            }
        }
        if let Some(pin) = self.sha256 {
            hash_field(&mut hash, &pin.0);
        }
        Digest(hash.finalize().into())
    }

    /// What tells a request for its code from other requests: what is wanted, where it is asked for, and with what.
    pub fn way(&self) -> Digest {
        let mut hash = Sha256::new();
        hash_field(&mut hash, &self.identity().0);
        hash_field(&mut hash, self.uri.as_bytes());
        if let Origin::Cluster { cluster, .. } = &self.origin {
            hash_field(&mut hash, cluster.as_bytes());
        }
        if let Some(Secret(json)) = &self.pull.secret {
            hash_field(&mut hash, json.as_bytes());
        }
        Digest(hash.finalize().into())
    }

    /// True where `other` is asked for the same in the same way. A new version of the resource alone is no other way.
    pub fn is_asked_as(&self, other: &Self) -> bool {
        let pace = |remote: &Self| {
            let backoff = (remote.backoff_base, remote.backoff_cap);
            (remote.timeout, backoff, remote.retries)
        };
        pace(self) == pace(other) && self.way() == other.way()
    }
}

/// Takes what is istiod's for its agent out of the variables.
pub(super) fn take_pull(environment: &mut BTreeMap<Box<str>, Box<str>>) -> Asked {
    Asked {
        policy: environment.remove(PULL_POLICY),
        resource_version: environment.remove(RESOURCE_VERSION).unwrap_or_default(),
        secret: environment.remove(PULL_SECRET).map(Secret),
    }
}

/// What istiod asks of its agent.
pub(super) struct Asked {
    policy: Option<Box<str>>,
    resource_version: Box<str>,
    secret: Option<Secret>,
}

impl Asked {
    fn of(self, latest: bool) -> Pull {
        let policy = match self.policy.as_deref() {
            Some("Always") => PullPolicy::Always,
            Some("IfNotPresent") => PullPolicy::IfNotPresent,
            // As Kubernetes does.
            _ if latest => PullPolicy::Always,
            _ => PullPolicy::IfNotPresent,
        };
        Pull {
            policy,
            resource_version: self.resource_version,
            secret: self.secret,
        }
    }
}

/// Code larger than this, in bytes, is refused.
pub(crate) const MAX_CODE: usize = 64 << 20;

pub(super) fn parse_code(
    proto: core::AsyncDataSource,
    asked: Asked,
    environment: &mut BTreeMap<Box<str>, Box<str>>,
) -> Result<Code, ConfigError> {
    use core::async_data_source::Specifier;
    let core::AsyncDataSource { specifier } = proto;
    match specifier {
        Some(Specifier::Local(source)) => parse_local(source).at("local"),
        Some(Specifier::Remote(source)) => {
            let remote = parse_remote(source, asked, environment).at("remote")?;
            Ok(Code::Remote(remote))
        }
        None => Err(ConfigError::invalid("one of local, remote must be set")),
    }
}

fn parse_local(proto: core::DataSource) -> Result<Code, ConfigError> {
    use core::data_source::Specifier;
    let core::DataSource {
        specifier,
        watched_directory,
    } = proto;
    let watched = match watched_directory {
        Some(directory) if matches!(specifier, Some(Specifier::Filename(_))) => {
            Some(parse_watched(directory).at("watched_directory")?)
        }
        // There is no file.
        Some(_) | None => None,
    };
    let (bytes, origin): (Vec<u8>, Box<str>) = match specifier {
        Some(Specifier::Filename(name)) => {
            let bytes = read_regular(Path::new(&name), MAX_CODE as u64).map_err(|error| {
                ConfigError::invalid(format!("Failed to load Wasm code from {name}: {error}"))
                    .at("filename")
            })?;
            (bytes, name.into())
        }
        Some(Specifier::InlineBytes(bytes)) => (bytes, "inline".into()),
        Some(Specifier::InlineString(text)) => (text.into_bytes(), "inline".into()),
        Some(Specifier::EnvironmentVariable(name)) => {
            let value = std::env::var(&name).map_err(|_| {
                ConfigError::invalid(format!("Environment variable doesn't exist: {name}"))
                    .at("environment_variable")
            })?;
            (value.into_bytes(), format!("env:{name}").into())
        }
        None => return Err(ConfigError::invalid("no data source is set")),
    };
    if bytes.is_empty() {
        return Err(ConfigError::invalid(format!(
            "Failed to load Wasm code from {origin}: it is empty"
        )));
    }
    let bytes = Bytes::from(bytes);
    let digest = Digest::of(&bytes);
    Ok(Code::Local {
        bytes,
        digest,
        origin,
        watched,
    })
}

fn parse_watched(proto: core::WatchedDirectory) -> Result<Watched, ConfigError> {
    let core::WatchedDirectory { path, watch_modify } = proto;
    let path = non_empty(path, "path")?;
    if !Path::new(&path).is_dir() {
        return Err(ConfigError::invalid(format!("{path} is no directory")).at("path"));
    }
    Ok(Watched {
        directory: path.into(),
        writes: watch_modify,
        // Before the file is read: what comes later is news.
        read: Instant::now(),
    })
}

fn parse_remote(
    proto: core::RemoteDataSource,
    asked: Asked,
    environment: &mut BTreeMap<Box<str>, Box<str>>,
) -> Result<Remote, ConfigError> {
    let core::RemoteDataSource {
        http_uri,
        sha256,
        retry_policy,
    } = proto;
    let core::HttpUri {
        uri,
        timeout,
        http_upstream_type,
    } = http_uri.ok_or_else(|| ConfigError::missing("http_uri"))?;
    let cluster = match http_upstream_type {
        Some(core::http_uri::HttpUpstreamType::Cluster(cluster)) if !cluster.is_empty() => {
            Some(cluster)
        }
        Some(core::http_uri::HttpUpstreamType::Cluster(_)) | None => None,
    };
    let origin = parse_origin(&uri, cluster).at("http_uri")?;
    let timeout = match timeout {
        Some(timeout) => parse_duration(timeout).at("timeout").at("http_uri")?,
        None => return Err(ConfigError::missing("timeout").at("http_uri")),
    };
    let direct = !matches!(origin, Origin::Cluster { .. });
    let sha256 = match &*sha256 {
        "" | NO_SUM if direct => None,
        "" => return Err(ConfigError::missing("sha256")),
        sum => Some(
            Digest::parse(
                sum.strip_prefix("sha256:")
                    .filter(|_| direct)
                    .unwrap_or(sum),
            )
            .ok_or_else(|| ConfigError::invalid("must be 64 hexadecimal digits").at("sha256"))?,
        ),
    };
    if direct {
        environment.retain(|name, _| !name.starts_with(AGENT));
    }
    // Registries count what they are asked.
    let cap = Duration::from_secs(if direct { 30 } else { 10 });
    let (mut backoff, mut retries) = ((Duration::from_secs(1), cap), 1);
    if let Some(policy) = retry_policy {
        let core::RetryPolicy {
            retry_back_off,
            num_retries,
            // Envoy's remote data provider reads none of these.
            retry_on: _,
            retry_priority: _,
            retry_host_predicate: _,
            host_selection_retry_max_attempts: _,
        } = policy;
        if let Some(proto) = retry_back_off {
            backoff = parse_backoff(proto)
                .and_then(|(base, cap)| {
                    let cap = cap.unwrap_or(base.saturating_mul(10));
                    let least = || ConfigError::invalid("must be at least base_interval");
                    if cap < base {
                        return Err(least().at("max_interval"));
                    }
                    Ok((base, cap))
                })
                .at("retry_back_off")
                .at("retry_policy")?;
        }
        retries = num_retries.map_or(retries, |number| number.value);
    }
    let latest = matches!(&origin, Origin::Image(reference) if reference.is_latest());
    Ok(Remote {
        pull: if direct {
            asked.of(latest)
        } else {
            Pull::default()
        },
        uri: uri.into(),
        origin,
        timeout,
        sha256,
        backoff_base: backoff.0,
        backoff_cap: backoff.1,
        retries,
    })
}

fn parse_origin(uri: &str, cluster: Option<String>) -> Result<Origin, ConfigError> {
    let direct = cluster.as_deref() == Some(NO_CLUSTER);
    let image = match uri.split_once("://") {
        Some(("oci", name)) => Some(name),
        // Istio's default.
        None if direct => Some(uri),
        _ => None,
    };
    if let Some(name) = image {
        return Reference::parse(name).map(Origin::Image).map_err(|error| {
            ConfigError::invalid(format!("'{uri}' is not the name of an image: {error}")).at("uri")
        });
    }
    let (https, rest) = match uri.split_once("://") {
        Some(("https", rest)) => (true, rest),
        Some(("http", rest)) => (false, rest),
        Some((scheme, _)) => {
            return Err(ConfigError::unsupported(
                "uri",
                format!("scheme '{scheme}'; code is fetched over http, https and oci"),
            ));
        }
        // Envoy takes host and path without a scheme as well.
        None => (false, uri),
    };
    let (authority, path) = match rest.find('/') {
        Some(slash) => (&rest[..slash], &rest[slash..]),
        None => (rest, "/"),
    };
    if authority.is_empty() || http::HeaderValue::from_str(path).is_err() {
        return Err(ConfigError::invalid("must be http://host/path").at("uri"));
    }
    if direct {
        if authority.contains('@') {
            return Err(ConfigError::invalid("credentials do not belong in it").at("uri"));
        }
        return match uri.parse::<http::Uri>() {
            Ok(uri) if uri.authority().is_some_and(has_bad_port) => {
                Err(ConfigError::invalid("its port is none").at("uri"))
            }
            Ok(_) => Ok(Origin::Direct),
            Err(error) => Err(ConfigError::invalid(error.to_string()).at("uri")),
        };
    }
    Ok(Origin::Cluster {
        cluster: cluster
            .ok_or_else(|| ConfigError::missing("cluster"))?
            .into(),
        https,
        authority: authority.into(),
        path: path.into(),
    })
}

/// Base and cap of a `BackoffStrategy`.
pub(super) fn parse_backoff(
    proto: core::BackoffStrategy,
) -> Result<(Duration, Option<Duration>), ConfigError> {
    let core::BackoffStrategy {
        base_interval,
        max_interval,
    } = proto;
    let base = base_interval.ok_or_else(|| ConfigError::missing("base_interval"))?;
    let base = parse_duration(base).at("base_interval")?;
    if base < Duration::from_millis(1) {
        return Err(ConfigError::invalid("must be at least 1 ms").at("base_interval"));
    }
    let cap = max_interval
        .map(|cap| parse_duration(cap).at("max_interval"))
        .transpose()?;
    if cap == Some(Duration::ZERO) {
        return Err(ConfigError::invalid("must be greater than 0s").at("max_interval"));
    }
    Ok((base, cap))
}

/// As in Envoy, more seconds than nanoseconds can count in 64 bits are none; no clock ends before them.
const MAX_SECONDS: u64 = i64::MAX.unsigned_abs() / 1_000_000_000;

fn parse_duration(proto: google::protobuf::Duration) -> Result<Duration, ConfigError> {
    let seconds = u64::try_from(proto.seconds);
    let nanos = u32::try_from(proto.nanos);
    match (seconds, nanos) {
        (Ok(seconds), _) if seconds >= MAX_SECONDS => {
            Err(ConfigError::invalid("Duration out-of-range"))
        }
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => Err(ConfigError::invalid("must be a duration of at least zero")),
    }
}
