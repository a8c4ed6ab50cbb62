//! `plenipo plugin test`: the cases of folders. Each gets a VM of its own, with statistics and shared data of its own; the
//! code is compiled once.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use tokio::time::Instant;

use super::case::{self, Case};
use super::diff::difference;
use super::expect::Expected;
use super::host::{Cache, Ground, Setup};
use super::junit::{self, Fault};
use super::outcome::Outcome;
use super::source::Access;
use super::update::updated;
use super::{Verdict, print, printable, run as single};
use crate::cli::plugin::TestArgs;

/// What became of a case.
enum Fate {
    /// With what there is to be said nevertheless.
    Passed(String),
    /// Why it failed.
    Failed(String),
    /// Its file was written anew.
    Updated,
    /// Why it could not be run.
    Broken(String),
}

/// A case that was tried.
struct Tried<'a> {
    folder: &'a Path,
    name: &'a str,
    path: &'a Path,
    took: Duration,
    fate: Fate,
}

/// Plugins by file.
#[derive(Default)]
pub(super) struct Codes(BTreeMap<PathBuf, Bytes>);

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
                "it names no plugin: write `plugin: FILE` in it or in _defaults.yaml, or give --plugin FILE"
            ),
        };
        let code = self.code(access, path)?;
        Ok(Setup {
            code,
            ..case.setup.clone()
        })
    }

    fn code(&mut self, access: &Access, path: PathBuf) -> anyhow::Result<Bytes> {
        if let Some(code) = self.0.get(&path) {
            return Ok(code.clone());
        }
        let code = Bytes::from(access.resolve(&path.to_string_lossy())?);
        self.0.insert(path, code.clone());
        Ok(code)
    }
}

/// What all cases have in common.
struct Bench<'a> {
    arguments: &'a TestArgs,
    access: Access,
    ground: Ground,
    cache: Cache,
    codes: Codes,
}

impl Bench<'_> {
    /// Runs a case and judges what came of it.
    ///
    /// # Errors
    /// What keeps it from being run, or its file from being written.
    fn run(&mut self, case: &Case) -> anyhow::Result<Fate> {
        let plugin = self.arguments.plugin.as_deref();
        let setup = self.codes.setup(&self.access, case, plugin)?;
        let outcome = single::outcome(
            &self.ground,
            &setup,
            &case.exchange,
            case.answers.clone(),
            0,
            Some(self.cache.path()),
        )?;
        judge(case, &outcome, self.arguments.update)
    }
}

pub(super) fn run(arguments: &TestArgs) -> anyhow::Result<(String, Verdict)> {
    let mut cases = Vec::new();
    for folder in &arguments.folders {
        for case in case::folder(folder)? {
            cases.push((folder.as_path(), case));
        }
    }
    let mut bench = Bench {
        arguments,
        access: Access::of(&arguments.registry)?,
        ground: Ground::new()?,
        cache: Cache::new(),
        codes: Codes::default(),
    };
    if let Some(plugin) = &arguments.plugin {
        // Of a case it would be said of each.
        bench.codes.code(&bench.access, PathBuf::from(plugin))?;
    }
    let mut results = Vec::new();
    for (folder, case) in &cases {
        let begin = Instant::now();
        let (name, path, fate) = match case {
            Ok(case) => {
                let fate = bench.run(case);
                let fate = fate.unwrap_or_else(|error| Fate::Broken(format!("{error:#}")));
                (&case.name, &case.path, fate)
            }
            Err(broken) => (
                &broken.name,
                &broken.path,
                Fate::Broken(broken.reason.clone()),
            ),
        };
        results.push(Tried {
            folder,
            name,
            path,
            took: begin.elapsed(),
            fate,
        });
    }
    let (text, verdict) = report(arguments, &results);
    let cannot = cannot(arguments, &results);
    if cannot.is_err() {
        print(&text);
    }
    cannot.map(|()| (text, verdict))
}

