//! Our own messages, of `proto/plenipo`: by hand, so that neither a build script nor `protoc` is needed to build.

/// `plenipo.extensions`.
pub mod extensions {
    /// `plenipo.extensions.wasm.v1`.
    pub mod wasm {
        /// Settings of the Wasm host; what the fields mean is said in the `.proto`.
        #[allow(missing_docs, reason = "the .proto says it")]
        pub mod v1 {
            use prost::{Enumeration, Message};

            use crate::pb::envoy::r#type::matcher::v3::StringMatcher;
            use crate::pb::google::protobuf::{
                BoolValue, DoubleValue, Duration, UInt32Value, UInt64Value,
            };

            #[derive(Clone, PartialEq, Message)]
            pub struct WasmSettings {
                #[prost(message, optional, tag = "1")]
                pub defaults: Option<PluginSettings>,
                #[prost(message, repeated, tag = "2")]
                pub overrides: Vec<Override>,
                #[prost(message, optional, tag = "3")]
                pub cache: Option<Cache>,
                #[prost(string, repeated, tag = "4")]
                pub insecure_registries: Vec<String>,
                #[prost(string, repeated, tag = "5")]
                pub internal_registries: Vec<String>,
                #[prost(message, optional, tag = "6")]
                pub compiler: Option<Compiler>,
            }

            impl prost::Name for WasmSettings {
                const NAME: &'static str = "WasmSettings";
                const PACKAGE: &'static str = "plenipo.extensions.wasm.v1";
            }

            #[derive(Clone, PartialEq, Message)]
            pub struct Override {
                #[prost(message, optional, tag = "1")]
                pub plugin: Option<StringMatcher>,
                #[prost(message, optional, tag = "2")]
                pub settings: Option<PluginSettings>,
            }

            #[derive(Clone, PartialEq, Message)]
            pub struct PluginSettings {
                #[prost(message, optional, tag = "1")]
                pub deadlines: Option<Deadlines>,
                #[prost(message, optional, tag = "2")]
                pub memory_limit_bytes: Option<UInt64Value>,
                #[prost(message, optional, tag = "3")]
                pub quotas: Option<Quotas>,
                #[prost(message, optional, tag = "4")]
                pub breaker: Option<Breaker>,
                #[prost(message, optional, tag = "5")]
                pub max_pause: Option<Duration>,
                #[prost(enumeration = "VmSharing", tag = "6")]
                pub vm_sharing: i32,
                #[prost(enumeration = "AfterCrash", tag = "7")]
                pub after_crash: i32,
                #[prost(message, optional, tag = "8")]
                pub lenient_header_reads: Option<BoolValue>,
                #[prost(message, optional, tag = "9")]
                pub rollout: Option<Rollout>,
            }

            #[derive(Clone, PartialEq, Message)]
            pub struct Rollout {
                #[prost(message, optional, tag = "1")]
                pub share_percent: Option<UInt32Value>,
                #[prost(message, optional, tag = "2")]
                pub window: Option<Duration>,
                #[prost(message, optional, tag = "3")]
                pub min_streams: Option<UInt32Value>,
                #[prost(message, optional, tag = "4")]
                pub max_broken_percent: Option<DoubleValue>,
                #[prost(message, optional, tag = "5")]
                pub max_added_latency: Option<Duration>,
            }

            #[derive(Clone, PartialEq, Message)]
            pub struct Deadlines {
                #[prost(message, optional, tag = "1")]
                pub callback_soft: Option<Duration>,
                #[prost(message, optional, tag = "2")]
                pub callback_hard: Option<Duration>,
                #[prost(message, optional, tag = "3")]
                pub start: Option<Duration>,
            }

            #[derive(Clone, PartialEq, Message)]
            pub struct Quotas {
                #[prost(message, optional, tag = "1")]
                pub metrics: Option<UInt32Value>,
                #[prost(message, optional, tag = "2")]
                pub shared_data_bytes: Option<UInt64Value>,
                #[prost(message, optional, tag = "3")]
                pub queues: Option<UInt32Value>,
                #[prost(message, optional, tag = "4")]
                pub queue_bytes: Option<UInt64Value>,
                #[prost(message, optional, tag = "5")]
                pub min_tick_period: Option<Duration>,
                #[prost(message, optional, tag = "6")]
                pub callouts: Option<UInt32Value>,
                #[prost(message, optional, tag = "7")]
                pub log_lines_per_second: Option<UInt32Value>,
                #[prost(message, optional, tag = "8")]
                pub callout_bytes: Option<UInt64Value>,
            }

            #[derive(Clone, PartialEq, Message)]
            pub struct Breaker {
                #[prost(message, optional, tag = "1")]
                pub tokens: Option<UInt32Value>,
                #[prost(message, optional, tag = "2")]
                pub token_interval: Option<Duration>,
                #[prost(message, optional, tag = "3")]
                pub base_interval: Option<Duration>,
                #[prost(message, optional, tag = "4")]
                pub max_interval: Option<Duration>,
                #[prost(message, optional, tag = "5")]
                pub probe_streams: Option<UInt32Value>,
                #[prost(message, optional, tag = "6")]
                pub probe_time: Option<Duration>,
            }

            #[derive(Clone, Copy, PartialEq, Message)]
            pub struct Compiler {
                #[prost(message, optional, tag = "1")]
                pub baseline_from_bytes: Option<UInt64Value>,
            }

            #[derive(Clone, PartialEq, Message)]
            pub struct Cache {
                #[prost(message, optional, tag = "1")]
                pub modules_in_memory: Option<UInt32Value>,
                #[prost(message, optional, tag = "2")]
                pub modules_on_disk: Option<UInt32Value>,
                #[prost(message, optional, tag = "3")]
                pub source_bytes_on_disk: Option<UInt64Value>,
                #[prost(message, optional, tag = "4")]
                pub refresh_interval: Option<Duration>,
            }

            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
            #[repr(i32)]
            pub enum VmSharing {
                Unspecified = 0,
                ByKey = 1,
                Isolated = 2,
            }

            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
            #[repr(i32)]
            pub enum AfterCrash {
                Unspecified = 0,
                Rebuild = 1,
                Envoy = 2,
            }
        }
    }
}
