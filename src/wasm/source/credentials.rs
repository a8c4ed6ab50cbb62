//! Docker configurations: what is told to which registry.
//!
//! From the configuration's own secret, else from `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`, read at each
//! fetch, so that rotated credentials are taken up. Of these two only the latter has programs run that keep credentials
//! (`credHelpers`, `credsStore`): a secret comes from whoever configures plugins.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::keeper;

/// What a registry, or its token server, is told.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// Name and password.
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// A refresh token for the token server (`identitytoken`).
    Identity(String),
    /// A token for the registry itself (`registrytoken`).
    Bearer(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic",
            Self::Identity(_) => "Identity",
            Self::Bearer(_) => "Bearer",
        })
    }
}

/// Why there are no credentials where there should be some. What is in the configuration is not told.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// istiod found no secret under the name that it was given.
    #[error("the pull secret is missing")]
    Missing,
    /// Not a docker configuration.
    #[error("the pull secret, or this host's, is no docker configuration: {0}")]
    Malformed(String),
    /// An entry for the registry that cannot be read.
    #[error("the credentials for {0} are neither name and password nor a token")]
    Entry(String),
    /// A program that keeps credentials gave none, and did not say that it has none.
    #[error("{program}: {reason}")]
    Program {
        /// Its name.
        program: String,
        /// What of it failed.
        reason: String,
    },
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default, deserialize_with = "or_null")]
    auths: BTreeMap<String, Option<Entry>>,
    #[serde(default, rename = "credHelpers", deserialize_with = "or_null")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore", deserialize_with = "or_null")]
    store: String,
}

/// To docker `null` is as good as nothing.
fn or_null<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl DockerConfig {
    fn parse(json: &str) -> Result<Self, CredentialError> {
        serde_json::from_str(json).map_err(|error| {
            // Its text would quote the secret.
            let (line, column) = (error.line(), error.column());
            CredentialError::Malformed(format!("line {line}, column {column}"))
        })
    }

    /// The program that keeps the credentials of `registry`.
    fn keeper(&self, registry: &str) -> Option<&str> {
        let helper = of(&self.helpers, registry).map(|(_, helper)| helper);
        let name = helper.unwrap_or(&self.store);
        (!name.is_empty()).then_some(name)
    }

    /// What it has itself. An entry that says nothing is as good as none, as with docker: `docker login` with a program
    /// that keeps credentials leaves such ones.
    fn entry(&self, registry: &str) -> Result<Option<Credential>, CredentialError> {
        let found = of(&self.auths, registry);
        let Some((name, Some(entry))) = found.map(|(name, entry)| (name, entry.as_ref())) else {
            return Ok(None);
        };
        if *entry == Entry::default() {
            return Ok(None);
        }
        credential(entry)
            .map(Some)
            .ok_or_else(|| CredentialError::Entry(name.clone()))
    }
}

/// The entry of a registry: one of exactly its name comes before one that only means the same.
fn of<'a, T>(entries: &'a BTreeMap<String, T>, registry: &str) -> Option<(&'a String, &'a T)> {
    let meaning = || {
        let mut all = entries.iter();
        all.find(|(name, _)| host_of(name) == canonical(registry))
    };
    entries.get_key_value(registry).or_else(meaning)
}

#[derive(Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "lowercase")]
struct Entry {
    #[serde(deserialize_with = "or_null")]
    auth: String,
    #[serde(deserialize_with = "or_null")]
    username: String,
    #[serde(deserialize_with = "or_null")]
    password: String,
    #[serde(deserialize_with = "or_null")]
    identitytoken: String,
    #[serde(deserialize_with = "or_null")]
    registrytoken: String,
}

/// What the docker configuration `json` has for `registry`. No program is run.
///
/// # Errors
/// Where it is not such a configuration, or its entry cannot be read.
pub fn from_docker_config(
    json: &str,
    registry: &str,
) -> Result<Option<Credential>, CredentialError> {
    if json.is_empty() {
        return Err(CredentialError::Missing);
    }
    DockerConfig::parse(json)?.entry(registry)
}

/// What this host's docker configuration has for `registry`: itself, or by the program that it names. Reads a file and
/// may run a program: call it on a blocking thread.
///
/// # Errors
/// As [`from_docker_config`]; and where a program fails.
pub fn of_host(registry: &str) -> Result<Option<Credential>, CredentialError> {
    match docker_config_of_host() {
        Some(json) => DockerConfig::parse(&json)?.ask(registry, keeper::ask),
        None => Ok(None),
    }
}

impl DockerConfig {
    /// With a program that keeps credentials entries tell that there are some, and may say nothing that can be read.
    fn ask(
        &self,
        registry: &str,
        keeper: impl FnOnce(&str, &str) -> Result<Option<Credential>, CredentialError>,
    ) -> Result<Option<Credential>, CredentialError> {
        let Some(name) = self.keeper(registry) else {
            return self.entry(registry);
        };
        let server = match canonical(registry) {
            "docker.io" => "https://index.docker.io/v1/",
            registry => registry,
        };
        match keeper(name, server)? {
            Some(credential) => Ok(Some(credential)),
            None => Ok(self.entry(registry).unwrap_or_default()),
        }
    }
}

