//! Buffers: bodies, the answers of callouts, configurations.
//!
//! A body is visible in its own callback as far as the chain shows it, and afterwards while this context holds it back.

use bytes::{Bytes, BytesMut};

use super::{Guest, Outcome, Status, give, memory, put, range};
use crate::http::ReplyReason;
use crate::stream::network::Towards;
use crate::wasm::context::{BodyView, Effect, Host, NetworkView};
use crate::wasm::vm::Direction;

/// What a buffer number means now.
enum View {
    /// There is nothing; the answer that Envoy gives then.
    Empty,
    /// These bytes.
    Bytes(Bytes),
}

/// `WasmBufferType`.
fn view(host: &mut Host, buffer: u32) -> Result<View, Status> {
    Ok(match buffer {
        0 | 1 => {
            let direction = if buffer == 0 {
                Direction::Request
            } else {
                Direction::Response
            };
            match body(host, direction) {
                Some(data) => View::Bytes(data),
                None => View::Empty,
            }
        }
        2 | 3 => {
            let towards = towards(buffer);
            match network(host, towards) {
                Some(network) => {
                    View::Bytes(network.handle.with_buffer(towards, |held| held.clone()))
                }
                None => View::Empty,
            }
        }
        5 => match host.grpc_view().and_then(|view| view.message.as_ref()) {
            Some(message) => View::Bytes(message.clone()),
            None => View::Empty,
        },
        8 => host.call_data.clone().map_or(View::Empty, View::Bytes),
        4 => {
            let body = host.answer().and_then(|call| call.body.clone());
            View::Bytes(body.ok_or(Status::NotFound)?)
        }
        6 => View::Bytes(host.env.vm.vm_configuration.clone()),
        7 => View::Bytes(configuration(host).ok_or(Status::NotFound)?),
        _ => return Err(Status::BadArgument),
    })
}

/// The plugin's, while that is being configured.
fn configuration(host: &Host) -> Option<Bytes> {
    let root = host.root()?;
    let shown = root.configuring && root.id == host.effective;
    shown.then(|| root.made_for.spec.configuration.clone())
}

fn towards(buffer: u32) -> Towards {
    if buffer == 2 {
        Towards::Upstream
    } else {
        Towards::Downstream
    }
}

/// The connection whose data can be seen.
fn network(host: &Host, towards: Towards) -> Option<&NetworkView> {
    let network = host.context()?.network.as_ref()?;
    network.shown[towards as usize].then_some(network)
}

/// As of a body, no plugin may make more of a connection's data than the connection itself would hold. There is no
/// answer that would say so: it is closed.
fn set_connection(
    host: &mut Host,
    towards: Towards,
    start: u32,
    len: u32,
    value: &[u8],
) -> Result<(), Status> {
    let limit = host.env.policy.memory;
    let effective = host.effective;
    let most = host
        .stream()
        .map_or(limit, |stream| stream.config.options.buffer_limit);
    let network = network(host, towards).ok_or(Status::BadArgument)?;
    let (fits, less) = network.handle.with_buffer(towards, |held| {
        let before = held.len();
        if spliced(before, start, len, value.len()) > before.max(most) {
            return Ok((false, false));
        }
        splice(held, start, len, value, limit)?;
        Ok((true, held.len() < before))
    })?;
    if less {
        network.handle.has_room();
    }
    if !fits {
        if let Some(context) = host.context_mut()
            && let Some(network) = &mut context.network
        {
            network.closing = true;
        }
        host.ask(Effect::Close(effective, "wasm_buffer_limit"))?;
    }
    Ok(())
}

fn body(host: &mut Host, direction: Direction) -> Option<Bytes> {
    let context = host.context_mut()?;
    let view = &context.bodies[direction as usize];
    if view.hidden {
        return None;
    }
    if let Some(data) = &view.data {
        return Some(data.clone());
    }
    if !view.kept {
        return None;
    }
    context.pumps[direction as usize]
        .as_ref()?
        .with_held(|held| held.clone())
}

pub(super) fn get(
    guest: &mut Guest<'_>,
    buffer: u32,
    start: u32,
    len: u32,
    at_out: u32,
    len_out: u32,
) -> Outcome {
    match view(guest.data_mut(), buffer)? {
        View::Empty => give(guest, &[], at_out, len_out),
        View::Bytes(data) => {
            let start = (start as usize).min(data.len());
            let end = start.saturating_add(len as usize).min(data.len());
            give(guest, &data[start..end], at_out, len_out)
        }
    }
}

/// ABI 0.1.0's way to both configurations: the VM's wherever the plugin's cannot be seen.
pub(super) fn get_configuration(guest: &mut Guest<'_>, at_out: u32, len_out: u32) -> Outcome {
    let host = guest.data();
    let data = configuration(host).unwrap_or_else(|| host.env.vm.vm_configuration.clone());
    give(guest, &data, at_out, len_out)
}

