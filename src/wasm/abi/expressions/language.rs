//! The language as Envoy's parser and function registry have it.

use std::sync::{Arc, OnceLock};

use cel::Env;
use cel::ExecutionError;
use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators,
};
use cel::common::types::{self, CelBool, CelDouble, CelDuration, CelInt, CelString, CelTimestamp};
use cel::common::value::{CowVal, Val};
use cel::parser::{Expression, ParseErrors, Parser};

use super::budget::{ADD, KEEP, MATCHES, READ, SPEND};
use super::convert::{self, Attribute, is_empty};

/// `has`, conversions and `getMilliseconds` as Envoy has them.
const HAS: &str = "@has";
const INT: &str = "@int";
const UINT: &str = "@uint";
const DOUBLE: &str = "@double";
const STRING: &str = "@string";
const MILLISECONDS: &str = "@getMilliseconds";
/// Deepest nesting of a source, as in Envoy.
const MAX_NESTING: u16 = 32;
/// Most nodes on the way to the innermost of an expression; each takes some stack when it is evaluated.
const MAX_DEPTH: usize = 96;
/// Most that is told of what is wrong with a source, in characters.
const MAX_REASON: usize = 200;
/// Stack for parsing, of which a level of nesting takes some 100 KiB and a link of a chain some 3 KiB.
const PARSER_STACK: usize = 64 << 20;
/// Operators whose time is that of their operands' length.
const READERS: &[&str] = &[
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::LESS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::GREATER_EQUALS,
    operators::IN,
    operators::INDEX,
];

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

/// Parses a source. What is too deep is taken apart here, where there is stack for it.
pub(super) fn parse(source: &str) -> Result<Expression, String> {
    stacker::grow(PARSER_STACK, || {
        let parsed = Parser::default()
            .max_recursion_depth(MAX_NESTING)
            .enable_ident_escape_syntax(true)
            .parse(source)
            .map_err(|error| reason(&error))?;
        let mut deepest = 0;
        each(&parsed, 1, &mut |_, depth| deepest = deepest.max(depth));
        if deepest > MAX_DEPTH {
            return Err("it is too deep".to_owned());
        }
        Ok(parsed)
    })
}

/// The first thing that is wrong. As a text of its own the error would show the whole line again for each byte of it that is
/// no token.
fn reason(error: &ParseErrors) -> String {
    let Some(first) = error.errors.first() else {
        return "it is no expression".to_owned();
    };
    let message: String = first.msg.chars().take(MAX_REASON).collect();
    format!("{}:{}: {message}", first.pos.0, first.pos.1)
}

/// What Envoy finds out when it compiles: functions that nobody registered, messages that cannot be made.
pub(super) fn check(expression: &Expression) -> Result<(), String> {
    let mut outcome = Ok(());
    each(expression, 1, &mut |node, _| {
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

/// Calls `f` with each node and its depth, which is `depth` for the outermost.
fn each(node: &IdedExpr, depth: usize, f: &mut dyn FnMut(&IdedExpr, usize)) {
    f(node, depth);
    let depth = depth + 1;
    match &node.expr {
        Expr::Call(call) => {
            call.target.iter().for_each(|target| each(target, depth, f));
            call.args
                .iter()
                .for_each(|argument| each(argument, depth, f));
        }
        Expr::Comprehension(loops) => {
            for part in [
                &loops.iter_range,
                &loops.accu_init,
                &loops.loop_cond,
                &loops.loop_step,
                &loops.result,
            ] {
                each(part, depth, f);
            }
        }
        Expr::List(list) => list
            .elements
            .iter()
            .for_each(|element| each(element, depth, f)),
        Expr::Map(map) => map.entries.iter().for_each(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => {
                each(&entry.key, depth, f);
                each(&entry.value, depth, f);
            }
            EntryExpr::StructField(field) => each(&field.value, depth, f),
        }),
        Expr::Struct(message) => message.entries.iter().for_each(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => each(&entry.value, depth, f),
            EntryExpr::StructField(field) => each(&field.value, depth, f),
        }),
        Expr::Select(select) => each(&select.operand, depth, f),
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
    }
}

/// Makes an expression ready to be evaluated: each comprehension asks for its steps, of which one costs the nodes that
/// it visits; what is added or kept, or read by a step, is paid for; and functions that differ from Envoy's are replaced.
pub(super) fn prepare(node: &mut IdedExpr) {
    prepare_at(Place::Once, node);
}

/// How often a part of an expression is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Once,
    /// Once a step.
    Step,
}

