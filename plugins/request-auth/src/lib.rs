//! Lets a request through only if it proves who sent it: by a JSON Web Token (HS256, [`jwt`]) or by an HMAC of the
//! request ([`signature`]), whichever the configuration asks for. What proves nothing is answered with 401 and the reason.
//!
//! Headers that tell the upstream who it is are removed from every request before anything else, so that no client can
//! set them. Secrets shorter than the hash (32 bytes) are refused when the plugin is configured.
//!
//! With `hmac` the request waits for its body, and its head with it: the plugin needs
//! `allow_on_headers_stop_iteration: true`.

mod jwt;
mod signature;

use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use log::error;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};
use serde::Deserialize;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Root { scheme: None }) });
}}

/// The plugin's configuration: `{"jwt": {…}}` or `{"hmac": {…}}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Scheme {
    Jwt(jwt::Verifier),
    Hmac(signature::Verifier),
}

impl Scheme {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let scheme: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        match &scheme {
            Self::Jwt(verifier) => verifier.check()?,
            Self::Hmac(verifier) => verifier.check()?,
        }
        Ok(scheme)
    }
}

/// A secret of the configuration, base64url without padding, of 32 bytes at least.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
struct Secret(Vec<u8>);

impl TryFrom<String> for Secret {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = data_encoding::BASE64URL_NOPAD
            .decode(text.as_bytes())
            .map_err(|_| "a secret is base64url without padding")?;
        if bytes.len() < 32 {
            return Err("a secret has at least 32 bytes");
        }
        Ok(Self(bytes))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Why a request is not let through: the `error_description` that its sender reads.
type Refusal = &'static str;

struct Root {
    scheme: Option<Rc<Scheme>>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        let bytes = self.get_plugin_configuration().unwrap_or_default();
        match Scheme::parse(&bytes) {
            Ok(scheme) => {
                self.scheme = Some(Rc::new(scheme));
                true
            }
            Err(reason) => {
                error!("the configuration will not do: {reason}");
                false
            }
        }
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Auth {
            scheme: Rc::clone(self.scheme.as_ref()?),
            body_digest: None,
        }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Auth {
    scheme: Rc<Scheme>,
    /// What the body, which is still to come, has to hash to.
    body_digest: Option<signature::Digest>,
}

impl Auth {
    fn now(&self) -> u64 {
        self.get_current_time()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    }

    fn refuse(&self, refusal: Refusal) -> Action {
        let challenge = match (&*self.scheme, refusal) {
            // A request without any credentials is told which it needs, and of no error (RFC 6750, section 3.1).
            (Scheme::Jwt(_), jwt::NO_TOKEN) => "Bearer".to_owned(),
            (Scheme::Jwt(_), _) => {
                format!("Bearer error=\"invalid_token\", error_description=\"{refusal}\"")
            }
            (Scheme::Hmac(_), _) => signature::SCHEME.to_owned(),
        };
        self.send_http_response(
            401,
            vec![
                ("www-authenticate", &challenge),
                ("content-type", "text/plain"),
            ],
            Some(format!("{refusal}\n").as_bytes()),
        );
        Action::Pause
    }

    fn check_jwt(&self, verifier: &jwt::Verifier) -> Action {
        for header in verifier.headers() {
            self.set_http_request_header(header, None);
        }
        let authorization = self.get_http_request_header_bytes("authorization");
        match verifier.verify(authorization.as_deref(), self.now()) {
            Ok(headers) => {
                if !verifier.forward {
                    self.set_http_request_header("authorization", None);
                }
                for (name, value) in headers {
                    self.set_http_request_header(name, Some(&value));
                }
                Action::Continue
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn check_hmac(&mut self, verifier: &signature::Verifier, end_of_stream: bool) -> Action {
        self.set_http_request_header(&verifier.key_header, None);
        let header = |name: &str| self.get_http_request_header_bytes(name);
        let head = signature::Head {
            authorization: header("authorization"),
            method: header(":method").unwrap_or_default(),
            path: header(":path").unwrap_or_default(),
            date: header("date"),
            digest: header(signature::DIGEST_HEADER),
        };
        let now: SystemTime = self.get_current_time();
        let signed = match verifier.verify(&head, now) {
            Ok(signed) => signed,
            Err(refusal) => return self.refuse(refusal),
        };
        self.set_http_request_header(&verifier.key_header, Some(signed.key));
        self.body_digest = Some(signed.digest);
        if end_of_stream {
            return self.check_body(0);
        }
        Action::Pause
    }

    /// The body is complete.
    fn check_body(&mut self, size: usize) -> Action {
        let Some(digest) = self.body_digest.take() else {
            return Action::Continue;
        };
        let body = if size == 0 {
            None
        } else {
            self.get_http_request_body(0, size)
        };
        match digest.check(&body.unwrap_or_default()) {
            Ok(()) => Action::Continue,
            Err(refusal) => self.refuse(refusal),
        }
    }
}

impl Context for Auth {}

impl HttpContext for Auth {
    fn on_http_request_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        let scheme = Rc::clone(&self.scheme);
        match &*scheme {
            Scheme::Jwt(verifier) => self.check_jwt(verifier),
            Scheme::Hmac(verifier) => self.check_hmac(verifier, end_of_stream),
        }
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if self.body_digest.is_none() {
            return Action::Continue;
        }
        if !end_of_stream {
            return Action::Pause;
        }
        self.check_body(size)
    }

    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        self.check_body(usize::MAX)
    }
}
