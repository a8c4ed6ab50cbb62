//! What one evaluation may cost: host code is not stopped by a guest's deadline, and what it allocates is not the guest's.
//!
//! Nodes bound the time of comprehensions. Bytes bound what is copied: attributes, what `+` makes, and what lists and maps
//! are made of, which would double with every link of a chain. Time bounds what is read of long texts again and again, and
//! the compilation of [patterns](super::pattern): the clock is asked before and after each of these, and after each [`A_LOOK`]
//! that steps have read. What was once refused is refused from then on: an error that `||` swallows does not give it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use cel::common::types::{CelBool, CelInt};
use cel::common::value::CowVal;
use cel::{Context, DeclarationError, ExecutionError, FunctionContext};
use parking_lot::Mutex;

use super::convert::{Seen, VALUE, weight};
use super::language::strings;
use super::pattern::{Pattern, PatternError};
use crate::wasm::engine::thread_cpu_time;

/// Nodes that the comprehensions of one evaluation may visit: some milliseconds.
const MAX_VISITED: i64 = 100_000;
/// Bytes that one evaluation may copy, [`VALUE`] for each value of a list or map included: as long.
const MAX_COPIED: i64 = 16 << 20;
/// Bytes of text that may be read between two looks at the clock: some tenth of a millisecond.
const A_LOOK: u64 = 1 << 20;
/// So many bytes are read in the time in which one is matched against a pattern, at worst that of a usual one.
const MATCHED: usize = 16;
/// What one evaluation may compute after the first look, in time of its thread.
const MAX_COMPUTED: Duration = Duration::from_millis(20);

/// The functions that [`prepare`](super::language::prepare) calls: its first argument, at the cost of a step whose nodes are
/// the second.
pub(super) const SPEND: &str = "@spend";
/// Its argument, which a list or map keeps, or a comprehension goes through.
pub(super) const KEEP: &str = "@keep";
/// Its argument, which a step reads.
pub(super) const READ: &str = "@read";
/// `+`.
pub(super) const ADD: &str = "@add";
/// `matches` of a text and a pattern.
pub(super) const MATCHES: &str = "@matches";

/// What is left to one evaluation.
#[derive(Debug)]
pub(super) struct Budget {
    nodes: AtomicI64,
    bytes: AtomicI64,
    /// Bytes read since the last look.
    read: AtomicU64,
    /// The time of the thread at the first look, in nanoseconds; 0 before.
    since: AtomicU64,
    /// The last pattern: most often the next one, too.
    pattern: Mutex<Option<(Box<str>, Pattern)>>,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            nodes: MAX_VISITED.into(),
            bytes: MAX_COPIED.into(),
            read: AtomicU64::new(0),
            since: AtomicU64::new(0),
            pattern: Mutex::default(),
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

    /// So much of a text, or of what there is of a value, is about to be read.
    fn read(&self, bytes: usize) -> Result<(), ExecutionError> {
        let read = self.read.load(Relaxed).saturating_add(bytes as u64);
        if read < A_LOOK {
            self.read.store(read, Relaxed);
            return Ok(());
        }
        self.read.store(0, Relaxed);
        self.look()
    }

    /// An error where the time is over.
    fn look(&self) -> Result<(), ExecutionError> {
        let Some(now) = thread_cpu_time() else {
            // Without the clock of the thread there may be a hundred looks.
            return self.visit(MAX_VISITED / 100);
        };
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX).max(1);
        let since = match self.since.load(Relaxed) {
            0 => {
                self.since.store(now, Relaxed);
                now
            }
            since => since,
        };
        if now.saturating_sub(since) > MAX_COMPUTED.as_nanos() as u64 {
            self.nodes.store(-1, Relaxed);
        }
        self.check()
    }

    fn matches(&self, text: &str, pattern: &str) -> Result<bool, ExecutionError> {
        self.read(text.len().saturating_mul(MATCHED))?;
        let failed = |error: PatternError| ExecutionError::function_error("matches", error);
        let mut last = self.pattern.lock();
        let known = last.take().filter(|(known, _)| **known == *pattern);
        let (_, compiled) = match known {
            Some(known) => last.insert(known),
            None => {
                self.look()?;
                let compiled = Pattern::compile(pattern).map_err(failed)?;
                self.look()?;
                last.insert((pattern.into(), compiled))
            }
        };
        compiled.is_in(text).map_err(failed)
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
    context.add_function::<Function, _>(ADD, function)?;
    let reading = Arc::clone(seen);
    let function: Function = Box::new(move |call| read(&reading.budget, take(call)));
    context.add_function::<Function, _>(READ, function)?;
    let matching = Arc::clone(seen);
    let function: Function = Box::new(move |call| {
        let arguments = take(call);
        let [text, pattern] = strings(&arguments)?;
        let found = matching.budget.matches(text, pattern)?;
        Ok(CowVal::owned(CelBool::from(found)))
    });
    context.add_function::<Function, _>(MATCHES, function)
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

fn read<'b, 'v>(budget: &Budget, mut arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let value = arguments.pop();
    let value = value.ok_or_else(ExecutionError::missing_argument_or_target)?;
    budget.read(weight(value.as_ref()))?;
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
