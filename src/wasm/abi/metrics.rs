//! Metrics that plugins define: `wasmcustom.<name>` in the process's registry.
//!
//! The quota holds twice: for what a VM defines, each time, and for the names that plugins of one name have in the registry,
//! which outlive the VMs.

use std::sync::Arc;

use super::{Guest, Outcome, Status, memory, put_u32, put_u64, range};
use crate::telemetry::metrics::{Kind, Metric};
use crate::wasm::meter::Quota;

/// Longest name.
const MAX_NAME: u32 = 64 << 10;
/// A name that is longer counts as so many more metrics: Istio's, with all labels in them, are of this order.
const NAME: u32 = 2 << 10;

/// The metrics of one VM. An id is `4 · n + kind`, n from 1 for each kind, as in Envoy.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    by_kind: [Vec<Arc<Metric>>; 3],
    /// What the quota counts.
    cost: usize,
}

impl Metrics {
    fn get(&self, id: u32) -> Option<&Arc<Metric>> {
        let (kind, number) = (id as usize % 4, id as usize / 4);
        self.by_kind.get(kind)?.get(number.checked_sub(1)?)
    }

    /// For calls that know counters and gauges alone: the kind is looked at before the number.
    fn counter_or_gauge(&self, id: u32) -> Result<&Arc<Metric>, Status> {
        if id % 4 > 1 {
            return Err(Status::BadArgument);
        }
        self.get(id).ok_or(Status::NotFound)
    }
}

/// As in Envoy, one without a name is that of the family.
fn stat_name(name: &str) -> String {
    match name {
        "" => "wasmcustom".to_owned(),
        name => format!("wasmcustom.{name}"),
    }
}

pub(super) fn define(guest: &mut Guest<'_>, kind: u32, name: u32, len: u32, out: u32) -> Outcome {
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let name = range(data, name, len)?;
    let metric_kind = match kind {
        0 => Kind::Counter,
        1 => Kind::Gauge,
        2 => Kind::Histogram,
        _ => return Err(Status::BadArgument.into()),
    };
    if len > MAX_NAME {
        return Err(Status::InternalFailure.into());
    }
    let cost = len.div_ceil(NAME).max(1) as usize;
    let total = host.metrics.cost + cost;
    let quota = host.env.policy.quotas.metrics;
    let owner = &*host.spec().name;
    let metric = if total > quota {
        None
    } else {
        let name = stat_name(&String::from_utf8_lossy(name));
        let registry = &host.env.registry;
        registry.owned_metric(owner, &name, metric_kind, cost, quota)
    };
    let Some(metric) = metric else {
        host.meter().refuse(Quota::Metrics);
        return Err(Status::InternalFailure.into());
    };
    host.metrics.cost = total;
    host.counters.meter.metrics.add(cost as u64);
    let metrics = &mut host.metrics.by_kind[kind as usize];
    metrics.push(metric);
    let number = u32::try_from(metrics.len()).map_err(|_| Status::InternalFailure)?;
    put_u32(guest, out, 4 * number + kind)?;
    Ok(())
}

pub(super) fn increment(guest: &mut Guest<'_>, id: u32, offset: i64) -> Outcome {
    let metric = guest.data().metrics.counter_or_gauge(id)?;
    match metric.kind() {
        Kind::Counter if offset > 0 => metric.add(offset.cast_unsigned()),
        // Below zero it wraps, as in Envoy.
        Kind::Gauge => metric.add(offset.cast_unsigned()),
        Kind::Counter | Kind::Histogram => return Err(Status::BadArgument.into()),
    }
    Ok(())
}

pub(super) fn record(guest: &mut Guest<'_>, id: u32, value: i64) -> Outcome {
    let metric = guest.data().metrics.get(id).ok_or(Status::NotFound)?;
    let value = value.cast_unsigned();
    match metric.kind() {
        Kind::Counter => metric.add(value),
        Kind::Gauge => metric.set(value),
        Kind::Histogram => metric.record(value),
    }
    Ok(())
}

pub(super) fn get(guest: &mut Guest<'_>, id: u32, out: u32) -> Outcome {
    let metric = guest.data().metrics.counter_or_gauge(id)?;
    let value = metric.value();
    put_u64(guest, out, value)?;
    Ok(())
}
