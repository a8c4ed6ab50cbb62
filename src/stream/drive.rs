//! What the root driver of a stream watches besides the phase that runs: a verdict, companions (pumps and the like),
//! and deadlines. The driver is `filter::chain`; everything here is called on the stream's worker.

use std::borrow::Cow;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::{Side, Stream};
use crate::http::{Body, LocalReply, ReplyReason, ResponseFlag};

/// The end that something decided outside the phase that runs: a callout's answer, a timer, a body callback.
#[derive(Debug, Default)]
pub enum Verdict {
    /// Nothing was decided.
    #[default]
    None,
    /// Answer with this. `direct` skips the filters' response half. What comes of it depends on how far the response
    /// is, as in Envoy: no head yet: as asked; a head not yet sent: always direct; a head sent: a reset.
    Reply {
        /// The answer.
        reply: Box<LocalReply>,
        /// Past the filters.
        direct: bool,
    },
    /// Reset the stream; the details go to the log.
    Reset {
        /// For the log; empty leaves what is there.
        details: Cow<'static, str>,
    },
}

/// How far an exchange is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// No response head yet.
    #[default]
    Request,
    /// A response head exists and passes the filters.
    Response,
    /// The head went to the codec.
    Sent,
    /// Logged and ended.
    Ended,
}

/// Work that belongs to a stream and is polled by its root driver, whichever phase runs: a pump, a tower layer.
///
/// It is dropped when it is ready, or when the stream ends.
pub trait Companion: Send {
    /// Goes on, by one step. The context wakes the root driver.
    fn poll(&mut self, stream: &Arc<Stream>, context: &mut Context<'_>) -> Progress;
}

/// What came of a step of a [`Companion`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing: it waits.
    Idle,
    /// Something, which others may act upon before its next step.
    Moved,
    /// It is done.
    Done,
}

/// Deadlines of a stream. All are optional; the earliest one is the root driver's timer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timeouts {
    /// The route's timeout: from the end of the request to the end of the response. 504 `response_timeout`.
    pub response: Option<Duration>,
    /// Nothing moved in either direction for so long. 504 `stream_idle_timeout`.
    pub idle: Option<Duration>,
    /// From the beginning to the end. 504 `max_duration_timeout`.
    pub max_duration: Option<Duration>,
    /// From the beginning to the end of the request, or to the head of its response. 408 `request_overall_timeout`.
    pub request: Option<Duration>,
}

/// Which deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// See [`Timeouts::response`].
    Response,
    /// See [`Timeouts::idle`].
    Idle,
    /// See [`Timeouts::max_duration`].
    MaxDuration,
    /// See [`Timeouts::request`].
    Request,
}

impl Timeout {
    /// The reply where no head was sent. While the request is still coming, Envoy blames the client (408).
    pub fn reply(self, request_ended: bool) -> LocalReply {
        let mut reply: LocalReply = match self {
            Self::Response => ReplyReason::ResponseTimeout,
            Self::Idle => ReplyReason::StreamIdle,
            Self::MaxDuration => ReplyReason::MaxDuration,
            Self::Request => ReplyReason::RequestTimeout,
        }
        .into();
        match self {
            Self::Idle | Self::MaxDuration if !request_ended => {
                reply.status = StatusCode::REQUEST_TIMEOUT;
            }
            _ => {}
        }
        if self == Self::MaxDuration {
            const DEADLINE_EXCEEDED: u32 = 4;
            reply.grpc_status = Some(DEADLINE_EXCEEDED);
        }
        reply
    }

    /// The flag, also where a head was sent.
    pub fn flag(self) -> Option<ResponseFlag> {
        match self {
            Self::Response => Some(ResponseFlag::UpstreamRequestTimeout),
            Self::Idle => Some(ResponseFlag::StreamIdleTimeout),
            Self::MaxDuration | Self::Request => None,
        }
    }
}

/// The driver's part of a [`Stream`].
#[derive(Default)]
pub(super) struct Drive {
    phase: Phase,
    verdict: Verdict,
    waker: Option<Waker>,
    /// Who waits for more of the request's body; woken by the end, which nobody else might tell.
    uploader: Option<Waker>,
    companions: Vec<Box<dyn Companion>>,
    /// What still comes of a request that nobody reads.
    rest: Option<Body>,
    /// The filters were shown a part of the request's body, and not yet its end.
    cut: bool,
    /// Filters hold more of the request's body than they may: the rest of it is not read.
    choked: bool,
    /// Pumps that were made of each body.
    pumps: [usize; 2],
    timeouts: Timeouts,
    request_end: Option<Instant>,
    activity: Option<Instant>,
}

