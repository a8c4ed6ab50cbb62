//! `plenipo plugin test`: the cases of folders. Each gets a VM of its own, with statistics and shared data of its own; the
//! code is compiled once.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::time::Instant;

use super::case::{self, Case};
use super::diff::difference;
use super::expect::{Expected, spliced};
use super::host::{Cache, Ground, Setup};
use super::outcome::Outcome;
use super::source::Access;
use super::{Verdict, junit, printable, run as single};
use crate::cli::plugin::TestArgs;

/// What became of a case.
enum Fate {
    Passed,
    /// Why it failed.
    Failed(String),
    /// Its file was written anew.
    Updated,
}

/// Plugins by file.
#[derive(Default)]
pub(super) struct Codes(BTreeMap<PathBuf, bytes::Bytes>);

impl Codes {
    /// The setup of `case` with the code of its plugin, or of `instead`.
    pub(super) fn setup(
        &mut self,
        access: &Access,
        case: &Case,
        instead: Option<&str>,
    ) -> anyhow::Result<Setup> {
        let path = match (instead, &case.plugin) {
            (Some(path), _) => PathBuf::from(path),
            (None, Some(path)) => path.clone(),
            (None, None) => anyhow::bail!(
                "{}: it names no plugin: write `plugin: FILE` in it or in _defaults.yaml, or give --plugin FILE",
                case.path.display()
            ),
        };
        let code = match self.0.get(&path) {
            Some(code) => code.clone(),
            None => {
                let code = bytes::Bytes::from(access.resolve(&path.to_string_lossy())?);
                self.0.insert(path, code.clone());
                code
            }
        };
        Ok(Setup {
            code,
            ..case.setup.clone()
        })
    }
}

pub(super) fn run(arguments: &TestArgs) -> anyhow::Result<(String, Verdict)> {
    let mut cases = Vec::new();
    for folder in &arguments.folders {
        for case in case::folder(folder)? {
            cases.push((folder.as_path(), case));
        }
    }
    let access = Access::of(&arguments.registry)?;
    let ground = Ground::new()?;
    let cache = Cache::new();
    let mut codes = Codes::default();
    let mut out = String::new();
    let mut results = Vec::new();
    for (folder, case) in &cases {
        let setup = codes.setup(&access, case, arguments.plugin.as_deref())?;
        let begin = Instant::now();
        let outcome = single::outcome(
            &ground,
            &setup,
            &case.exchange,
            case.answers.clone(),
            0,
            Some(cache.path()),
        )?;
        let took = begin.elapsed();
        let fate = judge(case, &outcome, arguments.update)?;
        let path = case.path.display();
        match &fate {
            Fate::Passed => {
                let _ = writeln!(out, "pass     {path}");
                out.push_str(&unanswered(case, &outcome));
            }
            Fate::Updated => {
                let _ = writeln!(out, "updated  {path}");
            }
            Fate::Failed(why) => {
                let _ = writeln!(out, "FAIL     {path}\n{why}");
            }
        }
        results.push((*folder, case.name.as_str(), took, fate));
    }
    if let Some(path) = &arguments.junit {
        write_junit(path, &results)?;
    }
    let count = |which: fn(&Fate) -> bool| results.iter().filter(|(.., fate)| which(fate)).count();
    let failed = count(|fate| matches!(fate, Fate::Failed(_)));
    let updated = count(|fate| matches!(fate, Fate::Updated));
    if results.is_empty() {
        let folders: Vec<_> = arguments
            .folders
            .iter()
            .map(|folder| folder.display().to_string())
            .collect();
        let _ = writeln!(
            out,
            "there is no case (*.yaml, *.yml) in {}",
            folders.join(", ")
        );
        return Ok((out, Verdict::Failed));
    }
    let _ = write!(out, "{} passed", results.len() - failed - updated);
    if updated > 0 {
        let _ = write!(out, ", {updated} updated");
    }
    let _ = writeln!(out, ", {failed} failed");
    let verdict = if failed == 0 {
        Verdict::Well
    } else {
        Verdict::Failed
    };
    Ok((out, verdict))
}

fn judge(case: &Case, outcome: &Outcome, update: bool) -> anyhow::Result<Fate> {
    let wrong = case
        .expected
        .as_ref()
        .map(|expected| expected.compare(outcome));
    if wrong.as_ref().is_some_and(Vec::is_empty) {
        return Ok(Fate::Passed);
    }
    if update {
        let renewed = match &case.expected {
            Some(expected) => expected.renewed(outcome),
            None => Expected::of(outcome),
        };
        let text = spliced(&case.text, &renewed.yaml());
        std::fs::write(&case.path, text)
            .with_context(|| format!("cannot write {}", case.path.display()))?;
        return Ok(Fate::Updated);
    }
    let mut why = String::new();
    for wrong in wrong.iter().flatten() {
        let _ = writeln!(why, "    {} is not as expected:", wrong.what);
        why.push_str(&difference(&wrong.expected, &wrong.found, 8));
    }
    if wrong.is_none() {
        why.push_str("    it expects nothing yet; `--update` writes what came out\n");
    }
    why.push_str(&unanswered(case, outcome));
    if let Some(hint) = &outcome.hint {
        let _ = writeln!(why, "    hint: {hint}");
    }
    Ok(Fate::Failed(why))
}

/// Tells of calls that the case neither answers nor expects.
fn unanswered(case: &Case, outcome: &Outcome) -> String {
    let mut out = String::new();
    let expected = case.expected.as_ref();
    if !expected.is_some_and(Expected::names_callouts) {
        for cluster in &outcome.record.unanswered {
            let cluster = printable(cluster);
            let _ = writeln!(
                out,
                "    the plugin called the cluster {cluster}, for which `callouts` has no answer"
            );
        }
    }
    out
}

fn write_junit(
    path: &Path,
    results: &[(&Path, &str, std::time::Duration, Fate)],
) -> anyhow::Result<()> {
    let suites: Vec<_> = results
        .iter()
        .map(|(folder, ..)| folder.display().to_string())
        .collect();
    let entries: Vec<_> = results
        .iter()
        .zip(&suites)
        .map(|((_, name, took, fate), suite)| junit::Entry {
            suite,
            name,
            took: *took,
            failure: match fate {
                Fate::Failed(why) => Some(why.trim()),
                Fate::Passed | Fate::Updated => None,
            },
        })
        .collect();
    std::fs::write(path, junit::xml(&entries))
        .with_context(|| format!("cannot write {}", path.display()))
}
