//! The statistics of a cluster: Envoy's names, in sets that cost next to nothing until they are written.
//!
//! What Envoy makes on demand (`external.…`, `upstream_rq_time`, `http1.…`) are sets of their own here, registered
//! at their first use, so that an idle cluster shows the same names as Envoy's.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::telemetry::metrics::{Registry, StatSet, StatTable};

crate::stats! {
    /// `cluster.<name>.…`. Histograms come first: a block has room for histograms only up to the last of them.
    pub mod cluster {
        UPSTREAM_CX_CONNECT_MS: Histogram = "upstream_cx_connect_ms",
        UPSTREAM_CX_LENGTH_MS: Histogram = "upstream_cx_length_ms",
        UPSTREAM_RQ_PER_CX: Histogram = "upstream_rq_per_cx",
        ASSIGNMENT_STALE: Counter = "assignment_stale",
        ASSIGNMENT_TIMEOUT_RECEIVED: Counter = "assignment_timeout_received",
        ASSIGNMENT_USE_CACHED: Counter = "assignment_use_cached",
        BIND_ERRORS: Counter = "bind_errors",
        CIRCUIT_BREAKERS_DEFAULT_CX_OPEN: Gauge = "circuit_breakers.default.cx_open",
        CIRCUIT_BREAKERS_DEFAULT_CX_POOL_OPEN: Gauge = "circuit_breakers.default.cx_pool_open",
        CIRCUIT_BREAKERS_DEFAULT_RQ_OPEN: Gauge = "circuit_breakers.default.rq_open",
        CIRCUIT_BREAKERS_DEFAULT_RQ_PENDING_OPEN: Gauge = "circuit_breakers.default.rq_pending_open",
        CIRCUIT_BREAKERS_DEFAULT_RQ_RETRY_OPEN: Gauge = "circuit_breakers.default.rq_retry_open",
        CIRCUIT_BREAKERS_HIGH_CX_OPEN: Gauge = "circuit_breakers.high.cx_open",
        CIRCUIT_BREAKERS_HIGH_CX_POOL_OPEN: Gauge = "circuit_breakers.high.cx_pool_open",
        CIRCUIT_BREAKERS_HIGH_RQ_OPEN: Gauge = "circuit_breakers.high.rq_open",
        CIRCUIT_BREAKERS_HIGH_RQ_PENDING_OPEN: Gauge = "circuit_breakers.high.rq_pending_open",
        CIRCUIT_BREAKERS_HIGH_RQ_RETRY_OPEN: Gauge = "circuit_breakers.high.rq_retry_open",
        DEFAULT_TOTAL_MATCH_COUNT: Counter = "default.total_match_count",
        LB_HEALTHY_PANIC: Counter = "lb_healthy_panic",
        LB_LOCAL_CLUSTER_NOT_OK: Counter = "lb_local_cluster_not_ok",
        LB_RECALCULATE_ZONE_STRUCTURES: Counter = "lb_recalculate_zone_structures",
        LB_SUBSETS_ACTIVE: Gauge = "lb_subsets_active",
        LB_SUBSETS_CREATED: Counter = "lb_subsets_created",
        LB_SUBSETS_FALLBACK: Counter = "lb_subsets_fallback",
        LB_SUBSETS_FALLBACK_PANIC: Counter = "lb_subsets_fallback_panic",
        LB_SUBSETS_REMOVED: Counter = "lb_subsets_removed",
        LB_SUBSETS_SELECTED: Counter = "lb_subsets_selected",
        LB_ZONE_CLUSTER_TOO_SMALL: Counter = "lb_zone_cluster_too_small",
        LB_ZONE_NO_CAPACITY_LEFT: Counter = "lb_zone_no_capacity_left",
        LB_ZONE_ROUTING_ALL_DIRECTLY: Counter = "lb_zone_routing_all_directly",
        LB_ZONE_ROUTING_CROSS_ZONE: Counter = "lb_zone_routing_cross_zone",
        LB_ZONE_ROUTING_SAMPLED: Counter = "lb_zone_routing_sampled",
        MAX_HOST_WEIGHT: Gauge = "max_host_weight",
        MEMBERSHIP_CHANGE: Counter = "membership_change",
        MEMBERSHIP_DEGRADED: Gauge = "membership_degraded",
        MEMBERSHIP_EXCLUDED: Gauge = "membership_excluded",
        MEMBERSHIP_HEALTHY: Gauge = "membership_healthy",
        MEMBERSHIP_TOTAL: Gauge = "membership_total",
        ORIGINAL_DST_HOST_INVALID: Counter = "original_dst_host_invalid",
        RETRY_OR_SHADOW_ABANDONED: Counter = "retry_or_shadow_abandoned",
        UPDATE_ATTEMPT: Counter = "update_attempt",
        UPDATE_EMPTY: Counter = "update_empty",
        UPDATE_FAILURE: Counter = "update_failure",
        UPDATE_NO_REBUILD: Counter = "update_no_rebuild",
        UPDATE_SUCCESS: Counter = "update_success",
        UPSTREAM_CX_ACTIVE: Gauge = "upstream_cx_active",
        UPSTREAM_CX_CLOSE_NOTIFY: Counter = "upstream_cx_close_notify",
        UPSTREAM_CX_CONNECT_ATTEMPTS_EXCEEDED: Counter = "upstream_cx_connect_attempts_exceeded",
        UPSTREAM_CX_CONNECT_FAIL: Counter = "upstream_cx_connect_fail",
        UPSTREAM_CX_CONNECT_TIMEOUT: Counter = "upstream_cx_connect_timeout",
        UPSTREAM_CX_CONNECT_WITH_0_RTT: Counter = "upstream_cx_connect_with_0_rtt",
        UPSTREAM_CX_DESTROY: Counter = "upstream_cx_destroy",
        UPSTREAM_CX_DESTROY_LOCAL: Counter = "upstream_cx_destroy_local",
        UPSTREAM_CX_DESTROY_LOCAL_WITH_ACTIVE_RQ: Counter = "upstream_cx_destroy_local_with_active_rq",
        UPSTREAM_CX_DESTROY_REMOTE: Counter = "upstream_cx_destroy_remote",
        UPSTREAM_CX_DESTROY_REMOTE_WITH_ACTIVE_RQ: Counter = "upstream_cx_destroy_remote_with_active_rq",
        UPSTREAM_CX_DESTROY_WITH_ACTIVE_RQ: Counter = "upstream_cx_destroy_with_active_rq",
        UPSTREAM_CX_HTTP1_TOTAL: Counter = "upstream_cx_http1_total",
        UPSTREAM_CX_HTTP2_TOTAL: Counter = "upstream_cx_http2_total",
        UPSTREAM_CX_HTTP3_TOTAL: Counter = "upstream_cx_http3_total",
        UPSTREAM_CX_IDLE_TIMEOUT: Counter = "upstream_cx_idle_timeout",
        UPSTREAM_CX_MAX_DURATION_REACHED: Counter = "upstream_cx_max_duration_reached",
        UPSTREAM_CX_MAX_REQUESTS: Counter = "upstream_cx_max_requests",
        UPSTREAM_CX_NONE_HEALTHY: Counter = "upstream_cx_none_healthy",
        UPSTREAM_CX_OVERFLOW: Counter = "upstream_cx_overflow",
        UPSTREAM_CX_POOL_OVERFLOW: Counter = "upstream_cx_pool_overflow",
        UPSTREAM_CX_PRECONNECT_SKIPPED: Counter = "upstream_cx_preconnect_skipped",
        UPSTREAM_CX_PROTOCOL_ERROR: Counter = "upstream_cx_protocol_error",
        UPSTREAM_CX_RX_BYTES_BUFFERED: Gauge = "upstream_cx_rx_bytes_buffered",
        UPSTREAM_CX_RX_BYTES_TOTAL: Counter = "upstream_cx_rx_bytes_total",
        UPSTREAM_CX_TOTAL: Counter = "upstream_cx_total",
        UPSTREAM_CX_TX_BYTES_BUFFERED: Gauge = "upstream_cx_tx_bytes_buffered",
        UPSTREAM_CX_TX_BYTES_TOTAL: Counter = "upstream_cx_tx_bytes_total",
        UPSTREAM_FLOW_CONTROL_BACKED_UP_TOTAL: Counter = "upstream_flow_control_backed_up_total",
        UPSTREAM_FLOW_CONTROL_DRAINED_TOTAL: Counter = "upstream_flow_control_drained_total",
        UPSTREAM_FLOW_CONTROL_PAUSED_READING_TOTAL: Counter = "upstream_flow_control_paused_reading_total",
        UPSTREAM_FLOW_CONTROL_RESUMED_READING_TOTAL: Counter = "upstream_flow_control_resumed_reading_total",
        UPSTREAM_HTTP3_BROKEN: Counter = "upstream_http3_broken",
        UPSTREAM_INTERNAL_REDIRECT_FAILED_TOTAL: Counter = "upstream_internal_redirect_failed_total",
        UPSTREAM_INTERNAL_REDIRECT_SUCCEEDED_TOTAL: Counter = "upstream_internal_redirect_succeeded_total",
        UPSTREAM_QUEUE_OVERLOADED: Gauge = "upstream_queue_overloaded",
        UPSTREAM_RQ_0RTT: Counter = "upstream_rq_0rtt",
        UPSTREAM_RQ_ACTIVE: Gauge = "upstream_rq_active",
        UPSTREAM_RQ_ACTIVE_OVERFLOW: Counter = "upstream_rq_active_overflow",
        UPSTREAM_RQ_CANCELLED: Counter = "upstream_rq_cancelled",
        UPSTREAM_RQ_COMPLETED: Counter = "upstream_rq_completed",
        UPSTREAM_RQ_MAINTENANCE_MODE: Counter = "upstream_rq_maintenance_mode",
        UPSTREAM_RQ_MAX_DURATION_REACHED: Counter = "upstream_rq_max_duration_reached",
        UPSTREAM_RQ_PENDING_ACTIVE: Gauge = "upstream_rq_pending_active",
        UPSTREAM_RQ_PENDING_FAILURE_EJECT: Counter = "upstream_rq_pending_failure_eject",
        UPSTREAM_RQ_PENDING_OVERFLOW: Counter = "upstream_rq_pending_overflow",
        UPSTREAM_RQ_PENDING_TOTAL: Counter = "upstream_rq_pending_total",
        UPSTREAM_RQ_PER_TRY_IDLE_TIMEOUT: Counter = "upstream_rq_per_try_idle_timeout",
        UPSTREAM_RQ_PER_TRY_TIMEOUT: Counter = "upstream_rq_per_try_timeout",
        UPSTREAM_RQ_RETRY: Counter = "upstream_rq_retry",
        UPSTREAM_RQ_RETRY_BACKOFF_EXPONENTIAL: Counter = "upstream_rq_retry_backoff_exponential",
        UPSTREAM_RQ_RETRY_BACKOFF_RATELIMITED: Counter = "upstream_rq_retry_backoff_ratelimited",
        UPSTREAM_RQ_RETRY_LIMIT_EXCEEDED: Counter = "upstream_rq_retry_limit_exceeded",
        UPSTREAM_RQ_RETRY_OVERFLOW: Counter = "upstream_rq_retry_overflow",
        UPSTREAM_RQ_RETRY_SUCCESS: Counter = "upstream_rq_retry_success",
        UPSTREAM_RQ_RX_RESET: Counter = "upstream_rq_rx_reset",
        UPSTREAM_RQ_RX_RESET_NO_ERROR: Counter = "upstream_rq_rx_reset_no_error",
        UPSTREAM_RQ_TIMEOUT: Counter = "upstream_rq_timeout",
        UPSTREAM_RQ_TOTAL: Counter = "upstream_rq_total",
        UPSTREAM_RQ_TX_RESET: Counter = "upstream_rq_tx_reset",
        VERSION: Gauge = "version",
        WARMING_STATE: Gauge = "warming_state",
    }
}

