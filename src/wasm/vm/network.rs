//! Connections: the callbacks of network filters.
//!
//! Each returns whether the guest stops what it was shown. What it asks for beside that (to go on, to close) is done when it
//! has returned, through the connection's [`NetworkHandle`].

use std::sync::Arc;

use super::core::Core;
use super::{Dead, Direction, Vm};
use crate::stream::Stream;
use crate::stream::network::{NetworkHandle, Towards};
use crate::wasm::context::{Effect, NetworkView};

/// `on_upstream_connection_close` is told of no peer: Envoy's filter sees the end of the data alone.
const UNKNOWN_PEER: u32 = 0;

impl Vm {
    /// Makes the context of a connection below the root context `root`.
    ///
    /// # Errors
    /// Where the VM is dead.
    pub fn create_connection(
        &self,
        root: u32,
        stream: &Arc<Stream>,
        handle: &NetworkHandle,
    ) -> Result<u32, Dead> {
        self.with(|core| core.create_connection(root, stream, handle))
    }

    /// `on_new_connection`; true: it stops.
    ///
    /// # Errors
    /// Where the VM is dead.
    pub fn new_connection(&self, id: u32) -> Result<bool, Dead> {
        self.with(|core| core.new_connection(id))
    }

    /// `on_downstream_data`, `on_upstream_data`, of `size` bytes that the connection holds; true: it stops. At the end of
    /// what the upstream sends, `on_upstream_connection_close` follows.
    ///
    /// # Errors
    /// Where the VM is dead.
    pub fn data(&self, id: u32, towards: Towards, size: usize, end: bool) -> Result<bool, Dead> {
        self.with(|core| core.data(id, towards, size, end))
    }

    /// `on_downstream_connection_close`, then the goodbye: `on_done`, `on_log`, `on_delete`. `peer` is the ABI's number.
    /// False where the guest runs already.
    pub fn close_connection(&self, id: u32, peer: u32) -> bool {
        if self.core.try_lock().is_none() {
            return false;
        }
        let _ = self.with(|core| core.close_connection(id, peer));
        true
    }
}

impl Core {
    fn create_connection(
        &mut self,
        root: u32,
        stream: &Arc<Stream>,
        handle: &NetworkHandle,
    ) -> Result<u32, Dead> {
        let network = NetworkView {
            handle: handle.clone(),
            shown: [false; 2],
            closing: false,
        };
        self.create(root, stream, Some(Box::new(network)), false)
    }

    fn new_connection(&mut self, id: u32) -> Result<bool, Dead> {
        let context = self.enter(id).ok_or(Dead)?;
        context.callback = Some(Direction::Request);
        let action = self.call(|c| c.new_connection.as_ref(), id)?;
        let host = self.leave();
        let context = host.streams.get_mut(id).ok_or(Dead)?;
        context.callback = None;
        let stops = action.unwrap_or(0) != 0;
        if stops && !self.asks(id) {
            // Nothing is read meanwhile: the guest is not asked again.
            self.pause(id, Direction::Request, true, true);
        }
        Ok(stops)
    }

    /// True where the guest has asked for the connection to go on or to be closed, whatever it answers.
    fn asks(&self, id: u32) -> bool {
        let mut effects = self.store.data().effects.iter();
        effects.any(|effect| match effect {
            Effect::Continue(context, _) | Effect::Close(context, _) => *context == id,
            _ => false,
        })
    }

    /// What a connection may hold.
    fn buffer_limit(&self, id: u32) -> usize {
        let context = self.store.data().streams.get(id);
        context.map_or(usize::MAX, |context| {
            context.stream.config.options.buffer_limit
        })
    }

    /// How much of the connection's data has not gone on.
    fn waits(&self, id: u32, towards: Towards) -> usize {
        let network = self.store.data().streams.get(id);
        let network = network.and_then(|context| context.network.as_ref());
        network.map_or(0, |network| {
            network.handle.with_buffer(towards, |held| held.len())
        })
    }

    fn data(&mut self, id: u32, towards: Towards, size: usize, end: bool) -> Result<bool, Dead> {
        let direction = match towards {
            Towards::Upstream => Direction::Request,
            Towards::Downstream => Direction::Response,
        };
        let context = self.enter(id).ok_or(Dead)?;
        context.callback = Some(direction);
        if let Some(network) = &mut context.network {
            network.shown[towards as usize] = true;
        }
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let params = (id, size, u32::from(end));
        let action = match towards {
            Towards::Upstream => self.call(|c| c.downstream_data.as_ref(), params)?,
            Towards::Downstream => self.call(|c| c.upstream_data.as_ref(), params)?,
        };
        let host = self.leave();
        let context = host.streams.get_mut(id).ok_or(Dead)?;
        let stops = action.unwrap_or(0) != 0;
        let network = context.network.as_mut();
        // A close comes before the answer, and shows what was there.
        let closing = network.is_some_and(|network| {
            if !stops && !network.closing {
                network.shown[towards as usize] = false;
            }
            network.closing
        });
        if !stops {
            context.paused[direction as usize] = None;
        }
        if towards == Towards::Downstream && end && !closing {
            self.enter(id);
            self.call(|c| c.upstream_connection_close.as_ref(), (id, UNKNOWN_PEER))?;
            self.leave();
        }
        if let Some(context) = self.store.data_mut().streams.get_mut(id) {
            context.callback = None;
        }
        if stops && !self.asks(id) {
            // At the limit no more is read: the guest is not asked again.
            let limit = self.buffer_limit(id);
            let held = end || self.waits(id, towards) >= limit;
            self.pause(id, direction, held, held);
        }
        Ok(stops)
    }

    pub(super) fn close_connection(&mut self, id: u32, peer: u32) -> Result<(), Dead> {
        let Some(context) = self.enter(id) else {
            return Ok(());
        };
        context.callback = Some(Direction::Request);
        context.paused = [None, None];
        self.call(|c| c.downstream_connection_close.as_ref(), (id, peer))?;
        // The goodbye, in the order that Envoy has for connections. Each callback may have turned to another context.
        let Some(context) = self.enter(id) else {
            return Ok(());
        };
        context.callback = Some(Direction::Request);
        context.ended = true;
        self.call(|c| c.done.as_ref(), id)?;
        self.enter(id);
        self.call(|c| c.log.as_ref(), id)?;
        self.enter(id);
        self.call(|c| c.delete.as_ref(), id)?;
        self.remove(id);
        Ok(())
    }
}
