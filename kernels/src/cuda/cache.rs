//! Compiled kernels on disk. Whatever is wrong with the disk costs a compilation, never a run.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

/// What an entry begins with; another number, and all older entries are compiled anew.
const MAGIC: &[u8] = b"hymba_plus cubin 1\n";
const DIGEST: usize = 32;

/// A folder of entries, each named by the SHA-256 of all that its content depends on; without a folder, nothing.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    folder: Option<PathBuf>,
}

/// The name of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key(String);

impl Key {
    /// The key of what depends on these texts and nothing else.
    pub(super) fn of<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            // With the length before it, so that no two lists of texts run together alike.
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Self(hasher.finalize().iter().fold(String::new(), |mut name, byte| {
            let _ = write!(name, "{byte:02x}");
            name
        }))
    }
}

impl Cache {
    /// A cache in this folder, which is made when the first entry is written.
    pub(super) fn at(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// The user's: `$XDG_CACHE_HOME/hymba_plus/kernels`, by default `~/.cache/hymba_plus/kernels`.
    pub(super) fn of_user() -> Self {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
        Self { folder: base.map(|base| base.join("hymba_plus/kernels")) }
    }

    /// Where the entries are, in words.
    pub(super) fn place(&self) -> String {
        self.folder.as_ref().map_or_else(|| "no folder".to_owned(), |folder| folder.display().to_string())
    }

    fn file(&self, key: &Key) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(format!("{}.cubin", key.0)))
    }

    /// The entry, if it is there and undamaged.
    pub(super) fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let entry = fs::read(self.file(key)?).ok()?;
        let (digest, content) = entry.strip_prefix(MAGIC)?.split_at_checked(DIGEST)?;
        (digest == &Sha256::digest(content)[..]).then(|| content.to_vec())
    }

    /// Writes the entry, or does not.
    pub(super) fn put(&self, key: &Key, content: &[u8]) {
        let Some(file) = self.file(key) else { return };
        // A cache that cannot be written is a slow start next time and nothing worse.
        let _ = write(&file, content);
    }
}

/// Writes a file of another name and renames it: readers see all of an entry or none of it.
fn write(file: &Path, content: &[u8]) -> std::io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let fresh = file.with_extension(format!("{}-{count}.new", std::process::id()));
    let entry = [MAGIC, &Sha256::digest(content)[..], content].concat();
    let written = fs::write(&fresh, entry).and_then(|()| fs::rename(&fresh, file));
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}
