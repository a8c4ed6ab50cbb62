//! Where code and texts come from: files, web servers, registries of images.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;

use crate::base::file::read_bounded;
use crate::cli::plugin::RegistryArgs;
use crate::config::WasmSettings;
use crate::wasm::source::credentials::{self, Credential};
use crate::wasm::source::download::{DownloadError, Downloader};
use crate::wasm::source::oci::{Image, ImageError, Registry};
use crate::wasm::source::reference::Reference;
use crate::wasm::spec::Digest;
use crate::wasm::{self, LoadError};

/// What begins the name of an image.
pub(super) const OCI: &str = "oci://";

/// A registry or a server that is slower than this is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// No file that an argument names is of use beyond this, in bytes.
const MAX_FILE: u64 = 256 << 20;

/// Code, and the image that it was in.
pub(super) struct Fetched {
    pub(super) code: Vec<u8>,
    pub(super) image: Option<Image>,
    /// Of what held it packed.
    pub(super) packed: Option<Packed>,
}

/// What holds a module packed, as it is read or comes.
pub(super) struct Packed {
    pub(super) size: usize,
    pub(super) sha256: String,
}

/// The content of a file, or of a pipe, that an argument names.
///
/// # Errors
/// Where it cannot be read, or never ends.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    read_bounded(path, MAX_FILE).with_context(|| format!("cannot read {}", path.display()))
}

/// The code in a file, which may hold it packed in the forms that a proxy takes. What is no code stays as it is.
///
/// # Errors
/// Where it cannot be read, or what it is packed in is broken.
pub(super) fn read_code(path: &Path) -> anyhow::Result<Fetched> {
    unpacked(read(path)?).with_context(|| path.display().to_string())
}

fn unpacked(bytes: Vec<u8>) -> anyhow::Result<Fetched> {
    let plain = |code| Fetched {
        code,
        image: None,
        packed: None,
    };
    let module = match wasm::unpack(&bytes) {
        Ok(Cow::Owned(module)) => module,
        Ok(Cow::Borrowed(module)) if module.len() < bytes.len() => module.to_vec(),
        Ok(_) | Err(LoadError::NotWasm) => return Ok(plain(bytes)),
        Err(error) => return Err(error.into()),
    };
    let packed = Packed {
        size: bytes.len(),
        sha256: Digest::of(&bytes).to_string(),
    };
    Ok(Fetched {
        packed: Some(packed),
        ..plain(module)
    })
}

/// How registries and servers are spoken to.
pub(super) struct Access {
    plain_http: bool,
    internal: bool,
    credential: Option<Credential>,
}

impl Access {
    /// As the arguments say. Reads standard input where the password is there.
    ///
    /// # Errors
    /// Where there is none.
    pub(super) fn of(arguments: &RegistryArgs) -> anyhow::Result<Self> {
        let RegistryArgs {
            plain_http,
            internal,
            username,
            password_stdin,
        } = arguments;
        let credential = match username {
            Some(username) if *password_stdin => Some(Credential::Basic {
                username: username.clone(),
                password: password(std::io::stdin())?,
            }),
            _ => None,
        };
        Ok(Self {
            plain_http: *plain_http,
            internal: *internal,
            credential,
        })
    }

    /// The code that `source` names: a file's path, `oci://` and an image, or a URL. What is packed is unpacked.
    ///
    /// # Errors
    /// Where it cannot be read or fetched, or is of another form.
    pub(super) fn resolve(&self, source: &str) -> anyhow::Result<Vec<u8>> {
        Ok(self.fetch(source)?.code)
    }

    /// As [`Access::resolve`], with the image where there is one.
    pub(super) fn fetch(&self, source: &str) -> anyhow::Result<Fetched> {
        match source.split_once("://") {
            None => read_code(Path::new(source)),
            Some(("oci", reference)) => {
                let reference = Reference::parse(reference)
                    .with_context(|| format!("{source} is not the name of an image"))?;
                self.pull(&reference)
            }
            Some(("https" | "http", _)) => {
                let bytes = self.download(source)?.to_vec();
                unpacked(bytes).with_context(|| source.to_owned())
            }
            Some((scheme, _)) => anyhow::bail!(
                "{source}: code is read from files, oci://, https:// and, with --plain-http, http://, not from {scheme}://"
            ),
        }
    }