crate::stats! {
    /// `cluster.<name>.upstream_rq_time`, and the origins' copies: there once an answer has come to its end.
    pub mod timed {
        UPSTREAM_RQ_TIME: Histogram = "upstream_rq_time",
    }
}

crate::stats! {
    /// `cluster.<name>.external.…`, `….internal.…` and `….canary.…`: there once such a request was answered.
    pub mod group {
        UPSTREAM_RQ_COMPLETED: Counter = "upstream_rq_completed",
    }
}

crate::stats! {
    /// `cluster.<name>.http1.…`: there once an HTTP/1 connection was made.
    pub mod http1 {
        DROPPED_HEADERS_WITH_UNDERSCORES: Counter = "dropped_headers_with_underscores",
        METADATA_NOT_SUPPORTED_ERROR: Counter = "metadata_not_supported_error",
        REQUESTS_REJECTED_WITH_UNDERSCORES_IN_HEADERS: Counter = "requests_rejected_with_underscores_in_headers",
        RESPONSE_FLOOD: Counter = "response_flood",
    }
}

crate::stats! {
    /// `cluster.<name>.http2.…`: there once an HTTP/2 connection was made.
    pub mod http2 {
        COOKIE_COUNT: Histogram = "cookie_count",
        COOKIE_SIZE: Histogram = "cookie_size",
        HEADER_COUNT: Histogram = "header_count",
        HEADER_LIST_SIZE: Histogram = "header_list_size",
        COOKIES_TOTAL_BYTES_TOO_LARGE: Counter = "cookies_total_bytes_too_large",
        DEFERRED_STREAM_CLOSE: Gauge = "deferred_stream_close",
        DROPPED_HEADERS_WITH_UNDERSCORES: Counter = "dropped_headers_with_underscores",
        GOAWAY_SENT: Counter = "goaway_sent",
        HEADER_LIST_SIZE_TOO_LARGE: Counter = "header_list_size_too_large",
        HEADER_OVERFLOW: Counter = "header_overflow",
        HEADERS_CB_NO_STREAM: Counter = "headers_cb_no_stream",
        INBOUND_EMPTY_FRAMES_FLOOD: Counter = "inbound_empty_frames_flood",
        INBOUND_PRIORITY_FRAMES_FLOOD: Counter = "inbound_priority_frames_flood",
        INBOUND_WINDOW_UPDATE_FRAMES_FLOOD: Counter = "inbound_window_update_frames_flood",
        KEEPALIVE_TIMEOUT: Counter = "keepalive_timeout",
        METADATA_EMPTY_FRAMES: Counter = "metadata_empty_frames",
        OUTBOUND_CONTROL_FLOOD: Counter = "outbound_control_flood",
        OUTBOUND_CONTROL_FRAMES_ACTIVE: Gauge = "outbound_control_frames_active",
        OUTBOUND_FLOOD: Counter = "outbound_flood",
        OUTBOUND_FRAMES_ACTIVE: Gauge = "outbound_frames_active",
        PENDING_SEND_BYTES: Gauge = "pending_send_bytes",
        REQUESTS_REJECTED_WITH_UNDERSCORES_IN_HEADERS: Counter = "requests_rejected_with_underscores_in_headers",
        RX_MESSAGING_ERROR: Counter = "rx_messaging_error",
        RX_RESET: Counter = "rx_reset",
        STREAM_REFUSED_ERRORS: Counter = "stream_refused_errors",
        STREAMS_ACTIVE: Gauge = "streams_active",
        TRAILERS: Counter = "trailers",
        TX_FLUSH_TIMEOUT: Counter = "tx_flush_timeout",
        TX_RESET: Counter = "tx_reset",
    }
}

