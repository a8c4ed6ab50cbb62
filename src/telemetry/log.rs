//! The process log, as Envoy writes it: one pattern, one threshold a component, never a wait on the writing side.
//!
//! ```ignore
//! let log = log::start(log::Options::default())?;
//! tracing::info!("starting main dispatch loop");             // component by module
//! tracing::warn!(target: "wasm", plugin, "compiled");        // component by name, fields after the message
//! tracing::error!(critical = true, "cannot go on");          // Envoy's `critical`
//! ```
//!
//! A thread that logs formats its line and hands it to the writer's bounded queue; where that is full the line is counted
//! and dropped, and the count is logged later.

pub mod level;
mod pattern;
mod writer;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

pub use level::{Component, Level, Levels};
pub use pattern::Pattern;
pub use writer::Writer;

/// How to log.
#[derive(Clone, Debug)]
pub struct Options {
    /// The threshold of all components.
    pub level: Level,
    /// Components with a threshold of their own.
    pub components: Vec<(Component, Level)>,
    /// An spdlog pattern.
    pub format: String,
    /// Escape control characters and quotes of each line.
    pub escaped: bool,
    /// A file to append to; else standard error.
    pub path: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            level: Level::Info,
            components: Vec::new(),
            format: "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v".to_owned(),
            escaped: false,
            path: None,
        }
    }
}

/// The running log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Log {
    /// What `/logging` changes.
    pub levels: Arc<Levels>,
    writer: Writer,
}

impl Log {
    /// Waits until all that was logged so far is written, for a second at most.
    pub fn flush(&self) {
        self.writer.flush();
    }

    /// Opens the log file again (after a rotation); standard error is kept.
    pub fn reopen(&self) {
        self.writer.reopen();
    }

    /// Lines dropped so far because the writer was behind.
    pub fn dropped(&self) -> u64 {
        self.writer.dropped()
    }

    /// The log as a subscriber, for a thread's own use (tests).
    pub fn subscriber(&self, options: &Options) -> impl Subscriber + Send + Sync + 'static {
        Logger {
            levels: Arc::clone(&self.levels),
            pattern: Pattern::new(&options.format, options.escaped),
            writer: self.writer.clone(),
        }
    }
}

/// Makes a log without installing it.
///
/// # Errors
/// The log file cannot be opened.
pub fn build(options: &Options) -> io::Result<Log> {
    Ok(Log {
        levels: Arc::new(Levels::new(options.level, &options.components)),
        writer: Writer::start(options.path.clone())?,
    })
}

/// Makes a log and installs it for the whole process. Where one is installed already, it stays.
///
/// # Errors
/// The log file cannot be opened.
pub fn start(options: &Options) -> io::Result<Log> {
    let log = build(options)?;
    // Only fails where a subscriber is set already: a second proxy in one process logs through the first's.
    let _ = tracing::subscriber::set_global_default(log.subscriber(options));
    Ok(log)
}

/// What a pattern shows.
struct Record<'a> {
    level: Level,
    component: &'static str,
    file: &'a str,
    line: u32,
    message: &'a str,
}

struct Logger {
    levels: Arc<Levels>,
    pattern: Pattern,
    writer: Writer,
}

fn level_of(metadata: &Metadata<'_>) -> Level {
    match *metadata.level() {
        tracing::Level::TRACE => Level::Trace,
        tracing::Level::DEBUG => Level::Debug,
        tracing::Level::INFO => Level::Info,
        tracing::Level::WARN => Level::Warning,
        tracing::Level::ERROR if metadata.fields().field("critical").is_some() => Level::Critical,
        tracing::Level::ERROR => Level::Error,
    }
}

impl Subscriber for Logger {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Spans are for other subscribers: the format has no place for them.
        metadata.is_event()
            && level_of(metadata) >= self.levels.get(Component::of_target(metadata.target()))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.levels.lowest() {
            Level::Trace => LevelFilter::TRACE,
            Level::Debug => LevelFilter::DEBUG,
            Level::Info => LevelFilter::INFO,
            Level::Warning => LevelFilter::WARN,
            Level::Error | Level::Critical => LevelFilter::ERROR,
            Level::Off => LevelFilter::OFF,
        })
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let mut message = Message::default();
        event.record(&mut message);
        let text = message.finish();
        let line = self.pattern.render(&Record {
            level: level_of(metadata),
            component: Component::of_target(metadata.target()).name(),
            file: metadata.file().unwrap_or(""),
            line: metadata.line().unwrap_or(0),
            message: &text,
        });
        self.writer.write(line);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// The message, and the other fields after it as ` name=value`.
#[derive(Default)]
struct Message {
    text: String,
    fields: String,
}

impl Message {
    fn finish(mut self) -> String {
        self.text.push_str(&self.fields);
        self.text
    }
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write as _;
        // Writing to a string cannot fail; a `Debug` that does is shown as far as it went.
        let _ = match field.name() {
            "message" => write!(self.text, "{value:?}"),
            "critical" => Ok(()),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        use fmt::Write as _;
        let _ = match field.name() {
            "message" => write!(self.text, "{value}"),
            name => write!(self.fields, " {name}={value}"),
        };
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        use fmt::Write as _;
        let _ = write!(self.fields, " {}={value}", field.name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(options: Options, run: impl FnOnce(&Log)) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let options = Options {
            path: Some(path.clone()),
            ..options
        };
        let log = build(&options).unwrap();
        tracing::subscriber::with_default(log.subscriber(&options), || run(&log));
        log.flush();
        std::fs::read_to_string(&path).unwrap()
    }

    fn format(format: &str) -> Options {
        Options {
            format: format.to_owned(),
            ..Options::default()
        }
    }

    #[test]
    fn thresholds_are_per_component_and_change_at_run_time() {
        let text = logged(format("[%l][%n] %v"), |log| {
            for round in 0..2 {
                tracing::debug!(target: "upstream", "debug {round}");
                tracing::info!(target: "wasm", plugin = "p", size = 3, "info {round}");
                log.levels
                    .set(Component::named("upstream").unwrap(), Level::Debug);
                log.levels
                    .set(Component::named("wasm").unwrap(), Level::Off);
            }
        });
        assert_eq!(
            text,
            "[info][wasm] info 0 plugin=p size=3\n[debug][upstream] debug 1\n"
        );
    }

    #[test]
    fn critical_is_an_error_that_says_so() {
        let text = logged(format("%l %n %v"), |_| {
            tracing::error!(target: "main", critical = true, "over");
            tracing::error!(target: "main", error = &fmt::Error as &dyn std::error::Error, "bad");
        });
        assert!(
            text.starts_with("critical main over\nerror main bad error="),
            "{text}"
        );
    }

    #[test]
    fn the_default_line_is_envoys() {
        let text = logged(
            Options::default(),
            |_| tracing::info!(target: "main", "hello"),
        );
        let regex = regex::Regex::new(
            r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\]\[\d+\]\[info\]\[main\] \[src/telemetry/log\.rs:\d+\] hello\n$",
        )
        .unwrap();
        assert!(regex.is_match(&text), "{text}");
    }

    #[test]
    fn a_rotated_file_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let options = Options {
            path: Some(path.clone()),
            ..format("%v")
        };
        let log = build(&options).unwrap();
        tracing::subscriber::with_default(log.subscriber(&options), || {
            tracing::info!("before");
            log.flush();
            std::fs::rename(&path, folder.path().join("old")).unwrap();
            log.reopen();
            tracing::info!("after");
            log.flush();
        });
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "after\n");
        assert_eq!(
            std::fs::read_to_string(folder.path().join("old")).unwrap(),
            "before\n"
        );
    }
}
