//! `command_line_options` of `/server_info`.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::{DrainStrategy, Mode, Options};

impl Options {
    /// As `envoy.admin.v3.CommandLineOptions`, every field printed.
    pub fn to_json(&self) -> Value {
        let path = |path: &Option<PathBuf>| {
            path.as_ref()
                .map(|path| path.to_string_lossy().into_owned())
                .unwrap_or_default()
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let mode = match self.mode {
            Mode::Serve => "Serve",
            Mode::Validate => "Validate",
            Mode::InitOnly => "InitOnly",
        };
        let drain_strategy = match self.drain_strategy {
            DrainStrategy::Gradual => "Gradual",
            DrainStrategy::Immediate => "Immediate",
        };
        let tags: Vec<_> = self
            .stats_tags
            .iter()
            .map(|(name, value)| format!("{name}:{value}"))
            .collect();
        json!({
            "base_id": self.base_id.to_string(),
            "concurrency": self.concurrency,
            "config_path": path(&self.config_path),
            "config_yaml": text(&self.config_yaml),
            "allow_unknown_static_fields": self.allow_unknown_static_fields,
            "admin_address_path": path(&self.admin_address_path),
            "local_address_ip_version": if self.ipv6 { "v6" } else { "v4" },
            "log_level": self.log_level.name(),
            "component_log_level": self.component_log_level,
            "log_format": self.log_format.as_deref().unwrap_or(super::DEFAULT_LOG_FORMAT),
            "log_path": path(&self.log_path),
            "service_cluster": text(&self.service_cluster),
            "service_node": text(&self.service_node),
            "service_zone": text(&self.service_zone),
            "file_flush_interval": duration(self.file_flush_interval),
            "drain_time": duration(self.drain_time),
            "parent_shutdown_time": duration(self.parent_shutdown_time),
            "mode": mode,
            "disable_hot_restart": self.disable_hot_restart,
            "enable_mutex_tracing": self.enable_mutex_tracing,
            "restart_epoch": self.restart_epoch,
            "cpuset_threads": self.cpuset_threads,
            "reject_unknown_dynamic_fields": self.reject_unknown_dynamic_fields,
            "log_format_escaped": self.log_format_escaped,
            "disabled_extensions": self.disabled_extensions,
            "ignore_unknown_dynamic_fields": self.ignore_unknown_dynamic_fields,
            "use_dynamic_base_id": self.use_dynamic_base_id,
            "base_id_path": path(&self.base_id_path),
            "drain_strategy": drain_strategy,
            "enable_fine_grain_logging": self.fine_grain_logging,
            "socket_path": self.socket_path,
            "socket_mode": self.socket_mode,
            "enable_core_dump": self.enable_core_dump,
            "stats_tag": tags,
            "skip_hot_restart_on_no_parent": self.skip_hot_restart_on_no_parent,
            "skip_hot_restart_parent_stats": self.skip_hot_restart_parent_stats,
            "skip_deprecated_logs": self.skip_deprecated_logs,
            "file_flush_min_size": self.file_flush_min_size_kb,
            "log_stacktrace_single_entry": self.log_stacktrace_single_entry,
        })
    }
}

/// `10s`, `0.200s`.
fn duration(duration: Duration) -> String {
    let millis = duration.subsec_millis();
    if millis == 0 {
        format!("{}s", duration.as_secs())
    } else {
        format!("{}.{millis:03}s", duration.as_secs())
    }
}
