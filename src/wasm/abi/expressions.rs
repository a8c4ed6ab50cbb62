//! Expressions of the Common Expression Language: `expr_create`, `expr_evaluate`, `expr_delete`.
//!
//! They belong to a root context, which counts their tokens from 0. Attributes are looked up when an expression asks for
//! them. The language is the library's; what is refused at creation (unknown functions and types) is Envoy's, and an
//! evaluation has a budget.

mod budget;
mod convert;
mod language;
mod pattern;

use std::sync::Arc;

use cel::Context;
use cel::parser::Expression;
use rustc_hash::FxHashMap;

use super::attributes::Scope;
use super::{Guest, Status};
use budget::Budget;
use convert::{Seen, Variables};

/// Longest source of an expression.
const MAX_SOURCE: usize = 16 << 10;
/// Most expressions of a root context.
const MAX_EXPRESSIONS: usize = 1000;
/// Stack that an evaluation may need; where there is less it gets its own.
const STACK_NEEDED: usize = if cfg!(debug_assertions) {
    8 << 20
} else {
    1 << 20
};
const STACK: usize = 16 << 20;

/// The expressions of a root context.
#[derive(Default)]
pub(crate) struct Expressions {
    next: u32,
    known: FxHashMap<u32, Arc<Expression>>,
}

impl std::fmt::Debug for Expressions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} expressions", self.known.len())
    }
}

/// Those of the context whose callback runs.
fn expressions<'a>(guest: &'a mut Guest<'_>) -> Result<&'a mut Expressions, Status> {
    let host = guest.data_mut();
    let root = host
        .streams
        .get(host.current)
        .map_or(host.current, |context| context.root);
    let root = host.root_of(root).ok_or(Status::NotFound)?;
    Ok(&mut root.expressions)
}

fn token(argument: &[u8]) -> Result<u32, Status> {
    let bytes = argument.try_into().map_err(|_| Status::BadArgument)?;
    Ok(u32::from_le_bytes(bytes))
}

pub(super) fn create(guest: &mut Guest<'_>, source: &[u8]) -> Result<Vec<u8>, Status> {
    if source.len() > MAX_SOURCE {
        return Err(Status::BadArgument);
    }
    let parsed = std::str::from_utf8(source)
        .map_err(|_| "it is no UTF-8".to_owned())
        .and_then(language::parse);
    let mut expression = match parsed {
        Ok(expression) => expression,
        Err(reason) => {
            tracing::info!(target: "wasm", "expr_create parse error: {reason}");
            return Err(Status::BadArgument);
        }
    };
    let expressions = expressions(guest)?;
    // A token is used up even where what was parsed is refused.
    let token = loop {
        let token = expressions.next;
        expressions.next = token.wrapping_add(1);
        if !expressions.known.contains_key(&token) {
            break token;
        }
    };
    if let Err(reason) = language::check(&expression) {
        tracing::info!(target: "wasm", "expr_create compile error: {reason}");
        return Err(Status::BadArgument);
    }
    if expressions.known.len() >= MAX_EXPRESSIONS {
        return Err(Status::InternalFailure);
    }
    language::prepare(&mut expression);
    expressions.known.insert(token, Arc::new(expression));
    Ok(token.to_le_bytes().to_vec())
}

pub(super) fn evaluate(guest: &mut Guest<'_>, argument: &[u8]) -> Result<Vec<u8>, Status> {
    let token = token(argument)?;
    let known = expressions(guest)?.known.get(&token).cloned();
    let expression = known.ok_or(Status::NotFound)?;
    let seen = Arc::new(Seen {
        scope: Scope::current(guest.data()),
        budget: Budget::default(),
    });
    stacker::maybe_grow(STACK_NEEDED, STACK, || result(&expression, &seen))
}

fn result(expression: &Expression, seen: &Arc<Seen>) -> Result<Vec<u8>, Status> {
    let variables = Variables(Arc::clone(seen));
    let mut context = Context::with_env(language::environment());
    context.set_variable_resolver(&variables);
    let failed = |error: &dyn std::fmt::Display| {
        tracing::debug!(target: "wasm", "expr_evaluate error: {error}");
        Status::InternalFailure
    };
    budget::register(&mut context, seen).map_err(|error| failed(&error))?;
    let value = cel::Value::resolve_val(expression, &context).map_err(|error| failed(&error))?;
    seen.budget.check().map_err(|error| failed(&error))?;
    let value = convert::from_cel(&*value)?;
    Ok(value.encode()?.to_vec())
}

pub(super) fn delete(guest: &mut Guest<'_>, argument: &[u8]) -> Result<(), Status> {
    let token = token(argument)?;
    expressions(guest)?.known.remove(&token);
    Ok(())
}
