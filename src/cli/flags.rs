//! Envoy's flags as a table, and the reading of arguments by it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::{Exit, version_text};

/// What follows a flag.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Text,
    Number,
}

struct Flag {
    name: &'static str,
    short: Option<char>,
    takes: Takes,
    repeats: bool,
    help: &'static str,
    /// Logged where the flag is given.
    warning: Option<&'static str>,
}

const fn flag(name: &'static str, takes: Takes, help: &'static str) -> Flag {
    Flag {
        name,
        short: None,
        takes,
        repeats: false,
        help,
        warning: None,
    }
}

const fn gone(name: &'static str, takes: Takes) -> Flag {
    Flag {
        warning: Some("it is of an older release of Envoy, and has no effect."),
        ..flag(name, takes, "")
    }
}

use Takes::{Nothing, Number, Text};

static FLAGS: [Flag; 49] = [
    Flag {
        short: Some('c'),
        ..flag(
            "config-path",
            Text,
            "The bootstrap: YAML by the extension, else JSON.",
        )
    },
    flag(
        "config-yaml",
        Text,
        "Bootstrap as YAML or JSON, merged over that of --config-path.",
    ),
    flag(
        "mode",
        Text,
        "serve (default), validate (check the configuration and exit) or init_only.",
    ),
    flag(
        "concurrency",
        Number,
        "Number of workers; by default as many as the cgroup grants CPUs.",
    ),
    flag("service-cluster", Text, "Overrides node.cluster."),
    flag("service-node", Text, "Overrides node.id."),
    flag("service-zone", Text, "Overrides node.locality.zone."),
    Flag {
        short: Some('l'),
        ..flag(
            "log-level",
            Text,
            "trace, debug, info (default), warning, error, critical or off.",
        )
    },
    flag(
        "component-log-level",
        Text,
        "Levels of single components: upstream:debug,config:trace.",
    ),
    flag(
        "log-format",
        Text,
        "Pattern of log lines in spdlog's syntax.",
    ),
    flag(
        "log-format-escaped",
        Nothing,
        "Escape control characters and quotes in log lines.",
    ),
    flag("log-path", Text, "Log to this file, not to standard error."),
    flag(
        "enable-fine-grain-logging",
        Nothing,
        "Accepted; levels are per component.",
    ),
    flag(
        "drain-time-s",
        Number,
        "How long draining takes, in seconds (600).",
    ),
    flag("drain-strategy", Text, "gradual (default) or immediate."),
    flag(
        "parent-shutdown-time-s",
        Number,
        "Accepted: there is no hot restart.",
    ),
    flag(
        "allow-unknown-static-fields",
        Nothing,
        "Unknown bootstrap fields are a warning, not an error.",
    ),
    Flag {
        warning: Some("it is deprecated: use --allow-unknown-static-fields."),
        ..flag(
            "allow-unknown-fields",
            Nothing,
            "Old name of --allow-unknown-static-fields.",
        )
    },
    flag(
        "reject-unknown-dynamic-fields",
        Nothing,
        "Refuse xDS resources with unknown fields.",
    ),
    flag(
        "ignore-unknown-dynamic-fields",
        Nothing,
        "Neither count nor log unknown fields of xDS resources.",
    ),
    flag(
        "skip-deprecated-logs",
        Nothing,
        "No warnings of deprecated fields.",
    ),
    flag(
        "admin-address-path",
        Text,
        "Write the admin address to this file once it listens.",
    ),
    flag("local-address-ip-version", Text, "v4 (default) or v6."),
    flag(
        "file-flush-interval-msec",
        Number,
        "How often log files are flushed (10000).",
    ),
    flag(
        "file-flush-min-size-kb",
        Number,
        "Flush a log file when so much waits (64).",
    ),
    Flag {
        repeats: true,
        ..flag(
            "stats-tag",
            Text,
            "A tag name:value for every statistic; may be repeated.",
        )
    },
    flag(
        "disable-extensions",
        Text,
        "Extensions not to offer: category/name,…",
    ),
    flag(
        "disable-hot-restart",
        Nothing,
        "Accepted: there is no hot restart.",
    ),
    flag(
        "restart-epoch",
        Number,
        "Accepted: there is no hot restart.",
    ),
    flag("base-id", Number, "Accepted: there is no hot restart."),
    flag(
        "use-dynamic-base-id",
        Nothing,
        "Accepted: there is no hot restart.",
    ),
    flag("base-id-path", Text, "Accepted: there is no hot restart."),
    flag("socket-path", Text, "Accepted: there is no hot restart."),
    flag("socket-mode", Text, "Accepted: there is no hot restart."),
    flag(
        "skip-hot-restart-on-no-parent",
        Nothing,
        "Accepted: there is no hot restart.",
    ),
    flag(
        "skip-hot-restart-parent-stats",
        Nothing,
        "Accepted: there is no hot restart.",
    ),
    flag(
        "enable-core-dump",
        Nothing,
        "Accepted; set the limit of the process instead.",
    ),
    flag("enable-mutex-tracing", Nothing, "Accepted."),
    Flag {
        warning: Some("it is now the default behavior and no longer required."),
        ..flag("cpuset-threads", Nothing, "Accepted: it is the default.")
    },
    flag("log-stacktrace-single-entry", Nothing, "Accepted."),
    flag(
        "hot-restart-version",
        Nothing,
        "Print the hot restart version and exit.",
    ),
    flag("version", Nothing, "Print the version and exit."),
    Flag {
        short: Some('h'),
        ..flag("help", Nothing, "Print this and exit.")
    },
    flag(
        "ignore_rest",
        Nothing,
        "Ignore all further arguments (also: --).",
    ),
    gone("bootstrap-version", Number),
    gone("v2-config-only", Nothing),
    gone("max-stats", Number),
    gone("max-obj-name-len", Number),
    gone("log-format-prefix-with-location", Text),
];

