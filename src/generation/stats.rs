//! Names of the downstream statistics, Envoy's: `http.<stat_prefix>.*` and `listener.<address>.*`.

crate::stats! {
    /// `http.<stat_prefix>.`
    pub mod http {
        DOWNSTREAM_CX_ACTIVE: Gauge = "downstream_cx_active",
        DOWNSTREAM_CX_DELAYED_CLOSE_TIMEOUT: Counter = "downstream_cx_delayed_close_timeout",
        DOWNSTREAM_CX_DESTROY: Counter = "downstream_cx_destroy",
        DOWNSTREAM_CX_DESTROY_ACTIVE_RQ: Counter = "downstream_cx_destroy_active_rq",
        DOWNSTREAM_CX_DESTROY_LOCAL: Counter = "downstream_cx_destroy_local",
        DOWNSTREAM_CX_DESTROY_LOCAL_ACTIVE_RQ: Counter = "downstream_cx_destroy_local_active_rq",
        DOWNSTREAM_CX_DESTROY_REMOTE: Counter = "downstream_cx_destroy_remote",
        DOWNSTREAM_CX_DESTROY_REMOTE_ACTIVE_RQ: Counter = "downstream_cx_destroy_remote_active_rq",
        DOWNSTREAM_CX_DRAIN_CLOSE: Counter = "downstream_cx_drain_close",
        DOWNSTREAM_CX_HTTP1_ACTIVE: Gauge = "downstream_cx_http1_active",
        DOWNSTREAM_CX_HTTP1_SOFT_DRAIN: Counter = "downstream_cx_http1_soft_drain",
        DOWNSTREAM_CX_HTTP1_TOTAL: Counter = "downstream_cx_http1_total",
        DOWNSTREAM_CX_HTTP2_ACTIVE: Gauge = "downstream_cx_http2_active",
        DOWNSTREAM_CX_HTTP2_TOTAL: Counter = "downstream_cx_http2_total",
        DOWNSTREAM_CX_HTTP3_ACTIVE: Gauge = "downstream_cx_http3_active",
        DOWNSTREAM_CX_HTTP3_TOTAL: Counter = "downstream_cx_http3_total",
        DOWNSTREAM_CX_IDLE_TIMEOUT: Counter = "downstream_cx_idle_timeout",
        DOWNSTREAM_CX_LENGTH_MS: Histogram = "downstream_cx_length_ms",
        DOWNSTREAM_CX_MAX_DURATION_REACHED: Counter = "downstream_cx_max_duration_reached",
        DOWNSTREAM_CX_MAX_REQUESTS_REACHED: Counter = "downstream_cx_max_requests_reached",
        DOWNSTREAM_CX_OVERLOAD_DISABLE_KEEPALIVE: Counter = "downstream_cx_overload_disable_keepalive",
        DOWNSTREAM_CX_PROTOCOL_ERROR: Counter = "downstream_cx_protocol_error",
        DOWNSTREAM_CX_RX_BYTES_BUFFERED: Gauge = "downstream_cx_rx_bytes_buffered",
        DOWNSTREAM_CX_RX_BYTES_TOTAL: Counter = "downstream_cx_rx_bytes_total",
        DOWNSTREAM_CX_SSL_ACTIVE: Gauge = "downstream_cx_ssl_active",
        DOWNSTREAM_CX_SSL_TOTAL: Counter = "downstream_cx_ssl_total",
        DOWNSTREAM_CX_TOTAL: Counter = "downstream_cx_total",
        DOWNSTREAM_CX_TX_BYTES_BUFFERED: Gauge = "downstream_cx_tx_bytes_buffered",
        DOWNSTREAM_CX_TX_BYTES_TOTAL: Counter = "downstream_cx_tx_bytes_total",
        DOWNSTREAM_CX_UPGRADES_ACTIVE: Gauge = "downstream_cx_upgrades_active",
        DOWNSTREAM_CX_UPGRADES_TOTAL: Counter = "downstream_cx_upgrades_total",
        DOWNSTREAM_FLOW_CONTROL_PAUSED_READING_TOTAL: Counter = "downstream_flow_control_paused_reading_total",
        DOWNSTREAM_FLOW_CONTROL_RESUMED_READING_TOTAL: Counter = "downstream_flow_control_resumed_reading_total",
        DOWNSTREAM_RQ_1XX: Counter = "downstream_rq_1xx",
        DOWNSTREAM_RQ_2XX: Counter = "downstream_rq_2xx",
        DOWNSTREAM_RQ_3XX: Counter = "downstream_rq_3xx",
        DOWNSTREAM_RQ_4XX: Counter = "downstream_rq_4xx",
        DOWNSTREAM_RQ_5XX: Counter = "downstream_rq_5xx",
        DOWNSTREAM_RQ_ACTIVE: Gauge = "downstream_rq_active",
        DOWNSTREAM_RQ_COMPLETED: Counter = "downstream_rq_completed",
        DOWNSTREAM_RQ_FAILED_PATH_NORMALIZATION: Counter = "downstream_rq_failed_path_normalization",
        DOWNSTREAM_RQ_HEADER_TIMEOUT: Counter = "downstream_rq_header_timeout",
        DOWNSTREAM_RQ_HTTP1_TOTAL: Counter = "downstream_rq_http1_total",
        DOWNSTREAM_RQ_HTTP2_TOTAL: Counter = "downstream_rq_http2_total",
        DOWNSTREAM_RQ_HTTP3_TOTAL: Counter = "downstream_rq_http3_total",
        DOWNSTREAM_RQ_IDLE_TIMEOUT: Counter = "downstream_rq_idle_timeout",
        DOWNSTREAM_RQ_MAX_DURATION_REACHED: Counter = "downstream_rq_max_duration_reached",
        DOWNSTREAM_RQ_NON_RELATIVE_PATH: Counter = "downstream_rq_non_relative_path",
        DOWNSTREAM_RQ_OVERLOAD_CLOSE: Counter = "downstream_rq_overload_close",
        DOWNSTREAM_RQ_REDIRECTED_WITH_NORMALIZED_PATH: Counter = "downstream_rq_redirected_with_normalized_path",
        DOWNSTREAM_RQ_REJECTED_VIA_IP_DETECTION: Counter = "downstream_rq_rejected_via_ip_detection",
        DOWNSTREAM_RQ_RESPONSE_BEFORE_RQ_COMPLETE: Counter = "downstream_rq_response_before_rq_complete",
        DOWNSTREAM_RQ_RX_RESET: Counter = "downstream_rq_rx_reset",
        DOWNSTREAM_RQ_TIME: Histogram = "downstream_rq_time",
        DOWNSTREAM_RQ_TIMEOUT: Counter = "downstream_rq_timeout",
        DOWNSTREAM_RQ_TOO_LARGE: Counter = "downstream_rq_too_large",
        DOWNSTREAM_RQ_TOO_MANY_PREMATURE_RESETS: Counter = "downstream_rq_too_many_premature_resets",
        DOWNSTREAM_RQ_TOTAL: Counter = "downstream_rq_total",
        DOWNSTREAM_RQ_TX_RESET: Counter = "downstream_rq_tx_reset",
        DOWNSTREAM_RQ_WS_ON_NON_WS_ROUTE: Counter = "downstream_rq_ws_on_non_ws_route",
        NO_CLUSTER: Counter = "no_cluster",
        NO_ROUTE: Counter = "no_route",
        PASSTHROUGH_INTERNAL_REDIRECT_BAD_LOCATION: Counter = "passthrough_internal_redirect_bad_location",
        PASSTHROUGH_INTERNAL_REDIRECT_NO_ROUTE: Counter = "passthrough_internal_redirect_no_route",
        PASSTHROUGH_INTERNAL_REDIRECT_PREDICATE: Counter = "passthrough_internal_redirect_predicate",
        PASSTHROUGH_INTERNAL_REDIRECT_TOO_MANY_REDIRECTS: Counter = "passthrough_internal_redirect_too_many_redirects",
        PASSTHROUGH_INTERNAL_REDIRECT_UNSAFE_SCHEME: Counter = "passthrough_internal_redirect_unsafe_scheme",
        RQ_DIRECT_RESPONSE: Counter = "rq_direct_response",
        RQ_OVERLOAD_LOCAL_REPLY: Counter = "rq_overload_local_reply",
        RQ_REDIRECT: Counter = "rq_redirect",
        RQ_RESET_AFTER_DOWNSTREAM_RESPONSE_STARTED: Counter = "rq_reset_after_downstream_response_started",
        RQ_TOTAL: Counter = "rq_total",
        RS_TOO_LARGE: Counter = "rs_too_large",
        TRACING_CLIENT_ENABLED: Counter = "tracing.client_enabled",
        TRACING_HEALTH_CHECK: Counter = "tracing.health_check",
        TRACING_NOT_TRACEABLE: Counter = "tracing.not_traceable",
        TRACING_RANDOM_SAMPLING: Counter = "tracing.random_sampling",
        TRACING_SERVICE_FORCED: Counter = "tracing.service_forced",
    }
}