pub(super) fn status(guest: &mut Guest<'_>, buffer: u32, len_out: u32, flags_out: u32) -> Outcome {
    let len = match view(guest.data_mut(), buffer)? {
        View::Empty => 0,
        View::Bytes(data) => u32::try_from(data.len()).unwrap_or(u32::MAX),
    };
    let memory = memory(guest)?;
    let data = memory.data_mut(&mut *guest);
    put(data, len_out, &len.to_le_bytes())?;
    put(data, flags_out, &0u32.to_le_bytes())?;
    Ok(())
}

pub(super) fn set(
    guest: &mut Guest<'_>,
    buffer: u32,
    start: u32,
    len: u32,
    at: u32,
    value_len: u32,
) -> Outcome {
    if buffer > 1 {
        // What is not there comes before what is wrong with the value.
        view(guest.data_mut(), buffer)?;
    }
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let value = range(data, at, value_len)?;
    let direction = match buffer {
        0 => Direction::Request,
        1 => Direction::Response,
        2 | 3 => return Ok(set_connection(host, towards(buffer), start, len, value)?),
        5 => {
            let limit = host.env.policy.memory;
            let message = host.grpc_view().and_then(|view| view.message.as_mut());
            let message = message.ok_or(Status::BadArgument)?;
            return Ok(splice(message, start, len, value, limit)?);
        }
        _ => return Err(Status::BadArgument.into()),
    };
    let limit = host.env.policy.memory;
    let effective = host.effective;
    // What the chain itself would not hold, no plugin may make of a body.
    let most = host
        .stream()
        .map_or(limit, |stream| stream.config.options.buffer_limit);
    let mut grew = false;
    let mut splice = |held: &mut Bytes| {
        let before = held.len();
        splice(held, start, len, value, limit)?;
        grew = held.len() > before.max(most);
        Ok(())
    };
    let context = host.context_mut().ok_or(Status::BadArgument)?;
    let BodyView { data, kept, hidden } = &mut context.bodies[direction as usize];
    if *hidden {
        return Err(Status::BadArgument.into());
    }
    match data {
        Some(held) => splice(held)?,
        None => context.pumps[direction as usize]
            .as_ref()
            .filter(|_| *kept)
            .and_then(|pump| pump.with_held(splice))
            .unwrap_or(Err(Status::BadArgument))?,
    }
    if grew && !context.ended {
        context.ended = true;
        let reply = match direction {
            Direction::Request => ReplyReason::RequestPayloadTooLarge,
            Direction::Response => ReplyReason::ResponsePayloadTooLarge,
        };
        if context.callback == Some(direction) {
            context.reply = Some(Box::new(reply.into()));
        } else {
            host.effects.push(Effect::Reply(effective, reply.into()));
        }
    }
    Ok(())
}

/// How many bytes a splice leaves of `held` ones, where it is one.
fn spliced(held: usize, start: u32, len: u32, value: usize) -> usize {
    match (start as usize, len as usize) {
        (0, len) => held - len.min(held) + value,
        (start, _) if start >= held => held + value,
        _ => held,
    }
}

/// Envoy's three ways to change a buffer: prepend, replace the beginning, append.
fn splice(
    held: &mut Bytes,
    start: u32,
    len: u32,
    value: &[u8],
    limit: usize,
) -> Result<(), Status> {
    let (start, len) = (start as usize, len as usize);
    if held.len() + value.len() > limit {
        return Err(Status::InternalFailure);
    }
    if start == 0 {
        let rest = if len == 0 {
            held.clone()
        } else {
            held.slice(len.min(held.len())..)
        };
        if rest.is_empty() {
            *held = Bytes::copy_from_slice(value);
        } else {
            let mut joined = BytesMut::with_capacity(value.len() + rest.len());
            joined.extend_from_slice(value);
            joined.extend_from_slice(&rest);
            *held = joined.freeze();
        }
        Ok(())
    } else if start >= held.len() {
        let mut joined = std::mem::take(held)
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(shared.as_ref()));
        joined.extend_from_slice(value);
        *held = joined.freeze();
        Ok(())
    } else {
        Err(Status::BadArgument)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_changes_at_its_ends_only() {
        let cases: [(u32, u32, Result<&str, Status>); 7] = [
            (0, 0, Ok("XYabc")),
            (0, 2, Ok("XYc")),
            (0, 3, Ok("XY")),
            (0, u32::MAX, Ok("XY")),
            (3, 0, Ok("abcXY")),
            (u32::MAX, 9, Ok("abcXY")),
            (1, 1, Err(Status::BadArgument)),
        ];
        for (start, len, expected) in cases {
            let mut held = Bytes::from_static(b"abc");
            let result = splice(&mut held, start, len, b"XY", 100);
            match expected {
                Ok(text) => {
                    assert_eq!((result, &*held), (Ok(()), text.as_bytes()));
                    assert_eq!(spliced(3, start, len, 2), text.len());
                }
                Err(status) => assert_eq!(result, Err(status)),
            }
        }
        let mut held = Bytes::from_static(b"abc");
        assert_eq!(
            splice(&mut held, 3, 0, b"XY", 4),
            Err(Status::InternalFailure)
        );
        assert_eq!(held, "abc");
    }
}
