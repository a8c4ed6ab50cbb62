//! Tells the routes which GraphQL operation a request is: `x-graphql-operation` (its name, where it has one) and
//! `x-graphql-type` (`query`, `mutation`, `subscription`, or `batch` for a list of requests) are set from the body, and
//! the route is chosen anew.
//!
//! Looked at are POST requests with a JSON body of at most `max_body_bytes`; a longer one is answered with 413. The
//! operation is the one that the server runs: `operationName` picks it from the document, and where it names none of
//! them, or there are several and it is missing, the request is left as it is – as is one whose body is no GraphQL
//! request. Both headers are removed from every request first.
//!
//! The head waits for the body: the plugin needs `allow_on_headers_stop_iteration: true`.

mod document;

use log::error;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};
use serde::Deserialize;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> {
        Box::new(Root { config: Config::default() })
    });
}}

const OPERATION: &str = "x-graphql-operation";
const TYPE: &str = "x-graphql-type";

/// The plugin's configuration.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    max_body_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_body_bytes: 256 * 1024,
        }
    }
}

/// A GraphQL request; a member that stands there twice makes it none.
#[derive(Deserialize)]
struct Request {
    #[serde(rename = "operationName")]
    operation_name: Option<String>,
    query: Option<String>,
}

struct Root {
    config: Config,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        let bytes = self.get_plugin_configuration().unwrap_or_default();
        if bytes.is_empty() {
            return true;
        }
        match serde_json::from_slice(&bytes) {
            Ok(config) => {
                self.config = config;
                true
            }
            Err(reason) => {
                error!("the configuration will not do: {reason}");
                false
            }
        }
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Route {
            config: self.config,
            reading: false,
        }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Route {
    config: Config,
    /// The request waits for its body.
    reading: bool,
}

impl Route {
    fn header(&self, name: &str) -> Option<String> {
        let value = self.get_http_request_header_bytes(name)?;
        Some(String::from_utf8_lossy(&value).into_owned())
    }

    fn is_json_post(&self) -> bool {
        let Some(media_type) = self.header("content-type") else {
            return false;
        };
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        self.header(":method").as_deref() == Some("POST")
            && media_type.eq_ignore_ascii_case("application/json")
    }

    fn refuse(&mut self) -> Action {
        self.reading = false;
        self.send_http_response(
            413,
            vec![("content-type", "text/plain")],
            Some(b"the GraphQL request is too long\n"),
        );
        Action::Pause
    }

    /// The body is complete.
    fn finish(&mut self, size: usize) -> Action {
        self.reading = false;
        let body = self.get_http_request_body(0, size).unwrap_or_default();
        let Some((kind, name)) = operation(&body) else {
            return Action::Continue;
        };
        if let Some(kind) = kind {
            self.set_http_request_header(TYPE, Some(kind));
        }
        if let Some(name) = name {
            self.set_http_request_header(OPERATION, Some(&name));
        }
        // It has no answer, and a host without it leaves the route as it was.
        let _ = self.call_foreign_function("clear_route_cache", None);
        Action::Continue
    }
}

/// Type and name of the operation that `body` asks for.
fn operation(body: &[u8]) -> Option<(Option<&'static str>, Option<String>)> {
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Some((Some("batch"), None));
    }
    let request: Request = serde_json::from_slice(body).ok()?;
    let wanted = request.operation_name.filter(|name| !name.is_empty());
    let Some(query) = request.query else {
        // A persisted query: the name is all that is known.
        let name = wanted.filter(|name| document::is_name(name))?;
        return Some((None, Some(name)));
    };
    let mut operations = document::operations(&query)?;
    let operation = match wanted {
        Some(wanted) => operations
            .into_iter()
            .find(|operation| operation.name == Some(&wanted))?,
        None if operations.len() == 1 => operations.pop()?,
        None => return None,
    };
    Some((Some(operation.kind), operation.name.map(str::to_owned)))
}

impl Context for Route {}

impl HttpContext for Route {
    fn on_http_request_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        for header in [OPERATION, TYPE] {
            self.set_http_request_header(header, None);
        }
        if end_of_stream || !self.is_json_post() {
            return Action::Continue;
        }
        let length = self
            .header("content-length")
            .and_then(|length| length.parse().ok());
        if length.is_some_and(|length: usize| length > self.config.max_body_bytes) {
            return self.refuse();
        }
        self.reading = true;
        Action::Pause
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if !self.reading {
            return Action::Continue;
        }
        if size > self.config.max_body_bytes {
            return self.refuse();
        }
        if !end_of_stream {
            return Action::Pause;
        }
        self.finish(size)
    }

    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        if self.reading {
            return self.finish(usize::MAX);
        }
        Action::Continue
    }
}