fn prepare_at(place: Place, node: &mut IdedExpr) {
    if let Expr::Select(select) = &mut node.expr
        && select.test
    {
        let field = LiteralValue::String(CelString::from(std::mem::take(&mut select.field)));
        let field = IdedExpr {
            id: node.id,
            expr: Expr::Literal(field),
        };
        let operand = std::mem::take(&mut *select.operand);
        node.expr = call(HAS, vec![operand, field]);
    }
    match &mut node.expr {
        Expr::Call(call) => {
            match (call.func_name.as_str(), &call.target, call.args.len()) {
                (operators::ADD, None, 2) => call.func_name = ADD.to_owned(),
                ("int", None, 1) => call.func_name = INT.to_owned(),
                ("uint", None, 1) => call.func_name = UINT.to_owned(),
                ("double", None, 1) => call.func_name = DOUBLE.to_owned(),
                ("string", None, 1) => call.func_name = STRING.to_owned(),
                ("getMilliseconds", Some(_), 0) => call.func_name = MILLISECONDS.to_owned(),
                ("matches", ..) => {
                    call.func_name = MATCHES.to_owned();
                    let target = call.target.take();
                    call.args.splice(0..0, target.map(|target| *target));
                }
                _ => {}
            }
            let reads = place == Place::Step && reads(&call.func_name);
            for part in call.target.as_deref_mut().into_iter().chain(&mut call.args) {
                prepare_at(place, part);
                if reads && !matches!(part.expr, Expr::Literal(_)) {
                    wrap(part, READ, None);
                }
            }
        }
        Expr::Comprehension(loops) => prepare_loop(place, loops),
        Expr::List(list) => {
            let elements = list.elements.iter_mut();
            elements.for_each(|element| prepare_kept(place, element));
        }
        Expr::Map(map) => map
            .entries
            .iter_mut()
            .for_each(|entry| match &mut entry.expr {
                EntryExpr::MapEntry(entry) => {
                    prepare_kept(place, &mut entry.key);
                    prepare_kept(place, &mut entry.value);
                }
                EntryExpr::StructField(field) => prepare_at(place, &mut field.value),
            }),
        Expr::Select(select) => prepare_at(place, &mut select.operand),
        // Messages are refused.
        Expr::Struct(_) | Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
    }
}

/// True where a call takes as long as its arguments are; `matches` sees to that itself.
fn reads(name: &str) -> bool {
    let function = name.starts_with(|first: char| first.is_ascii_alphabetic());
    let ours = [INT, UINT, DOUBLE, STRING];
    function || READERS.contains(&name) || ours.contains(&name)
}

fn prepare_loop(place: Place, loops: &mut ComprehensionExpr) {
    let mut nodes = 0;
    each(&loops.loop_step, 1, &mut |_, _| nodes += 1);
    each(&loops.loop_cond, 1, &mut |_, _| nodes += 1);
    // Each element is copied when it has its turn. What is made here has been paid for.
    match loops.iter_range.expr {
        Expr::List(_) | Expr::Comprehension(_) => prepare_at(place, &mut loops.iter_range),
        _ => prepare_kept(place, &mut loops.iter_range),
    }
    let cost = LiteralValue::Int(CelInt::from(nodes));
    if let Some((guard, element)) = appending(loops) {
        prepare_kept(Place::Step, element);
        let first = match guard {
            Some(guard) => {
                prepare_at(Place::Step, guard);
                guard
            }
            None => element,
        };
        wrap(first, SPEND, Some(cost));
        return;
    }
    prepare_at(place, &mut loops.accu_init);
    prepare_at(Place::Step, &mut loops.loop_step);
    prepare_at(place, &mut loops.result);
    wrap(&mut loops.loop_cond, SPEND, Some(cost));
}

