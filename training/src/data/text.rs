//! `kind: text`: documents from text files.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use hymba_plus::{component_config, config::RecipePath, register};

use super::{Corpus, DataError, Document, SplitKind, corpus, split};
use crate::{
    files,
    slot::{DatasetSpec, Resolve, dataset},
};

/// Text files, each a document, or several with a separator between them.
#[component_config]
pub struct TextDataset {
    /// Files or globs (`corpus/**/*.txt`); all matches are read once, sorted by path.
    pub paths: Vec<RecipePath>,
    /// Part of the text that is held out for validation.
    #[schemars(range(min = 0.0, max = 0.9))]
    #[default(0.1)]
    pub validation_fraction: f64,
    /// What is held out: the last part of the text, or whole documents.
    #[default(SplitKind::Tail)]
    pub split: SplitKind,
    /// Text between two documents in one file; it belongs to neither. Without it, a file is a document.
    pub document_separator: Option<String>,
}

register!(dataset "text" => TextDataset);

impl DatasetSpec for TextDataset {
    fn load(&self, resolve: Resolve<'_>) -> Result<Corpus, DataError> {
        let mut paths = BTreeSet::new();
        for path in &self.paths {
            paths.extend(matching_files(&resolve(path))?);
        }
        let (mut documents, mut records) = (Vec::new(), Vec::new());
        for path in &paths {
            let (text, record) = corpus::read_text(path)?;
            records.push(record);
            documents.extend(self.documents(text));
        }
        match paths.first() {
            None => return Err(DataError::NoPaths),
            Some(first) if documents.is_empty() => {
                return Err(DataError::Empty { files: paths.len(), first: first.clone() });
            }
            Some(_) => {}
        }
        let (train, validation) = split::split(documents, self.validation_fraction, self.split)?;
        Ok(Corpus { train, validation, files: records })
    }
}

impl TextDataset {
    /// The documents of one file, without empty ones.
    fn documents(&self, text: String) -> Vec<Document> {
        let texts = match self.document_separator.as_deref() {
            Some(separator) if !separator.is_empty() => text.split(separator).map(str::to_owned).collect(),
            _ => vec![text],
        };
        texts.into_iter().filter(|text| !text.is_empty()).map(|text| Document { text }).collect()
    }
}

/// The file itself, or all files that a glob matches.
fn matching_files(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let pattern = path.to_string_lossy().into_owned();
    let invalid =
        |error: glob::PatternError| DataError::Glob { pattern: pattern.clone(), message: error.to_string() };
    let mut found = Vec::new();
    for entry in glob::glob(&pattern).map_err(invalid)? {
        let entry =
            entry.map_err(|error| DataError::Io { path: error.path().to_owned(), source: error.into() })?;
        if entry.is_file() {
            found.push(entry);
        }
    }
    if found.is_empty() {
        return Err(DataError::NoMatch { nearest: nearest_file(path), pattern });
    }
    Ok(found)
}

/// The file beside `path` that is spelt most like it.
fn nearest_file(path: &Path) -> Option<PathBuf> {
    let folder = files::parent(path);
    let names: Vec<String> = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter(|entry| entry.path().is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let wanted = path.file_name()?.to_string_lossy();
    files::nearest(&wanted, names.iter().map(String::as_str)).map(|name| folder.join(name))
}
