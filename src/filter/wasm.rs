//! `envoy.filters.http.wasm`: a Proxy-Wasm plugin as a filter.
//!
//! A stream is pinned to the VM that it met first: the one of its worker and of the plugin version in its chain. The
//! context in the VM is made at the first callback, and at the latest for `on_log`. What Envoy calls the status of a
//! filter becomes a [`Step`] or a [`Flow`]:
//!
//! | guest | heads | data |
//! |---|---|---|
//! | Continue | `Next` | `Flow::Continue` |
//! | StopIteration | all is held, the source read up to the buffer limit (with `allow_on_headers_stop_iteration` only the heads) | `Flow::Buffer` |
//! | StopAllIterationAndBuffer | all is held; beyond the buffer limit 413 or 500 | – |
//! | StopAllIterationAndWatermark | all is held, the source read up to the buffer limit | `Flow::Watermark` |
//!
//! A route, virtual host or weighted cluster may hold another `Wasm` message: its requests then meet that plugin instead, with a
//! root context of its own, in the same VM where the VM keys are equal. Envoy has no such thing.
//!
//! When a VM fails, the streams that it still has traffic callbacks to serve for are answered with 503
//! (`wasm_fail_stream`) or, after the head, reset; with `FAIL_OPEN` they pass, all but the one whose callback failed.
//!
//! As a filter of an upstream it hears of one attempt instead of a stream: what it answers passes the listener's filters, it
//! cannot have the route chosen anew, and there is no `on_log`, as in Envoy.

mod choice;
mod declared;
mod hold;
mod routes;
mod tap;

pub(super) use self::choice::Choice;
use self::hold::Hold;
use self::routes::{Key, OfRoutes};

use std::sync::Arc;

use http::StatusCode;
use http_body::Body as _;

use super::factory::PerRoute;
use super::{BoxFuture, BuildContext, FilterFactory, HttpFilter, Step};
use crate::config::ConfigError;
use crate::config::error::At as _;
use crate::http::{Body, LocalReply};
use crate::pb::envoy::extensions::filters::http::wasm::v3 as proto;
use crate::stream::attempt::is_upstream;
use crate::stream::{PumpHandle, Stream, Verdict};
use crate::wasm::rollout::Part;
use crate::wasm::spec::{Code, FailurePolicy};
use crate::wasm::{ContextId, Direction, Place, PluginSpec, Plugins, slot};

/// The filter of one chain: one version of one plugin, and those that its routes put in its place.
#[derive(Debug)]
pub struct Wasm {
    slot: usize,
    name: Box<str>,
    own: Choice,
    of_routes: OfRoutes,
    /// False where none of them has a callback that hears of a stream's end.
    hears_ends: bool,
}

impl PerRoute for Wasm {
    type RouteProto = proto::Wasm;
    type RouteConfig = PluginSpec;

    fn parse_route(proto: proto::Wasm, name: &str) -> Result<PluginSpec, ConfigError> {
        Self::parse(proto, name)
    }
}

impl FilterFactory for Wasm {
    const NAME: &'static str = "envoy.filters.http.wasm";
    type Proto = proto::Wasm;
    type Config = PluginSpec;

    fn parse(proto: proto::Wasm, _name: &str) -> Result<PluginSpec, ConfigError> {
        let proto::Wasm { config } = proto;
        let config = config.ok_or_else(|| ConfigError::missing("config"))?;
        PluginSpec::parse(config).at("config")
    }

    fn admit(
        config: &Arc<PluginSpec>,
        plugins: &Plugins,
    ) -> Option<BoxFuture<Result<(), ConfigError>>> {
        admit(config, plugins)
    }

    fn build(config: &Arc<PluginSpec>, context: &BuildContext<'_>) -> Arc<dyn HttpFilter> {
        Arc::new(Self::of(config, context))
    }
}

/// Tries code that is at hand.
pub(super) fn admit(
    config: &Arc<PluginSpec>,
    plugins: &Plugins,
) -> Option<BoxFuture<Result<(), ConfigError>>> {
    let Code::Local { .. } = config.code else {
        return None;
    };
    let (spec, plugins) = (Arc::clone(config), plugins.clone());
    Some(Box::pin(async move {
        plugins.canary(&spec).await.at("vm_config").at("config")
    }))
}

