//! Where the code of one version may be had, and when each place is asked: a version is the same wherever it comes from.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::base::backoff::Backoff;
use crate::wasm::spec::{Code, Remote};
use crate::wasm::store::Pin;

/// So many places of the same code are tried.
const MAX_SOURCES: usize = 8;
/// How many times longer it takes until a source is asked anew that gave what will not do: all of it comes once more.
const AT_LEISURE: u32 = 10;
/// So long a source that says nothing is waited for at most while another one is due.
const MAX_PATIENCE: Duration = Duration::from_secs(300);

/// Where the code of a version comes from, and what holds it on disk.
pub(super) struct Supply {
    sources: Mutex<Vec<Source>>,
    added: Notify,
    pub(super) pin: Mutex<Option<Pin>>,
}

struct Source {
    code: Code,
    backoff: Backoff,
    /// When it is asked; `None`: not before another one fails, or not at all where it is hopeless.
    due: Option<Instant>,
    /// It was never asked, and shall be at once.
    new: bool,
    /// When it was asked last.
    asked: Instant,
    /// How long it may say nothing while another one is due. Each time it grows: a slow one has its time in the end.
    patience: Duration,
    hopeless: bool,
    /// Of its last failure.
    error: Option<Arc<str>>,
    /// The configuration has named it since it failed, or was abandoned, last.
    named: bool,
    /// The configuration has named another one since then.
    passed_over: bool,
}

/// What can be hoped for from a source that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    /// It may give the code, or there may be room for it, any time.
    Soon,
    /// It may give other code than that, which will not do.
    Later,
    /// Nothing, as it is configured.
    Never,
}

/// How things are after a failure.
pub(super) struct After {
    /// What is wrong: with another one, where the source that has failed is not configured any more.
    pub(super) error: Arc<str>,
    /// There is a source to ask.
    pub(super) goes_on: bool,
}

impl Source {
    fn new(code: Code) -> Self {
        let now = Instant::now();
        Self {
            backoff: backoff_of(&code),
            patience: patience_of(&code),
            code,
            due: Some(now),
            new: true,
            asked: now,
            hopeless: false,
            error: None,
            named: true,
            passed_over: false,
        }
    }

    fn is(&self, code: &Code) -> bool {
        match (&self.code, code) {
            (Code::Remote(one), Code::Remote(other)) => one.is_asked_as(other),
            // The version has one sum, whose bytes these are.
            (Code::Local { .. }, Code::Local { .. }) => true,
            _ => false,
        }
    }

    /// From now on it is to be named again.
    fn asked_in_vain(&mut self) {
        self.named = false;
        self.passed_over = false;
    }
}

impl Supply {
    pub(super) fn new(code: Code) -> Self {
        Self {
            sources: Mutex::new(vec![Source::new(code)]),
            added: Notify::new(),
            pin: Mutex::default(),
        }
    }

    /// The configuration names `code`: another place of it, or other credentials, are tried at once.
    pub(super) fn offer(&self, code: &Code) {
        let mut sources = self.sources.lock();
        let mut known = false;
        for source in sources.iter_mut() {
            if source.is(code) {
                known = true;
                source.named = true;
            } else {
                source.passed_over = true;
            }
        }
        if known {
            return;
        }
        let mut source = Source::new(code.clone());
        if sources.len() >= MAX_SOURCES {
            // By lot, so that none is displaced for ever. It waits as the other would: those that displace each other are
            // asked no more often.
            let index = fastrand::usize(..sources.len());
            source.backoff = sources.swap_remove(index).backoff;
            source.due = Some(Instant::now() + source.backoff.next_wait());
            source.new = false;
        }
        sources.push(source);
        self.added.notify_one();
    }

    /// Waits for a source that is due.
    pub(super) async fn turn(&self) -> Code {
        loop {
            let next = {
                let mut sources = self.sources.lock();
                let due = sources.iter_mut().filter(|source| source.due.is_some());
                let mut next = due.min_by_key(|source| (!source.new, source.due));
                let now = Instant::now();
                if let Some(source) = &mut next
                    && source.due <= Some(now)
                {
                    source.new = false;
                    source.asked = now;
                    return source.code.clone();
                }
                next.and_then(|source| source.due)
            };
            let added = self.added.notified();
            match next {
                Some(due) => {
                    let _ = tokio::time::timeout_at(due, added).await;
                }
                None => added.await,
            }
        }
    }

