//! Heads and frames to bytes, and the buffer from which they are written.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::header::{self, HeaderName};
use http::{HeaderMap, Method, StatusCode, Version};
use tokio::io::AsyncWrite;

use super::super::{ConnectionMeter, Io};
use super::parse;
use crate::http::{RequestHead, ResponseHead};

/// Frames up to this size are copied behind the head: one plain write is cheaper than a vectored one.
const COPY: usize = 4 << 10;
/// As much is gathered before it is written.
const GATHER: usize = 32 << 10;

/// How the body of the message that is being written ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    /// There is none.
    Nothing,
    /// So many bytes are still to be written.
    Length(u64),
    Chunked,
    /// As it comes, to the end of the connection.
    Raw,
}

/// The body does not keep what its head says: the message cannot be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WrongLength;

/// Bytes to write: text, then a chunk that was not worth copying, then a tail.
#[derive(Debug, Default)]
pub(super) struct OutBuf {
    text: Vec<u8>,
    written: usize,
    chunk: Bytes,
    tail: &'static [u8],
}

impl OutBuf {
    pub(super) fn is_empty(&self) -> bool {
        self.written == self.text.len() && self.chunk.is_empty() && self.tail.is_empty()
    }

    /// Bytes that are not written yet.
    pub(super) fn left(&self) -> usize {
        self.text.len() - self.written + self.chunk.len() + self.tail.len()
    }

    /// True while more may be added before a write.
    pub(super) fn has_room(&self) -> bool {
        self.chunk.is_empty() && self.tail.is_empty() && self.text.len() - self.written < GATHER
    }

    /// The text, to append to.
    pub(super) fn text(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.has_room());
        &mut self.text
    }

    /// Adds a frame in the framing of the message. `last`: nothing follows, so that the end can go with it.
    pub(super) fn frame(
        &mut self,
        data: Bytes,
        sending: &mut Sending,
        last: bool,
    ) -> Result<(), WrongLength> {
        if data.is_empty() {
            return Ok(());
        }
        let tail: &'static [u8] = match sending {
            Sending::Nothing => return Ok(()),
            Sending::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(WrongLength)?;
                b""
            }
            Sending::Raw => b"",
            Sending::Chunked => {
                hex(&mut self.text, data.len());
                self.text.extend_from_slice(b"\r\n");
                if last {
                    *sending = Sending::Nothing;
                    b"\r\n0\r\n\r\n"
                } else {
                    b"\r\n"
                }
            }
        };
        if data.len() <= COPY {
            self.text.extend_from_slice(&data);
            self.text.extend_from_slice(tail);
        } else {
            self.chunk = data;
            self.tail = tail;
        }
        Ok(())
    }

    /// Ends the message. `trailers` are written in chunked framing alone.
    pub(super) fn finish(
        &mut self,
        sending: Sending,
        trailers: Option<&HeaderMap>,
        proper_case: bool,
    ) -> Result<(), WrongLength> {
        match sending {
            Sending::Nothing | Sending::Raw | Sending::Length(0) => Ok(()),
            Sending::Length(_) => Err(WrongLength),
            Sending::Chunked => {
                self.text.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten() {
                    if !is_framing(name) {
                        field(&mut self.text, name.as_str(), value.as_bytes(), proper_case);
                    }
                }
                self.text.extend_from_slice(b"\r\n");
                Ok(())
            }
        }
    }

    /// Writes all of it, and lets its memory go.
    pub(super) fn poll_write(
        &mut self,
        io: &mut Io,
        meter: &ConnectionMeter,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let text = &self.text[self.written..];
            let io = Pin::new(&mut *io);
            let count = if self.chunk.is_empty() && self.tail.is_empty() {
                ready!(io.poll_write(cx, text))?
            } else {
                let parts = [
                    IoSlice::new(text),
                    IoSlice::new(&self.chunk),
                    IoSlice::new(self.tail),
                ];
                // A part may be empty, and streams without vectored writes take the first that is not.
                ready!(io.poll_write_vectored(cx, &parts))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            meter.add_sent(count);
            self.advance(count);
        }
        self.text = Vec::new();
        self.written = 0;
        self.chunk = Bytes::new();
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut count: usize) {
        let text = count.min(self.text.len() - self.written);
        self.written += text;
        count -= text;
        let chunk = count.min(self.chunk.len());
        self.chunk.advance(chunk);
        self.tail = &self.tail[count - chunk..];
    }
}

