//! `kind: text`: documents from text files.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use hymba_plus::{component_config, config::RecipePath, register};

use super::{Corpus, DataError, Dataset, Description, Document, Fingerprint, SplitKind, corpus, split};
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
    fn describe(&self, _resolve: Resolve<'_>) -> Result<Description, DataError> {
        Ok(Description::Text)
    }

    fn load(&self, resolve: Resolve<'_>) -> Result<Dataset, DataError> {
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
        Ok(Dataset::Text(Corpus { train, validation, files: records, settings: Fingerprint::default() }))
    }

    fn holds_out(&self) -> bool {
        self.validation_fraction > 0.0
    }
}

impl TextDataset {
    /// The documents of one file, without empty ones.
    fn documents(&self, text: String) -> Vec<Document> {
        let texts = match self.document_separator.as_deref() {
            Some(separator) if !separator.is_empty() => text.split(separator).map(str::to_owned).collect(),
            _ => vec![text],
        };
        texts.into_iter().filter(|text| !text.is_empty()).map(Document::of_text).collect()
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

#[cfg(test)]
mod tests {
    use hymba_plus::registry::Component;
    use serde_json::json;

    use super::*;

    fn load(folder: &Path, config: serde_json::Value) -> Result<Corpus, DataError> {
        let component: Component<dataset> = serde_json::from_value(config).unwrap();
        match component.make().unwrap().load(&|path| folder.join(path.as_str()))? {
            Dataset::Text(corpus) => Ok(corpus),
            other => panic!("{other:?}"),
        }
    }

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        folder
    }

    fn texts(documents: &[Document]) -> Vec<&str> {
        documents.iter().map(|document| document.text.as_str()).collect()
    }

    #[test]
    fn globs_are_sorted_and_a_file_is_read_once() {
        let folder = folder(&[("b.txt", b"bb"), ("a.txt", b"aa"), ("deep/er/c.txt", b"cc"), ("d.md", b"dd")]);
        let config = json!({ "kind": "text", "paths": ["a.txt", "**/*.txt"], "validation_fraction": 0.0 });
        let corpus = load(folder.path(), config).unwrap();
        assert_eq!(texts(&corpus.train), ["aa", "bb", "cc"]);
        assert_eq!(corpus.files.len(), 3);
        assert_eq!(corpus.files[0].size, 2);
        let aa = "961b6dd3ede3cb8ecbaacbd68de040cd78eb2ed5889130cceb4c49268ea4d506";
        assert_eq!(corpus.files[0].sha256, aa);
    }

    #[test]
    fn a_separator_cuts_documents() {
        let folder = folder(&[("a.txt", b"one\n---\ntwo\n---\n\n---\nthree\n---\n")]);
        let config = json!({
            "kind": "text", "paths": ["a.txt"], "document_separator": "\n---\n", "split": "documents",
            "validation_fraction": 0.34,
        });
        let corpus = load(folder.path(), config).unwrap();
        assert_eq!(texts(&corpus.train), ["one", "two"]);
        assert_eq!(texts(&corpus.validation), ["three"]);
    }

    #[test]
    fn what_is_wrong_with_the_files_is_said() {
        let folder =
            folder(&[("shakespeare.txt", b"x"), ("latin.txt", b"caf\nr\xe9sum"), ("empty.txt", b"")]);
        for (paths, words) in [
            (json!(["shakespere.txt"]), vec!["shakespere.txt` matches no file", "shakespeare.txt"]),
            (json!(["*.csv"]), vec!["*.csv` matches no file"]),
            (json!(["latin.txt"]), vec!["latin.txt is not UTF-8", "0xe9", "offset 5", "line 2"]),
            (json!(["empty.txt"]), vec!["no text", "empty.txt"]),
            (json!(["a[.txt"]), vec!["not a valid glob"]),
            (json!([]), vec!["`paths` is empty"]),
        ] {
            let error =
                load(folder.path(), json!({ "kind": "text", "paths": paths })).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{paths}: {error}");
        }
    }
}
