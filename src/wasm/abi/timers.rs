//! Clocks and the tick of a root context.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{Guest, Outcome, Status, put_u64};
use crate::wasm::meter::Quota;

pub(super) fn set_tick_period(guest: &mut Guest<'_>, period: u32) -> Outcome {
    let host = guest.data_mut();
    let least = host.env.policy.quotas.min_tick_period;
    // The timer is the root context's, whichever of its contexts asks.
    let root = host.root_mut().ok_or(Status::BadArgument)?;
    let wanted = (period > 0).then(|| Duration::from_millis(u64::from(period)));
    let period = wanted.map(|period| period.max(least));
    root.tick_period = period;
    root.next_tick = period.map(|period| Instant::now() + period);
    if period != wanted {
        host.meter().refuse(Quota::TickPeriod);
    }
    host.wake();
    Ok(())
}

pub(super) fn current_time(guest: &mut Guest<'_>, out: u32) -> Outcome {
    put_u64(guest, out, wall_clock())?;
    Ok(())
}

/// Nanoseconds since 1970.
pub(super) fn wall_clock() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}