impl Stream {
    /// How far the exchange is.
    pub fn phase(&self) -> Phase {
        self.drive.lock().phase
    }

    /// True where the response's status is the stream's, as `%RESPONSE_CODE%` tells: the terminal filter, a local reply or the
    /// codec has told it, as in Envoy. Filters of the upstream come before that, and what a filter answers with passes neither
    /// of the first two.
    pub fn has_status(&self) -> bool {
        match self.phase() {
            Phase::Request => false,
            Phase::Response => {
                let info = self.info.lock();
                info.local_reply || !info.answered_by_filter
            }
            Phase::Sent | Phase::Ended => true,
        }
    }

    /// Says how far the exchange is. For the root driver.
    pub fn set_phase(&self, phase: Phase) {
        self.drive.lock().phase = phase;
    }

    /// Decides the end of the stream; the first decision stays. The root driver acts on it at its next poll.
    pub fn decide(&self, verdict: Verdict) {
        let waker = {
            let mut drive = self.drive.lock();
            if drive.phase == Phase::Ended {
                return;
            }
            if matches!(drive.verdict, Verdict::None) {
                drive.verdict = verdict;
            }
            drive.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// True where something was decided that the root driver has not acted on.
    #[inline]
    pub fn is_decided(&self) -> bool {
        !matches!(self.drive.lock().verdict, Verdict::None)
    }

    /// Takes the decision, if any. For the root driver.
    #[inline]
    pub fn take_verdict(&self) -> Verdict {
        let mut drive = self.drive.lock();
        match drive.verdict {
            Verdict::None => Verdict::None,
            Verdict::Reply { .. } | Verdict::Reset { .. } => std::mem::take(&mut drive.verdict),
        }
    }

    /// Has the root driver polled again.
    pub fn wake(&self) {
        let waker = self.drive.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Remembers who polls the root driver. For the root driver, before it returns `Pending`.
    pub fn park(&self, context: &Context<'_>) {
        let mut drive = self.drive.lock();
        match &mut drive.waker {
            Some(waker) if waker.will_wake(context.waker()) => {}
            waker => *waker = Some(context.waker().clone()),
        }
    }

    /// Gives the root driver something to poll along until it is ready or the stream ends.
    pub fn attach(&self, companion: Box<dyn Companion>) {
        let waker = {
            let mut drive = self.drive.lock();
            if drive.phase == Phase::Ended {
                return;
            }
            drive.companions.push(companion);
            drive.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// True where a body of `side` was ever pumped.
    pub fn is_pumped(&self, side: Side) -> bool {
        self.drive.lock().pumps[side as usize] > 0
    }

    /// Counts a pump of `side`; true where it is not the first.
    pub(super) fn count_pump(&self, side: Side) -> bool {
        let pumps = &mut self.drive.lock().pumps[side as usize];
        *pumps += 1;
        *pumps > 1
    }

    /// Polls the companions until one of them has moved, and says whether one has: then the phase in flight and they all
    /// must be polled again. Those attached last come first, as they are further down the chain: what one pump lets go
    /// passes those behind it before it lets go more. For the root driver.
    pub fn poll_companions(self: &Arc<Self>, context: &mut Context<'_>) -> bool {
        let mut companions = {
            let mut drive = self.drive.lock();
            if drive.companions.is_empty() {
                return false;
            }
            std::mem::take(&mut drive.companions)
        };
        let mut moved = false;
        for index in (0..companions.len()).rev() {
            match companions[index].poll(self, context) {
                Progress::Idle => {}
                Progress::Moved => moved = true,
                Progress::Done => drop(companions.remove(index)),
            }
            if moved {
                break;
            }
        }
        let mut drive = self.drive.lock();
        if drive.phase == Phase::Ended {
            drop(drive);
            return false;
        }
        // Those attached meanwhile come after.
        if !drive.companions.is_empty() {
            companions.append(&mut drive.companions);
        }
        drive.companions = companions;
        moved
    }

    /// Drops the companions: what they pumped is given up. For the root driver, before a local reply.
    pub fn drop_companions(&self) {
        let companions = std::mem::take(&mut self.drive.lock().companions);
        drop(companions);
    }

    /// Remembers who waits for more of the request's body: it is over with the stream.
    pub fn park_upload(&self, context: &Context<'_>) {
        self.drive.lock().uploader = Some(context.waker().clone());
    }

    /// Says whether filters have seen a part of the request's body and not its end. An answer that they make then is one to
    /// an unfinished request, though the codec may have all of it.
    pub fn cut(&self, cut: bool) {
        self.drive.lock().cut = cut;
    }

    /// See [`Stream::cut`].
    pub fn is_cut(&self) -> bool {
        self.drive.lock().cut
    }

    /// Says whether filters hold so much of the request's body (`Flow::Watermark`) that no more of it is read. Who answers
    /// then leaves the rest where it is: as in Envoy, whose buffer stays as full as it was until the stream ends.
    pub(super) fn choke(&self, choked: bool) {
        self.drive.lock().choked = choked;
    }

    /// See [`Stream::choke`].
    pub fn is_choked(&self) -> bool {
        self.drive.lock().choked
    }

    /// Keeps what still comes of the request where nobody reads it, until the stream's end.
    pub fn keep_rest(&self, rest: Body) {
        let mut drive = self.drive.lock();
        if drive.phase != Phase::Ended {
            drive.rest = Some(rest);
        }
    }

    /// Takes out what was kept.
    pub fn take_rest(&self) -> Option<Body> {
        self.drive.lock().rest.take()
    }

    /// An unfinished request is answered here: there is no upstream to be waited for.
    pub fn no_upstream_timeout(&self) {
        let mut drive = self.drive.lock();
        if drive.request_end.is_none() {
            drive.timeouts.response = None;
        }
    }

    /// Drops the companions and marks the end. `false` where it was marked before.
    pub(super) fn end_drive(&self) -> bool {
        let (companions, uploader, rest) = {
            let mut drive = self.drive.lock();
            if drive.phase == Phase::Ended {
                return false;
            }
            drive.phase = Phase::Ended;
            drive.waker = None;
            drive.verdict = Verdict::None;
            (
                std::mem::take(&mut drive.companions),
                drive.uploader.take(),
                drive.rest.take(),
            )
        };
        drop((companions, rest));
        if let Some(uploader) = uploader {
            uploader.wake();
        }
        true
    }

    /// Changes the deadlines.
    pub fn set_timeouts(&self, change: impl FnOnce(&mut Timeouts)) {
        change(&mut self.drive.lock().timeouts);
    }

    /// The request's last byte has arrived.
    pub fn request_ended(&self) {
        self.request_ended_at(Instant::now());
    }

    /// As [`Stream::request_ended`], for a request without a body: it ended as it began.
    pub fn without_body(&self) {
        let begin = self.info.lock().begin;
        self.request_ended_at(begin);
    }

    fn request_ended_at(&self, now: Instant) {
        {
            let mut info = self.info.lock();
            if info.request_end.is_some() {
                return;
            }
            info.request_end = Some(now);
        }
        let waker = {
            let mut drive = self.drive.lock();
            drive.request_end = Some(now);
            drive.activity = Some(now);
            // The route's timeout begins now. Without one nobody is woken, and the waker stays for a decision.
            match drive.timeouts.response {
                Some(_) => drive.waker.take(),
                None => None,
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Something moved: the idle deadline begins anew.
    pub fn active(&self) {
        let mut drive = self.drive.lock();
        if drive.timeouts.idle.is_some() {
            drive.activity = Some(Instant::now());
        }
    }

    /// A deadline has passed: it does not pass again while the answer to it is under way. The idle one begins anew.
    pub fn strike(&self, timeout: Timeout) {
        let mut drive = self.drive.lock();
        match timeout {
            Timeout::Idle => drive.activity = Some(Instant::now()),
            Timeout::Response => drive.timeouts.response = None,
            Timeout::MaxDuration => drive.timeouts.max_duration = None,
            Timeout::Request => drive.timeouts.request = None,
        }
    }

    /// The earliest deadline of a stream that began at `begin`. For the root driver.
    pub fn next_timeout(&self, begin: Instant) -> Option<(Instant, Timeout)> {
        let drive = self.drive.lock();
        let timeouts = &drive.timeouts;
        let at = |from: Option<Instant>, after: Option<Duration>, which| {
            from.zip(after)
                .and_then(|(from, after)| Some((from.checked_add(after)?, which)))
        };
        let answered = matches!(drive.phase, Phase::Sent | Phase::Ended);
        let request = match drive.request_end {
            None if !answered => timeouts.request,
            _ => None,
        };
        [
            at(drive.request_end, timeouts.response, Timeout::Response),
            at(
                Some(drive.activity.unwrap_or(begin)),
                timeouts.idle,
                Timeout::Idle,
            ),
            at(Some(begin), timeouts.max_duration, Timeout::MaxDuration),
            at(Some(begin), request, Timeout::Request),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }
}
