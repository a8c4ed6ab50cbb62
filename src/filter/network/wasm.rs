//! `envoy.filters.network.wasm`: a Proxy-Wasm plugin as a network filter.
//!
//! Plugins come, are tried, replaced and revived as those of the HTTP filter ([`crate::filter::wasm`]). A connection is
//! pinned to the VM that it met first, with a context of its own below the plugin's root context. A plugin that has failed
//! closes its connections, or with `FAIL_OPEN` is left out of them; as in Envoy a connection learns of it with its next
//! callback, or at once where it is held back.

use std::sync::Arc;

use tokio::time::Instant;

use super::{ConnectionFilter, NetworkFilter, Peer, Status};
use crate::config::ConfigError;
use crate::config::error::At as _;
use crate::filter::wasm::{Choice, admit, passes};
use crate::filter::{BoxFuture, BuildContext};
use crate::pb::envoy::extensions::filters::network::wasm::v3 as proto;
use crate::stream::Stream;
use crate::stream::network::{NetworkHandle, Towards};
use crate::wasm::rollout::Part;
use crate::wasm::spec::FailurePolicy;
use crate::wasm::{Dead, Place, Plugin, PluginSpec, Plugins, Vm, slot};

/// The filter of one chain.
#[derive(Debug)]
pub(in crate::filter) struct Wasm(Choice);

impl Wasm {
    /// The name that Envoy gives the filter.
    pub(in crate::filter) const NAME: &'static str = "envoy.filters.network.wasm";

    /// Validates the message.
    pub(in crate::filter) fn parse(proto: proto::Wasm) -> Result<PluginSpec, ConfigError> {
        let proto::Wasm { config } = proto;
        let config = config.ok_or_else(|| ConfigError::missing("config"))?;
        PluginSpec::parse(config).at("config")
    }

    /// As that of the HTTP filter.
    pub(in crate::filter) fn admit(
        config: &Arc<PluginSpec>,
        plugins: &Plugins,
    ) -> Option<BoxFuture<Result<(), ConfigError>>> {
        admit(config, plugins)
    }

    /// Brings it to life.
    pub(in crate::filter) fn build(config: &Arc<PluginSpec>, context: &BuildContext<'_>) -> Self {
        let chain = context.chain;
        let name = slot::part(context.name);
        let slot = slot::of(&[chain.place, "network", &name], config);
        Self(Choice::resolve(slot, config, context))
    }
}

impl NetworkFilter for Wasm {
    fn connection(&self, stream: &Arc<Stream>, handle: NetworkHandle) -> Box<dyn ConnectionFilter> {
        let choice = &self.0;
        let (found, part) = choice.pick();
        let guest = match found {
            Some((plugin, place)) => Guest::Waiting(Arc::clone(plugin), place),
            None => {
                if let Some(plugin) = choice.plugin() {
                    plugin.count_backoff();
                }
                Guest::Failed { here: false }
            }
        };
        Box::new(Connection {
            stream: Arc::clone(stream),
            handle,
            policy: choice.spec().failure,
            guest,
            part,
            broken: false,
            begin: Instant::now(),
        })
    }
}

/// What a connection knows of its plugin.
enum Guest {
    /// There is no context for it yet.
    Waiting(Arc<Plugin>, Place),
    /// Keeps the version: it is retired when its last connection has ended.
    Here {
        _plugin: Arc<Plugin>,
        place: Place,
        id: u32,
    },
    /// There is no context for it: its VM has failed, in making one where `here`, or there was none.
    Failed { here: bool },
    /// The connection goes on without it, or has told it all.
    Gone,
}

struct Connection {
    stream: Arc<Stream>,
    handle: NetworkHandle,
    /// How the version fails that it began with.
    policy: FailurePolicy,
    guest: Guest,
    /// Its part in a trial of versions.
    part: Option<Part>,
    broken: bool,
    begin: Instant,
}

impl Connection {
    /// The context, made at the first callback.
    fn context(&mut self) -> Option<(Arc<Vm>, u32)> {
        if let Guest::Waiting(plugin, place) = &self.guest {
            let here = !place.vm.is_dead();
            let made = place
                .vm
                .create_connection(place.root, &self.stream, &self.handle);
            self.policy = plugin.spec().failure;
            self.guest = match made {
                Ok(id) => Guest::Here {
                    _plugin: Arc::clone(plugin),
                    place: place.clone(),
                    id,
                },
                Err(Dead) => Guest::Failed { here },
            };
        }
        match &self.guest {
            Guest::Here { place, id, .. } => Some((Arc::clone(&place.vm), *id)),
            Guest::Waiting(..) | Guest::Failed { .. } | Guest::Gone => None,
        }
    }

    fn call(&mut self, call: impl FnOnce(&Vm, u32) -> Result<bool, Dead>) -> Status {
        let Some((vm, id)) = self.context() else {
            return match self.guest {
                Guest::Gone => Status::Continue,
                Guest::Failed { here } => self.failed(here),
                _ => self.failed(false),
            };
        };
        if vm.is_dead() {
            return self.failed(false);
        }
        match call(&vm, id) {
            Ok(true) => Status::Stop,
            Ok(false) => Status::Continue,
            Err(Dead) => self.failed(true),
        }
    }

    /// The VM is dead; `here`: it died in this very callback.
    fn failed(&mut self, here: bool) -> Status {
        self.broken = true;
        self.guest = Guest::Gone;
        if passes(self.policy, here) {
            return Status::Continue;
        }
        self.handle.close("");
        Status::Stop
    }

    /// Its part in the trial ends with it.
    fn end_part(&mut self) {
        if let Some(part) = self.part.take() {
            part.ended(self.broken, self.begin.elapsed());
        }
    }
}

impl ConnectionFilter for Connection {
    fn new_connection(&mut self) -> Status {
        self.call(|vm, id| vm.new_connection(id))
    }

    fn downstream_data(&mut self, len: usize, end: bool) -> Status {
        self.call(|vm, id| vm.data(id, Towards::Upstream, len, end))
    }

    fn upstream_data(&mut self, len: usize, end: bool) -> Status {
        self.call(|vm, id| vm.data(id, Towards::Downstream, len, end))
    }

    fn closed(&mut self, peer: Peer) {
        self.end_part();
        // A filter that never heard of the connection does not hear of its end either.
        if let Guest::Here { place, id, .. } = std::mem::replace(&mut self.guest, Guest::Gone)
            && !place.vm.is_dead()
            && !place.vm.close_connection(id, peer as u32)
        {
            place.vm.post_close(id, peer as u32);
        }
    }

    fn lost(&mut self) -> Status {
        self.failed(false)
    }
}

impl Drop for Connection {
    /// The connection's task is gone, and we with it: no guest is entered here, the VM's own task says goodbye.
    fn drop(&mut self) {
        self.end_part();
        if let Guest::Here { place, id, .. } = &self.guest
            && !place.vm.is_dead()
        {
            place.vm.post_close(*id, Peer::Local as u32);
        }
    }
}