/// The flags that were given.
#[derive(Default)]
pub(super) struct Given {
    values: BTreeMap<&'static str, Vec<String>>,
    pub(super) warnings: Vec<String>,
}

impl Given {
    pub(super) fn take(&mut self, name: &str) -> Vec<String> {
        self.values.remove(name).unwrap_or_default()
    }

    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.take(name).pop()
    }

    /// A text that counts as absent where it is empty.
    pub(super) fn name(&mut self, name: &str) -> Option<String> {
        self.text(name).filter(|text| !text.is_empty())
    }

    pub(super) fn path(&mut self, name: &str) -> Option<PathBuf> {
        self.name(name).map(PathBuf::from)
    }

    pub(super) fn switch(&mut self, name: &str) -> bool {
        !self.take(name).is_empty()
    }

    pub(super) fn number(&mut self, name: &str) -> Option<u32> {
        self.text(name).and_then(|text| text.parse().ok())
    }
}

/// Reads the arguments after `argv[0]`.
pub(super) fn read<'a>(
    program: &str,
    arguments: impl Iterator<Item = &'a str>,
) -> Result<Given, Exit> {
    let mut given = Given::default();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        if argument == "-" {
            continue;
        }
        if matches!(argument, "--" | "--ignore_rest") {
            break;
        }
        let (name, attached) = match argument.split_once([' ', '=']) {
            Some((name, value)) => (name, Some(value)),
            None => (argument, None),
        };
        let flag = find(name)
            .filter(|flag| attached.is_none() || flag.takes != Nothing)
            .ok_or_else(|| parse_error(program, argument, "Couldn't find match for argument"))?;
        match flag.name {
            "help" => {
                return Err(Exit {
                    stdout: help(program),
                    ..Exit::default()
                });
            }
            "version" => {
                return Err(Exit {
                    stdout: version_text(program),
                    ..Exit::default()
                });
            }
            _ => {}
        }
        let shown = match flag.short {
            Some(short) => format!("-{short} (--{})", flag.name),
            None => format!("(--{})", flag.name),
        };
        let value = match (flag.takes, attached) {
            (Nothing, _) => String::new(),
            (_, Some(value)) => value.to_owned(),
            (_, None) => arguments
                .next()
                .ok_or_else(|| parse_error(program, &shown, "Missing a value for this argument!"))?
                .to_owned(),
        };
        // As Envoy reads numbers: blanks in front are skipped, and what is empty leaves the default.
        let value = if flag.takes == Number {
            value.trim_start().to_owned()
        } else {
            value
        };
        if flag.takes == Number && !value.is_empty() && value.parse::<u32>().is_err() {
            let text = format!("Couldn't read argument value from string '{value}'");
            return Err(parse_error(program, &shown, &text));
        }
        let values = given.values.entry(flag.name).or_default();
        if !values.is_empty() && !flag.repeats {
            return Err(parse_error(program, &shown, "Argument already set!"));
        }
        values.push(value);
        if let Some(warning) = flag.warning {
            given.warnings.push(format!("--{}: {warning}", flag.name));
        }
    }
    if given.switch("hot-restart-version") {
        // On standard error, as Envoy has it.
        return Err(Exit {
            stderr: "11.104\n".to_owned(),
            ..Exit::default()
        });
    }
    Ok(given)
}

fn find(name: &str) -> Option<&'static Flag> {
    if let Some(long) = name.strip_prefix("--") {
        return FLAGS.iter().find(|flag| flag.name == long);
    }
    let mut letters = name.strip_prefix('-')?.chars();
    let letter = letters.next()?;
    FLAGS
        .iter()
        .find(|flag| flag.short == Some(letter) && letters.as_str().is_empty())
}

fn parse_error(program: &str, argument: &str, text: &str) -> Exit {
    Exit {
        stderr: format!(
            "PARSE ERROR: Argument: {argument}\n             {text}\n\n\
             For complete USAGE and HELP type: \n   {program} --help\n\n{argument} -- {text}\n"
        ),
        code: 1,
        ..Exit::default()
    }
}

fn help(program: &str) -> String {
    let mut out = format!(
        "\nUSAGE: \n\n   {program}  [flags of Envoy]        be a proxy\n   \
         {program}  demo [--once]           show what it does, on this machine\n   \
         {program}  control-plane DIR --listen ADDRESS\n                              serve a folder of xDS resources\n   \
         {program}  plugin …                work on Wasm plugins\n\nWhere: \n\n"
    );
    for flag in FLAGS.iter().filter(|flag| !flag.help.is_empty()) {
        let value = match flag.takes {
            Nothing => "",
            Text => " <string>",
            Number => " <uint32_t>",
        };
        out.push_str("   ");
        if let Some(short) = flag.short {
            let _ = write!(out, "-{short}{value},  ");
        }
        let _ = writeln!(out, "--{}{value}\n     {}\n", flag.name, flag.help);
    }
    out
}
