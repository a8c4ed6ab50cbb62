//! A folder of ours: nobody else writes to it, processes share it, and what is in it can be sealed with its key.
//!
//! The folder has mode 0700, its files 0600. A file is written beside its place and then put into it: a reader sees all of
//! it or none. Modification times say when an entry was last of use.
//!
//! What is above the folder may be open to all, as a volume of Kubernetes is: somebody else's folder in its place is
//! refused. One of ours that others could write to is closed, and what they may have put there is not believed: it gets a
//! new key.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Error, ErrorKind, Read as _, Result, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
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
    /// What the disk under it holds.
    #[cfg(test)]
    pub(crate) room: u64,
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
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        Self::open_as(folder, own_uid(folder)?)
    }

    /// As the user `own`.
    fn open_as(folder: &Path, own: u32) -> Result<Self> {
        let directory = open_directory(folder)?;
        // Of those who find it open one makes the key that all have.
        await_turn(&directory);
        let key = folder.join("key");
        if close(&directory, folder, own)? {
            void(&key)?;
        }
        let folder = Self {
            folder: folder.to_owned(),
            key: open_key(&key, own)?,
            #[cfg(test)]
            room: u64::MAX,
        };
        // What crashed writers left takes the room of others.
        folder.entries(PARTIAL);
        Ok(folder)
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

    /// Puts a file there, whole, in the place of what is there.
    pub(crate) fn write(&self, name: &str, parts: &[&[u8]]) -> Result<()> {
        self.place(name, parts, |_, partial, path| {
            std::fs::rename(partial, path)
        })
    }

    /// Puts a file there, whole, unless there is one; gives it with a shared lock, which it has had from the first moment
    /// that others could see it.
    pub(crate) fn add(&self, name: &str, parts: &[&[u8]]) -> Result<Option<File>> {
        self.place(name, parts, |file, partial, path| {
            file.try_lock_shared()?;
            // Unlike a rename, a link replaces nothing.
            let linked = std::fs::hard_link(partial, path);
            let _ = std::fs::remove_file(partial);
            match linked {
                Ok(()) => Ok(Some(file)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    /// Writes a file beside the entry `name`, for `place` to put it there.
    fn place<T>(
        &self,
        name: &str,
        parts: &[&[u8]],
        place: impl FnOnce(File, &Path, &Path) -> Result<T>,
    ) -> Result<T> {
        #[cfg(test)]
        self.find_room(parts)?;
        let partial = self.path(&partial_name(name));
        let placed = create(&partial).and_then(|mut file| {
            for part in parts {
                file.write_all(part)?;
            }
            file.sync_all()?;
            place(file, &partial, &self.path(name))
        });
        if placed.is_err() {
            let _ = std::fs::remove_file(&partial);
        }
        placed
    }

    #[cfg(test)]
    fn find_room(&self, parts: &[&[u8]]) -> Result<()> {
        let files = std::fs::read_dir(&self.folder)?.flatten();
        let taken: u64 = files
            .filter_map(|file| Some(file.metadata().ok()?.len()))
            .sum();
        let wanted: usize = parts.iter().map(|part| part.len()).sum();
        match taken + wanted as u64 > self.room {
            true => Err(ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
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

/// What `write` says; where it fails, what it says after a `sweep`, which may have made room.
pub(crate) fn with_room<T>(sweep: impl FnOnce(), write: impl Fn() -> Result<T>) -> Result<T> {
    write().or_else(|_| {
        sweep();
        write()
    })
}

/// It is of use now; only a hint, for the eviction of others.
pub(crate) fn touch(path: &Path) {
    if let Ok(file) = open_file(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}

/// Opens a regular file to be read. Whoever put it there: no link is followed, and no pipe waited for.
pub(crate) fn open_file(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is no regular file"));
    }
    Ok(file)
}

/// Beside the entry `name`, for one writer.
fn partial_name(name: &str) -> String {
    let (process, writer) = (std::process::id(), fastrand::u64(..));
    format!("{name}.{process}-{writer:x}.{PARTIAL}")
}

fn create(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Who this process is.
fn own_uid(folder: &Path) -> Result<u32> {
    if let Ok(process) = std::fs::metadata("/proc/self") {
        return Ok(process.uid());
    }
    // What it makes is its own.
    let path = folder.join(partial_name("probe"));
    let made = create(&path).and_then(|file| file.metadata());
    let _ = std::fs::remove_file(path);
    Ok(made?.uid())
}

fn open_directory(folder: &Path) -> Result<File> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(folder);
    opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOTDIR | libc::ELOOP) => Error::new(
            ErrorKind::NotADirectory,
            "it is no directory, or a symbolic link, which is not followed here",
        ),
        _ => error,
    })
}

/// One process at a time, where the file system has locks. Who could look into the folder may hold it: not for ever.
fn await_turn(directory: &File) {
    for _ in 0..100 {
        match directory.try_lock() {
            Err(std::fs::TryLockError::WouldBlock) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            _ => return,
        }
    }
}

/// Sees to it that nobody else writes to it, nor looks into it; refuses one of another user. True where others could
/// write until now.
fn close(directory: &File, folder: &Path, own: u32) -> Result<bool> {
    let metadata = directory.metadata()?;
    if metadata.uid() != own {
        let owner = metadata.uid();
        let reason = format!(
            "the folder belongs to another user ({owner}, this is {own}): name a place where it can be made"
        );
        return Err(Error::new(ErrorKind::PermissionDenied, reason));
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        directory.set_permissions(Permissions::from_mode(0o700))?;
    }
    let open = mode & 0o022 != 0;
    if open {
        let folder = folder.display();
        tracing::warn!(
            target: "wasm",
            "others could write to {folder} (mode {mode:03o}): it is closed now, and what is in it is not believed"
        );
    }
    Ok(open)
}

/// Takes the key away; without it every entry is void.
fn void(key: &Path) -> Result<()> {
    match std::fs::remove_file(key) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads the key, or makes one. Processes that race agree on the first.
fn open_key(path: &Path, own: u32) -> Result<[u8; 32]> {
    for _ in 0..100 {
        match read_key(path, own) {
            Ok(Some(key)) => return Ok(key),
            Ok(None) => {
                tracing::warn!(
                    target: "wasm",
                    "{} is no key that this user alone has: another one is made, and no entry is believed",
                    path.display()
                );
                void(path)?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut key = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut key)?;
        let partial = path.with_file_name(partial_name("key"));
        let mut file = create(&partial)?;
        let written = file.write_all(&key);
        // A link does not replace: the first one wins, and the loop reads it.
        let _ = written.is_ok().then(|| std::fs::hard_link(&partial, path));
        std::fs::remove_file(&partial)?;
        written?;
    }
    Err(Error::other("the cache key cannot be made"))
}

/// `None` where it is not whole, or others could have written or read it.
fn read_key(path: &Path, own: u32) -> Result<Option<[u8; 32]>> {
    if !std::fs::symlink_metadata(path)?.is_file() {
        return Ok(None);
    }
    let file = match open_file(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(None),
        file => file?,
    };
    let metadata = file.metadata()?;
    if metadata.uid() != own || metadata.mode() & 0o077 != 0 {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(33).read_to_end(&mut bytes)?;
    Ok(bytes.try_into().ok())
}

#[cfg(test)]
#[path = "disk/tests.rs"]
mod tests;
