//! `plenipo plugin diff`: the same requests through two plugins.

use std::fmt::Write as _;

use similar::{Algorithm, ChangeTag, TextDiff};

use super::host::{Cache, Ground, Setup};
use super::outcome::{Outcome, time};
use super::run::exchange;
use super::source::Access;
use super::test::Codes;
use super::{Verdict, case, printable, run as single};
use crate::cli::plugin::DiffArgs;

pub(super) fn run(arguments: &DiffArgs) -> anyhow::Result<(String, Verdict)> {
    let access = Access::of(&arguments.registry)?;
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
            let case = case.map_err(|broken| anyhow::anyhow!("{broken}"))?;
            let mut outcome = |plugin: &str| {
                let setup = codes.setup(&access, &case, Some(plugin))?;
                let answers = case.answers.clone();
                single::outcome(
                    &ground,
                    &setup,
                    &case.exchange,
                    answers,
                    0,
                    Some(cache.path()),
                )
            };
            let (old, new) = (outcome(&arguments.old)?, outcome(&arguments.new)?);
            pairs.push((case.path.display().to_string(), old, new));
        }
    } else {
        let (exchange, answers) = exchange(&arguments.exchange)?;
        let outcome = |plugin: &str| {
            let setup = Setup::of(&arguments.setup, access.resolve(plugin)?)?;
            single::outcome(&ground, &setup, &exchange, answers.clone(), 0, None)
        };
        let (old, new) = (outcome(&arguments.old)?, outcome(&arguments.new)?);
        let head = &exchange.request.head;
        let path = String::from_utf8_lossy(head.path.as_bytes());
        pairs.push((format!("{} {path}", head.method), old, new));
    }
    let mut out = format!("--- {}\n+++ {}\n", arguments.old, arguments.new);
    let (mut differ, mut failing) = (0, 0);
    for (name, old, new) in &pairs {
        let same = old.is_as(new);
        differ += usize::from(!same);
        let word = if same { "same     " } else { "DIFFERENT" };
        let _ = writeln!(out, "{word}  {}", printable(name));
        if !same {
            out.push_str(&difference(&old.comparable(), &new.comparable(), 4));
        } else if let Some(trouble) = old.trouble() {
            failing += 1;
            let _ = writeln!(out, "    both fail: {}", printable(trouble));
        }
    }
    let _ = writeln!(out, "{differ} of {} outcomes differ", pairs.len());
    // Two that do nothing are the same in that they do nothing.
    let idle = failing == pairs.len();
    if idle {
        out.push_str("both plugins fail wherever they are compared, which says nothing of them\n");
    }
    out.push('\n');
    out.push_str(&times(&pairs));
    let verdict = if differ == 0 && !idle {
        Verdict::Well
    } else {
        Verdict::Failed
    };
    Ok((out, verdict))
}

/// The time in each callback, over all requests: old and new. A single call says little.
fn times(pairs: &[(String, Outcome, Outcome)]) -> String {
    let mut rows: Vec<(&str, [u64; 2])> = Vec::new();
    for (_, old, new) in pairs {
        for (side, outcome) in [old, new].into_iter().enumerate() {
            for (name, times) in &outcome.record.calls {
                let total = times.iter().sum::<u64>();
                match rows.iter_mut().find(|(known, _)| known == name) {
                    Some((_, sums)) => sums[side] += total,
                    None => {
                        let mut sums = [0; 2];
                        sums[side] = total;
                        rows.push((name, sums));
                    }
                }
            }
        }
    }
    let mut out = format!("{:<40} {:>12} {:>12}\n", "time", "old", "new");
    for (name, [old, new]) in rows {
        let _ = writeln!(out, "    {name:<36} {:>12} {:>12}", time(old), time(new));
    }
    out
}

/// Lines that are in one text alone begin with `-` or `+`, after so many spaces.
pub(super) fn difference(old: &str, new: &str, indent: usize) -> String {
    let mut out = String::new();
    let mut diff = TextDiff::configure();
    let diff = diff.algorithm(Algorithm::Patience).diff_lines(old, new);
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
