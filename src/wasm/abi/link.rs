//! The table of host functions, and how a module's imports are answered.

use wasmtime::{Engine, ExternType, FuncType, InstancePre, Linker, Val, ValType};

use super::{
    Guest, Outcome, answer, buffers, calls, control, dns, foreign, grpc, guard, headers, log,
    metrics, properties, shared, timers, wasi,
};
use crate::wasm::context::Host;
use crate::wasm::module::{LoadError, Module};
use crate::wasm::spec::PluginSpec;

/// The module of Proxy-Wasm's functions.
const ENV: &str = "env";
/// What Emscripten's output wants of it: no capabilities, as in Envoy.
const RUNTIME: [&str; 2] = ["emscripten_notify_memory_growth", "pthread_equal"];

macro_rules! hostcalls {
    ($linker:ident: $($name:literal => $function:path, ($($arg:ident: $type:ty),*);)*) => {
        $($linker.func_wrap(
            ENV,
            $name,
            |mut guest: Guest<'_>, $($arg: $type),*| -> wasmtime::Result<u32> {
                guard(&guest, $name)?;
                let outcome = $function(&mut guest, $($arg),*);
                traced(&mut guest, $name, outcome)
            },
        )?;)*
    };
}

/// The answer to a host call, which is remembered.
#[inline]
fn traced(guest: &mut Guest<'_>, name: &'static str, outcome: Outcome) -> wasmtime::Result<u32> {
    let status = answer(outcome)?;
    guest.data_mut().trace.push(name, status);
    Ok(status)
}

/// All host functions of every ABI version.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<Host>> {
    let mut linker = Linker::new(engine);
    hostcalls! { linker:
        "proxy_get_log_level" => log::get_level, (out: u32);
        "proxy_get_status" => control::get_status, (code: u32, at: u32, len: u32);
        "proxy_get_property" => properties::get, (path: u32, len: u32, at_out: u32, len_out: u32);
        "proxy_set_property" => properties::set, (path: u32, len: u32, value: u32, value_len: u32);
        "proxy_continue_stream" => control::continue_stream, (stream: u32);
        "proxy_close_stream" => control::close_stream, (stream: u32);
        "proxy_continue_request" => control::continue_request, ();
        "proxy_continue_response" => control::continue_response, ();
        "proxy_clear_route_cache" => control::clear_route_cache, ();
        "proxy_get_configuration" => buffers::get_configuration, (at_out: u32, len_out: u32);
        "proxy_send_local_response" => control::send_local_response,
            (code: u32, d: u32, dl: u32, b: u32, bl: u32, h: u32, hl: u32, grpc: i32);
        "proxy_get_buffer_bytes" => buffers::get, (buffer: u32, start: u32, len: u32, at_out: u32, len_out: u32);
        "proxy_get_buffer_status" => buffers::status, (buffer: u32, len_out: u32, flags_out: u32);
        "proxy_set_buffer_bytes" => buffers::set, (buffer: u32, start: u32, len: u32, at: u32, value_len: u32);
        "proxy_get_header_map_value" => headers::get_value, (map: u32, k: u32, kl: u32, at_out: u32, len_out: u32);
        "proxy_add_header_map_value" => headers::add, (map: u32, k: u32, kl: u32, v: u32, vl: u32);
        "proxy_replace_header_map_value" => headers::replace, (map: u32, k: u32, kl: u32, v: u32, vl: u32);
        "proxy_remove_header_map_value" => headers::remove, (map: u32, k: u32, kl: u32);
        "proxy_get_header_map_pairs" => headers::get_pairs, (map: u32, at_out: u32, len_out: u32);
        "proxy_set_header_map_pairs" => headers::set_pairs, (map: u32, at: u32, len: u32);
        "proxy_get_header_map_size" => headers::get_size, (map: u32, out: u32);
        "proxy_http_call" => calls::http_call,
            (up: u32, ul: u32, h: u32, hl: u32, b: u32, bl: u32, t: u32, tl: u32, timeout: u32, out: u32);
        "proxy_grpc_call" => grpc::call,
            (up: u32, ul: u32, s: u32, sl: u32, m: u32, ml: u32, md: u32, mdl: u32, p: u32, pl: u32, timeout: u32,
             out: u32);
        "proxy_grpc_stream" => grpc::stream,
            (up: u32, ul: u32, s: u32, sl: u32, m: u32, ml: u32, md: u32, mdl: u32, out: u32);
        "proxy_grpc_send" => grpc::send, (token: u32, at: u32, len: u32, end: u32);
        "proxy_grpc_cancel" => grpc::cancel, (token: u32);
        "proxy_grpc_close" => grpc::close, (token: u32);
        "proxy_get_shared_data" => shared::get_data, (k: u32, kl: u32, at_out: u32, len_out: u32, cas_out: u32);
        "proxy_set_shared_data" => shared::set_data, (k: u32, kl: u32, v: u32, vl: u32, cas: u32);
        "proxy_register_shared_queue" => shared::register_queue, (n: u32, nl: u32, out: u32);
        "proxy_resolve_shared_queue" => shared::resolve_queue, (vm: u32, vml: u32, n: u32, nl: u32, out: u32);
        "proxy_enqueue_shared_queue" => shared::enqueue, (token: u32, at: u32, len: u32);
        "proxy_dequeue_shared_queue" => shared::dequeue, (token: u32, at_out: u32, len_out: u32);
        "proxy_define_metric" => metrics::define, (kind: u32, n: u32, nl: u32, out: u32);
        "proxy_increment_metric" => metrics::increment, (id: u32, offset: i64);
        "proxy_record_metric" => metrics::record, (id: u32, value: i64);
        "proxy_get_metric" => metrics::get, (id: u32, out: u32);
        "proxy_set_tick_period_milliseconds" => timers::set_tick_period, (period: u32);
        "proxy_set_effective_context" => control::set_effective_context, (id: u32);
        "proxy_done" => control::done, ();
        "envoy_resolve_dns" => dns::resolve, (at: u32, len: u32, token_out: u32);
        "proxy_call_foreign_function" => foreign::call, (n: u32, nl: u32, a: u32, al: u32, at_out: u32, len_out: u32);
    }
    // These two are open in every phase.
    linker.func_wrap(
        ENV,
        "proxy_log",
        |mut guest: Guest<'_>, level: u32, at: u32, len: u32| -> wasmtime::Result<u32> {
            let outcome = log::log(&mut guest, level, at, len);
            traced(&mut guest, "proxy_log", outcome)
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_get_current_time_nanoseconds",
        |mut guest: Guest<'_>, out: u32| -> wasmtime::Result<u32> {
            guard(&guest, "proxy_get_current_time_nanoseconds")?;
            answer(timers::current_time(&mut guest, out))
        },
    )?;
    let [growth, equal] = RUNTIME;
    linker.func_wrap(ENV, growth, |_: u32| {})?;
    linker.func_wrap(ENV, equal, |a: u32, b: u32| -> u32 { u32::from(a == b) })?;
    for module in wasi::MODULES {
        wasi::link(&mut linker, module)?;
    }
    Ok(linker)
}

