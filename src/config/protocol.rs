//! HTTP protocol options of either side: protobuf to [`Http1Options`], [`Http2Options`] and [`CommonOptions`].

#![allow(
    deprecated,
    reason = "Envoy still honours its deprecated fields, and control planes send them"
)]

use std::time::Duration;

use super::cluster::{Http1Options, Http2Options};
use super::error::{At, ConfigError};
use super::field::{
    at_least_a_millisecond, enumeration, flag, header_text, percent, refuse, required, timeout,
    uint32, uint32_within,
};
use super::http_connection_manager::HeadersWithUnderscores;
use super::ignored::Ignored;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use crate::pb::envoy::config::core::v3::http1_protocol_options::HeaderKeyFormat;
use crate::pb::envoy::config::core::v3::http1_protocol_options::header_key_format::HeaderFormat;

/// Envoy's default for idle connections of either side.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// The largest value of HTTP/2's windows and stream counts.
const H2_MAX: u32 = (1 << 31) - 1;

/// The smallest window that Envoy accepts.
const H2_MIN_WINDOW: u32 = 65_535;

/// Accepted without effect.
pub(super) const IGNORED: &[Ignored] = &[
    Ignored(
        "allow_metadata",
        "METADATA frames are dropped, as by a peer that does not know them",
    ),
    Ignored(
        "connection_idle_interval",
        "keepalive pings are sent by `interval` alone",
    ),
    Ignored(
        "disallow_obs_text",
        "header values are checked by the codec's own rules",
    ),
    Ignored(
        "enable_huffman_encoding",
        "a choice of encoding; either is valid",
    ),
    Ignored("hpack_table_size", "a choice of encoding; either is valid"),
    Ignored(
        "interval_jitter",
        "spreads keepalive pings; there are none to spread by default",
    ),
    Ignored(
        "max_connection_duration_jitter",
        "spreads the ends of connections",
    ),
    Ignored(
        "max_consecutive_inbound_frames_with_empty_payload",
        "the codec has its own limits against floods",
    ),
    Ignored(
        "max_header_field_size_kb",
        "header blocks are limited as a whole",
    ),
    Ignored(
        "max_inbound_priority_frames_per_stream",
        "the codec has its own limits against floods",
    ),
    Ignored(
        "max_inbound_window_update_frames_per_data_frame_sent",
        "the codec has its own limits against floods",
    ),
    Ignored("max_metadata_size", "METADATA frames are dropped"),
    Ignored(
        "max_outbound_control_frames",
        "the codec has its own limits against floods",
    ),
    Ignored(
        "max_outbound_frames",
        "the codec has its own limits against floods",
    ),
    Ignored(
        "max_response_headers_kb",
        "the codec's own limit of response heads holds",
    ),
    Ignored(
        "stream_reset_burst",
        "the codec has its own limits against floods",
    ),
    Ignored(
        "stream_reset_rate",
        "the codec has its own limits against floods",
    ),
    Ignored("use_balsa_parser", "chooses between Envoy's own parsers"),
    Ignored("use_oghttp2_codec", "chooses between Envoy's own codecs"),
];

/// `envoy.config.core.v3.HttpProtocolOptions`, defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CommonOptions {
    /// `idle_timeout`; default 1 h.
    pub(super) idle_timeout: Option<Duration>,
    /// `max_connection_duration`.
    pub(super) max_connection_duration: Option<Duration>,
    /// `max_stream_duration`.
    pub(super) max_stream_duration: Option<Duration>,
    /// `max_headers_count`.
    pub(super) max_headers_count: Option<u32>,
    /// `headers_with_underscores_action`.
    pub(super) underscores: HeadersWithUnderscores,
    /// `max_requests_per_connection`; zero is none.
    pub(super) max_requests_per_connection: Option<u32>,
}

impl CommonOptions {
    pub(super) fn parse(proto: core::HttpProtocolOptions) -> Result<Self, ConfigError> {
        let core::HttpProtocolOptions {
            idle_timeout,
            max_connection_duration,
            max_connection_duration_jitter: _,
            max_headers_count,
            max_response_headers_kb,
            max_stream_duration,
            headers_with_underscores_action,
            max_requests_per_connection,
        } = proto;
        if uint32(max_response_headers_kb).is_some_and(|kb| kb == 0 || kb > 8192) {
            return Err(ConfigError::invalid("value must be inside range (0, 8192]")
                .at("max_response_headers_kb"));
        }
        let underscores = match enumeration::<HeadersWithUnderscoresAction>(
            headers_with_underscores_action,
            "headers_with_underscores_action",
        )? {
            HeadersWithUnderscoresAction::Allow => HeadersWithUnderscores::Allow,
            HeadersWithUnderscoresAction::RejectRequest => HeadersWithUnderscores::Reject,
            HeadersWithUnderscoresAction::DropHeader => HeadersWithUnderscores::Drop,
        };
        Ok(Self {
            idle_timeout: timeout(idle_timeout, Some(DEFAULT_IDLE_TIMEOUT), "idle_timeout")?,
            max_connection_duration: timeout(
                max_connection_duration,
                None,
                "max_connection_duration",
            )?,
            max_stream_duration: timeout(max_stream_duration, None, "max_stream_duration")?,
            max_headers_count: uint32_within(max_headers_count, 1, u32::MAX, "max_headers_count")?,
            underscores,
            max_requests_per_connection: uint32(max_requests_per_connection).filter(|max| *max > 0),
        })
    }
}

