//! The callbacks that a module exports, looked up once an instance and kept as typed functions.

use wasmtime::{
    ExternType, FuncType, Instance, Module, Store, TypedFunc, ValType, WasmParams, WasmResults,
};

use super::context::Host;
use super::meter::MAX_CALLBACKS;
use super::module::{Abi, LoadError};
use super::spec::PluginSpec;
use super::vm::Direction;

/// An export that the host calls.
pub(crate) struct Callback<P, R> {
    pub(crate) function: TypedFunc<P, R>,
    pub(crate) name: &'static str,
    /// Its place in [`NAMES`].
    pub(crate) number: usize,
}

macro_rules! callbacks {
    ($($(#[$doc:meta])* $field:ident: $params:ty => $result:ty = $name:literal;)*) => {
        /// What the host may call in a guest. Every callback is optional.
        #[derive(Default)]
        pub(crate) struct Callbacks {
            $($(#[$doc])* pub(crate) $field: Option<Callback<$params, $result>>,)*
            /// `proxy_on_request_headers` of ABI 0.1.0, which is not told the end of the stream.
            pub(crate) request_headers_0_1_0: Option<Callback<(u32, u32), u32>>,
            /// Likewise.
            pub(crate) response_headers_0_1_0: Option<Callback<(u32, u32), u32>>,
        }

        /// The names of all of them.
        pub(crate) const NAMES: &[&str] = &[$($name),*];
        const _: () = assert!(NAMES.len() <= MAX_CALLBACKS);

        impl Callbacks {
            /// Looks all of them up.
            ///
            /// # Errors
            /// Where an export has the name of an allowed callback and another type.
            pub(crate) fn of(
                instance: &Instance,
                store: &mut Store<Host>,
                spec: &PluginSpec,
                abi: Abi,
            ) -> Result<Self, LoadError> {
                let mut callbacks = Self::default();
                $(
                    let skip = abi == Abi::V0_1_0
                        && matches!($name, "proxy_on_request_headers" | "proxy_on_response_headers");
                    if !skip {
                        callbacks.$field = find(instance, store, spec, $name)?;
                    }
                )*
                if abi == Abi::V0_1_0 {
                    callbacks.request_headers_0_1_0 =
                        find(instance, store, spec, "proxy_on_request_headers")?;
                    callbacks.response_headers_0_1_0 =
                        find(instance, store, spec, "proxy_on_response_headers")?;
                }
                Ok(callbacks)
            }
        }

        /// The first callback that [`Callbacks::of`] would refuse for its type. Needs no instance.
        pub(crate) fn misfit(module: &Module, abi: Abi) -> Option<&'static str> {
            $(
                // In ABI 0.1.0 the end of the stream is not told with headers.
                let skip = abi == Abi::V0_1_0
                    && matches!($name, "proxy_on_request_headers" | "proxy_on_response_headers");
                let params = <$params as Words>::COUNT - usize::from(skip);
                if !fits(module, $name, params, <$result as Words>::COUNT) {
                    return Some($name);
                }
            )*
            None
        }
    };
}

/// Numbers of 32 bits.
trait Words {
    /// So many.
    const COUNT: usize;
}

macro_rules! words {
    ($($words:ty => $count:literal),*) => {
        $(impl Words for $words { const COUNT: usize = $count; })*
    };
}

words! {
    () => 0,
    u32 => 1,
    (u32, u32) => 2,
    (u32, u32, u32) => 3,
    (u32, u32, u32, u32, u32) => 5
}

/// True where the module's function takes and gives so many words, or it has none of that name.
pub(crate) fn fits(module: &Module, name: &str, params: usize, results: usize) -> bool {
    let Some(ExternType::Func(ty)) = module.get_export(name) else {
        return true;
    };
    let words = |ty: &FuncType| {
        let mut all = ty.params().chain(ty.results());
        all.all(|ty| matches!(ty, ValType::I32))
    };
    words(&ty) && ty.params().len() == params && ty.results().len() == results
}

callbacks! {
    /// The allocator that Envoy prefers.
    malloc: u32 => u32 = "malloc";
    memory_allocate: u32 => u32 = "proxy_on_memory_allocate";
    context_create: (u32, u32) => () = "proxy_on_context_create";
    vm_start: (u32, u32) => u32 = "proxy_on_vm_start";
    configure: (u32, u32) => u32 = "proxy_on_configure";
    tick: u32 => () = "proxy_on_tick";
    done: u32 => u32 = "proxy_on_done";
    log: u32 => () = "proxy_on_log";
    delete: u32 => () = "proxy_on_delete";
    request_headers: (u32, u32, u32) => u32 = "proxy_on_request_headers";
    request_body: (u32, u32, u32) => u32 = "proxy_on_request_body";
    request_trailers: (u32, u32) => u32 = "proxy_on_request_trailers";
    response_headers: (u32, u32, u32) => u32 = "proxy_on_response_headers";
    response_body: (u32, u32, u32) => u32 = "proxy_on_response_body";
    response_trailers: (u32, u32) => u32 = "proxy_on_response_trailers";
    http_call_response: (u32, u32, u32, u32, u32) => () = "proxy_on_http_call_response";
    grpc_receive_initial_metadata: (u32, u32, u32) => () = "proxy_on_grpc_receive_initial_metadata";
    grpc_receive: (u32, u32, u32) => () = "proxy_on_grpc_receive";
    grpc_receive_trailing_metadata: (u32, u32, u32) => () = "proxy_on_grpc_receive_trailing_metadata";
    grpc_close: (u32, u32, u32) => () = "proxy_on_grpc_close";
    new_connection: u32 => u32 = "proxy_on_new_connection";
    downstream_data: (u32, u32, u32) => u32 = "proxy_on_downstream_data";
    upstream_data: (u32, u32, u32) => u32 = "proxy_on_upstream_data";
    downstream_connection_close: (u32, u32) => () = "proxy_on_downstream_connection_close";
    upstream_connection_close: (u32, u32) => () = "proxy_on_upstream_connection_close";
    queue_ready: (u32, u32) => () = "proxy_on_queue_ready";
    foreign_function: (u32, u32, u32) => () = "proxy_on_foreign_function";
    /// Envoy's own: names that the guest asked for.
    resolve_dns: (u32, u32, u32) => () = "envoy_on_resolve_dns";
    /// Likewise: a sink of statistics.
    stats_update: (u32, u32) => () = "envoy_on_stats_update";
}

/// Those that hear of a stream's end.
pub(crate) const ENDS: [&str; 3] = ["proxy_on_log", "proxy_on_done", "proxy_on_delete"];

impl Callbacks {
    /// True where the guest has one of [`ENDS`].
    pub(crate) fn hears_ends(&self) -> bool {
        self.log.is_some() || self.done.is_some() || self.delete.is_some()
    }

    /// True where the guest has a callback for the headers of `direction`.
    #[inline]
    pub(crate) fn hears_headers(&self, direction: Direction) -> bool {
        match direction {
            Direction::Request => {
                self.request_headers.is_some() || self.request_headers_0_1_0.is_some()
            }
            Direction::Response => {
                self.response_headers.is_some() || self.response_headers_0_1_0.is_some()
            }
        }
    }
}

fn find<P: WasmParams, R: WasmResults>(
    instance: &Instance,
    store: &mut Store<Host>,
    spec: &PluginSpec,
    name: &'static str,
) -> Result<Option<Callback<P, R>>, LoadError> {
    // A denied callback is not looked at. The allocator is no capability.
    let allocator = matches!(name, "malloc" | "proxy_on_memory_allocate");
    if !allocator && !spec.allows(name) {
        return Ok(None);
    }
    let Some(function) = instance.get_func(&mut *store, name) else {
        return Ok(None);
    };
    let typed = function
        .typed(&*store)
        .map_err(|_| LoadError::BadSignature(name.to_owned()))?;
    Ok(Some(Callback {
        function: typed,
        name,
        number: NAMES.iter().position(|known| *known == name).unwrap_or(0),
    }))
}
