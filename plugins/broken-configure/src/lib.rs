//! Cannot be configured: with the configuration `false` it says so, otherwise it panics.

use proxy_wasm::traits::{Context, RootContext};

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Root) });
}}

struct Root;

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        if self.get_plugin_configuration().as_deref() == Some(b"false") {
            return false;
        }
        panic!("this plugin is broken on purpose");
    }
}