/// Whether a request came from inside (`x-envoy-internal: true`) or from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `x-envoy-internal: true`.
    Internal,
    /// Everything else.
    External,
}

/// Who asked, and who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parties {
    /// Who asked.
    pub origin: Origin,
    /// The host is a canary, or says so (`x-envoy-upstream-canary: true`).
    pub canary: bool,
}

/// The statistics of one cluster; they survive updates of its configuration.
#[derive(Debug)]
pub struct ClusterStats {
    registry: Registry,
    name: Arc<str>,
    /// `cluster.<name>.…`: what [`cluster`] lists.
    pub set: Arc<StatSet>,
    on_demand: OnceLock<Box<OnDemand>>,
}

#[derive(Debug, Default)]
struct OnDemand {
    timed: OnceLock<Arc<StatSet>>,
    external: Group,
    internal: Group,
    canary: Group,
    http1: OnceLock<Arc<StatSet>>,
    http2: OnceLock<Arc<StatSet>>,
}

#[derive(Debug, Default)]
struct Group {
    answers: OnceLock<Arc<StatSet>>,
    timed: OnceLock<Arc<StatSet>>,
}

impl ClusterStats {
    /// Registers `cluster.<name>.…`.
    pub fn new(registry: &Registry, name: &Arc<str>) -> Self {
        Self {
            registry: registry.clone(),
            name: Arc::clone(name),
            set: register(registry, &cluster::TABLE, name, "", "cluster"),
            on_demand: OnceLock::new(),
        }
    }