    /// The module of an image, and what the image is.
    pub(super) fn pull(&self, reference: &Reference) -> anyhow::Result<Fetched> {
        let mut registry = self.registry(reference)?;
        let (image, code) =
            wait(&reference.to_string(), registry.pull()).map_err(|error| self.hinted(error))?;
        Ok(Fetched {
            code: code.to_vec(),
            image: Some(image),
            packed: None,
        })
    }

    /// A conversation about the repository of `reference`, with the credentials of the arguments, else with those of this
    /// host's docker configuration.
    pub(super) fn registry(&self, reference: &Reference) -> anyhow::Result<Registry> {
        let credential = match &self.credential {
            Some(credential) => Some(credential.clone()),
            None => credentials::of_host(&reference.registry)
                .context("the docker configuration cannot be used")?,
        };
        let downloader = self.downloader(reference.api_host())?;
        Ok(Registry::new(downloader, reference.clone(), credential))
    }

    fn download(&self, url: &str) -> anyhow::Result<Bytes> {
        anyhow::ensure!(
            self.credential.is_none(),
            "{url}: --username is for registries"
        );
        let authority = url.split("://").nth(1).unwrap_or_default();
        let host = authority.split(['/', '?', '#']).next().unwrap_or_default();
        let downloader = self.downloader(host)?;
        wait(url, downloader.code(url, false)).map_err(|error| self.hinted(error))
    }

    /// `host` is the one that the arguments name: `host` or `host:port`.
    fn downloader(&self, host: &str) -> anyhow::Result<Downloader> {
        let mut settings = WasmSettings::default();
        if self.plain_http {
            settings.insecure_registries.push(host.into());
        }
        if self.internal {
            settings.internal_registries.push(host.into());
        }
        Ok(Downloader::new(&settings)?)
    }

    /// With the option that helps: the reasons of the host name its settings.
    pub(super) fn hinted(&self, error: anyhow::Error) -> anyhow::Error {
        let download = match error.downcast_ref::<ImageError>() {
            Some(ImageError::Download(download)) => Some(download),
            Some(ImageError::Unauthorized { .. }) => {
                let hint = "give --username NAME --password-stdin, or log in with docker";
                return anyhow::anyhow!("{error}\nhint: {hint}");
            }
            Some(_) => None,
            None => error.downcast_ref(),
        };
        let hint = match download {
            Some(DownloadError::Refused {
                configured: true, ..
            }) => "--plain-http lets it be asked without TLS",
            Some(DownloadError::Refused {
                configured: false, ..
            }) => "--internal lets it send us on to private addresses",
            Some(DownloadError::Transport { .. }) if !self.plain_http => {
                "--plain-http is for those that have no TLS"
            }
            _ => return error,
        };
        anyhow::anyhow!("{error}\nhint: {hint}")
    }
}

/// Runs what is asked of a registry or a server, for as long as that is bearable.
///
/// # Errors
/// Its own, and where it takes too long.
pub(super) fn wait<T, E: Into<anyhow::Error>>(
    name: &str,
    work: impl Future<Output = Result<T, E>>,
) -> anyhow::Result<T> {
    super::host::runtime()?.block_on(async {
        match tokio::time::timeout(PATIENCE, work).await {
            Ok(result) => result.map_err(Into::into),
            Err(_) => anyhow::bail!("{name}: not done within {PATIENCE:?}"),
        }
    })
}

/// A password: a line, or all that there is.
fn password(mut from: impl std::io::Read) -> anyhow::Result<String> {
    let mut text = String::new();
    from.read_to_string(&mut text)
        .context("cannot read the password from standard input")?;
    let password = text.trim_end_matches(['\r', '\n']);
    anyhow::ensure!(
        !password.is_empty(),
        "there is no password on standard input"
    );
    Ok(password.to_owned())
}

/// An argument that is a text, or with `@` before it a file's name; and the folder from which its own references count.
///
/// # Errors
/// Where the file cannot be read.
pub(super) fn text(argument: &str) -> anyhow::Result<(Vec<u8>, PathBuf)> {
    let Some(file) = argument.strip_prefix('@') else {
        return Ok((argument.as_bytes().to_vec(), PathBuf::from(".")));
    };
    let read = read(Path::new(file))?;
    let folder = Path::new(file).parent().unwrap_or(Path::new("."));
    Ok((read, folder.to_owned()))
}