/// The condition of a `filter` or `map`, if it has one, and the element that its step appends. The library does that in
/// place as long as it knows the step again; otherwise each step would copy, and pay for, all that was appended before.
fn appending(loops: &mut ComprehensionExpr) -> Option<(Option<&mut IdedExpr>, &mut IdedExpr)> {
    let accu = loops.accu_var.as_str();
    let is_accu = |node: &IdedExpr| matches!(&node.expr, Expr::Ident(name) if name == accu);
    if !is_accu(&loops.result) || !matches!(loops.loop_cond.expr, Expr::Literal(_)) {
        return None;
    }
    let Expr::Call(step) = &mut loops.loop_step.expr else {
        return None;
    };
    let (guard, step) = if step.func_name == operators::CONDITIONAL {
        let [guard, step, otherwise] = step.args.as_mut_slice() else {
            return None;
        };
        match &mut step.expr {
            Expr::Call(step) if is_accu(otherwise) => (Some(guard), step),
            _ => return None,
        }
    } else {
        (None, step)
    };
    let adds = step.func_name == operators::ADD;
    let [before, after] = step.args.as_mut_slice() else {
        return None;
    };
    let Expr::List(list) = &mut after.expr else {
        return None;
    };
    match list.elements.as_mut_slice() {
        [element] if adds && is_accu(before) => Some((guard, element)),
        _ => None,
    }
}

/// As [`prepare`], for what is kept where it is not a literal: of these there are no more than the source has.
fn prepare_kept(place: Place, node: &mut IdedExpr) {
    if !matches!(node.expr, Expr::Literal(_)) {
        prepare_at(place, node);
        wrap(node, KEEP, None);
    }
}

/// Puts a call of `name` around the node.
fn wrap(node: &mut IdedExpr, name: &str, further: Option<LiteralValue>) {
    let id = node.id;
    let mut args = vec![std::mem::take(node)];
    args.extend(further.map(|literal| IdedExpr {
        id,
        expr: Expr::Literal(literal),
    }));
    *node = IdedExpr {
        id,
        expr: call(name, args),
    };
}

fn call(name: &str, args: Vec<IdedExpr>) -> Expr {
    Expr::Call(CallExpr {
        func_name: name.to_owned(),
        target: None,
        args,
    })
}

/// The library's functions and Envoy's further forms of them; made once.
pub(super) fn environment() -> Arc<Env> {
    static ENVIRONMENT: OnceLock<Arc<Env>> = OnceLock::new();
    Arc::clone(ENVIRONMENT.get_or_init(|| {
        let mut env = Env::stdlib();
        let two = || vec![types::STRING_TYPE, types::STRING_TYPE];
        let added = [
            env.add_overload("startsWith", "starts_with", two(), starts_with),
            env.add_overload("endsWith", "ends_with", two(), ends_with),
            env.add_overload("contains", "contains", two(), contains),
            env.add_overload(HAS, HAS, vec![types::DYN_TYPE, types::STRING_TYPE], has),
            env.add_overload(INT, INT, vec![types::DYN_TYPE], int),
            env.add_overload(UINT, UINT, vec![types::DYN_TYPE], uint),
            env.add_overload(DOUBLE, DOUBLE, vec![types::DYN_TYPE], double),
            env.add_overload(STRING, STRING, vec![types::DYN_TYPE], string),
            env.add_member_overload(
                MILLISECONDS,
                "timestamp_milliseconds",
                types::TIMESTAMP_TYPE,
                vec![],
                milliseconds,
            ),
            env.add_member_overload(
                MILLISECONDS,
                "duration_milliseconds",
                types::DURATION_TYPE,
                vec![],
                milliseconds,
            ),
        ];
        for outcome in added {
            outcome.expect("the library does not have these");
        }
        Arc::new(env)
    }))
}