/// All results, for people.
fn report(arguments: &TestArgs, results: &[Tried<'_>]) -> (String, Verdict) {
    let mut out = String::new();
    let (mut passed, mut failed, mut updated, mut broken) = (0, 0, 0, 0);
    for tried in results {
        let path = tried.path.display();
        let (count, word, more) = match &tried.fate {
            Fate::Passed(more) => (&mut passed, "pass", more.clone()),
            Fate::Updated => (&mut updated, "updated", String::new()),
            Fate::Failed(why) => (&mut failed, "FAIL", format!("{why}\n")),
            Fate::Broken(why) => (&mut broken, "ERROR", indented(why)),
        };
        *count += 1;
        let _ = write!(out, "{word:<8} {path}\n{more}");
    }
    if results.is_empty() {
        let folders = arguments.folders.iter();
        let folders: Vec<_> = folders.map(|folder| folder.display().to_string()).collect();
        let _ = writeln!(
            out,
            "there is no case (*.yaml, *.yml) in {}",
            folders.join(", ")
        );
        return (out, Verdict::Failed);
    }
    let _ = write!(out, "{passed} passed");
    if updated > 0 {
        let _ = write!(out, ", {updated} updated");
    }
    let _ = write!(out, ", {failed} failed");
    if broken > 0 {
        let _ = write!(out, ", {broken} not run");
    }
    out.push('\n');
    let verdict = if failed == 0 {
        Verdict::Well
    } else {
        Verdict::Failed
    };
    (out, verdict)
}

/// Writes the file of results.
///
/// # Errors
/// Where it cannot be written, and where a case could not be run.
fn cannot(arguments: &TestArgs, results: &[Tried<'_>]) -> anyhow::Result<()> {
    if let Some(path) = &arguments.junit {
        write_junit(path, results)?;
    }
    let mut broken = results.iter().filter_map(|tried| match &tried.fate {
        Fate::Broken(why) => Some(format!("{}: {why}", tried.path.display())),
        _ => None,
    });
    match (broken.next(), broken.count()) {
        (None, _) => Ok(()),
        (Some(why), 0) => anyhow::bail!(why),
        (Some(why), more) => anyhow::bail!("{why} (and {more} more that cannot be run)"),
    }
}

fn indented(text: &str) -> String {
    let lines = text.lines();
    lines
        .map(|line| format!("    {}\n", printable(line)))
        .collect()
}

fn judge(case: &Case, outcome: &Outcome, update: bool) -> anyhow::Result<Fate> {
    let wrong = case
        .expected
        .as_ref()
        .map(|expected| expected.compare(outcome));
    if wrong.as_ref().is_some_and(Vec::is_empty) {
        return Ok(Fate::Passed(unanswered(case, outcome)));
    }
    let mut why = String::new();
    if update {
        let renewed = match &case.expected {
            Some(expected) => expected.renewed(outcome),
            None => Expected::of(outcome),
        };
        match updated(&case.text, &renewed.yaml()) {
            Ok(text) => {
                std::fs::write(&case.path, text).context("cannot write it")?;
                return Ok(Fate::Updated);
            }
            Err(reason) => {
                let _ = writeln!(why, "    it is not updated: {reason:#}");
            }
        }
    }
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
        for service in &outcome.record.grpc {
            let service = printable(service);
            let _ = writeln!(
                out,
                "    the plugin called {service} by gRPC, which is not answered here"
            );
        }
    }
    out
}

fn write_junit(path: &Path, results: &[Tried<'_>]) -> anyhow::Result<()> {
    let suites: Vec<_> = results
        .iter()
        .map(|tried| tried.folder.display().to_string())
        .collect();
    let entries: Vec<_> = results
        .iter()
        .zip(&suites)
        .map(|(tried, suite)| junit::Entry {
            suite,
            name: tried.name,
            took: tried.took,
            result: match &tried.fate {
                Fate::Failed(why) => Err(Fault::Failure(why.trim())),
                Fate::Broken(why) => Err(Fault::Error(why.trim())),
                Fate::Passed(_) | Fate::Updated => Ok(()),
            },
        })
        .collect();
    std::fs::write(path, junit::xml(&entries))
        .with_context(|| format!("cannot write {}", path.display()))
}
