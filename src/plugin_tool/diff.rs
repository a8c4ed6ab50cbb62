//! `plenipo plugin diff`: the same requests through two plugins.

use std::fmt::Write as _;

use similar::{ChangeTag, TextDiff};

use super::host::{Cache, Ground, Setup};
use super::outcome::{Outcome, micros};
use super::run::exchange;
use super::test::Codes;
use super::{Verdict, case, printable, run as single, source};
use crate::cli::plugin::DiffArgs;

pub(super) fn run(arguments: &DiffArgs) -> anyhow::Result<(String, Verdict)> {
    let ground = Ground::new()?;
    let cache = Cache::new();
    let mut pairs = Vec::new();
    if let Some(folder) = &arguments.cases {
        let mut codes = Codes::default();
        let cases = case::folder(folder)?;
        if cases.is_empty() {
            anyhow::bail!("there is no case (*.yaml, *.yml) in {}", folder.display());
        }
        for case in cases {
            let mut outcome = |plugin: &str| {
                let setup = codes.setup(&case, Some(plugin))?;
                let answers = case.answers.clone();
                single::outcome(&ground, &setup, &case.exchange, answers, 0, Some(cache.path()))
            };
            let (old, new) = (outcome(&arguments.old)?, outcome(&arguments.new)?);
            pairs.push((case.path.display().to_string(), old, new));
        }
    } else {
        let (exchange, answers) = exchange(&arguments.exchange)?;
        let outcome = |plugin: &str| {
            let setup = Setup::of(&arguments.setup, source::resolve(plugin)?)?;
            single::outcome(&ground, &setup, &exchange, answers.clone(), 0, None)
        };
        let (old, new) = (outcome(&arguments.old)?, outcome(&arguments.new)?);
        let head = &exchange.request.head;
        let path = String::from_utf8_lossy(head.path.as_bytes());
        pairs.push((format!("{} {path}", head.method), old, new));
    }
    let mut out = format!("--- {}\n+++ {}\n", arguments.old, arguments.new);
    let mut differ = 0;
    for (name, old, new) in &pairs {
        let (before, after) = (old.comparable(), new.comparable());
        let same = before == after;
        differ += usize::from(!same);
        let word = if same { "same     " } else { "DIFFERENT" };
        let _ = writeln!(out, "{word}  {}", printable(name));
        if !same {
            out.push_str(&difference(&before, &after, 4));
        }
        out.push_str(&times(old, new));
    }
    let _ = writeln!(
        out,
        "{} of {} outcomes differ",
        differ,
        pairs.len()
    );
    let verdict = if differ == 0 {
        Verdict::Well
    } else {
        Verdict::Failed
    };
    Ok((out, verdict))
}

/// The time in each callback, old and new: one call says little.
fn times(old: &Outcome, new: &Outcome) -> String {
    let mut out = String::new();
    let total = |outcome: &Outcome, name: &str| {
        let mut calls = outcome.record.calls.iter();
        let found = calls.find(|(known, _)| *known == name);
        found.map(|(_, times)| times.iter().sum::<u64>())
    };
    let shown = |time: Option<u64>| time.map_or_else(|| "-".to_owned(), micros);
    let mut names: Vec<&str> = old.record.calls.iter().map(|(name, _)| *name).collect();
    for (name, _) in &new.record.calls {
        if !names.contains(name) {
            names.push(name);
        }
    }
    for name in names {
        let (old, new) = (shown(total(old, name)), shown(total(new, name)));
        let _ = writeln!(out, "    {name:<36} {old:>12} {new:>12}");
    }
    out
}

/// Lines that are in one text alone begin with `-` or `+`, after so many spaces.
pub(super) fn difference(old: &str, new: &str, indent: usize) -> String {
    let mut out = String::new();
    let diff = TextDiff::from_lines(old, new);
    for change in diff.iter_all_changes() {
        let mark = match change.tag() {
            ChangeTag::Equal => ' ',
            ChangeTag::Delete => '-',
            ChangeTag::Insert => '+',
        };
        let line = printable(change.value().trim_end_matches('\n'));
        // An end that is missing is a difference that nobody sees.
        let end = if change.missing_newline() && old.ends_with('\n') != new.ends_with('\n') {
            "  (without a line's end)"
        } else {
            ""
        };
        let shown = format!("{:indent$}{mark} {line}{end}", "");
        let _ = writeln!(out, "{}", shown.trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_lines() {
        assert_eq!(
            difference("a\nb\nc\n", "a\nc\nd\n", 2),
            "    a\n  - b\n    c\n  + d\n"
        );
        assert_eq!(
            difference("a\n", "a", 0),
            "- a\n+ a  (without a line's end)\n"
        );
        assert_eq!(difference("a\u{1b}", "a\u{1b}", 0), "  a\u{fffd}\n");
    }
}
