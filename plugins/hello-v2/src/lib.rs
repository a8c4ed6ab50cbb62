//! Says which version it is: in the response header `x-hello`, and in an answer of its own at `/hello`.
//!
//! The greeting is the plugin's configuration, `hello` where there is none.

use log::info;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};

const VERSION: &str = "v2";

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> {
        Box::new(Root { greeting: "hello".to_owned() })
    });
}}

struct Root {
    greeting: String,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        if size > 0
            && let Some(bytes) = self.get_plugin_configuration()
        {
            self.greeting = String::from_utf8_lossy(&bytes).into_owned();
        }
        info!("{VERSION} is configured: {}", self.greeting);
        true
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Hello {
            greeting: self.greeting.clone(),
        }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Hello {
    greeting: String,
}

impl Context for Hello {}

impl HttpContext for Hello {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        if self.get_http_request_header(":path").as_deref() == Some("/hello") {
            let body = format!("{} from {VERSION}\n", self.greeting);
            self.send_http_response(
                200,
                vec![("content-type", "text/plain")],
                Some(body.as_bytes()),
            );
            return Action::Pause;
        }
        self.set_http_request_header("x-hello", Some(VERSION));
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        self.set_http_response_header("x-hello", Some(VERSION));
        // What the first version did not do.
        self.set_http_response_header("x-hello-greeting", Some(&self.greeting));
        Action::Continue
    }
}