/// What the connection says about itself in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    /// Nothing: HTTP/1.1 goes on.
    Implied,
    /// `connection: keep-alive`, for HTTP/1.0.
    KeepAlive,
    /// `connection: close`.
    Close,
}

/// What a response answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answering {
    pub(super) head_request: bool,
    pub(super) connect: bool,
    pub(super) upgrade: bool,
    /// HTTP/1.0: no chunks.
    pub(super) old: bool,
}

/// How the body of a response will be framed. `exact`: its length, where it is known.
pub(super) fn response_framing(
    head: &ResponseHead,
    exact: Option<u64>,
    answering: Answering,
) -> Sending {
    let status = head.status;
    if is_tunnel(status, answering) {
        Sending::Raw
    } else if is_bodiless(status, answering) {
        Sending::Nothing
    } else if let Some(length) = exact {
        Sending::Length(length)
    } else if answering.old {
        Sending::Raw
    } else {
        Sending::Chunked
    }
}

pub(super) fn is_tunnel(status: StatusCode, answering: Answering) -> bool {
    (status == StatusCode::SWITCHING_PROTOCOLS && answering.upgrade)
        || (status.is_success() && answering.connect)
}

fn is_bodiless(status: StatusCode, answering: Answering) -> bool {
    answering.head_request
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || status.is_informational()
}