impl Http1Options {
    /// Validates `Http1ProtocolOptions`.
    ///
    /// # Errors
    /// Options that change what is on the wire and are not supported.
    pub fn parse(proto: core::Http1ProtocolOptions) -> Result<Self, ConfigError> {
        let core::Http1ProtocolOptions {
            allow_absolute_url,
            accept_http_10,
            default_host_for_http_10,
            header_key_format,
            enable_trailers,
            allow_chunked_length,
            override_stream_error_on_invalid_http_message,
            send_fully_qualified_url,
            use_balsa_parser: _,
            allow_custom_methods,
            ignore_http_11_upgrade,
        } = proto;
        refuse(
            send_fully_qualified_url,
            "send_fully_qualified_url",
            "requests are sent in origin form",
        )?;
        refuse(
            !ignore_http_11_upgrade.is_empty(),
            "ignore_http_11_upgrade",
            "not implemented by this build yet",
        )?;
        let proper_case = match header_key_format {
            None => false,
            Some(HeaderKeyFormat { header_format }) => {
                match required(header_format, "header_format").at("header_key_format")? {
                    HeaderFormat::ProperCaseWords(_) => true,
                    HeaderFormat::StatefulFormatter(_) => {
                        return Err(ConfigError::unsupported(
                            "stateful_formatter",
                            "header case is not preserved by this build yet",
                        )
                        .at("header_key_format"));
                    }
                }
            }
        };
        let default_host = header_text(default_host_for_http_10, "default_host_for_http_10")?;
        Ok(Self {
            accept_http_10,
            default_host_for_http_10: (!default_host.is_empty()).then(|| default_host.into()),
            enable_trailers,
            proper_case,
            allow_chunked_length,
            refuse_absolute_url: !flag(allow_absolute_url, true),
            keep_open_on_invalid_message: flag(
                override_stream_error_on_invalid_http_message,
                false,
            ),
            allow_custom_methods,
        })
    }
}

impl Http2Options {
    /// Validates `Http2ProtocolOptions`.
    ///
    /// # Errors
    /// Values out of range, and options that change what is on the wire and are not supported.
    pub fn parse(proto: core::Http2ProtocolOptions) -> Result<Self, ConfigError> {
        let core::Http2ProtocolOptions {
            hpack_table_size: _,
            max_concurrent_streams,
            initial_stream_window_size,
            initial_connection_window_size,
            allow_connect,
            allow_metadata: _,
            max_outbound_frames: _,
            max_outbound_control_frames: _,
            max_consecutive_inbound_frames_with_empty_payload: _,
            max_inbound_priority_frames_per_stream: _,
            max_inbound_window_update_frames_per_data_frame_sent: _,
            stream_error_on_invalid_http_messaging,
            override_stream_error_on_invalid_http_message,
            custom_settings_parameters,
            connection_keepalive,
            use_oghttp2_codec: _,
            max_metadata_size: _,
            enable_huffman_encoding: _,
            max_header_field_size_kb,
            disallow_obs_text: _,
            stream_reset_burst: _,
            stream_reset_rate: _,
        } = proto;
        refuse(
            !custom_settings_parameters.is_empty(),
            "custom_settings_parameters",
            "the codec does not send settings of its user",
        )?;
        uint32_within(
            max_header_field_size_kb,
            64,
            256,
            "max_header_field_size_kb",
        )?;
        let default = Self::default();
        let window = |value, field, default| {
            Ok::<u32, ConfigError>(
                uint32_within(value, H2_MIN_WINDOW, H2_MAX, field)?.unwrap_or(default),
            )
        };
        Ok(Self {
            max_concurrent_streams: uint32_within(
                max_concurrent_streams,
                1,
                H2_MAX,
                "max_concurrent_streams",
            )?
            .unwrap_or(default.max_concurrent_streams),
            initial_stream_window: window(
                initial_stream_window_size,
                "initial_stream_window_size",
                default.initial_stream_window,
            )?,
            initial_connection_window: window(
                initial_connection_window_size,
                "initial_connection_window_size",
                default.initial_connection_window,
            )?,
            keepalive: keepalive(connection_keepalive).at("connection_keepalive")?,
            stream_error_on_invalid_message: flag(
                override_stream_error_on_invalid_http_message,
                stream_error_on_invalid_http_messaging,
            ),
            allow_connect,
        })
    }
}

fn keepalive(
    proto: Option<core::KeepaliveSettings>,
) -> Result<Option<(Duration, Duration)>, ConfigError> {
    let Some(core::KeepaliveSettings {
        interval,
        timeout,
        interval_jitter,
        connection_idle_interval,
    }) = proto
    else {
        return Ok(None);
    };
    percent(interval_jitter, "interval_jitter")?;
    at_least_a_millisecond(connection_idle_interval, "connection_idle_interval")?;
    let interval = at_least_a_millisecond(interval, "interval")?;
    let timeout = required(at_least_a_millisecond(timeout, "timeout")?, "timeout")?;
    Ok(interval.map(|interval| (interval, timeout)))
}

