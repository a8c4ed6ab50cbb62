//! What one evaluation may cost: host code is not stopped by a guest's deadline, and what it allocates is not the guest's.
//!
//! Nodes bound the time of comprehensions. Bytes bound what is copied: attributes, what `+` makes, and what lists and maps
//! are made of, which would double with every link of a chain. What was once refused is refused from then on: an error that
//! `||` swallows does not give it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use cel::common::types::CelInt;
use cel::common::value::CowVal;
use cel::{Context, DeclarationError, ExecutionError, FunctionContext};

use super::convert::{Seen, VALUE, weight};

/// Nodes that the comprehensions of one evaluation may visit: some milliseconds.
const MAX_VISITED: i64 = 100_000;
/// Bytes that one evaluation may copy, [`VALUE`] for each value of a list or map included: as long.
const MAX_COPIED: i64 = 16 << 20;

/// The functions that [`prepare`](super::language::prepare) calls: its first argument, at the cost of a step whose nodes are
/// the second.
pub(super) const SPEND: &str = "@spend";
/// Its argument, which a list or map keeps, or a comprehension goes through.
pub(super) const KEEP: &str = "@keep";
/// `+`.
pub(super) const ADD: &str = "@add";

/// What is left to one evaluation.
#[derive(Debug)]
pub(super) struct Budget {
    nodes: AtomicI64,
    bytes: AtomicI64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            nodes: MAX_VISITED.into(),
            bytes: MAX_COPIED.into(),
        }
    }
}

impl Budget {
    fn visit(&self, nodes: i64) -> Result<(), ExecutionError> {
        self.nodes.fetch_sub(nodes, Relaxed);
        self.check()
    }

    /// Pays for a copy of so many bytes, before it is made.
    pub(super) fn copy(&self, bytes: usize) -> Result<(), ExecutionError> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX).min(MAX_COPIED + 1);
        self.bytes.fetch_sub(bytes, Relaxed);
        self.check()
    }

    /// An error where more was asked for than there was.
    pub(super) fn check(&self) -> Result<(), ExecutionError> {
        if self.nodes.load(Relaxed) < 0 || self.bytes.load(Relaxed) < 0 {
            return Err(ExecutionError::function_error(
                "expression",
                "its budget is spent",
            ));
        }
        Ok(())
    }
}

type Outcome<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;
/// As the library keeps it, without a conversion of arguments, which would copy them.
type Function =
    Box<dyn for<'b, 'v> Fn(&mut FunctionContext<'b, 'v>) -> Outcome<'b, 'v> + Send + Sync>;

/// Makes the functions known, which spend the budget of `seen`.
pub(super) fn register(
    context: &mut Context<'_, '_>,
    seen: &Arc<Seen>,
) -> Result<(), DeclarationError> {
    let spending = Arc::clone(seen);
    let function: Function = Box::new(move |call| spend(&spending.budget, take(call)));
    context.add_function::<Function, _>(SPEND, function)?;
    let keeping = Arc::clone(seen);
    let function: Function = Box::new(move |call| keep(&keeping.budget, take(call)));
    context.add_function::<Function, _>(KEEP, function)?;
    let adding = Arc::clone(seen);
    let function: Function = Box::new(move |call| add(&adding.budget, &take(call)));
    context.add_function::<Function, _>(ADD, function)
}

fn take<'b, 'v>(call: &mut FunctionContext<'b, 'v>) -> Vec<CowVal<'b, 'v>> {
    std::mem::take(&mut call.args)
}

fn spend<'b, 'v>(budget: &Budget, arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let missing = ExecutionError::missing_argument_or_target;
    let [value, nodes] = <[_; 2]>::try_from(arguments).map_err(|_| missing())?;
    let nodes = nodes.downcast_ref::<CelInt>().ok_or_else(missing)?;
    budget.visit(*nodes.inner())?;
    Ok(value)
}

fn keep<'b, 'v>(budget: &Budget, mut arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let value = arguments.pop();
    let value = value.ok_or_else(ExecutionError::missing_argument_or_target)?;
    budget.copy(VALUE + weight(value.as_ref()))?;
    Ok(value)
}

/// As the library, for whatever can be added; what is not text, bytes or a list weighs nothing.
fn add<'b, 'v>(budget: &Budget, arguments: &[CowVal<'b, 'v>]) -> Outcome<'b, 'v> {
    let [left, right] = arguments else {
        return Err(ExecutionError::missing_argument_or_target());
    };
    budget.copy(weight(left.as_ref()) + weight(right.as_ref()))?;
    let adder = left
        .as_adder()
        .ok_or_else(|| ExecutionError::no_such_overload("_+_", Vec::new()))?;
    Ok(CowVal::Owned(adder.add(right.as_ref())?.into_owned()))
}
