//! What a person sees: a line for each step, and below it, on a terminal, a line that moves.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::load::Counts;
use crate::base::task::OwnedTask;

/// The terminal, or whatever stands for it.
#[derive(Clone, Debug)]
pub(super) struct Screen(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    terminal: bool,
    /// Serialises lines, and says whether the moving line stands on the screen.
    moving: Mutex<bool>,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            terminal: std::io::stdout().is_terminal(),
            moving: Mutex::new(false),
        }))
    }

    /// Prints a line.
    pub(super) fn line(&self, text: &str) {
        let mut moving = self.0.moving.lock();
        let mut out = std::io::stdout().lock();
        let clear = if *moving { "\r\x1b[2K" } else { "" };
        // A reader that went away does not end the demonstration.
        let _ = writeln!(out, "{clear}{text}");
        *moving = false;
    }

    /// Prints a step's headline.
    pub(super) fn step(&self, number: usize, text: &str) {
        let (bold, plain) = if self.0.terminal {
            ("\x1b[1m", "\x1b[0m")
        } else {
            ("", "")
        };
        self.line(&format!("\n{bold}{number}. {text}{plain}"));
    }

    /// Prints what belongs to a step.
    pub(super) fn detail(&self, text: &str) {
        for line in text.lines() {
            self.line(&format!("   {line}"));
        }
    }

    fn moving(&self, text: &str) {
        let mut moving = self.0.moving.lock();
        let mut out = std::io::stdout().lock();
        let _ = write!(out, "\r\x1b[2K   \x1b[2m{text}\x1b[0m");
        let _ = out.flush();
        *moving = true;
    }

    /// Shows the load while it runs, where the screen is a terminal.
    pub(super) fn follow(&self, counts: &Arc<Counts>) -> Option<OwnedTask> {
        if !self.0.terminal {
            return None;
        }
        let (screen, counts) = (self.clone(), Arc::clone(counts));
        Some(OwnedTask::spawn("demo screen", async move {
            let mut before = counts.sent();
            loop {
                tokio::time::sleep(Duration::from_millis(250)).await;
                let sent = counts.sent();
                screen.moving(&format!(
                    "load: {} requests/s, {sent} sent, {} failed",
                    (sent - before) * 4,
                    counts.failed()
                ));
                before = sent;
            }
        }))
    }
}