/// A module whose imports are all answered.
pub(crate) struct Imports {
    pub(crate) pre: InstancePre<Host>,
    /// Those that nobody knows: they trap when called.
    pub(crate) unknown: Vec<String>,
}

impl Imports {
    /// Answers the imports of `module` as `spec` allows. `proxy_*` functions that are denied return
    /// [`Status::InternalFailure`](super::Status), those of WASI `ENOTCAPABLE`.
    pub(crate) fn resolve(
        base: &Linker<Host>,
        module: &Module,
        spec: &PluginSpec,
    ) -> Result<Self, LoadError> {
        let mut linker = base.clone();
        let mut unknown = Vec::new();
        for import in module.code.imports() {
            let (from, name) = (import.module(), import.name());
            let full = format!("{from}.{name}");
            let ExternType::Func(ty) = import.ty() else {
                return Err(LoadError::BadImport(full));
            };
            // What is defined cannot be defined again: so a stub that fits in tells that nobody knows the import.
            if stub(&mut linker, from, name, ty.clone()).is_ok() {
                unknown.push(full);
            } else if !(spec.allows(name) || from == ENV && RUNTIME.contains(&name)) {
                linker.allow_shadowing(true);
                deny(&mut linker, from, name, ty).map_err(|_| LoadError::BadImport(full))?;
                linker.allow_shadowing(false);
            }
        }
        let pre = linker
            .instantiate_pre(&module.code)
            .map_err(|error| LoadError::BadImport(format!("{error:#}")))?;
        Ok(Self { pre, unknown })
    }
}

fn deny(linker: &mut Linker<Host>, from: &str, name: &str, ty: FuncType) -> wasmtime::Result<()> {
    let code = if wasi::MODULES.contains(&from) {
        wasi::ENOTCAPABLE
    } else {
        10
    };
    let name_owned: Box<str> = name.into();
    linker.func_new(from, name, ty.clone(), move |guest, _, results| {
        let plugin = &guest.data().spec().name;
        tracing::error!(target: "wasm", "plugin {plugin}: {name_owned} is not an allowed capability");
        fill(&ty, results, code);
        Ok(())
    })?;
    Ok(())
}

fn stub(linker: &mut Linker<Host>, from: &str, name: &str, ty: FuncType) -> wasmtime::Result<()> {
    let full = format!("{from}.{name}");
    let wasi = wasi::MODULES.contains(&from);
    linker.func_new(from, name, ty.clone(), move |_, _, results| {
        if wasi && ty.results().len() == 1 {
            fill(&ty, results, wasi::ENOSYS);
            return Ok(());
        }
        Err(wasmtime::format_err!(
            "the import {full} is not known to this host"
        ))
    })?;
    Ok(())
}

fn fill(ty: &FuncType, results: &mut [Val], code: u32) {
    for (ty, result) in ty.results().zip(results) {
        *result = match ty {
            ValType::I64 => Val::I64(i64::from(code)),
            _ => Val::I32(code.cast_signed()),
        };
    }
}
