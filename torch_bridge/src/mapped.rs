//! Files mapped into memory: large weights are read page by page as they are copied, and never held twice.

use std::{
    fs::File,
    ops::Deref,
    path::{Path, PathBuf},
};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A whole file as bytes, read-only.
///
/// The system reads a page when it is first looked at. A file that another process shortens while it is mapped ends
/// this process; files that are replaced by renaming, as finished weights are, are safe.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Option<Mmap>,
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// When it cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Io { path: path.display().to_string(), source };
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        // Nothing can be mapped of an empty file.
        let map = if length == 0 {
            None
        } else {
            // SAFETY: the mapping is private and read-only, and lives as long as the slice that is lent from it. Bytes
            // are only ever copied out, so a writer elsewhere can make them wrong but not break an invariant of a type.
            Some(unsafe { Mmap::map(&file) }.map_err(failed)?)
        };
        Ok(Self { path: path.to_owned(), map })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_its_bytes() {
        let path = std::env::temp_dir().join(format!("hymba-mapped-{}", std::process::id()));
        for bytes in [&b""[..], b"weights"] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(&*MappedFile::open(&path).unwrap(), bytes);
        }
        std::fs::remove_file(&path).unwrap();
        let error = MappedFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("hymba-mapped"), "{error}");
    }
}
