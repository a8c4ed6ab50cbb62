//! The language as Envoy's parser and function registry have it.

use std::sync::{Arc, OnceLock};

use cel::Env;
use cel::ExecutionError;
use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue};
use cel::common::types::{self, CelBool, CelInt, CelString};
use cel::common::value::{CowVal, Val};
use cel::parser::{Expression, Parser};

/// The function that a comprehension asks before each step whether it may go on.
pub(super) const SPEND: &str = "@spend";
/// Deepest nesting of a source.
const MAX_DEPTH: u16 = 96;
/// Bytes that a compiled pattern may take.
const MAX_PATTERN: usize = 1 << 20;

/// Functions, with how many arguments they take: the second number is that of calls on a value.
const FUNCTIONS: &[(&str, &[usize], &[usize])] = &[
    ("size", &[1], &[0]),
    ("startsWith", &[2], &[1]),
    ("endsWith", &[2], &[1]),
    ("contains", &[2], &[1]),
    ("matches", &[2], &[1]),
    ("int", &[1], &[]),
    ("uint", &[1], &[]),
    ("double", &[1], &[]),
    ("string", &[1], &[]),
    ("bytes", &[1], &[]),
    ("bool", &[1], &[]),
    ("type", &[1], &[]),
    ("dyn", &[1], &[]),
    ("duration", &[1], &[]),
    ("timestamp", &[1], &[]),
    ("getFullYear", &[], &[0, 1]),
    ("getMonth", &[], &[0, 1]),
    ("getDate", &[], &[0, 1]),
    ("getDayOfMonth", &[], &[0, 1]),
    ("getDayOfYear", &[], &[0, 1]),
    ("getDayOfWeek", &[], &[0, 1]),
    ("getHours", &[], &[0, 1]),
    ("getMinutes", &[], &[0, 1]),
    ("getSeconds", &[], &[0, 1]),
    ("getMilliseconds", &[], &[0, 1]),
];

/// Parses a source.
pub(super) fn parse(source: &str) -> Result<Expression, String> {
    Parser::default()
        .max_recursion_depth(MAX_DEPTH)
        .enable_ident_escape_syntax(true)
        .parse(source)
        .map_err(|error| error.to_string())
}

/// What Envoy finds out when it compiles: functions that nobody registered, messages that cannot be made.
pub(super) fn check(expression: &Expression) -> Result<(), String> {
    let mut outcome = Ok(());
    each(expression, &mut |node| {
        let refused = match &node.expr {
            Expr::Call(call) => refused_call(call),
            Expr::Struct(message) => Some(format!("cannot make a message {}", message.type_name)),
            _ => None,
        };
        if let (Ok(()), Some(reason)) = (&outcome, refused) {
            outcome = Err(reason);
        }
    });
    outcome
}

fn refused_call(call: &CallExpr) -> Option<String> {
    let name = call.func_name.as_str();
    // Operators are named by what no identifier can hold.
    if !name.starts_with(|first: char| first.is_ascii_alphabetic()) {
        return None;
    }
    let fits = FUNCTIONS.iter().any(|(known, global, member)| {
        let counts = if call.target.is_some() {
            member
        } else {
            global
        };
        *known == name && counts.contains(&call.args.len())
    });
    (!fits).then(|| format!("no overload of {name} takes these arguments"))
}

fn each(node: &IdedExpr, f: &mut dyn FnMut(&IdedExpr)) {
    f(node);
    match &node.expr {
        Expr::Call(call) => {
            call.target.iter().for_each(|target| each(target, f));
            call.args.iter().for_each(|argument| each(argument, f));
        }
        Expr::Comprehension(loops) => {
            for part in [
                &loops.iter_range,
                &loops.accu_init,
                &loops.loop_cond,
                &loops.loop_step,
                &loops.result,
            ] {
                each(part, f);
            }
        }
        Expr::List(list) => list.elements.iter().for_each(|element| each(element, f)),
        Expr::Map(map) => map.entries.iter().for_each(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => {
                each(&entry.key, f);
                each(&entry.value, f);
            }
            EntryExpr::StructField(field) => each(&field.value, f),
        }),
        Expr::Struct(message) => message.entries.iter().for_each(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => each(&entry.value, f),
            EntryExpr::StructField(field) => each(&field.value, f),
        }),
        Expr::Select(select) => each(&select.operand, f),
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
    }
}

