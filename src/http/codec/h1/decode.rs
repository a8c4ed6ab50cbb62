//! Body framings: bytes of a connection to data and trailers.
//!
//! Chunked framing is read strictly: every line of it ends in CRLF, chunk data is followed by exactly CRLF, and
//! extensions and trailers are bounded. Envoy forgives more there; a peer behind us might not agree with it.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, header};

use super::fields;
use super::parse;
use super::violation::Violation;
use crate::http::joined::Side;

/// How many bytes of chunk extensions one body may have.
const MAX_EXTENSIONS: usize = 16 << 10;
/// The longest chunk-size line without its extension.
const MAX_SIZE_LINE: usize = 64;
/// Chunks that lie in memory together are handed on together, up to this size.
const GATHER: usize = 64 << 10;

/// Where a body ends.
#[derive(Debug)]
pub(super) enum Framing {
    /// Read to its end (or there is none).
    Done,
    /// So many bytes are still to come; never 0.
    Length(u64),
    /// `transfer-encoding: chunked`.
    Chunked(Box<Chunked>),
    /// To the end of the connection: HTTP/1.0 responses, tunnels.
    UntilEnd,
}

/// The next piece of a body.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    /// Read more.
    Hungry,
    /// No more will come; the message is complete.
    End,
}

impl Framing {
    pub(super) fn length(length: u64) -> Self {
        if length == 0 {
            Self::Done
        } else {
            Self::Length(length)
        }
    }

    /// `limit`: most bytes of trailers. `keep`: what they are trailers of; without it they are checked and dropped.
    pub(super) fn chunked(limit: usize, keep: Option<Side>) -> Self {
        Self::Chunked(Box::new(Chunked {
            state: State::Size,
            limit,
            extensions: 0,
            keep,
            trailers: None,
            trailer_count: 0,
        }))
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Takes the next piece out of `buf`. After [`Piece::End`] the framing is [`Framing::Done`].
    pub(super) fn next(&mut self, buf: &mut BytesMut) -> Result<Piece, Violation> {
        match self {
            Self::Done => Ok(Piece::End),
            Self::UntilEnd if buf.is_empty() => Ok(Piece::Hungry),
            Self::UntilEnd => Ok(Piece::Data(take(buf, usize::MAX))),
            Self::Length(_) if buf.is_empty() => Ok(Piece::Hungry),
            Self::Length(left) => {
                let data = take(buf, usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Piece::Data(data))
            }
            Self::Chunked(chunked) => {
                let piece = chunked.next(buf)?;
                if chunked.state == State::Complete && chunked.trailers.is_none() {
                    *self = Self::Done;
                }
                Ok(piece)
            }
        }
    }
}

/// At most `most` bytes from the front. All of them without leaving capacity behind, where that is the whole buffer.
fn take(buf: &mut BytesMut, most: usize) -> Bytes {
    if buf.len() <= most {
        std::mem::take(buf).freeze()
    } else {
        buf.split_to(most).freeze()
    }
}

/// State of a chunked body.
#[derive(Debug)]
pub(super) struct Chunked {
    state: State,
    limit: usize,
    extensions: usize,
    keep: Option<Side>,
    trailers: Option<HeaderMap>,
    trailer_count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At a chunk-size line.
    Size,
    /// Inside chunk data.
    Data(u64),
    /// At the CRLF behind chunk data.
    DataEnd,
    /// At a trailer line, or the blank line that ends them.
    Trailers,
    Complete,
}

impl Chunked {
    fn next(&mut self, buf: &mut BytesMut) -> Result<Piece, Violation> {
        let mut gathered: Option<BytesMut> = None;
        let mut first: Option<Bytes> = None;
        loop {
            match self.state {
                State::Size => match self.size_line(buf)? {
                    None => break,
                    Some(0) => self.state = State::Trailers,
                    Some(size) => self.state = State::Data(size),
                },
                State::Data(left) => {
                    if buf.is_empty() {
                        break;
                    }
                    let most = usize::try_from(left).unwrap_or(usize::MAX);
                    let data = buf.split_to(most.min(buf.len())).freeze();
                    let left = left - data.len() as u64;
                    self.state = if left == 0 {
                        State::DataEnd
                    } else {
                        State::Data(left)
                    };
                    match (&mut gathered, first.take()) {
                        (Some(gathered), _) => gathered.extend_from_slice(&data),
                        (None, None) => first = Some(data),
                        (None, Some(before)) => {
                            let mut joined = BytesMut::with_capacity(before.len() + buf.len());
                            joined.extend_from_slice(&before);
                            joined.extend_from_slice(&data);
                            gathered = Some(joined);
                        }
                    }
                    if gathered.as_ref().is_some_and(|data| data.len() >= GATHER) {
                        break;
                    }
                }
                State::DataEnd => match buf[..] {
                    [b'\r', b'\n', ..] => {
                        buf.advance(2);
                        self.state = State::Size;
                    }
                    [] | [b'\r'] => break,
                    _ => return Err(Violation::CODEC),
                },
                State::Trailers => {
                    if !self.trailer_lines(buf)? {
                        break;
                    }
                    self.state = State::Complete;
                }
                State::Complete => break,
            }
        }
        if buf.is_empty() {
            // No capacity is kept for bytes that may never come.
            *buf = BytesMut::new();
        }
        if let Some(data) = gathered.map(BytesMut::freeze).or(first) {
            return Ok(Piece::Data(data));
        }
        match self.state {
            State::Complete => Ok(self.trailers.take().map_or(Piece::End, Piece::Trailers)),
            _ => Ok(Piece::Hungry),
        }
    }

