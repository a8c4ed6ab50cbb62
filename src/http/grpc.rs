//! What gRPC makes of HTTP: statuses, messages in frames, timeouts, replies of our own.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::ResponseHead;

/// `grpc-status`.
pub const STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// `grpc-message`.
pub const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// `grpc-timeout`.
pub const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// `UNKNOWN`.
pub const UNKNOWN: u32 = 2;
/// `RESOURCE_EXHAUSTED`.
pub const RESOURCE_EXHAUSTED: u32 = 8;
/// `INTERNAL`.
pub const INTERNAL: u32 = 13;
/// `UNAVAILABLE`.
pub const UNAVAILABLE: u32 = 14;
/// What Envoy reports for a `grpc-status` that is none: its -1.
pub const INVALID: u32 = u32::MAX;

/// Bytes of a frame before its message.
const PREFIX: usize = 5;

/// The gRPC status that stands for an HTTP status.
pub fn status_of(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => INTERNAL,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

/// The status that a message's last headers tell; `None` where they tell none.
pub fn status(headers: &HeaderMap) -> Option<u32> {
    let value = headers.get(STATUS)?;
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    Some(number.filter(|number| *number <= 16).unwrap_or(INVALID))
}

/// Makes a reply of ours one to a gRPC request: the status and the message are headers.
pub fn reply(head: &mut ResponseHead, status: StatusCode, message: &[u8], grpc: Option<u32>) {
    head.status = StatusCode::OK;
    head.headers
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let code = grpc.unwrap_or_else(|| status_of(status));
    head.headers.insert(STATUS, HeaderValue::from(code));
    if !message.is_empty() {
        insert_message(&mut head.headers, message);
    }
}

/// `grpc-message` is percent-encoded: what is not printable ASCII, and `%`.
fn insert_message(headers: &mut HeaderMap, message: &[u8]) {
    const PRINTABLE: percent_encoding::AsciiSet = percent_encoding::CONTROLS.add(b'%');
    let encoded = percent_encoding::percent_encode(message, &PRINTABLE).to_string();
    if let Ok(value) = HeaderValue::try_from(encoded) {
        headers.insert(MESSAGE, value);
    }
}

/// A value of `grpc-timeout`: at most eight digits and the finest unit that fits.
pub fn timeout(timeout: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let millis = timeout.as_millis();
    let units = [(1, 'm'), (1_000, 'S'), (60_000, 'M'), (3_600_000, 'H')];
    let fitting = units.into_iter().find(|(size, _)| millis / size <= MOST);
    let text = match fitting {
        Some((size, unit)) => format!("{}{unit}", millis / size),
        None => format!("{MOST}H"),
    };
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("99999999H"))
}

/// A message in its frame, uncompressed. `None` where its length does not fit in 32 bits.
pub fn frame(message: &[u8]) -> Option<Bytes> {
    let len = u32::try_from(message.len()).ok()?;
    let mut frame = BytesMut::with_capacity(PREFIX + message.len());
    frame.put_u8(0);
    frame.put_u32(len);
    frame.put_slice(message);
    Some(frame.freeze())
}

/// Why bytes are no frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The flags are none, or say that the message is compressed, which was not asked for.
    #[error("bad flags")]
    Flags,
    /// The message is larger than the limit.
    #[error("too large a message")]
    TooLarge,
}

/// Takes messages out of a body, however that is cut. Holds no more than a message of the limit's size, and what
/// came with its end.
#[derive(Debug)]
pub struct Deframer {
    received: BytesMut,
    limit: usize,
}

impl Deframer {
    /// One that takes messages of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            received: BytesMut::new(),
            limit,
        }
    }

    /// How many bytes wait for the end of their message.
    pub fn held(&self) -> usize {
        self.received.len()
    }

    /// The next bytes of the body. All messages are to be taken out first.
    pub fn push(&mut self, data: &[u8]) {
        self.received.extend_from_slice(data);
    }

    /// The next message; `None` where it is not complete yet.
    ///
    /// # Errors
    /// The body is to be given up. As in Envoy, an empty message may say that it is compressed.
    pub fn message(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(&[flags, a, b, c, d]) = self.received.first_chunk::<PREFIX>() else {
            let bad = self.received.first().is_some_and(|flags| *flags > 1);
            return if bad {
                Err(FrameError::Flags)
            } else {
                Ok(None)
            };
        };
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        if flags > 1 {
            return Err(FrameError::Flags);
        }
        if len > self.limit {
            return Err(FrameError::TooLarge);
        }
        if self.received.len() - PREFIX < len {
            return Ok(None);
        }
        // As in Envoy, which looks at this of whole messages alone.
        if flags == 1 && len > 0 {
            return Err(FrameError::Flags);
        }
        self.received.advance(PREFIX);
        Ok(Some(self.received.split_to(len).freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_however_the_body_is_cut() {
        let body: Vec<u8> = ["one", "", "three"]
            .iter()
            .flat_map(|text| frame(text.as_bytes()).expect("short"))
            .collect();
        for size in 1..=body.len() {
            let mut deframer = Deframer::new(5);
            let mut messages = Vec::new();
            for piece in body.chunks(size) {
                deframer.push(piece);
                while let Some(message) = deframer.message().expect("frames") {
                    messages.push(message);
                }
            }
            assert_eq!(messages, ["one", "", "three"], "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let cases: [(&[u8], Result<Option<&str>, FrameError>); 11] = [
            (b"\x01\0\0\0\x01x", Err(FrameError::Flags)),
            (b"\x01\0\0\0\x01", Ok(None)),
            (b"\x01\0\0\0\x06", Err(FrameError::TooLarge)),
            (b"\x02\0\0\0\x06", Err(FrameError::Flags)),
            (b"\x01\0\0\0\0", Ok(Some(""))),
            (b"\x01\0\0", Ok(None)),
            (b"\x02", Err(FrameError::Flags)),
            (b"\x80\0\0\0\0", Err(FrameError::Flags)),
            (b"\0\0\0\0\x05abcde", Ok(Some("abcde"))),
            (b"\0\0\0\0\x06", Err(FrameError::TooLarge)),
            (b"\0\xff\xff\xff\xff", Err(FrameError::TooLarge)),
        ];
        for (bytes, expected) in cases {
            let mut deframer = Deframer::new(5);
            deframer.push(bytes);
            let message = deframer.message();
            let message = message.as_ref().map(|message| message.as_deref());
            assert_eq!(
                message,
                expected.as_ref().map(|text| text.map(str::as_bytes)),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn a_status_is_a_number_up_to_16() {
        let cases = [
            ("0", Some(0)),
            ("16", Some(16)),
            ("17", Some(INVALID)),
            ("x", Some(INVALID)),
            ("", Some(INVALID)),
        ];
        for (text, expected) in cases {
            let headers = HeaderMap::from_iter([(STATUS, HeaderValue::from_static(text))]);
            assert_eq!(status(&headers), expected, "{text:?}");
        }
        assert_eq!(status(&HeaderMap::new()), None);
    }

    #[test]
    fn a_timeout_has_eight_digits() {
        let cases = [
            (0, "0m"),
            (1500, "1500m"),
            (99_999_999, "99999999m"),
            // As a running Envoy sent them.
            (2_147_483_647, "2147483S"),
            (4_294_967_295, "4294967S"),
        ];
        for (millis, expected) in cases {
            assert_eq!(timeout(Duration::from_millis(millis)), expected);
        }
    }
}
