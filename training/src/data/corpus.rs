//! Documents and the files they came from.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{DataError, Fingerprint};
use crate::files;

/// One document: a text from its first to its last character, then numbers if it has any.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The text.
    pub text: String,
    /// A series after the text; it needs a tokenizer with tokens for numbers.
    pub numbers: Option<Numbers>,
}

impl Document {
    /// A document without numbers.
    pub fn of_text(text: String) -> Self {
        Self { text, numbers: None }
    }
}

/// Numbers of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Numbers {
    /// The values.
    pub values: Vec<f64>,
    /// How many of the first of them all are scaled by.
    pub known: usize,
}

/// A file that was read, as the run's manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Where it was read.
    pub path: PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// Everything a dataset gives: two sets of documents and the files they came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Corpus {
    /// Documents to train on.
    pub train: Vec<Document>,
    /// Documents held out.
    pub validation: Vec<Document>,
    /// The files, sorted by path.
    pub files: Vec<FileRecord>,
    /// What decides the documents besides the files.
    pub settings: Fingerprint,
}

impl Corpus {
    /// The training texts, as a tokenizer is trained on them.
    pub fn training_texts(&self) -> Vec<&str> {
        self.train.iter().map(|document| document.text.as_str()).collect()
    }
}

/// Reads a text file and its checksum; says where it stops being UTF-8.
pub(super) fn read_text(path: &Path) -> Result<(String, FileRecord), DataError> {
    let bytes = std::fs::read(path).map_err(|source| DataError::Io { path: path.to_owned(), source })?;
    let record = FileRecord {
        path: path.to_owned(),
        size: bytes.len() as u64,
        sha256: files::hex(&Sha256::digest(&bytes)),
    };
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        DataError::NotUtf8 {
            path: path.to_owned(),
            offset,
            line: bytes[..offset].split(|&byte| byte == b'\n').count(),
            byte: bytes[offset],
        }
    })?;
    Ok((text, record))
}
