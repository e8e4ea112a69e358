//! `kind: named`: data sets that the world knows by name, checked byte for byte.

use std::path::PathBuf;

use hymba_plus::{component_config, register};

use super::{Corpus, DataError, Document, SplitKind, corpus, split};
use crate::slot::{DatasetSpec, Resolve, dataset};

/// The environment variable that names the data directory.
const DATA_DIR: &str = "HYMBA_DATA_DIR";

/// A public data set by its name, checked against its published SHA-256. It is looked for in the directory
/// `HYMBA_DATA_DIR`, or in `data/` where the command runs.
#[component_config]
pub struct NamedDataset {
    /// Which one.
    pub name: DatasetName,
    /// Part of the text, from its end, that is held out for validation.
    #[schemars(range(min = 0.0, max = 0.9))]
    #[default(0.1)]
    pub validation_fraction: f64,
}

register!(dataset "named" => NamedDataset);

/// Data sets of the catalogue.
#[component_config]
pub enum DatasetName {
    /// 1.1 MB of Shakespeare's plays in one file (Karpathy, char-rnn); public domain.
    TinyShakespeare,
    /// The validation part of WikiText-2 (Merity et al. 2016), tokenised by words; CC BY-SA 3.0.
    Wikitext2Valid,
    /// The test part of WikiText-2 (Merity et al. 2016), tokenised by words; CC BY-SA 3.0.
    Wikitext2Test,
}

/// A row of the catalogue.
#[derive(Debug, Clone, Copy)]
struct Published {
    name: &'static str,
    file: &'static str,
    size: u64,
    sha256: &'static str,
    licence: &'static str,
    address: &'static str,
}

impl DatasetName {
    fn published(self) -> Published {
        match self {
            Self::TinyShakespeare => Published {
                name: "tiny_shakespeare",
                file: "tinyshakespeare.txt",
                size: 1_115_394,
                sha256: "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                licence: "public domain text",
                address: "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            },
            Self::Wikitext2Valid => Published {
                name: "wikitext2_valid",
                file: "wikitext2-valid.txt",
                size: 1_121_681,
                sha256: "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
                licence: "CC BY-SA 3.0",
                address: "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/valid.txt",
            },
            Self::Wikitext2Test => Published {
                name: "wikitext2_test",
                file: "wikitext2-test.txt",
                size: 1_256_449,
                sha256: "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
                licence: "CC BY-SA 3.0",
                address: "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/test.txt",
            },
        }
    }
}

/// Directories where a data set is looked for, the first one being where it should be put.
fn directories() -> Vec<PathBuf> {
    match std::env::var_os(DATA_DIR) {
        Some(directory) if !directory.is_empty() => vec![directory.into()],
        _ => vec![PathBuf::from("data")],
    }
}

impl DatasetSpec for NamedDataset {
    fn load(&self, _resolve: Resolve<'_>) -> Result<Corpus, DataError> {
        self.load_from(&directories())
    }

    fn holds_out(&self) -> bool {
        self.validation_fraction > 0.0
    }
}

impl NamedDataset {
    fn load_from(&self, directories: &[PathBuf]) -> Result<Corpus, DataError> {
        let published = self.name.published();
        let path =
            directories.iter().map(|directory| directory.join(published.file)).find(|path| path.is_file());
        let Some(path) = path else {
            let shown: Vec<String> =
                directories.iter().map(|directory| directory.display().to_string()).collect();
            return Err(DataError::NotDownloaded {
                name: published.name,
                file: published.file,
                size: published.size,
                licence: published.licence,
                address: published.address,
                searched: shown,
            });
        };
        let (text, record) = corpus::read_text(&path)?;
        if record.sha256 != published.sha256 {
            return Err(DataError::WrongFile {
                name: published.name,
                path,
                expected: published.sha256,
                expected_size: published.size,
                found: record.sha256,
                size: record.size,
            });
        }
        let (train, validation) =
            split::split(vec![Document { text }], self.validation_fraction, SplitKind::Tail)?;
        Ok(Corpus { train, validation, files: vec![record] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_altered_is_said_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let dataset = NamedDataset { name: DatasetName::TinyShakespeare, validation_fraction: 0.1 };
        let here = [folder.path().to_owned()];
        let missing = dataset.load_from(&here).unwrap_err().to_string();
        assert!(
            missing.contains("curl -L -o") && missing.contains("tinyshakespeare.txt https://"),
            "{missing}"
        );
        std::fs::write(folder.path().join("tinyshakespeare.txt"), "Second Citizen:").unwrap();
        let altered = dataset.load_from(&here).unwrap_err().to_string();
        assert!(altered.contains("86c4e6aa") && altered.contains("15 bytes"), "{altered}");
    }
}
