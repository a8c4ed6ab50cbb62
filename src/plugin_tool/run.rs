//! `plenipo plugin run`: one request through one plugin.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;

use super::host::{self, Exchange, Ground, Host, Setup};
use super::message::{Message, Request, Response, add_header, set_request_header};
use super::outcome::{Given, Outcome};
use super::recorder::{Answer, Recorder};
use super::{Verdict, json_text, source};
use crate::cli::plugin::{ExchangeArgs, RunArgs};

/// How clusters answer, by name: in turn, the last one for ever.
pub(super) type Answers = BTreeMap<String, VecDeque<Answer>>;

pub(super) fn run(arguments: &RunArgs) -> anyhow::Result<(String, Verdict)> {
    let code = source::Access::of(&arguments.registry)?.resolve(&arguments.source)?;
    let setup = Setup::of(&arguments.setup, code)?;
    let (exchange, answers) = exchange(&arguments.exchange)?;
    let ground = Ground::new()?;
    let outcome = outcome(
        &ground,
        &setup,
        &exchange,
        answers,
        arguments.log_level,
        None,
    )?;
    let text = if arguments.json {
        json_text(&outcome.json())?
    } else {
        shown(&exchange, &outcome)
    };
    let verdict = if outcome.failed() {
        Verdict::Failed
    } else {
        Verdict::Well
    };
    Ok((text, verdict))
}

/// What came of `exchange`, for people.
pub(super) fn shown(exchange: &Exchange, outcome: &Outcome) -> String {
    let request = Message::request(&exchange.request.head, &exchange.request.body, None);
    let response = exchange.response.as_ref();
    let response = response.map(|response| Message::response(&response.head, &response.body, None));
    outcome.text(&Given {
        request: &request,
        response: response.as_ref(),
        timeout: exchange.timeout,
    })
}

/// Sends `exchange` through a plugin of its own making.
pub(super) fn outcome(
    ground: &Ground,
    setup: &Setup,
    exchange: &Exchange,
    answers: Answers,
    log_level: u32,
    cache: Option<&Path>,
) -> anyhow::Result<Outcome> {
    let recorder = Arc::new(Recorder::new(log_level, answers));
    let outcome = host::runtime()?.block_on(async {
        match Host::load(ground, setup, &recorder, cache).await {
            Ok(host) => host.exchange(exchange).await,
            Err(reason) => Outcome::not_loaded(reason, &setup.code, recorder.take()),
        }
    });
    Ok(outcome)
}

/// What the arguments say of the request and of who answers.
pub(super) fn exchange(arguments: &ExchangeArgs) -> anyhow::Result<(Exchange, Answers)> {
    let ExchangeArgs {
        request,
        headers,
        body,
        response,
        response_headers,
        response_body,
        callouts,
        repeat,
        chunk,
        wait,
        timeout,
    } = arguments;
    let reason = |reason: String| anyhow::anyhow!(reason);
    let (text, folder) = utf8(request, "--request")?;
    let mut request = Request::parse(&text, &folder)
        .map_err(reason)
        .context("--request")?;
    for (name, value) in headers {
        set_request_header(&mut request.head, name, value)
            .map_err(reason)
            .context("--header")?;
    }
    if let Some(body) = body {
        request.body = source::text(body)?.0.into();
    }
    let mut answer = match response {
        Some(response) => Some(parse_response(response, "--response")?),
        None if response_headers.is_empty() && response_body.is_none() => None,
        None => Some(parse_response("200", "--response")?),
    };
    if let Some(answer) = &mut answer {
        for (name, value) in response_headers {
            add_header(&mut answer.head.headers, name, value)
                .map_err(reason)
                .context("--response-header")?;
        }
        if let Some(body) = response_body {
            answer.body = source::text(body)?.0.into();
        }
    }
    let mut answers = Answers::new();
    for (cluster, text) in callouts {
        let answer = match text.as_str() {
            "timeout" => Answer::Timeout,
            "reset" => Answer::Reset,
            text => Answer::Response(Box::new(parse_response(text, "--callout")?)),
        };
        answers
            .entry(cluster.clone())
            .or_default()
            .push_back(answer);
    }
    let exchange = Exchange {
        request,
        response: answer,
        repeat: *repeat,
        chunk: chunk.map(|chunk| usize::try_from(chunk).unwrap_or(usize::MAX)),
        wait: *wait,
        timeout: *timeout,
    };
    Ok((exchange, answers))
}

fn parse_response(argument: &str, option: &'static str) -> anyhow::Result<Response> {
    let (text, folder) = utf8(argument, option)?;
    Response::parse(&text, &folder)
        .map_err(|reason| anyhow::anyhow!(reason))
        .context(option)
}

fn utf8(argument: &str, option: &'static str) -> anyhow::Result<(String, std::path::PathBuf)> {
    let (bytes, folder) = source::text(argument).context(option)?;
    let text = String::from_utf8(bytes)
        .with_context(|| format!("{option}: a message is text in UTF-8; a body may be '< file'"))?;
    Ok((text, folder))
}