/// `SchemeHeaderTransformation`: the scheme to set.
pub(super) fn scheme_to_overwrite(
    proto: core::SchemeHeaderTransformation,
) -> Result<Option<Box<str>>, ConfigError> {
    use core::scheme_header_transformation::Transformation;
    let core::SchemeHeaderTransformation {
        match_upstream,
        transformation,
    } = proto;
    refuse(
        match_upstream,
        "match_upstream",
        "upstreams are plain-text in this build",
    )?;
    match transformation {
        None => Ok(None),
        Some(Transformation::SchemeToOverwrite(scheme))
            if scheme == "http" || scheme == "https" =>
        {
            Ok(Some(scheme.into()))
        }
        Some(Transformation::SchemeToOverwrite(_)) => {
            Err(ConfigError::invalid("value must be in list [http https]")
                .at("scheme_to_overwrite"))
        }
    }
}

/// A `TcpKeepalive`; its times are in seconds.
pub(super) fn tcp_keepalive(proto: core::TcpKeepalive) -> super::cluster::TcpKeepalive {
    let core::TcpKeepalive {
        keepalive_probes,
        keepalive_time,
        keepalive_interval,
    } = proto;
    let seconds = |value| uint32(value).map(|value| Duration::from_secs(value.into()));
    super::cluster::TcpKeepalive {
        probes: uint32(keepalive_probes),
        time: seconds(keepalive_time),
        interval: seconds(keepalive_interval),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb;

    fn http2(yaml: &str) -> Result<Http2Options, String> {
        let proto = pb::from_yaml::<core::Http2ProtocolOptions>(yaml).expect("options");
        Http2Options::parse(proto).map_err(|error| error.to_string())
    }

    #[test]
    fn unset_http2_options_are_envoys_defaults() {
        assert_eq!(http2("{}"), Ok(Http2Options::default()));
    }

    #[test]
    fn http2_options_are_read() {
        // As Envoy Gateway sends them.
        let options = http2(
            "{max_concurrent_streams: 100, initial_stream_window_size: 65536, initial_connection_window_size: 1048576, connection_keepalive: {interval: 30s, timeout: 5s}}",
        )
        .expect("valid");
        assert_eq!(options.max_concurrent_streams, 100);
        assert_eq!(options.initial_stream_window, 65536);
        assert_eq!(options.initial_connection_window, 1 << 20);
        assert_eq!(
            options.keepalive,
            Some((Duration::from_secs(30), Duration::from_secs(5)))
        );
    }

    #[test]
    fn http2_values_out_of_range_are_refused() {
        for (yaml, error) in [
            (
                "{initial_stream_window_size: 5}",
                "initial_stream_window_size: value must be inside range [65535, 2147483647]",
            ),
            (
                "{max_concurrent_streams: 0}",
                "max_concurrent_streams: value must be inside range [1, 2147483647]",
            ),
            (
                "{connection_keepalive: {interval: 1s}}",
                "connection_keepalive.timeout: value is required",
            ),
            (
                "{connection_keepalive: {timeout: 0s}}",
                "connection_keepalive.timeout: value must be greater than or equal to 1ms",
            ),
            (
                "{max_header_field_size_kb: 1}",
                "max_header_field_size_kb: value must be inside range [64, 256]",
            ),
        ] {
            assert_eq!(http2(yaml), Err(error.to_owned()), "{yaml}");
        }
    }

    #[test]
    fn the_newer_name_of_stream_errors_wins() {
        let old = "stream_error_on_invalid_http_messaging: true";
        assert!(http2(old).is_ok_and(|o| o.stream_error_on_invalid_message));
        let both = format!("{{{old}, override_stream_error_on_invalid_http_message: false}}");
        assert!(http2(&both).is_ok_and(|o| !o.stream_error_on_invalid_message));
    }

    #[test]
    fn http1_options_are_read_or_refused() {
        let parse = |yaml: &str| {
            let proto = pb::from_yaml::<core::Http1ProtocolOptions>(yaml).expect("options");
            Http1Options::parse(proto).map_err(|error| error.to_string())
        };
        assert_eq!(parse("{}"), Ok(Http1Options::default()));
        let read = parse("{accept_http_10: true, default_host_for_http_10: a.test, enable_trailers: true, allow_absolute_url: false, header_key_format: {proper_case_words: {}}}").expect("valid");
        assert!(read.accept_http_10 && read.enable_trailers && read.proper_case);
        assert!(read.refuse_absolute_url);
        assert_eq!(read.default_host_for_http_10.as_deref(), Some("a.test"));
        for (yaml, error) in [
            (
                "{header_key_format: {}}",
                "header_key_format.header_format: value is required",
            ),
            (
                "{send_fully_qualified_url: true}",
                "send_fully_qualified_url: not supported: requests are sent in origin form",
            ),
        ] {
            assert_eq!(parse(yaml), Err(error.to_owned()), "{yaml}");
        }
    }
}