    /// The size on the line at the front, if the line is complete.
    fn size_line(&mut self, buf: &mut BytesMut) -> Result<Option<u64>, Violation> {
        let digits = buf
            .iter()
            .take(MAX_SIZE_LINE)
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        if digits == 0 && !buf.is_empty() || digits == MAX_SIZE_LINE {
            return Err(Violation::CODEC);
        }
        let Some(end) = memchr::memchr(b'\n', buf) else {
            return if self.extensions + buf.len() > MAX_EXTENSIONS + MAX_SIZE_LINE {
                Err(Violation::CODEC)
            } else {
                Ok(None)
            };
        };
        let line = buf[..end].strip_suffix(b"\r").ok_or(Violation::CODEC)?;
        let extension = parse::trim(&line[digits..]);
        if !extension.is_empty() {
            self.extensions += extension.len();
            let clean = |byte: &u8| *byte >= 32 && *byte != 127 || *byte == b'\t';
            if extension[0] != b';'
                || self.extensions > MAX_EXTENSIONS
                || !extension.iter().all(clean)
            {
                return Err(Violation::CODEC);
            }
        }
        let size = line[..digits].iter().try_fold(0u64, |size, byte| {
            let digit = u64::from((*byte as char).to_digit(16)?);
            size.checked_mul(16)?.checked_add(digit)
        });
        let size = size.ok_or(Violation::CODEC)?;
        buf.advance(end + 1);
        Ok(Some(size))
    }

    /// Reads trailers; true once the blank line behind them was read.
    fn trailer_lines(&mut self, buf: &mut BytesMut) -> Result<bool, Violation> {
        loop {
            let Some(end) = memchr::memchr(b'\n', buf) else {
                return if buf.len() > self.limit {
                    Err(Violation::TOO_LARGE)
                } else {
                    Ok(false)
                };
            };
            if end >= self.limit {
                return Err(Violation::TOO_LARGE);
            }
            if end == 0 || buf[end - 1] != b'\r' {
                return Err(Violation::CODEC);
            }
            let line = buf.split_to(end + 1).freeze();
            if end == 1 {
                return Ok(true);
            }
            self.limit -= line.len();
            self.trailer_count += 1;
            self.trailer(&line)?;
        }
    }

    fn trailer(&mut self, line: &Bytes) -> Result<(), Violation> {
        if matches!(line[0], b' ' | b'\t') {
            return Err(Violation::CODEC);
        }
        let trailers = &mut self.trailers;
        let (keep, count) = (self.keep, self.trailer_count);
        parse::fields(line, 0, |name, value| {
            let Some(side) = keep.filter(|_| !may_not_trail(&name)) else {
                return Ok(());
            };
            if count > super::response::MAX_FIELDS {
                return Err(Violation::TOO_MANY);
            }
            fields::add(trailers.get_or_insert_default(), side, name, value)
        })
        .map_err(|violation| violation.or_characters(line))
    }
}

/// Fields that decide framing or routing have no meaning behind the body, and are dropped there.
fn may_not_trail(name: &HeaderName) -> bool {
    [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::HOST,
        header::CONNECTION,
        header::TRAILER,
    ]
    .contains(name)
}