/// What a stream knows of its plugin.
#[derive(Default)]
struct State {
    place: Option<Place>,
    /// The route's choice; `None`: the filter's own.
    route: Option<Key>,
    /// How the version fails that it began with. The version itself is kept by the chain, which its streams keep.
    policy: Option<FailurePolicy>,
    id: u32,
    /// The stream was answered, or passed, because the VM failed: it has done with the plugin.
    failed: bool,
    /// The VM's task has its log to tell: of which context.
    posted: Option<ContextId>,
    /// Its part in a trial of versions.
    part: Option<Part>,
    /// A VM failed under it. That the plugin answered it with 500 or more, its context knows.
    broken: bool,
}

impl Wasm {
    /// Brings it to life.
    fn of(config: &Arc<PluginSpec>, context: &BuildContext<'_>) -> Self {
        let chain = context.chain;
        let kind = if is_upstream(context.slot) {
            "upstream"
        } else {
            "http"
        };
        let name = slot::part(context.name);
        let slot = slot::of(&[chain.place, kind, &name], config);
        let own = Choice::resolve(slot, config, context);
        Self::with(context.slot, context.name, own, OfRoutes::resolve(context))
    }

    fn with(slot: usize, name: &str, own: Choice, of_routes: OfRoutes) -> Self {
        Self {
            slot,
            name: name.into(),
            hears_ends: own.hears_ends || of_routes.hear_ends(),
            own,
            of_routes,
        }
    }

    /// What the route of `stream` asks for, and by which key it is found again.
    #[inline]
    fn choose(&self, stream: &Stream) -> (Option<Key>, &Choice) {
        match self.of_routes.choose(&self.name, stream) {
            Some((key, choice)) => (Some(key), choice),
            None => (None, &self.own),
        }
    }

    /// What the stream met first: its route may have changed since.
    fn chosen(&self, key: Option<Key>) -> &Choice {
        key.and_then(|key| self.of_routes.get(key))
            .unwrap_or(&self.own)
    }

    /// Settles where a stream belongs that had no context while it lasted.
    fn settle(&self, state: &mut State, stream: &Stream) {
        let plugin = self.choose(stream).1.plugin();
        state.place = plugin.and_then(|plugin| plugin.place());
        state.policy = plugin.map(|plugin| plugin.spec().failure);
    }

    fn with_state<R>(&self, stream: &Stream, f: impl FnOnce(&mut State) -> R) -> R {
        stream.with_slot(self.slot, State::default, f)
    }

    /// What the first callback came to is noted already: adds `state` to that.
    #[cold]
    fn complete(&self, stream: &Stream, state: State) {
        self.with_state(stream, |noted| {
            *noted = State {
                failed: noted.failed,
                broken: noted.broken,
                ..state
            };
        });
    }

    /// There is no VM for this stream.
    #[cold]
    fn without_vm(&self, choice: &Choice, stream: &Stream, body: Body) -> Step<Body> {
        if let Some(plugin) = choice.plugin() {
            plugin.count_backoff();
        }
        self.with_state(stream, |state| state.failed = true);
        match choice.spec().failure {
            FailurePolicy::Open { .. } => Step::Next(body),
            FailurePolicy::Closed | FailurePolicy::Reload { .. } => Step::reply(fail_stream()),
        }
    }
}

/// The answer where a VM has failed.
fn fail_stream() -> LocalReply {
    let mut reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "", "wasm_fail_stream");
    reply.grpc_status = Some(14);
    reply
}

impl HttpFilter for Wasm {
    fn request(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let (route, choice) = self.choose(stream);
        let (found, part) = choice.pick();
        let Some((plugin, place)) = found else {
            return self.without_vm(choice, stream, body);
        };
        let begun = place.vm.begin(
            place.root,
            stream,
            is_upstream(self.slot),
            body.is_end_stream(),
        );
        let Ok((id, answer)) = begun else {
            return self.without_vm(choice, stream, body);
        };
        let hold = Hold {
            vm: &place.vm,
            id,
            policy: plugin.spec().failure,
            slot: self.slot,
        };
        let policy = hold.policy;
        let step = hold.head(stream, Direction::Request, body, answer, &choice.on_loss);
        let state = State {
            place: Some(place),
            route,
            policy: Some(policy),
            id,
            failed: false,
            posted: None,
            part,
            broken: false,
        };
        if let Some(state) = stream.fill_slot(self.slot, state) {
            self.complete(stream, state);
        }
        step
    }

