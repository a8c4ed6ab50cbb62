//! Asks another cluster about every request, counts, and ticks.
//!
//! The cluster's name is the plugin's configuration (`callout` where there is none). A request waits for
//! `GET /check` there: 200 lets it on with `x-checked: yes`, anything else answers 403. Counters: `callouts`, `ticks`; a
//! histogram `callout_ms`; a gauge `in_flight`. Shared data: `last-path`.

use std::cell::Cell;
use std::time::{Duration, UNIX_EPOCH};

use log::warn;
use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, MetricType};

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Root::default()) });
}}

#[derive(Default)]
struct Root {
    cluster: String,
    metrics: Metrics,
}

#[derive(Clone, Copy, Default)]
struct Metrics {
    callouts: u32,
    ticks: u32,
    callout_ms: u32,
    in_flight: u32,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        let bytes = self.get_plugin_configuration().unwrap_or_default();
        self.cluster = String::from_utf8_lossy(&bytes).into_owned();
        if self.cluster.is_empty() {
            self.cluster = "callout".to_owned();
        }
        let define = |kind, name: &str| hostcalls::define_metric(kind, name).unwrap_or(0);
        self.metrics = Metrics {
            callouts: define(MetricType::Counter, "callouts"),
            ticks: define(MetricType::Counter, "ticks"),
            callout_ms: define(MetricType::Histogram, "callout_ms"),
            in_flight: define(MetricType::Gauge, "in_flight"),
        };
        self.set_tick_period(Duration::from_millis(100));
        true
    }

    fn on_tick(&mut self) {
        let _ = hostcalls::increment_metric(self.metrics.ticks, 1);
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Callout {
            cluster: self.cluster.clone(),
            metrics: self.metrics,
            begun: Cell::new(0),
        }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Callout {
    cluster: String,
    metrics: Metrics,
    begun: Cell<u64>,
}

impl Callout {
    fn now_ms(&self) -> u64 {
        self.get_current_time()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64)
    }
}

impl Context for Callout {
    fn on_http_call_response(&mut self, _: u32, _: usize, _: usize, _: usize) {
        let _ = hostcalls::increment_metric(self.metrics.in_flight, -1);
        let took = self.now_ms().saturating_sub(self.begun.get());
        let _ = hostcalls::record_metric(self.metrics.callout_ms, took);
        if self.get_http_call_response_header(":status").as_deref() == Some("200") {
            self.set_http_request_header("x-checked", Some("yes"));
            self.resume_http_request();
        } else {
            self.send_http_response(403, vec![], Some(b"refused by the callout\n"));
        }
    }
}

impl HttpContext for Callout {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let path = self.get_http_request_header(":path").unwrap_or_default();
        let _ = self.set_shared_data("last-path", Some(path.as_bytes()), None);
        let _ = hostcalls::increment_metric(self.metrics.callouts, 1);
        self.begun.set(self.now_ms());
        let headers = vec![
            (":method", "GET"),
            (":path", "/check"),
            (":authority", "callout"),
            ("x-path", path.as_str()),
        ];
        match self.dispatch_http_call(&self.cluster, headers, None, vec![], Duration::from_secs(1))
        {
            Ok(_) => {
                let _ = hostcalls::increment_metric(self.metrics.in_flight, 1);
                Action::Pause
            }
            Err(status) => {
                warn!("no callout to {}: {status:?}", self.cluster);
                Action::Continue
            }
        }
    }
}
