//! The files of `plenipo plugin test`: one case each, in YAML.
//!
//! `docs/plugins.md` describes them. `_defaults.yaml` beside them holds what they share. Paths count from the file's
//! folder.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::expect::Expected;
use super::host::{Exchange, Setup};
use super::message::{Request, Response};
use super::recorder::Answer;
use super::run::Answers;
use crate::pb;

/// What cases share, where it is in their folder.
const DEFAULTS: &str = "_defaults.yaml";

/// One case.
#[derive(Debug)]
pub(super) struct Case {
    /// The file's name without its extension.
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// The file as it is.
    pub(super) text: String,
    /// The plugin's file, where the case or the defaults name it.
    pub(super) plugin: Option<PathBuf>,
    /// Without code.
    pub(super) setup: Setup,
    pub(super) exchange: Exchange,
    pub(super) answers: Answers,
    /// `None`: nothing was written yet.
    pub(super) expected: Option<Expected>,
}

/// A file that is no case.
#[derive(Debug)]
pub(super) struct Broken {
    /// As a case's.
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// Why not.
    pub(super) reason: String,
}

impl Broken {
    fn new(path: &Path, reason: &anyhow::Error) -> Self {
        Self {
            name: name(path),
            path: path.to_owned(),
            reason: format!("{reason:#}"),
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

/// The keys of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    plugin: Option<PathBuf>,
    name: Option<String>,
    config: Option<Value>,
    vm_config: Option<Value>,
    root_id: Option<String>,
    vm_id: Option<String>,
    env: Option<Map<String, Value>>,
    #[serde(default)]
    allow_on_headers_stop_iteration: bool,
    request: Option<Value>,
    response: Option<Value>,
    callouts: Option<Map<String, Value>>,
    repeat: Option<u32>,
    chunk: Option<u32>,
    wait: Option<f64>,
    timeout: Option<f64>,
    expect: Option<Map<String, Value>>,
}

/// The cases of a folder, in the order of their names. Where what they share is broken, that alone.
///
/// # Errors
/// Where the folder cannot be read.
pub(super) fn folder(folder: &Path) -> anyhow::Result<Vec<Result<Case, Broken>>> {
    let at = || format!("cannot read the folder {}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(at)? {
        let path = entry.with_context(at)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("yaml" | "yml")) && !path.ends_with(DEFAULTS) {
            files.push(path);
        }
    }
    files.sort();
    let defaults = folder.join(DEFAULTS);
    let shared = match shared(&defaults) {
        Ok(shared) => shared,
        Err(reason) => return Ok(vec![Err(Broken::new(&defaults, &reason))]),
    };
    let cases = files.into_iter().map(|path| {
        let case = read(&path, &shared);
        case.map_err(|reason| Broken::new(&path, &reason))
    });
    Ok(cases.collect())
}

fn shared(path: &Path) -> anyhow::Result<Map<String, Value>> {
    if !path.exists() {
        return Ok(Map::new());
    }
    let keys = read_keys(&std::fs::read_to_string(path)?)?;
    if keys.contains_key("expect") {
        bail!("what is expected belongs to a case");
    }
    Ok(keys)
}

fn read(path: &Path, shared: &Map<String, Value>) -> anyhow::Result<Case> {
    let text = std::fs::read_to_string(path)?;
    let mut keys = shared.clone();
    keys.extend(read_keys(&text)?);
    case(path.to_owned(), text, keys)
}

/// The keys of a file's text.
///
/// # Errors
/// Where it is no mapping in YAML.
pub(super) fn read_keys(text: &str) -> anyhow::Result<Map<String, Value>> {
    let parsed = pb::from_text::<pb::Struct>(text, pb::Format::Yaml)?;
    if let Some(warning) = parsed.warnings.first() {
        // What a proxy reads with a warning is a mistake here.
        bail!("{}", warning.trim_end_matches(": the last one counts"));
    }
    Ok(crate::wasm::spec::json_object(parsed.message))
}

/// What the keys say. None of them may be needed.
///
/// # Errors
/// Where one does not exist, or has a value of another type, with its name.
pub(super) fn of_keys<T: DeserializeOwned>(keys: Map<String, Value>) -> anyhow::Result<T> {
    let error = match serde_json::from_value(Value::Object(keys.clone())) {
        Ok(read) => return Ok(read),
        Err(error) => error,
    };
    // The error names no key; alone, the one at fault fails as well.
    for key in keys {
        let name = key.0.clone();
        serde_json::from_value::<T>(Value::Object(Map::from_iter([key]))).context(name)?;
    }
    Err(error.into())
}

/// A file's name without its extension.
fn name(path: &Path) -> String {
    let file = path.file_stem().unwrap_or_default();
    file.to_string_lossy().into_owned()
}

fn case(path: PathBuf, text: String, keys: Map<String, Value>) -> anyhow::Result<Case> {
    let keys: Keys = of_keys(keys)?;
    let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
    let reason = |reason: String| anyhow::anyhow!(reason);
    let request = keys.request.context("`request` is missing")?;
    let request = Request::parse(&scalar(&request, "request")?, &folder)
        .map_err(reason)
        .context("request")?;
    let response = match keys.response {
        Some(text) => Some(
            Response::parse(&scalar(&text, "response")?, &folder)
                .map_err(reason)
                .context("response")?,
        ),
        None => None,
    };
    let mut answers = Answers::new();
    for (cluster, value) in keys.callouts.unwrap_or_default() {
        let list = match value {
            Value::Array(list) => list,
            one => vec![one],
        };
        let parsed: anyhow::Result<VecDeque<_>> =
            list.iter().map(|text| answer(text, &folder)).collect();
        let parsed = parsed.with_context(|| format!("callouts: {cluster}"))?;
        if parsed.is_empty() {
            bail!("callouts: {cluster}: there is no answer");
        }
        answers.insert(cluster, parsed);
    }
    let mut environment = Vec::new();
    for (name, value) in keys.env.unwrap_or_default() {
        environment.push((name, scalar(&value, "env")?));
    }
    let expected = match keys.expect {
        Some(keys) => Some(Expected::parse(keys).context("expect")?),
        None => None,
    };
    Ok(Case {
        name: name(&path),
        plugin: keys.plugin.map(|plugin| folder.join(plugin)),
        setup: Setup {
            code: bytes::Bytes::new(),
            name: keys.name.unwrap_or_else(|| "plugin".to_owned()),
            root_id: keys.root_id.unwrap_or_default(),
            vm_id: keys.vm_id.unwrap_or_default(),
            config: configuration(keys.config),
            vm_config: configuration(keys.vm_config),
            environment,
            allow_on_headers_stop_iteration: keys.allow_on_headers_stop_iteration,
        },
        exchange: Exchange {
            request,
            response,
            repeat: match keys.repeat {
                Some(0) => bail!("repeat: the request is sent at least once"),
                repeat => repeat.unwrap_or(1),
            },
            chunk: match keys.chunk {
                Some(0) => bail!("chunk: a piece has at least one byte"),
                chunk => chunk.map(|chunk| usize::try_from(chunk).unwrap_or(usize::MAX)),
            },
            wait: seconds(keys.wait, 0.0, "wait")?,
            timeout: seconds(keys.timeout, 5.0, "timeout")?,
        },
        answers,
        expected,
        path,
        text,
    })
}

/// A mapping or a list is given to the plugin as JSON.
fn configuration(value: Option<Value>) -> Vec<u8> {
    match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => text.into_bytes(),
        Some(other) => other.to_string().into_bytes(),
    }
}

