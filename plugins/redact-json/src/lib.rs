//! Takes what must not leave out of JSON responses: whatever the configured patterns find in a string or a number,
//! however it is escaped, is replaced, and `content-length` is that of the new body.
//!
//! The response waits for its body, and its head with it: the plugin needs `allow_on_headers_stop_iteration: true`. What
//! cannot be searched – more than `max_body_bytes`, or a content coding – is answered with 502 in its place. The upstream
//! is asked for neither codings nor ranges. Responses of other media types pass as they are.

mod json;

use std::rc::Rc;

use log::error;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};
use regex_lite::Regex;
use serde::Deserialize;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Root { rules: None }) });
}}

/// The plugin's configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    patterns: Vec<PatternConfig>,
    /// Longer bodies are not let through; the default is what is searched in a few milliseconds.
    #[serde(default = "default_max_body")]
    max_body_bytes: usize,
}

fn default_max_body() -> usize {
    64 * 1024
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PatternConfig {
    regex: String,
    /// `luhn`: what is found has the check digit of a card number, too.
    check: Option<Check>,
    replacement: String,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Check {
    Luhn,
}

/// What is looked for, and what is put in its place.
struct Rules {
    patterns: Vec<Pattern>,
    max_body: usize,
}

struct Pattern {
    regex: Regex,
    check: Option<Check>,
    replacement: String,
}

impl Rules {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let config: Config = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if config.patterns.is_empty() {
            return Err("patterns: there is none".to_owned());
        }
        let patterns = config.patterns.into_iter().map(|pattern| {
            let regex = Regex::new(&pattern.regex)
                .map_err(|error| format!("{}: {error}", pattern.regex))?;
            if regex.is_match("") {
                return Err(format!("{}: it finds nothing, everywhere", pattern.regex));
            }
            Ok(Pattern {
                regex,
                check: pattern.check,
                replacement: pattern.replacement,
            })
        });
        Ok(Self {
            patterns: patterns.collect::<Result<_, String>>()?,
            max_body: config.max_body_bytes,
        })
    }

    /// `text` without what must not be in it; `None` where nothing is.
    fn redact(&self, text: &str) -> Option<String> {
        let mut redacted: Option<String> = None;
        for pattern in &self.patterns {
            let current = redacted.as_deref().unwrap_or(text);
            if let Some(next) = pattern.redact(current) {
                redacted = Some(next);
            }
        }
        redacted
    }
}

impl Pattern {
    fn redact(&self, text: &str) -> Option<String> {
        let mut out = String::new();
        let mut copied = 0;
        for found in self.regex.find_iter(text) {
            if matches!(self.check, Some(Check::Luhn)) && !luhn(found.as_str()) {
                continue;
            }
            out.push_str(&text[copied..found.start()]);
            out.push_str(&self.replacement);
            copied = found.end();
        }
        if copied == 0 {
            return None;
        }
        out.push_str(&text[copied..]);
        Some(out)
    }
}

/// The check digit of card numbers (ISO/IEC 7812), over the digits of `text`.
fn luhn(text: &str) -> bool {
    let digits = text.bytes().rev().filter(u8::is_ascii_digit);
    let sum: u32 = digits
        .enumerate()
        .map(|(place, digit)| {
            let digit = u32::from(digit - b'0');
            match (place % 2, digit) {
                (0, digit) => digit,
                (_, digit) if digit > 4 => digit * 2 - 9,
                (_, digit) => digit * 2,
            }
        })
        .sum();
    sum % 10 == 0
}

struct Root {
    rules: Option<Rc<Rules>>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        let bytes = self.get_plugin_configuration().unwrap_or_default();
        match Rules::parse(&bytes) {
            Ok(rules) => {
                self.rules = Some(Rc::new(rules));
                true
            }
            Err(reason) => {
                error!("the configuration will not do: {reason}");
                false
            }
        }
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Redact {
            rules: Rc::clone(self.rules.as_ref()?),
            searching: false,
        }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Redact {
    rules: Rc<Rules>,
    /// The response waits for its body to be searched.
    searching: bool,
}

/// How the body ended, which decides how the new one is framed.
enum End {
    Body,
    Trailers,
}

impl Redact {
    fn header(&self, name: &str) -> Option<String> {
        let value = self.get_http_response_header_bytes(name)?;
        Some(String::from_utf8_lossy(&value).to_ascii_lowercase())
    }

    fn is_json(&self) -> bool {
        let Some(media_type) = self.header("content-type") else {
            return false;
        };
        let media_type = media_type
            .split([';', ','])
            .next()
            .unwrap_or_default()
            .trim();
        media_type == "application/json" || media_type.ends_with("+json")
    }

    fn block(&mut self, reason: &str) -> Action {
        self.searching = false;
        self.send_http_response(
            502,
            vec![("content-type", "text/plain")],
            Some(format!("the response cannot be redacted: {reason}\n").as_bytes()),
        );
        Action::Pause
    }

    /// The body is complete.
    fn finish(&mut self, size: usize, end: End) -> Action {
        self.searching = false;
        let body = self.get_http_response_body(0, size).unwrap_or_default();
        if body.len() > self.rules.max_body {
            return self.block("it is too long");
        }
        if let Some(new) = json::redact(&body, |text| self.rules.redact(text)) {
            self.set_http_response_body(0, body.len(), &new);
            match end {
                End::Body => {
                    let length = new.len().to_string();
                    self.set_http_response_header("content-length", Some(&length));
                }
                End::Trailers => self.set_http_response_header("content-length", None),
            }
            // These are of the old body.
            for header in [
                "etag",
                "content-md5",
                "content-digest",
                "repr-digest",
                "digest",
            ] {
                self.set_http_response_header(header, None);
            }
        }
        Action::Continue
    }
}

impl Context for Redact {}

impl HttpContext for Redact {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        for header in ["accept-encoding", "range", "if-range"] {
            self.set_http_request_header(header, None);
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        if !self.is_json() {
            return Action::Continue;
        }
        if end_of_stream {
            // The answer to HEAD says how long the body would be, which is not known.
            self.set_http_response_header("content-length", None);
            return Action::Continue;
        }
        if self
            .header("content-encoding")
            .is_some_and(|coding| coding != "identity")
        {
            return self.block("it is encoded");
        }
        let length = self
            .header("content-length")
            .and_then(|length| length.parse().ok());
        if length.is_some_and(|length: usize| length > self.rules.max_body) {
            return self.block("it is too long");
        }
        self.searching = true;
        Action::Pause
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if !self.searching {
            return Action::Continue;
        }
        if size > self.rules.max_body {
            return self.block("it is too long");
        }
        if !end_of_stream {
            return Action::Pause;
        }
        self.finish(size, End::Body)
    }

    fn on_http_response_trailers(&mut self, _: usize) -> Action {
        if self.searching {
            return self.finish(usize::MAX, End::Trailers);
        }
        Action::Continue
    }
}