    /// The name that the statistics go by (`alt_stat_name`, else the cluster's).
    pub fn name(&self) -> &str {
        &self.name
    }

    fn on_demand(&self) -> &OnDemand {
        self.on_demand.get_or_init(Box::default)
    }

    /// Counts an answer: `upstream_rq_completed`, `_<code>` and the groups' copies of both.
    pub fn answered(&self, code: u16, parties: Parties) {
        self.set.inc(cluster::UPSTREAM_RQ_COMPLETED);
        self.set.inc_code(code);
        for (slots, part, family) in self.groups(parties) {
            let answers = slots
                .answers
                .get_or_init(|| self.register(&group::TABLE, part, family));
            answers.inc(group::UPSTREAM_RQ_COMPLETED);
            answers.inc_code(code);
        }
    }

    /// Records the time from the last byte of the request to the last byte of the response.
    pub fn answer_time(&self, time: Duration, parties: Parties) {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let record = |slot: &OnceLock<Arc<StatSet>>, part, family| {
            slot.get_or_init(|| self.register(&timed::TABLE, part, family))
                .record(timed::UPSTREAM_RQ_TIME, millis);
        };
        record(&self.on_demand().timed, "", "cluster");
        for (slots, part, family) in self.groups(parties) {
            record(&slots.timed, part, family);
        }
    }