crate::stats! {
    /// `tcp.<stat_prefix>.`
    pub mod tcp {
        DOWNSTREAM_CX_DRAIN_CLOSE: Counter = "downstream_cx_drain_close",
        DOWNSTREAM_CX_NO_ROUTE: Counter = "downstream_cx_no_route",
        DOWNSTREAM_CX_OVERLOAD_CLOSE: Counter = "downstream_cx_overload_close",
        DOWNSTREAM_CX_RX_BYTES_BUFFERED: Gauge = "downstream_cx_rx_bytes_buffered",
        DOWNSTREAM_CX_RX_BYTES_TOTAL: Counter = "downstream_cx_rx_bytes_total",
        DOWNSTREAM_CX_TOTAL: Counter = "downstream_cx_total",
        DOWNSTREAM_CX_TX_BYTES_BUFFERED: Gauge = "downstream_cx_tx_bytes_buffered",
        DOWNSTREAM_CX_TX_BYTES_TOTAL: Counter = "downstream_cx_tx_bytes_total",
        DOWNSTREAM_FLOW_CONTROL_PAUSED_READING_TOTAL: Counter = "downstream_flow_control_paused_reading_total",
        DOWNSTREAM_FLOW_CONTROL_RESUMED_READING_TOTAL: Counter = "downstream_flow_control_resumed_reading_total",
        EARLY_DATA_RECEIVED_COUNT_TOTAL: Counter = "early_data_received_count_total",
        IDLE_TIMEOUT: Counter = "idle_timeout",
        MAX_DOWNSTREAM_CONNECTION_DURATION: Counter = "max_downstream_connection_duration",
        ROUTE_DELAYED_TOTAL: Counter = "route_delayed_total",
        UPSTREAM_FLUSH_ACTIVE: Gauge = "upstream_flush_active",
        UPSTREAM_FLUSH_TOTAL: Counter = "upstream_flush_total",
    }
}