fn credential(entry: &Entry) -> Option<Credential> {
    let filled = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    if let Some(token) = filled(&entry.registrytoken) {
        return Some(Credential::Bearer(token));
    }
    if let Some(token) = filled(&entry.identitytoken) {
        return Some(Credential::Identity(token));
    }
    if let (Some(username), Some(password)) = (filled(&entry.username), filled(&entry.password)) {
        return Some(Credential::Basic { username, password });
    }
    let decoded = STANDARD.decode(filled(&entry.auth)?.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (username, password) = text.trim_end_matches('\0').split_once(':')?;
    Some(Credential::Basic {
        username: username.to_owned(),
        password: password.to_owned(),
    })
}

/// `https://index.docker.io/v1/`, `registry:5000`, `https://registry/v2/`: the host of each.
fn host_of(name: &str) -> &str {
    let rest = name.split_once("://").map_or(name, |(_, rest)| rest);
    canonical(rest.split('/').next().unwrap_or_default())
}

/// Docker Hub has several names.
fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// The text of this host's docker configuration, if there is one. Reads a file.
fn docker_config_of_host() -> Option<String> {
    let folder = match std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".docker"),
    };
    std::fs::read_to_string(folder.join("config.json")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Credential {
        Credential::Basic {
            username: username.to_owned(),
            password: password.to_owned(),
        }
    }

    #[test]
    fn each_form_of_an_entry_is_read() {
        let json = |entry: &str| format!(r#"{{"auths": {{"reg.test:5000": {entry}}}, "x": 1}}"#);
        let auth = STANDARD.encode("me:pass:word");
        for (entry, expected) in [
            (format!(r#"{{"auth": "{auth}"}}"#), basic("me", "pass:word")),
            (
                r#"{"username": "a", "password": "b", "auth": ""}"#.to_owned(),
                basic("a", "b"),
            ),
            (
                format!(r#"{{"auth": "{auth}", "identitytoken": "i"}}"#),
                Credential::Identity("i".to_owned()),
            ),
            (
                r#"{"registrytoken": "r"}"#.to_owned(),
                Credential::Bearer("r".to_owned()),
            ),
        ] {
            let found = from_docker_config(&json(&entry), "reg.test:5000");
            assert_eq!(found, Ok(Some(expected)), "{entry}");
        }
        for entry in [r#"{"auth": "!"}"#, r#"{"auth": "bm9jb2xvbg=="}"#] {
            let found = from_docker_config(&json(entry), "reg.test:5000");
            assert_eq!(
                found,
                Err(CredentialError::Entry("reg.test:5000".to_owned()))
            );
        }
        assert_eq!(from_docker_config(&json("{}"), "reg.test"), Ok(None));
        // To docker these ask without credentials.
        for entry in ["{}", "null", r#"{"auth": "", "username": null}"#] {
            let found = from_docker_config(&json(entry), "reg.test:5000");
            assert_eq!(found, Ok(None), "{entry}");
        }
        let null = r#"{"auths": null, "credHelpers": null, "credsStore": null}"#;
        for json in ["{}", null] {
            assert_eq!(from_docker_config(json, "reg.test"), Ok(None));
        }
    }

    #[test]
    fn registries_are_found_under_all_their_names() {
        let json = |name: &str| format!(r#"{{"auths": {{"{name}": {{"registrytoken": "r"}}}}}}"#);
        for (name, registry) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("docker.io", "docker.io"),
            ("https://reg.test/v2/", "reg.test"),
            ("http://reg.test:80", "reg.test:80"),
        ] {
            let found = from_docker_config(&json(name), registry).expect("valid");
            assert!(found.is_some(), "{name}");
        }
        let found = from_docker_config(&json("reg.test.evil"), "reg.test").expect("valid");
        assert_eq!(found, None);
    }

    #[test]
    fn a_program_is_asked_where_one_is_named() {
        let asked = |json: &str, registry: &str, has: Option<Credential>| {
            let config = DockerConfig::parse(json).expect("a configuration");
            let mut of = String::new();
            let found = config.ask(registry, |name, server| {
                of = format!("{name} {server}");
                Ok(has)
            });
            (of, found)
        };
        let kept = || Some(Credential::Identity("kept".to_owned()));
        let own = Some(Credential::Bearer("own".to_owned()));
        let json = r#"{"auths": {"reg.test": {}, "own.test": {"registrytoken": "own"}}, "credsStore": "pass",
            "credHelpers": {"ecr.test": "ecr-login", "https://hub.test/v1/": "hub", "plain.test": ""}}"#;
        for (registry, of) in [
            ("reg.test", "pass reg.test"),
            ("own.test", "pass own.test"),
            ("ecr.test", "ecr-login ecr.test"),
            ("hub.test", "hub hub.test"),
            ("docker.io", "pass https://index.docker.io/v1/"),
        ] {
            assert_eq!(asked(json, registry, kept()), (of.to_owned(), Ok(kept())));
            let without = if registry == "own.test" {
                own.clone()
            } else {
                None
            };
            assert_eq!(asked(json, registry, None), (of.to_owned(), Ok(without)));
        }
        assert_eq!(asked(json, "plain.test", kept()), (String::new(), Ok(None)));
        let empty = r#"{"auths": {"a.test": {}}}"#;
        assert_eq!(asked(empty, "a.test", kept()), (String::new(), Ok(None)));
        // A secret has none asked.
        let secret = r#"{"auths": {"a.test": {}}, "credsStore": "pass"}"#;
        assert_eq!(from_docker_config(secret, "a.test"), Ok(None));
    }

    #[test]
    fn an_error_does_not_tell_the_secret() {
        assert_eq!(from_docker_config("", "r"), Err(CredentialError::Missing));
        let error = from_docker_config(r#"{"auths": "hunter2"}"#, "r").expect_err("malformed");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let shown = format!("{:?}", basic("me", "hunter2"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
