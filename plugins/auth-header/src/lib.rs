//! Lets a request through only if its header `x-token` has the value of the plugin's configuration (`secret` where there
//! is none); others are answered with 401. The token does not reach the upstream.

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> {
        Box::new(Root { token: "secret".to_owned() })
    });
}}

struct Root {
    token: String,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        if let Some(bytes) = self.get_plugin_configuration()
            && !bytes.is_empty()
        {
            let Ok(token) = String::from_utf8(bytes) else {
                return false;
            };
            self.token = token;
        }
        true
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Auth {
            token: self.token.clone(),
        }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Auth {
    token: String,
}

impl Context for Auth {}

impl HttpContext for Auth {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        if self.get_http_request_header("x-token").as_ref() == Some(&self.token) {
            self.set_http_request_header("x-token", None);
            return Action::Continue;
        }
        self.send_http_response(
            401,
            vec![
                ("www-authenticate", "token"),
                ("content-type", "text/plain"),
            ],
            Some(b"no valid token\n"),
        );
        Action::Pause
    }
}