    fn groups(
        &self,
        parties: Parties,
    ) -> impl Iterator<Item = (&Group, &'static str, &'static str)> {
        let on_demand = self.on_demand();
        let origin = match parties.origin {
            Origin::External => (&on_demand.external, "external.", "cluster_external"),
            Origin::Internal => (&on_demand.internal, "internal.", "cluster_internal"),
        };
        let canary = parties
            .canary
            .then_some((&on_demand.canary, "canary.", "cluster_canary"));
        std::iter::once(origin).chain(canary)
    }

    /// `cluster.<name>.http1.…`.
    pub fn http1(&self) -> &StatSet {
        self.on_demand()
            .http1
            .get_or_init(|| self.register(&http1::TABLE, "http1.", "cluster_http1"))
    }

    /// `cluster.<name>.http2.…`.
    pub fn http2(&self) -> &StatSet {
        self.on_demand()
            .http2
            .get_or_init(|| self.register(&http2::TABLE, "http2.", "cluster_http2"))
    }

    fn register(
        &self,
        table: &'static StatTable,
        part: &str,
        family: &'static str,
    ) -> Arc<StatSet> {
        register(&self.registry, table, &self.name, part, family)
    }
}

fn register(
    registry: &Registry,
    table: &'static StatTable,
    name: &str,
    part: &str,
    family: &'static str,
) -> Arc<StatSet> {
    // Envoy replaces `:` in what it makes a stat name of.
    let name = name.replace(':', "_");
    registry.set(
        table,
        format!("cluster.{name}.{part}"),
        family,
        [("envoy_cluster_name", name.into_boxed_str())],
    )
}
