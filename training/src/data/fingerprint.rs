//! What the data of a run is, so that a resumed run can tell whether it still is the same.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::FileRecord;

/// Everything that decides which batches come in which order, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(BTreeMap<String, String>);

impl Fingerprint {
    /// The fingerprint of files: each by name, so that a difference can be named.
    pub fn of_files(files: &[FileRecord]) -> Self {
        let mut fingerprint = Self::default();
        for (index, file) in files.iter().enumerate() {
            // The name without its folder: a run directory and its data may move together.
            let name =
                file.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            fingerprint = fingerprint.with(&format!("file {} ({name})", index + 1), &file.sha256);
        }
        fingerprint
    }

    /// Adds a setting.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.0.insert(name.to_owned(), value.to_string());
        self
    }

    /// Adds all settings of another one.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.0.extend(other.0.iter().map(|(name, value)| (name.clone(), value.clone())));
        self
    }

    /// What differs, as `name: was A, is B`, sorted by name; empty when nothing does.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let names: std::collections::BTreeSet<&String> = self.0.keys().chain(now.0.keys()).collect();
        let show = |value: Option<&String>| value.map_or("absent", String::as_str).to_owned();
        names
            .into_iter()
            .map(|name| (name, self.0.get(name), now.0.get(name)))
            .filter(|(_, was, is)| was != is)
            .map(|(name, was, is)| format!("{name}: was {}, is {}", show(was), show(is)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named() {
        let was = Fingerprint::default().with("seed", 1).with("tokenizer", "aa");
        let is = Fingerprint::default().with("seed", 2).with("sequence_length", 8);
        assert_eq!(
            was.differences(&is),
            ["seed: was 1, is 2", "sequence_length: was absent, is 8", "tokenizer: was aa, is absent"]
        );
        assert!(was.differences(&was.clone()).is_empty());
    }
}
