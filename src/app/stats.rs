//! `server.*`: what the process says of itself.

crate::stats! {
    /// `server.`
    pub mod server {
        COMPILATION_SETTINGS_FIPS_MODE: Gauge = "compilation_settings.fips_mode",
        CONCURRENCY: Gauge = "concurrency",
        DAYS_UNTIL_FIRST_CERT_EXPIRING: Gauge = "days_until_first_cert_expiring",
        DEBUG_ASSERTION_FAILURES: Counter = "debug_assertion_failures",
        DROPPED_STAT_FLUSHES: Counter = "dropped_stat_flushes",
        DYNAMIC_UNKNOWN_FIELDS: Counter = "dynamic_unknown_fields",
        ENVOY_BUG_FAILURES: Counter = "envoy_bug_failures",
        ENVOY_NOTIFICATIONS: Counter = "envoy_notifications",
        HOT_RESTART_EPOCH: Gauge = "hot_restart_epoch",
        INITIALIZATION_TIME_MS: Histogram = "initialization_time_ms",
        LIVE: Gauge = "live",
        MEMORY_ALLOCATED: Gauge = "memory_allocated",
        MEMORY_HEAP_SIZE: Gauge = "memory_heap_size",
        MEMORY_PHYSICAL_SIZE: Gauge = "memory_physical_size",
        PARENT_CONNECTIONS: Gauge = "parent_connections",
        SECONDS_UNTIL_FIRST_OCSP_RESPONSE_EXPIRING: Gauge = "seconds_until_first_ocsp_response_expiring",
        STATE: Gauge = "state",
        STATIC_UNKNOWN_FIELDS: Counter = "static_unknown_fields",
        STATS_RECENT_LOOKUPS: Gauge = "stats_recent_lookups",
        TOTAL_CONNECTIONS: Gauge = "total_connections",
        UPTIME: Gauge = "uptime",
        VERSION: Gauge = "version",
        WIP_PROTOS: Counter = "wip_protos",
    }
}

crate::stats! {
    /// `generation.`: our own.
    pub mod generation {
        CURRENT: Gauge = "current",
        ALIVE: Gauge = "alive",
    }
}