crate::stats! {
    /// `listener.<address>.`
    pub mod socket {
        CONNECTIONS_ACCEPTED_PER_SOCKET_EVENT: Histogram = "connections_accepted_per_socket_event",
        DOWNSTREAM_CX_ACTIVE: Gauge = "downstream_cx_active",
        DOWNSTREAM_CX_DESTROY: Counter = "downstream_cx_destroy",
        DOWNSTREAM_CX_LENGTH_MS: Histogram = "downstream_cx_length_ms",
        DOWNSTREAM_CX_OVERFLOW: Counter = "downstream_cx_overflow",
        DOWNSTREAM_CX_OVERLOAD_REJECT: Counter = "downstream_cx_overload_reject",
        DOWNSTREAM_CX_TOTAL: Counter = "downstream_cx_total",
        DOWNSTREAM_CX_TRANSPORT_SOCKET_CONNECT_TIMEOUT: Counter = "downstream_cx_transport_socket_connect_timeout",
        DOWNSTREAM_GLOBAL_CX_OVERFLOW: Counter = "downstream_global_cx_overflow",
        DOWNSTREAM_LISTENER_FILTER_ERROR: Counter = "downstream_listener_filter_error",
        DOWNSTREAM_LISTENER_FILTER_REMOTE_CLOSE: Counter = "downstream_listener_filter_remote_close",
        DOWNSTREAM_PRE_CX_ACTIVE: Gauge = "downstream_pre_cx_active",
        DOWNSTREAM_PRE_CX_TIMEOUT: Counter = "downstream_pre_cx_timeout",
        EXTENSION_CONFIG_MISSING: Counter = "extension_config_missing",
        NETWORK_EXTENSION_CONFIG_MISSING: Counter = "network_extension_config_missing",
        NO_FILTER_CHAIN_MATCH: Counter = "no_filter_chain_match",
    }
}

crate::stats! {
    /// `listener.<address>.http.<stat_prefix>.`
    pub mod listener_http {
        DOWNSTREAM_RQ_1XX: Counter = "downstream_rq_1xx",
        DOWNSTREAM_RQ_2XX: Counter = "downstream_rq_2xx",
        DOWNSTREAM_RQ_3XX: Counter = "downstream_rq_3xx",
        DOWNSTREAM_RQ_4XX: Counter = "downstream_rq_4xx",
        DOWNSTREAM_RQ_5XX: Counter = "downstream_rq_5xx",
        DOWNSTREAM_RQ_COMPLETED: Counter = "downstream_rq_completed",
    }
}

crate::stats! {
    /// `listener.<address>.worker_<n>.`
    pub mod worker {
        DOWNSTREAM_CX_ACTIVE: Gauge = "downstream_cx_active",
        DOWNSTREAM_CX_TOTAL: Counter = "downstream_cx_total",
    }
}

crate::stats! {
    /// `listener_manager.`
    pub mod listener_manager {
        LISTENER_ADDED: Counter = "listener_added",
        LISTENER_CREATE_FAILURE: Counter = "listener_create_failure",
        LISTENER_CREATE_SUCCESS: Counter = "listener_create_success",
        LISTENER_IN_PLACE_UPDATED: Counter = "listener_in_place_updated",
        LISTENER_MODIFIED: Counter = "listener_modified",
        LISTENER_REMOVED: Counter = "listener_removed",
        LISTENER_STOPPED: Counter = "listener_stopped",
        TOTAL_FILTER_CHAINS_DRAINING: Gauge = "total_filter_chains_draining",
        TOTAL_LISTENERS_ACTIVE: Gauge = "total_listeners_active",
        TOTAL_LISTENERS_DRAINING: Gauge = "total_listeners_draining",
        TOTAL_LISTENERS_WARMING: Gauge = "total_listeners_warming",
        WORKERS_PINNED: Gauge = "workers_pinned",
        WORKERS_STARTED: Gauge = "workers_started",
    }
}
