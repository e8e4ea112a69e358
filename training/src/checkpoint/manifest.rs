//! `checksums.json`: the size and SHA-256 of every other file of a checkpoint.

use std::{collections::BTreeMap, io, path::Path};

use serde::{Deserialize, Serialize};

use super::CheckpointError;
use crate::files;

/// The file's name.
pub(super) const CHECKSUMS: &str = "checksums.json";

/// What is known of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    size: u64,
    sha256: String,
}

/// The checksums of all files in a directory, as JSON. They are read back from the disk's cache: what is summed is what
/// was written.
pub(super) fn of_directory(path: &Path) -> io::Result<Vec<u8>> {
    let mut records = BTreeMap::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let (size, sha256) = files::digest(&entry.path())?;
        records.insert(entry.file_name().to_string_lossy().into_owned(), Record { size, sha256 });
    }
    Ok(serde_json::to_vec_pretty(&records)?)
}

/// Compares every file with its checksum and lists all that differ.
pub(super) fn verify(path: &Path) -> Result<(), CheckpointError> {
    let damaged = |findings| CheckpointError::Damaged { path: path.to_owned(), findings };
    let bytes = std::fs::read(path.join(CHECKSUMS))
        .map_err(|error| damaged(vec![format!("{CHECKSUMS}: {error}")]))?;
    let records: BTreeMap<String, Record> =
        serde_json::from_slice(&bytes).map_err(|error| damaged(vec![format!("{CHECKSUMS}: {error}")]))?;
    let mut findings = Vec::new();
    for name in [super::MODEL, super::OPTIMIZER, super::RNG, super::STATE] {
        if !records.contains_key(name) {
            findings.push(format!("{name}: not in {CHECKSUMS}"));
        }
    }
    for (name, record) in &records {
        match files::digest(&path.join(name)) {
            Err(error) => findings.push(format!("{name}: {error}")),
            Ok((size, _)) if size != record.size => {
                findings.push(format!("{name}: {size} bytes, expected {}", record.size));
            }
            Ok((_, sha256)) if sha256 != record.sha256 => {
                findings.push(format!("{name}: its SHA-256 differs"));
            }
            Ok(_) => {}
        }
    }
    if findings.is_empty() { Ok(()) } else { Err(damaged(findings)) }
}
