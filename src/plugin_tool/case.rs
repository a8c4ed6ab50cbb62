//! The files of `plenipo plugin test`: one case each, in YAML.
//!
//! `docs/plugins.md` describes them. `_defaults.yaml` beside them holds what they share. Paths count from the file's
//! folder.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;
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

/// The cases of a folder, in the order of their names.
///
/// # Errors
/// Where the folder or a file cannot be read, or a file is no case.
pub(super) fn folder(folder: &Path) -> anyhow::Result<Vec<Case>> {
    let read = |error| format!("cannot read the folder {}: {error}", folder.display());
    let entries = std::fs::read_dir(folder).map_err(|error| anyhow::anyhow!(read(error)))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| anyhow::anyhow!(read(error)))?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("yaml" | "yml")) && !path.ends_with(DEFAULTS) {
            files.push(path);
        }
    }
    files.sort();
    let defaults = folder.join(DEFAULTS);
    let defaults = if defaults.exists() {
        let (_, keys) = keys(&defaults)?;
        if keys.contains_key("expect") {
            bail!("{}: what is expected belongs to a case", defaults.display());
        }
        keys
    } else {
        Map::new()
    };
    files
        .into_iter()
        .map(|path| {
            let (text, own) = keys(&path)?;
            let mut all = defaults.clone();
            all.extend(own);
            case(path.clone(), text, all).with_context(|| path.display().to_string())
        })
        .collect()
}

fn keys(path: &Path) -> anyhow::Result<(String, Map<String, Value>)> {
    let at = || path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(at)?;
    let parsed = pb::from_text::<pb::Struct>(&text, pb::Format::Yaml).with_context(at)?;
    if let Some(warning) = parsed.warnings.first() {
        // What a proxy reads with a warning is a mistake here.
        let mistake = warning.trim_end_matches(": the last one counts");
        bail!("{}: {mistake}", path.display());
    }
    Ok((text, crate::wasm::spec::json_object(parsed.message)))
}

fn case(path: PathBuf, text: String, keys: Map<String, Value>) -> anyhow::Result<Case> {
    let keys: Keys = serde_json::from_value(Value::Object(keys))?;
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
    let file = path.file_stem().unwrap_or_default();
    Ok(Case {
        name: file.to_string_lossy().into_owned(),
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
