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

/// All or nothing.
fn change(levels: &Levels, params: &[(String, String)]) -> Result<(), &'static str> {
    let level = |name: &str| Level::parse(name).ok_or("unknown logger level");
    let component = |name: &str| Component::named(name).ok_or("unknown logger name");
    match params {
        [] => Ok(()),
        [(name, value)] if name == "level" || name == "paths" => {
            if value.is_empty() {
                return Ok(());
            }
            if name == "level" {
                levels.set_all(level(value)?);
                return Ok(());
            }
            let changes = value
                .split(',')
                .filter(|entry| !entry.is_empty())
                .map(|entry| {
                    let (name, value) = entry
                        .split_once(':')
                        .ok_or("empty logger name or empty logger level")?;
                    Ok((component(name)?, level(value)?))
                })
                .collect::<Result<Vec<_>, &'static str>>()?;
            for (component, level) in changes {
                levels.set(component, level);
            }
            Ok(())
        }
        [(name, _)] if name == "group" => {
            Err("group parameter requires fine-grain logging to be enabled")
        }
        [(name, value)] => {
            let component = component(name)?;
            levels.set(component, level(value)?);
            Ok(())
        }
        _ => Err("invalid number of parameters"),
    }
}