/// Writes a response head.
pub(super) fn response(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    sending: Sending,
    answering: Answering,
    persistence: Persistence,
    proper_case: bool,
) {
    let status = head.status;
    out.reserve(room(head.headers.len(), sending));
    out.extend_from_slice(if answering.old {
        b"HTTP/1.0 "
    } else {
        b"HTTP/1.1 "
    });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\n");

    let tunnel = is_tunnel(status, answering);
    let length_allowed = !tunnel && status != StatusCode::NO_CONTENT && !status.is_informational();
    let mut has_length = false;
    for (name, value) in &head.headers {
        if is_framing(name) {
            let keep = if name == header::CONTENT_LENGTH {
                // A response without body describes the one that it stands for.
                let keep = length_allowed
                    && !has_length
                    && match sending {
                        Sending::Length(length) => parse::decimal(value.as_bytes()) == Some(length),
                        Sending::Nothing => parse::decimal(value.as_bytes()).is_some(),
                        _ => false,
                    };
                has_length |= keep;
                keep
            } else {
                tunnel && name == header::UPGRADE
            };
            if !keep {
                continue;
            }
        }
        field(out, name.as_str(), value.as_bytes(), proper_case);
    }
    let mut add = |name: &str, value: &[u8]| field(out, name, value, proper_case);
    match persistence {
        _ if tunnel && status == StatusCode::SWITCHING_PROTOCOLS => add("connection", b"upgrade"),
        Persistence::Implied => {}
        Persistence::KeepAlive => add("connection", b"keep-alive"),
        Persistence::Close => add("connection", b"close"),
    }
    match sending {
        Sending::Length(length) if !has_length => {
            add("content-length", Decimal::new(length).as_bytes());
        }
        Sending::Chunked => add("transfer-encoding", b"chunked"),
        // Envoy guesses that the GET's answer would be chunked.
        Sending::Nothing
            if answering.head_request
                && !has_length
                && length_allowed
                && status != StatusCode::NOT_MODIFIED
                && !answering.old =>
        {
            add("transfer-encoding", b"chunked");
        }
        _ => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// How the body of a request will be framed.
pub(super) fn request_framing(head: &RequestHead, exact: Option<u64>) -> Sending {
    if head.method == Method::CONNECT || head.is_upgrade() {
        Sending::Raw
    } else if let Some(length) = exact {
        Sending::Length(length)
    } else {
        Sending::Chunked
    }
}

/// Writes a request head.
pub(super) fn request(out: &mut Vec<u8>, head: &RequestHead, sending: Sending, proper_case: bool) {
    out.reserve(room(head.headers.len(), sending));
    let connect = head.method == Method::CONNECT;
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(if connect {
        head.authority.as_bytes()
    } else {
        head.path.as_bytes()
    });
    out.extend_from_slice(b" HTTP/1.1\r\n");
    field(out, "host", head.authority.as_bytes(), proper_case);
    let mut has_length = false;
    // Its own two headers go on as they are.
    let upgrade = !connect && head.is_upgrade();
    for (name, value) in &head.headers {
        let asks = upgrade && (name == header::CONNECTION || name == header::UPGRADE);
        if is_framing(name) && !asks {
            let keep = name == header::CONTENT_LENGTH
                && !has_length
                && matches!(sending, Sending::Length(length)
                    if parse::decimal(value.as_bytes()) == Some(length));
            has_length |= keep;
            if !keep {
                continue;
            }
        }
        field(out, name.as_str(), value.as_bytes(), proper_case);
    }
    let mut add = |name: &str, value: &[u8]| field(out, name, value, proper_case);
    match sending {
        Sending::Length(0) if has_length || expects_no_body(&head.method) => {}
        Sending::Length(length) if !has_length => {
            add("content-length", Decimal::new(length).as_bytes());
        }
        Sending::Chunked => add("transfer-encoding", b"chunked"),
        _ => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// Room for a head with so many fields, and for the body that will be copied behind it.
fn room(fields: usize, sending: Sending) -> usize {
    let body = match sending {
        Sending::Length(length) => usize::try_from(length)
            .ok()
            .filter(|length| *length <= COPY)
            .unwrap_or(0),
        _ => 0,
    };
    224 + fields * 56 + body
}

/// Methods for which Envoy adds no `content-length: 0`.
fn expects_no_body(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::DELETE, Method::TRACE].contains(method)
}

/// Fields that this codec alone decides about.
fn is_framing(name: &HeaderName) -> bool {
    name == header::CONTENT_LENGTH
        || name == header::CONNECTION
        || name == header::TRANSFER_ENCODING
        || name == header::UPGRADE
        || name == header::HOST
}

/// The interim answer to `Expect: 100-continue`.
pub(super) fn interim(out: &mut Vec<u8>, version: Version) {
    out.extend_from_slice(if version == Version::HTTP_10 {
        b"HTTP/1.0 100 Continue\r\n\r\n"
    } else {
        b"HTTP/1.1 100 Continue\r\n\r\n"
    });
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8], proper_case: bool) {
    if proper_case {
        let mut upper = true;
        out.extend(name.bytes().map(|byte| {
            let cased = if upper {
                byte.to_ascii_uppercase()
            } else {
                byte
            };
            upper = !byte.is_ascii_alphanumeric();
            cased
        }));
    } else {
        out.extend_from_slice(name.as_bytes());
    }
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The reason phrase that Envoy writes.
fn reason(status: StatusCode) -> &'static str {
    match status.as_u16() {
        203 => "Non-Authoritative Information",
        103 | 418 => "Unknown",
        599 => "Last Unassigned Server Error Code",
        _ => status.canonical_reason().unwrap_or("Unknown"),
    }
}

fn hex(out: &mut Vec<u8>, mut value: usize) {
    let mut digits = [0; 16];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[value & 15];
        value >>= 4;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// A number in decimal digits, without allocation.
struct Decimal {
    digits: [u8; 20],
    at: usize,
}

impl Decimal {
    fn new(mut value: u64) -> Self {
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                return Self { digits, at };
            }
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.digits[self.at..]
    }
}