pub(super) fn strings<'a>(arguments: &'a [CowVal<'_, '_>]) -> Result<[&'a str; 2], ExecutionError> {
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

/// A field of a message is there where it is not empty; elsewhere what can be found is there.
fn has<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let missing = ExecutionError::missing_argument_or_target;
    let (of, name) = match arguments.as_slice() {
        [of, name] => (of.as_ref(), name.as_ref()),
        _ => return Err(missing()),
    };
    let indexer = of.as_indexer().ok_or_else(missing)?;
    let there = match indexer.get(name) {
        Ok(value) => !Attribute::is_message(of) || !is_empty(&*value),
        Err(ExecutionError::NoSuchKey(_)) if !Attribute::is_message(of) => false,
        Err(error) => return Err(error),
    };
    Ok(CowVal::owned(CelBool::from(there)))
}

/// Truth values are numbers, too.
fn int<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    if let Some(value) = arguments.first() {
        let value: &dyn Val = value.as_ref();
        if let Some(truth) = value.downcast_ref::<CelBool>() {
            return Ok(CowVal::owned(CelInt::from(i64::from(*truth.inner()))));
        }
    }
    library("int", trimmed(arguments))
}

fn uint<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    library("uint", trimmed(arguments))
}

fn double<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    library("double", trimmed(arguments))
}

/// White space around text that is to be a number is no matter.
fn trimmed<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Vec<CowVal<'b, 'v>> {
    let text = arguments.first().and_then(|value| {
        let value: &dyn Val = value.as_ref();
        let text = value.downcast_ref::<CelString>()?.inner();
        (text.trim().len() < text.len()).then(|| text.trim().to_owned())
    });
    match text {
        Some(text) => vec![CowVal::owned(CelString::from(text))],
        None => arguments,
    }
}

/// Times, durations and numbers look otherwise.
fn string<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let shown = arguments.first().and_then(|value| {
        let value: &dyn Val = value.as_ref();
        if let Some(number) = value.downcast_ref::<CelDouble>() {
            return Some(convert::shown_double(*number.inner()));
        }
        if let Some(time) = value.downcast_ref::<CelTimestamp>() {
            return Some(convert::shown_time(time.inner()));
        }
        let span = value.downcast_ref::<CelDuration>()?;
        Some(convert::shown_duration(span.inner()))
    });
    match shown {
        Some(text) => Ok(CowVal::owned(CelString::from(text))),
        None => library("string", arguments),
    }
}

/// Those of the second.
fn milliseconds<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let value: &dyn Val = match arguments.first() {
        Some(value) => value.as_ref(),
        None => return Err(ExecutionError::missing_argument_or_target()),
    };
    let millis = if let Some(span) = value.downcast_ref::<CelDuration>() {
        span.inner().num_milliseconds() % 1000
    } else if let Some(time) = value.downcast_ref::<CelTimestamp>() {
        time.inner().timestamp_millis().rem_euclid(1000)
    } else {
        return Err(ExecutionError::missing_argument_or_target());
    };
    Ok(CowVal::owned(CelInt::from(millis)))
}

/// The library's function of that name.
fn library<'b, 'v>(name: &str, arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    match environment().find_overload(name, &arguments) {
        Some(function) => function(arguments),
        None => Err(ExecutionError::no_such_overload(name, Vec::new())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Told as the parser tells it, this took 270 MB.
    #[test]
    fn a_source_of_errors_has_a_short_reason() {
        for source in [
            "#".repeat(16 << 10),
            "\"".repeat(16 << 10),
            "a ".repeat(8 << 10),
        ] {
            let reason = parse(&source).expect_err("no expression");
            assert!(reason.starts_with("1:") && reason.len() < 1000, "{reason}");
        }
    }
}