    /// While `asked` says nothing: waits until there is one that was never asked, or another one is due and the patience
    /// with `asked` is at its end.
    pub(super) async fn another(&self, asked: &Code) {
        loop {
            let due = {
                let sources = self.sources.lock();
                if sources.iter().any(|source| source.new) {
                    return;
                }
                let (asked, others): (Vec<_>, Vec<_>) =
                    sources.iter().partition(|source| source.is(asked));
                let patience = asked.iter().map(|source| source.asked + source.patience);
                let due = others.iter().filter_map(|source| source.due).min();
                due.map(|due| patience.fold(due, Instant::max))
            };
            let added = self.added.notified();
            match due {
                Some(due) if due <= Instant::now() => return,
                Some(due) => {
                    let _ = tokio::time::timeout_at(due, added).await;
                }
                None => added.await,
            }
        }
    }

    /// `code` has said nothing, and another one is asked now: it waits as if it had failed.
    pub(super) fn abandoned(&self, code: &Code) {
        let mut sources = self.sources.lock();
        drop_unnamed(&mut sources, code);
        for source in sources.iter_mut().filter(|source| source.is(code)) {
            source.asked_in_vain();
            source.patience = source.patience.saturating_mul(2).min(MAX_PATIENCE);
            source.due = Some(Instant::now() + source.backoff.next_wait());
        }
    }

    /// `code` gave what is live, and is asked anew after `refresh`; others not before it fails.
    pub(super) fn succeeded(&self, code: &Code, refresh: Option<Duration>) {
        let mut sources = self.sources.lock();
        for source in sources.iter_mut() {
            source.due = None;
            if source.is(code) {
                source.backoff = backoff_of(&source.code);
                source.patience = patience_of(&source.code);
                source.due = refresh.map(|wait| Instant::now() + wait);
            }
        }
    }

    /// `code` has failed; what may give other code is asked again after `refresh` at the latest.
    pub(super) fn failed(
        &self,
        code: &Code,
        error: &str,
        outlook: Outlook,
        refresh: Option<Duration>,
    ) -> After {
        let now = Instant::now();
        let mut sources = self.sources.lock();
        let mut error = Arc::<str>::from(error);
        drop_unnamed(&mut sources, code);
        for source in sources.iter_mut() {
            if source.is(code) {
                source.error = Some(Arc::clone(&error));
                source.asked_in_vain();
                source.hopeless = outlook == Outlook::Never;
                let mut wait = || source.backoff.next_wait();
                source.due = match outlook {
                    Outlook::Soon => Some(now + wait()),
                    Outlook::Later => {
                        let wait = wait().saturating_mul(AT_LEISURE);
                        Some(now + refresh.map_or(wait, |refresh| refresh.min(wait)))
                    }
                    Outlook::Never => None,
                };
            } else if source.due.is_none() && !source.hopeless {
                source.due = Some(now);
            }
        }
        if !sources.iter().any(|source| source.is(code)) {
            let mut others = sources.iter().filter_map(|source| source.error.clone());
            error = others.next_back().unwrap_or(error);
        }
        After {
            error,
            goes_on: sources.iter().any(|source| source.due.is_some()),
        }
    }
}

/// Drops `code` where the configuration names it no more. Every failure calls for a new Generation, which names all that
/// are configured.
fn drop_unnamed(sources: &mut Vec<Source>, code: &Code) {
    sources.retain(|source| source.named || !source.passed_over || !source.is(code));
}

/// As long as the longest back-off.
fn patience_of(code: &Code) -> Duration {
    remote(code).map_or(MAX_PATIENCE, |remote| remote.backoff_cap.min(MAX_PATIENCE))
}

fn backoff_of(code: &Code) -> Backoff {
    match remote(code) {
        Some(remote) => Backoff::new(remote.backoff_base, remote.backoff_cap),
        None => Backoff::new(Duration::from_secs(1), Duration::from_secs(1)),
    }
}

pub(super) fn remote(code: &Code) -> Option<&Remote> {
    match code {
        Code::Local { .. } => None,
        Code::Remote(remote) => Some(remote),
    }
}
