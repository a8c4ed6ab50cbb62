//! A folder of ours: nobody else writes to it, processes share it, and what is in it can be sealed with its key.
//!
//! The folder has mode 0700, its files 0600. A file is written beside its place and renamed into it: a reader sees all of
//! it or none. Modification times say when an entry was last of use.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

/// What a writer leaves that does not come to its end.
const PARTIAL: &str = "partial";
/// A partial file that is older has nobody who writes to it.
const ABANDONED: Duration = Duration::from_secs(600);

/// The folder.
#[derive(Debug)]
pub(crate) struct PrivateFolder {
    folder: PathBuf,
    key: [u8; 32],
}

/// Shows that this host wrote something.
pub(crate) struct Seal(pub(crate) [u8; 32]);

impl Seal {
    /// True where `other` is this seal; takes as long whatever it is.
    pub(crate) fn is(&self, other: &[u8]) -> bool {
        let differences = self
            .0
            .iter()
            .zip(other)
            .fold(0, |all, (a, b)| all | (a ^ b));
        other.len() == self.0.len() && differences == 0
    }
}

/// A file of the folder.
#[derive(Debug)]
pub(crate) struct Entry {
    /// When it was last of use.
    pub(crate) used: SystemTime,
    pub(crate) path: PathBuf,
    /// In bytes.
    pub(crate) size: u64,
}

impl PrivateFolder {
    /// Opens or makes it.
    pub(crate) fn open(folder: &Path) -> std::io::Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        check_private(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            key: open_key(&folder.join("key"))?,
        })
    }

    /// Where the entry `name` is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// For a person.
    pub(crate) fn shown(&self) -> std::path::Display<'_> {
        self.folder.display()
    }

    /// HMAC-SHA256 over the parts; the caller sees to it that no two lists of parts run together alike.
    pub(crate) fn seal(&self, parts: &[&[u8]]) -> Seal {
        let pad = |byte: u8| {
            let mut block = [byte; 64];
            for (to, from) in block.iter_mut().zip(&self.key) {
                *to ^= from;
            }
            block
        };
        let mut inner = Sha256::new_with_prefix(pad(0x36));
        for part in parts {
            inner.update(part);
        }
        let outer = Sha256::new_with_prefix(pad(0x5c)).chain_update(inner.finalize());
        Seal(outer.finalize().into())
    }

    /// Puts a file there, whole, and gives it opened.
    pub(crate) fn write(&self, name: &str, parts: &[&[u8]]) -> std::io::Result<File> {
        let partial = self.path(&format!(
            "{name}.{}-{:x}.{PARTIAL}",
            std::process::id(),
            fastrand::u64(..)
        ));
        let written = (|| {
            let mut file = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&partial)?;
            for part in parts {
                file.write_all(part)?;
            }
            file.sync_all()?;
            std::fs::rename(&partial, self.path(name))?;
            Ok(file)
        })();
        if written.is_err() {
            let _ = std::fs::remove_file(&partial);
        }
        written
    }

    /// Those with this extension, the least recently used first. What crashed writers left is removed on the way.
    pub(crate) fn entries(&self, extension: &str) -> Vec<Entry> {
        let Ok(entries) = std::fs::read_dir(&self.folder) else {
            return Vec::new();
        };
        let now = SystemTime::now();
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let Ok(used) = metadata.modified() else {
                continue;
            };
            let kind = path.extension().and_then(|extension| extension.to_str());
            if kind == Some(PARTIAL) && now.duration_since(used).unwrap_or_default() > ABANDONED {
                let _ = std::fs::remove_file(&path);
            }
            if kind == Some(extension) {
                found.push(Entry {
                    used,
                    path,
                    size: metadata.len(),
                });
            }
        }
        found.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
        found
    }
}

/// It is of use now; only a hint, for the eviction of others.
pub(crate) fn touch(path: &Path) {
    if let Ok(file) = File::open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}

/// Refuses a folder that others can write to.
fn check_private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let metadata = std::fs::metadata(folder)?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        // Ours, perhaps made by hand: close it. Somebody else's: this fails.
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    }
    let own = std::fs::metadata("/proc/self").map(|process| process.uid());
    if own.is_ok_and(|uid| uid != metadata.uid()) {
        return Err(std::io::Error::new(
            std::io::ErrorKind::PermissionDenied,
            "the cache folder belongs to another user",
        ));
    }
    Ok(())
}

/// Reads the key, or makes one. Processes that race agree on the first.
fn open_key(path: &Path) -> std::io::Result<[u8; 32]> {
    for _ in 0..100 {
        match std::fs::read(path) {
            Ok(bytes) => {
                if let Ok(key) = <[u8; 32]>::try_from(bytes.as_slice()) {
                    return Ok(key);
                }
                // Half written by a process that is gone: without it every entry is void, as it should be.
                std::fs::remove_file(path)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut key = [0; 32];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut key)?;
        let partial =
            path.with_extension(format!("{}-{:x}", std::process::id(), fastrand::u64(..)));
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(&key)?;
        // A link does not replace: the first one wins, and the loop reads it.
        let _ = std::fs::hard_link(&partial, path);
        std::fs::remove_file(&partial)?;
    }
    Err(std::io::Error::other("the cache key cannot be made"))
}
