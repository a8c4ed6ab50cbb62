//! Files that somebody else names: no more of them is read than is of use, and nothing that never ends.

use std::fs::File;
use std::io::{Error, ErrorKind, Read as _, Result};
use std::path::Path;

/// All of a regular file of at most `limit` bytes. A device or a pipe, which may give bytes without end, or none without end,
/// is none.
///
/// # Errors
/// Where it cannot be read, is no regular file, or is larger.
pub fn read_regular(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() && !metadata.is_dir() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is no regular file"));
    }
    if metadata.is_file() && metadata.len() > limit {
        return Err(too_large(limit));
    }
    read_bounded(path, limit)
}

/// All that a file gives, be it a pipe, of at most `limit` bytes.
///
/// # Errors
/// Where it cannot be read, or gives more.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(limit));
    }
    Ok(bytes)
}

fn too_large(limit: u64) -> Error {
    Error::new(
        ErrorKind::FileTooLarge,
        format!("it has more than {limit} bytes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_not_read() {
        let zeros = Path::new("/dev/zero");
        let told = |result: Result<Vec<u8>>| result.expect_err("refused").to_string();
        assert_eq!(told(read_regular(zeros, 100)), "it is no regular file");
        assert_eq!(told(read_bounded(zeros, 100)), "it has more than 100 bytes");
    }

    #[test]
    fn a_file_is_read_to_its_limit() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, [7; 100]).expect("a file");
        assert_eq!(read_regular(&path, 100).expect("read"), [7; 100]);
        assert_eq!(read_bounded(&path, 100).expect("read"), [7; 100]);
        for read in [read_regular, read_bounded] {
            let error = read(&path, 99).expect_err("too large");
            assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        }
        let error = read_regular(folder.path(), 100).expect_err("a folder");
        assert_eq!(error.kind(), ErrorKind::IsADirectory);
    }
}