    fn response(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let pinned = stream.peek_slot(self.slot, |state: &mut State| {
            if state.failed {
                return None;
            }
            let hold = Hold {
                vm: Arc::clone(&state.place.as_ref()?.vm),
                id: state.id,
                policy: state.policy?,
                slot: self.slot,
            };
            Some((hold, self.chosen(state.route)))
        });
        // Without a context Envoy's filter passes, too.
        let Some((hold, choice)) = pinned.flatten() else {
            return Step::Next(body);
        };
        let hold = hold.by_ref();
        if hold.vm.is_dead() {
            return hold.dead(stream, body, false);
        }
        let direction = Direction::Response;
        let answer = hold.vm.headers(hold.id, direction, body.is_end_stream());
        hold.head(stream, direction, body, answer, &choice.on_loss)
    }

    fn log(&self, stream: &Arc<Stream>) {
        if !self.hears_ends {
            return;
        }
        let pinned = self.with_state(stream, |state| {
            if state.place.is_none() && !state.failed {
                // Envoy makes a context for the log alone.
                self.settle(state, stream);
            }
            let place = state.place.as_ref().filter(|place| place.vm.wants_end());
            Some((place?.clone(), state.id))
        });
        let Some((Place { vm, root }, id)) = pinned else {
            return;
        };
        // A guest is never entered from a drop, nor twice: then the VM's own task tells it.
        let abandoned = stream.info.lock().abandoned;
        let logged = (!abandoned).then(|| vm.log(root, id, stream)).flatten();
        let posted = match logged {
            None if !vm.is_dead() => Some(vm.post_log(root, id, stream)),
            _ => None,
        };
        self.with_state(stream, |state| {
            state.id = logged.unwrap_or(id);
            state.posted = posted;
        });
    }

    fn end(&self, stream: &Arc<Stream>) {
        let abandoned = stream.info.lock().abandoned;
        let upstream = is_upstream(self.slot);
        let (place, id, posted, part, broken) = self.with_state(stream, |state| {
            if upstream {
                // There is no log. What still comes of the request's body passes unseen.
                state.failed = true;
            }
            let (place, posted) = (state.place.take(), state.posted.take());
            (place, state.id, posted, state.part.take(), state.broken)
        });
        // The stream's part in the trial ends with it.
        if let Some(part) = part {
            let broken = broken || place.as_ref().is_some_and(|place| place.vm.has_failed(id));
            part.ended(broken, stream.info.lock().begin.elapsed());
        }
        let Some(Place { vm, .. }) = place else {
            return;
        };
        if vm.is_dead() {
            return;
        }
        // As for the log, and never before it.
        let now = posted.is_none() && (!abandoned || !vm.wants_end());
        if !(now && vm.end(id)) {
            vm.post_end(posted.unwrap_or_else(|| Arc::new(id.into())));
        }
    }
}

/// True where a stream goes on without its plugin.
pub(super) fn passes(policy: FailurePolicy, here: bool) -> bool {
    match policy {
        FailurePolicy::Open { crashing } => crashing || !here,
        FailurePolicy::Closed | FailurePolicy::Reload { .. } => false,
    }
}

fn replies_directly(slot: usize, direction: Direction) -> bool {
    direction == Direction::Response && !is_upstream(slot)
}

/// The VM has died while it held a body back.
fn lose(slot: usize, stream: &Arc<Stream>, direction: Direction, pump: &PumpHandle) {
    let policy = stream.with_slot(slot, State::default, |state| {
        state.failed = true;
        state.broken = true;
        state.policy
    });
    if policy.is_some_and(|policy| passes(policy, false)) {
        pump.resume();
    } else {
        stream.decide(Verdict::Reply {
            reply: Box::new(fail_stream()),
            direct: replies_directly(slot, direction),
        });
    }
}

#[cfg(test)]
#[path = "wasm/tests.rs"]
mod tests;
