//! Where code is fetched without a cluster: web servers and registries of images, off the workers.
//!
//! * [`reference`] names images, [`oci`] speaks to registries, [`push`] puts images there, [`manifest`] finds the module in an image.
//! * [`download`] makes the requests: bounded in time, bytes and redirects, over TLS unless settings say otherwise.
//! * [`shown`] is how a URI is told to people.
//! * [`guard`] keeps what a server sends us on to (token servers, redirects) away from private addresses.

pub mod reference;

#[cfg(feature = "wasm")]
mod challenge;
#[cfg(feature = "wasm")]
pub mod credentials;
#[cfg(feature = "wasm")]
pub mod download;
#[cfg(feature = "wasm")]
mod guard;
#[cfg(feature = "wasm")]
mod keeper;
#[cfg(feature = "wasm")]
pub mod manifest;
#[cfg(feature = "wasm")]
pub mod oci;
#[cfg(feature = "wasm")]
pub mod push;

/// A URI as errors, the status and the folder of fetched code tell it: without its query, its fragment, and who asks.
/// Signed URLs are as good as passwords. What is very long is cut.
pub fn shown(uri: &str) -> Box<str> {
    const LONGEST: usize = 1000;
    let end = uri.find(['?', '#']).unwrap_or(uri.len());
    let (scheme, rest) = match uri[..end].split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, &uri[..end]),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    // An `@` of an image is behind its registry.
    let host = match scheme {
        Some(_) => authority.rsplit('@').next().unwrap_or_default(),
        None => authority,
    };
    let scheme = scheme.map_or(String::new(), |scheme| format!("{scheme}://"));
    let told = format!("{scheme}{host}{path}");
    match told.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}…", &told[..cut]).into(),
        None => told.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_of_a_uri_is_told() {
        for (uri, told) in [
            (
                "https://h.test/p.wasm?X-Sig=secret",
                "https://h.test/p.wasm",
            ),
            ("https://me:secret@h.test:1/p#secret", "https://h.test:1/p"),
            ("https://h.test?secret/a", "https://h.test"),
            ("http://h.test/a@b", "http://h.test/a@b"),
            ("oci://h.test/a:1@sha256:00", "oci://h.test/a:1@sha256:00"),
            ("h.test/a@sha256:00", "h.test/a@sha256:00"),
            ("ubuntu@sha256:00", "ubuntu@sha256:00"),
            ("?secret", ""),
            ("", ""),
        ] {
            assert_eq!(&*shown(uri), told, "{uri}");
        }
        let long = shown(&format!("https://h.test/{}", "ä".repeat(5000)));
        assert_eq!(long.chars().count(), 1001);
    }
}
