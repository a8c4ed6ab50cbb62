//! A rate limit for each tenant, counted over all workers: a token bucket in shared data. What exceeds it is answered with
//! 429 and `retry-after`.
//!
//! The tenant is the value of a request header that something before this plugin has to vouch for. Tenants that are not
//! in the configuration share the bucket `default`, so that made-up names take no memory and no extra rate; without it
//! they are not limited.
//!
//! A bucket is one number: the time at which it will be full again (the generic cell rate algorithm). It is changed by
//! compare-and-swap; who loses the race reads again, and at least one request gets on in each round.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::UNIX_EPOCH;

use log::error;
use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel, MetricType};
use serde::Deserialize;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Root { limiter: None }) });
}}

/// Rounds of compare-and-swap before a request is refused.
const MAX_ROUNDS: u32 = 100;
/// A key that is not there yet takes any expectation, one that is there never has this.
const ABSENT: u32 = u32::MAX;
const SECOND: f64 = 1e9;

/// The plugin's configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The request header with the tenant's name.
    header: String,
    #[serde(default)]
    tenants: BTreeMap<String, Limit>,
    default: Option<Limit>,
}

/// A bucket of `burst` tokens into which `requests_per_second` flow.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    requests_per_second: f64,
    burst: u32,
}

struct Limiter {
    header: String,
    tenants: BTreeMap<String, Bucket>,
    default: Option<Bucket>,
    limited: u32,
}

/// A limit, and where its state is.
struct Bucket {
    key: String,
    /// Nanoseconds for one token.
    interval: u64,
    /// Nanoseconds from empty to full.
    full: u64,
}

impl Bucket {
    fn new(key: String, limit: Limit) -> Result<Self, String> {
        let interval = SECOND / limit.requests_per_second;
        let full = interval * f64::from(limit.burst);
        // Far from overflow: times are nanoseconds since 1970.
        if !(interval >= 1.0 && limit.burst > 0 && full <= 1e17) {
            return Err(format!(
                "{key}: a bucket takes from 1 ns a token to three years until it is full"
            ));
        }
        let interval = interval as u64;
        Ok(Self {
            key,
            interval,
            full: interval * u64::from(limit.burst),
        })
    }

    /// Takes a token at `now`, given the time at which the bucket is full again. `Err`: the nanoseconds until there is one.
    fn take(&self, full_at: u64, now: u64) -> Result<u64, u64> {
        // Not further off than when it is empty, should the clock have gone back or the limit have changed.
        let full_at = full_at.clamp(now, now + self.full);
        let next = full_at + self.interval;
        if next <= now + self.full {
            Ok(next)
        } else {
            Err(next - now - self.full)
        }
    }
}

impl Limiter {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let config: Config = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let tenants = config.tenants.into_iter().map(|(name, limit)| {
            let bucket = Bucket::new(format!("tenant/{name}"), limit)?;
            Ok((name, bucket))
        });
        Ok(Self {
            header: config.header,
            tenants: tenants.collect::<Result<_, String>>()?,
            default: config
                .default
                .map(|limit| Bucket::new("default".to_owned(), limit))
                .transpose()?,
            limited: hostcalls::define_metric(MetricType::Counter, "tenant_rate_limit.limited")
                .unwrap_or(0),
        })
    }

    fn bucket(&self, tenant: Option<&[u8]>) -> Option<&Bucket> {
        tenant
            .and_then(|tenant| std::str::from_utf8(tenant).ok())
            .and_then(|tenant| self.tenants.get(tenant))
            .or(self.default.as_ref())
    }
}

struct Root {
    limiter: Option<Rc<Limiter>>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        let bytes = self.get_plugin_configuration().unwrap_or_default();
        match Limiter::parse(&bytes) {
            Ok(limiter) => {
                self.limiter = Some(Rc::new(limiter));
                true
            }
            Err(reason) => {
                error!("the configuration will not do: {reason}");
                false
            }
        }
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(RateLimit {
            limiter: Rc::clone(self.limiter.as_ref()?),
        }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct RateLimit {
    limiter: Rc<Limiter>,
}

impl RateLimit {
    /// `Err`: the nanoseconds until there is a token.
    fn take(&self, bucket: &Bucket) -> Result<(), u64> {
        let now = self
            .get_current_time()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64);
        for _ in 0..MAX_ROUNDS {
            let (value, cas) = self.get_shared_data(&bucket.key);
            let full_at = value.and_then(|value| value.try_into().ok().map(u64::from_le_bytes));
            let next = bucket.take(full_at.unwrap_or(0), now)?;
            let written = self.set_shared_data(
                &bucket.key,
                Some(&next.to_le_bytes()),
                Some(cas.unwrap_or(ABSENT)),
            );
            if written.is_ok() {
                return Ok(());
            }
        }
        Err(bucket.interval)
    }
}

impl Context for RateLimit {}

impl HttpContext for RateLimit {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let tenant = self.get_http_request_header_bytes(&self.limiter.header);
        let Some(bucket) = self.limiter.bucket(tenant.as_deref()) else {
            return Action::Continue;
        };
        let Err(wait) = self.take(bucket) else {
            return Action::Continue;
        };
        let _ = hostcalls::increment_metric(self.limiter.limited, 1);
        // Whole seconds (RFC 9110, section 10.2.3), never too few.
        let seconds = wait.div_ceil(SECOND as u64).max(1).to_string();
        self.send_http_response(
            429,
            vec![("retry-after", &seconds), ("content-type", "text/plain")],
            Some(b"too many requests\n"),
        );
        Action::Pause
    }
}