fn answer(value: &Value, folder: &Path) -> anyhow::Result<Answer> {
    match scalar(value, "an answer")?.trim() {
        "timeout" => Ok(Answer::Timeout),
        "reset" => Ok(Answer::Reset),
        _ => {
            let text = scalar(value, "an answer")?;
            let response =
                Response::parse(&text, folder).map_err(|reason| anyhow::anyhow!(reason))?;
            Ok(Answer::Response(Box::new(response)))
        }
    }
}

/// A text, or what YAML takes for something better.
pub(super) fn scalar(value: &Value, what: &str) -> anyhow::Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        _ => bail!("`{what}` must be a text"),
    }
}

fn seconds(value: Option<f64>, default: f64, what: &str) -> anyhow::Result<Duration> {
    let value = value.unwrap_or(default);
    if !(0.0..=3600.0).contains(&value) {
        bail!("{what}: it is a number of seconds, at most 3600");
    }
    Ok(Duration::from_secs_f64(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Case> {
        let keys = read_keys(text)?;
        case(PathBuf::from("case.yaml"), text.to_owned(), keys)
    }

    #[test]
    fn what_is_wrong_is_named_by_its_key() {
        for (text, reason) in [
            ("chunk: 1.5", "chunk: invalid type"),
            ("repeat: -1", "repeat: invalid value"),
            ("name: 5", "name: invalid type"),
            ("root_id: 1", "root_id: invalid type"),
            ("timeout: \"2\"", "timeout: invalid type"),
            ("expect: {failure: 503}", "expect: failure: invalid type"),
            ("expect: {metrics: {a: b}}", "expect: metrics: invalid type"),
            ("expect: 200", "expect: invalid type"),
            ("callout: {}", "unknown field `callout`"),
        ] {
            let error = read(&format!("request: GET /\n{text}\n")).expect_err(text);
            let error = format!("{error:#}");
            assert!(error.contains(reason), "{error}");
        }
    }

    /// As `docs/plugins.md` says of numbers.
    #[test]
    fn a_configuration_is_a_text_or_json() {
        for (config, given) in [
            ("1.10", "1.1"),
            ("\"1.10\"", "1.10"),
            ("{id: 9007199254740993}", "{\"id\":\"9007199254740993\"}"),
            (
                "|-\n  {\"id\": 9007199254740993}",
                "{\"id\": 9007199254740993}",
            ),
            ("[a, 1]", "[\"a\",1]"),
        ] {
            let case = read(&format!("request: GET /\nconfig: {config}\n")).expect(config);
            assert_eq!(String::from_utf8_lossy(&case.setup.config), given);
        }
    }
}
