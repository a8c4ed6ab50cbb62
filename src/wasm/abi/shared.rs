//! Shared data and queues.

use bytes::Bytes;

use super::{Guest, Outcome, Status, bytes, give, memory, put_u32, range};
use crate::wasm::context::Host;
use crate::wasm::meter::Quota;

/// Longest key, value or message.
const MAX_VALUE: u32 = 16 << 20;

/// Longest name of a queue.
const MAX_NAME: usize = 4096;

/// Counts what a quota refused.
fn refuse<T>(host: &Host, quota: Quota, result: Result<T, Status>) -> Result<T, Status> {
    if matches!(result, Err(Status::InternalFailure)) {
        host.meter().refuse(quota);
    }
    result
}

pub(super) fn get_data(
    guest: &mut Guest<'_>,
    key: u32,
    key_len: u32,
    at_out: u32,
    len_out: u32,
    cas_out: u32,
) -> Outcome {
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let key = range(data, key, key_len)?;
    let (value, cas) = host.env.space.get(key).ok_or(Status::NotFound)?;
    give(guest, &value, at_out, len_out)?;
    put_u32(guest, cas_out, cas)?;
    Ok(())
}

pub(super) fn set_data(
    guest: &mut Guest<'_>,
    key: u32,
    key_len: u32,
    value: u32,
    value_len: u32,
    cas: u32,
) -> Outcome {
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let (key, value) = (range(data, key, key_len)?, range(data, value, value_len)?);
    let quota = host.env.policy.quotas.shared_data;
    let set = host.env.space.set(key, value, cas, quota);
    refuse(host, Quota::SharedData, set)?;
    Ok(())
}

pub(super) fn register_queue(guest: &mut Guest<'_>, name: u32, len: u32, out: u32) -> Outcome {
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let name = range(data, name, len)?;
    host.listens = true;
    let quota = host.env.policy.quotas.queues;
    let token = if name.len() > MAX_NAME {
        Err(Status::InternalFailure)
    } else {
        host.env.space.register_queue(name, host.consumer(), quota)
    };
    let token = refuse(host, Quota::Queues, token)?;
    put_u32(guest, out, token)?;
    Ok(())
}

pub(super) fn resolve_queue(
    guest: &mut Guest<'_>,
    vm: u32,
    vm_len: u32,
    name: u32,
    len: u32,
    out: u32,
) -> Outcome {
    let (vm, name) = (bytes(guest, vm, vm_len)?, bytes(guest, name, len)?);
    let env = &guest.data().env;
    let token = match &*vm {
        [] => env.space.queue(&name),
        vm => env.shared.resolve_queue(vm, &name),
    };
    let token = token.ok_or(Status::NotFound)?;
    put_u32(guest, out, token)?;
    Ok(())
}

pub(super) fn enqueue(guest: &mut Guest<'_>, token: u32, at: u32, len: u32) -> Outcome {
    if len > MAX_VALUE {
        return Err(Status::InternalFailure.into());
    }
    let memory = memory(guest)?;
    let data = Bytes::copy_from_slice(range(memory.data(&*guest), at, len)?);
    let host = guest.data();
    let quota = host.env.policy.quotas.queue_bytes;
    let enqueued = host.env.shared.enqueue(token, data, quota);
    refuse(host, Quota::QueueBytes, enqueued)?;
    Ok(())
}

pub(super) fn dequeue(guest: &mut Guest<'_>, token: u32, at_out: u32, len_out: u32) -> Outcome {
    let data = guest.data().env.shared.dequeue(token)?;
    give(guest, &data, at_out, len_out)
}
