//! Files that the world knows, checked byte for byte.

use std::path::PathBuf;

use super::{DataError, FileRecord, corpus};

/// The environment variable that names the data directory.
const DATA_DIR: &str = "HYMBA_DATA_DIR";

/// A public file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Published {
    pub(super) name: &'static str,
    pub(super) file: &'static str,
    pub(super) size: u64,
    pub(super) sha256: &'static str,
    pub(super) licence: &'static str,
    pub(super) address: &'static str,
}

/// Directories where a data set is looked for, the first one being where it should be put.
pub(super) fn directories() -> Vec<PathBuf> {
    match std::env::var_os(DATA_DIR) {
        Some(directory) if !directory.is_empty() => vec![directory.into()],
        _ => vec![PathBuf::from("data")],
    }
}

impl Published {
    /// The file's text, from the first of the directories that has it.
    pub(super) fn read(&self, directories: &[PathBuf]) -> Result<(String, FileRecord), DataError> {
        let path = directories.iter().map(|directory| directory.join(self.file)).find(|path| path.is_file());
        let Some(path) = path else {
            return Err(DataError::NotDownloaded {
                name: self.name,
                file: self.file,
                size: self.size,
                licence: self.licence,
                address: self.address,
                searched: directories.iter().map(|directory| directory.display().to_string()).collect(),
            });
        };
        let (text, record) = corpus::read_text(&path)?;
        if record.sha256 != self.sha256 {
            return Err(DataError::WrongFile {
                name: self.name,
                path,
                expected: self.sha256,
                expected_size: self.size,
                found: record.sha256,
                size: record.size,
            });
        }
        Ok((text, record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_altered_is_said_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let published = Published {
            name: "second_citizen",
            file: "citizen.txt",
            size: 16,
            sha256: "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            licence: "public domain text",
            address: "https://example.org/citizen.txt",
        };
        let here = [folder.path().to_owned()];
        let missing = published.read(&here).unwrap_err().to_string();
        assert!(missing.contains("curl -L -o") && missing.contains("citizen.txt https://"), "{missing}");
        std::fs::write(folder.path().join("citizen.txt"), "Second Citizen:").unwrap();
        let altered = published.read(&here).unwrap_err().to_string();
        assert!(altered.contains("86c4e6aa") && altered.contains("15 bytes"), "{altered}");
    }
}