/// Has each comprehension ask for its steps: a step costs the nodes that it visits.
pub(super) fn limit(node: &mut IdedExpr) {
    match &mut node.expr {
        Expr::Call(call) => {
            call.target.iter_mut().for_each(|target| limit(target));
            call.args.iter_mut().for_each(limit);
        }
        Expr::Comprehension(loops) => {
            let mut nodes = 0;
            each(&loops.loop_step, &mut |_| nodes += 1);
            each(&loops.loop_cond, &mut |_| nodes += 1);
            for part in [
                &mut loops.iter_range,
                &mut loops.accu_init,
                &mut loops.loop_step,
                &mut loops.result,
            ] {
                limit(part);
            }
            let id = loops.loop_cond.id;
            let cost = IdedExpr {
                id,
                expr: Expr::Literal(LiteralValue::Int(CelInt::from(nodes))),
            };
            let condition = std::mem::take(&mut loops.loop_cond);
            loops.loop_cond = IdedExpr {
                id,
                expr: Expr::Call(CallExpr {
                    func_name: SPEND.to_owned(),
                    target: None,
                    args: vec![condition, cost],
                }),
            };
        }
        Expr::List(list) => list.elements.iter_mut().for_each(limit),
        Expr::Map(map) => map
            .entries
            .iter_mut()
            .for_each(|entry| match &mut entry.expr {
                EntryExpr::MapEntry(entry) => {
                    limit(&mut entry.key);
                    limit(&mut entry.value);
                }
                EntryExpr::StructField(field) => limit(&mut field.value),
            }),
        Expr::Select(select) => limit(&mut select.operand),
        // Messages are refused.
        Expr::Struct(_) | Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
    }
}

/// The library's functions and Envoy's further forms of them; made once.
pub(super) fn environment() -> Arc<Env> {
    static ENVIRONMENT: OnceLock<Arc<Env>> = OnceLock::new();
    Arc::clone(ENVIRONMENT.get_or_init(|| {
        let mut env = Env::stdlib();
        let two = || vec![types::STRING_TYPE, types::STRING_TYPE];
        let one = || vec![types::STRING_TYPE];
        let added = [
            env.add_overload("startsWith", "starts_with", two(), starts_with),
            env.add_overload("endsWith", "ends_with", two(), ends_with),
            env.add_overload("contains", "contains", two(), contains),
            env.add_overload("matches", "matches", two(), matches),
            env.add_member_overload(
                "matches",
                "string_matches",
                types::STRING_TYPE,
                one(),
                matches,
            ),
        ];
        for outcome in added {
            outcome.expect("the library does not have these");
        }
        Arc::new(env)
    }))
}

fn strings<'a>(arguments: &'a [CowVal<'_, '_>]) -> Result<[&'a str; 2], ExecutionError> {
    let text = |index: usize| {
        let value: &dyn Val = arguments.get(index)?.as_ref();
        value.downcast_ref::<CelString>().map(|text| text.inner())
    };
    match (text(0), text(1)) {
        (Some(first), Some(second)) => Ok([first, second]),
        _ => Err(ExecutionError::missing_argument_or_target()),
    }
}

type Outcome<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

fn starts_with<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let [text, part] = strings(&arguments)?;
    Ok(CowVal::owned(CelBool::from(text.starts_with(part))))
}

fn ends_with<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let [text, part] = strings(&arguments)?;
    Ok(CowVal::owned(CelBool::from(text.ends_with(part))))
}

fn contains<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let [text, part] = strings(&arguments)?;
    Ok(CowVal::owned(CelBool::from(text.contains(part))))
}

/// The pattern's size is bounded, which bounds the time of its compilation, too.
fn matches<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let [text, pattern] = strings(&arguments)?;
    let compiled = regex::RegexBuilder::new(pattern)
        .size_limit(MAX_PATTERN)
        .dfa_size_limit(MAX_PATTERN)
        .build()
        .map_err(|error| ExecutionError::function_error("matches", error))?;
    Ok(CowVal::owned(CelBool::from(compiled.is_match(text))))
}
