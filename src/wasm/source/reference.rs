//! Names of images: `HOST[:PORT]/REPOSITORY[:TAG][@sha256:DIGEST]`, as registries' tools write them.

use std::fmt;

use crate::wasm::spec::Digest;

/// The registry that a name without one means, and what its API is reached at.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_API: &str = "registry-1.docker.io";

/// A name of an image. Without a tag and a digest the tag is `latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// `host` or `host:port`, as it was written; `docker.io` where it was not.
    pub registry: Box<str>,
    /// Below the registry.
    pub repository: Box<str>,
    /// The tag; `None` where there is a digest alone.
    pub tag: Option<Box<str>>,
    /// Of the manifest: then the tag says nothing.
    pub digest: Option<Digest>,
}

/// Why a text is not the name of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The registry is not a host.
    #[error("its registry is not `host` or `host:port`")]
    Registry,
    /// The repository has characters or an order of them that registries do not take.
    #[error(
        "its repository must be names of lower-case letters, digits and `.`, `_`, `-`, between `/`"
    )]
    Repository,
    /// The tag is too long or has other characters.
    #[error("its tag must be up to 128 letters, digits, `_`, `.` and `-`")]
    Tag,
    /// Not `sha256:` and 64 digits.
    #[error("its digest must be sha256: and 64 hexadecimal digits")]
    Digest,
}

impl Reference {
    /// Reads a name, without a scheme.
    ///
    /// # Errors
    /// Says what of it is malformed.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                let digits = digest.strip_prefix("sha256:");
                let digest = digits.and_then(Digest::parse);
                (name, Some(digest.ok_or(ReferenceError::Digest)?))
            }
            None => (text, None),
        };
        // As with every tool: the first part is a host only where it looks like one.
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':', '[']) || host == "localhost" => {
                (host, path)
            }
            _ => (DOCKER_HUB, name),
        };
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        if !is_host(registry) {
            return Err(ReferenceError::Registry);
        }
        if repository.len() > 255 || !repository.split('/').all(is_component) {
            return Err(ReferenceError::Repository);
        }
        if !tag.is_none_or(is_tag) {
            return Err(ReferenceError::Tag);
        }
        let repository = if registry == DOCKER_HUB && !repository.contains('/') {
            format!("library/{repository}").into()
        } else {
            repository.into()
        };
        Ok(Self {
            registry: registry.into(),
            repository,
            tag: match tag {
                None if digest.is_none() => Some("latest".into()),
                tag => tag.map(Into::into),
            },
            digest,
        })
    }

    /// Where the registry's API is: `host` or `host:port`.
    pub fn api_host(&self) -> &str {
        match &*self.registry {
            DOCKER_HUB | "index.docker.io" => DOCKER_HUB_API,
            host => host,
        }
    }

    /// What the manifest is asked for by: its digest, or else the tag.
    pub fn manifest(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("sha256:{digest}"),
            (None, Some(tag)) => tag.to_string(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// True where the name may mean another image tomorrow and is written to: the tag `latest`.
    pub fn is_latest(&self) -> bool {
        self.digest.is_none() && self.tag.as_deref() == Some("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@sha256:{digest}"),
            None => Ok(()),
        }
    }
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let literal = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let good_host = match literal {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let part = |part: &str| {
                !part.is_empty()
                    && !part.starts_with('-')
                    && part
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            };
            host.len() <= 253 && host.split('.').all(part)
        }
    };
    good_host && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
}

fn is_component(text: &str) -> bool {
    let letter = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(letter)
        && bytes.last().is_some_and(letter)
        && bytes
            .iter()
            .all(|byte| letter(byte) || matches!(byte, b'.' | b'_' | b'-'))
        && !text.contains("..")
}

fn is_tag(text: &str) -> bool {
    text.len() <= 128
        && !text.is_empty()
        && !text.starts_with(['.', '-'])
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_registries_tools_read_them() {
        let sum = Digest::of(b"x");
        let pinned = format!("reg.example/p@sha256:{sum}");
        let both = format!("reg.example/p:v1@sha256:{sum}");
        for (text, registry, repository, tag, digest) in [
            ("reg.example/a/b:v1", "reg.example", "a/b", Some("v1"), None),
            (
                "reg.example:5000/a",
                "reg.example:5000",
                "a",
                Some("latest"),
                None,
            ),
            ("localhost/a:1", "localhost", "a", Some("1"), None),
            ("[::1]:5000/a:1", "[::1]:5000", "a", Some("1"), None),
            ("user/a:1", "docker.io", "user/a", Some("1"), None),
            ("a", "docker.io", "library/a", Some("latest"), None),
            (&pinned, "reg.example", "p", None, Some(sum)),
            (&both, "reg.example", "p", Some("v1"), Some(sum)),
        ] {
            let read = Reference::parse(text).expect(text);
            assert_eq!(
                (
                    &*read.registry,
                    &*read.repository,
                    read.tag.as_deref(),
                    read.digest
                ),
                (registry, repository, tag, digest),
                "{text}"
            );
        }
        let read = Reference::parse("a/b").expect("valid");
        assert_eq!(read.api_host(), "registry-1.docker.io");
        assert_eq!(read.to_string(), "docker.io/a/b:latest");
        assert!(read.is_latest());
        let read = Reference::parse(&both).expect("valid");
        assert_eq!(read.manifest(), format!("sha256:{sum}"));
        assert_eq!(read.to_string(), both);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        use ReferenceError as E;
        for (text, error) in [
            ("", E::Repository),
            ("reg.example/", E::Repository),
            ("reg.example/A", E::Repository),
            ("reg.example/a//b", E::Repository),
            ("reg.example/../b", E::Repository),
            ("reg.example/a?x", E::Repository),
            ("reg.example/-a", E::Repository),
            ("reg.example/a: ", E::Tag),
            ("reg.example/a:", E::Tag),
            ("reg.example/a@sha256:12", E::Digest),
            ("reg.example/a@md5:12", E::Digest),
            ("reg.example:0/a", E::Registry),
            ("reg.example:99999/a", E::Registry),
            ("u@reg.example/a", E::Digest),
            ("reg..example/a", E::Registry),
            ("[zz]/a", E::Registry),
        ] {
            assert_eq!(Reference::parse(text), Err(error), "{text}");
        }
    }
}
