//! Families of statistics that Envoy lists and that nothing here writes, apart from the runtime's: dashboards and
//! scrapers find every name they know, at zero.

use std::sync::Arc;

use crate::bootstrap::{RuntimeLayer, RuntimeLayerKind};
use crate::telemetry::metrics::{Registry, StatSet};

crate::stats! {
    /// `runtime.`
    pub(super) mod runtime {
        ADMIN_OVERRIDES_ACTIVE: Gauge = "admin_overrides_active",
        DEPRECATED_FEATURE_SEEN_SINCE_PROCESS_START: Gauge = "deprecated_feature_seen_since_process_start",
        DEPRECATED_FEATURE_USE: Counter = "deprecated_feature_use",
        LOAD_ERROR: Counter = "load_error",
        LOAD_SUCCESS: Counter = "load_success",
        NUM_KEYS: Gauge = "num_keys",
        NUM_LAYERS: Gauge = "num_layers",
        OVERRIDE_DIR_EXISTS: Counter = "override_dir_exists",
        OVERRIDE_DIR_NOT_EXISTS: Counter = "override_dir_not_exists",
    }
}

crate::stats! {
    /// `http.async-client.`: routes of Envoy's own calls.
    mod async_client {
        NO_CLUSTER: Counter = "no_cluster",
        NO_ROUTE: Counter = "no_route",
        BAD_LOCATION: Counter = "passthrough_internal_redirect_bad_location",
        REDIRECT_NO_ROUTE: Counter = "passthrough_internal_redirect_no_route",
        PREDICATE: Counter = "passthrough_internal_redirect_predicate",
        TOO_MANY_REDIRECTS: Counter = "passthrough_internal_redirect_too_many_redirects",
        UNSAFE_SCHEME: Counter = "passthrough_internal_redirect_unsafe_scheme",
        RQ_DIRECT_RESPONSE: Counter = "rq_direct_response",
        RQ_OVERLOAD_LOCAL_REPLY: Counter = "rq_overload_local_reply",
        RQ_REDIRECT: Counter = "rq_redirect",
        RQ_RESET_AFTER_START: Counter = "rq_reset_after_downstream_response_started",
        RQ_TOTAL: Counter = "rq_total",
    }
}

crate::stats! {
    /// `http1.`
    mod http1 {
        DROPPED_HEADERS_WITH_UNDERSCORES: Counter = "dropped_headers_with_underscores",
        METADATA_NOT_SUPPORTED_ERROR: Counter = "metadata_not_supported_error",
        REQUESTS_REJECTED_WITH_UNDERSCORES_IN_HEADERS: Counter = "requests_rejected_with_underscores_in_headers",
        RESPONSE_FLOOD: Counter = "response_flood",
    }
}

crate::stats! {
    /// `main_thread.`, `workers.` and one a thread: there is no watchdog.
    mod watchdog {
        MEGA_MISS: Counter = "watchdog_mega_miss",
        MISS: Counter = "watchdog_miss",
    }
}

crate::stats! {
    /// `thread_local_cluster_manager.<thread>.`: clusters are shared here.
    mod cluster_manager {
        CLUSTERS_INFLATED: Gauge = "clusters_inflated",
    }
}

crate::stats! {
    /// `overload.`
    mod overload {
        REFRESH_INTERVAL_DELAY: Histogram = "refresh_interval_delay",
    }
}

crate::stats! {
    /// `envoy.overload_actions.`
    mod overload_actions {
        RESET_HIGH_MEMORY_STREAM: Counter = "reset_high_memory_stream.count",
    }
}

/// Keeps the families listed.
pub(super) struct Families {
    runtime: Arc<StatSet>,
    _others: Vec<Arc<StatSet>>,
}

impl Families {
    pub(super) fn new(metrics: &Registry, layers: &[RuntimeLayer]) -> Self {
        let mut others = vec![
            metrics.set(&async_client::TABLE, "http.async-client.", "http", []),
            metrics.set(&http1::TABLE, "http1.", "http1", []),
            metrics.set(&overload::TABLE, "overload.", "overload", []),
            metrics.set(
                &overload_actions::TABLE,
                "envoy.overload_actions.",
                "envoy_overload_actions",
                [],
            ),
        ];
        for thread in ["main_thread.", "workers.", "server.main_thread."] {
            others.push(metrics.set(&watchdog::TABLE, thread, "watchdog", []));
        }
        let workers = (0..metrics.shards().workers()).map(|worker| format!("worker_{worker}."));
        for thread in workers {
            others.push(metrics.set(
                &watchdog::TABLE,
                format!("server.{thread}"),
                "server_worker",
                [],
            ));
            others.push(metrics.set(
                &cluster_manager::TABLE,
                format!("thread_local_cluster_manager.{thread}"),
                "thread_local_cluster_manager",
                [],
            ));
        }
        others.push(metrics.set(
            &cluster_manager::TABLE,
            "thread_local_cluster_manager.main_thread.",
            "thread_local_cluster_manager",
            [],
        ));
        let runtime = metrics.set(&runtime::TABLE, "runtime.", "runtime", []);
        runtime.inc(runtime::LOAD_SUCCESS);
        runtime.inc(runtime::OVERRIDE_DIR_NOT_EXISTS);
        runtime.set(runtime::NUM_LAYERS, layers.len() as u64);
        let keys = layers.iter().map(|layer| match &layer.kind {
            RuntimeLayerKind::Static(fields) => fields.fields.len() as u64,
            RuntimeLayerKind::Admin | RuntimeLayerKind::Empty => 0,
        });
        runtime.set(runtime::NUM_KEYS, keys.sum());
        Self {
            runtime,
            _others: others,
        }
    }

    /// `/runtime_modify` was used.
    pub(super) fn runtime_overridden(&self, active: bool) {
        self.runtime.inc(runtime::LOAD_SUCCESS);
        self.runtime
            .set(runtime::ADMIN_OVERRIDES_ACTIVE, u64::from(active));
    }
}
