//! `/logging`: levels, all or by component.

use std::fmt::Write as _;

use super::Context;
use super::request::{Request, Response};
use crate::telemetry::log::{Component, Level, Levels};

pub(super) fn page(context: &Context, request: &Request) -> Response {
    let Some(log) = &context.log else {
        return Response::text("active loggers:\n");
    };
    match change(&log.levels, &request.params) {
        Ok(()) => Response::text(list(&log.levels)),
        Err(error) => {
            let mut out = format!(
                "error: {error}\n\n\
                 usage: /logging?<name>=<level> (change single level)\n\
                 usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n\
                 usage: /logging?level=<level> (change all levels)\n\
                 usage: /logging?group=<group_name>:<level> (change group of loggers)\n\
                 levels: "
            );
            for level in Level::ALL {
                let _ = write!(out, "{} ", level.name());
            }
            out.push('\n');
            out.push_str(&list(&log.levels));
            Response::bad(out)
        }
    }
}

fn list(levels: &Levels) -> String {
    let mut out = String::from("active loggers:\n");
    for (name, level) in levels.list() {
        let _ = writeln!(out, "  {name}: {}", level.name());
    }
    out.push('\n');
    out
}

/// All or nothing. Of a parameter that is given twice the first counts, and what is empty is not there, as in Envoy, whose own
/// form sends all of its fields.
fn change(levels: &Levels, params: &[(String, String)]) -> Result<(), &'static str> {
    let level = |name: &str| Level::parse(name).ok_or("unknown logger level");
    let component = |name: &str| Component::named(name).ok_or("unknown logger name");
    let is_first = |at: usize| params[..at].iter().all(|(name, _)| *name != params[at].0);
    let given = params.iter().enumerate();
    let given = given.filter(|(at, (_, value))| is_first(*at) && !value.is_empty());
    let given: Vec<_> = given
        .map(|(_, (name, value))| (name.as_str(), value.as_str()))
        .collect();
    match given[..] {
        [] => Ok(()),
        [("level", value)] => {
            levels.set_all(level(value)?);
            Ok(())
        }
        [("paths", value)] => {
            let entries = value.split(',').filter(|entry| !entry.is_empty());
            let entries = entries.map(|entry| {
                let parts = entry.split_once(':');
                let parts = parts.filter(|(name, value)| !name.is_empty() && !value.is_empty());
                let (name, value) = parts.ok_or("empty logger name or empty logger level")?;
                Ok((name, level(value)?))
            });
            // Names are looked at when all else is well.
            let entries = entries.collect::<Result<Vec<_>, &'static str>>()?;
            let changes = entries
                .into_iter()
                .map(|(name, level)| Ok((component(name)?, level)));
            let changes = changes.collect::<Result<Vec<_>, &'static str>>()?;
            for (component, level) in changes {
                levels.set(component, level);
            }
            Ok(())
        }
        [("group", _)] => Err("group parameter requires fine-grain logging to be enabled"),
        [(name, value)] => {
            let level = level(value)?;
            levels.set(component(name)?, level);
            Ok(())
        }
        _ => Err("invalid number of parameters"),
    }
}
