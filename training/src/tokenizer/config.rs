//! The `tokenizer_config.json` beside a `tokenizer.json`: names of special tokens, chat templates, and our own part.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{TokenizerError, series::SeriesBins};
use crate::files;

const CONFIG: &str = "tokenizer_config.json";

/// Newer checkpoints keep their template in a file of its own.
const TEMPLATE: &str = "chat_template.jinja";

/// The key of our own part.
const OWN: &str = "hymba_plus";

/// Our own part of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Borders {
    /// The token between documents.
    pub(super) end_of_text: String,
    /// The token that fills short rows.
    pub(super) pad: String,
    /// Size of the vocabulary that the recipe asked for.
    pub(super) planned_vocab_size: usize,
    /// How numbers become tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) series: Option<SeriesBins>,
}

/// What the file says; everything in it is kept, also what nothing here reads.
#[derive(Debug, Clone, Default)]
pub(super) struct TokenizerConfig {
    values: Map<String, Value>,
}

impl TokenizerConfig {
    /// The file beside a `tokenizer.json`, with the template of the file beside that; empty without one.
    pub(super) fn beside(tokenizer: &Path) -> Result<Self, TokenizerError> {
        let path = tokenizer.with_file_name(CONFIG);
        let mut values: Map<String, Value> = match read(&path)? {
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| TokenizerError::Config { path, message: error.to_string() })?,
            None => Map::new(),
        };
        let path = tokenizer.with_file_name(TEMPLATE);
        if let Some(bytes) = read(&path)? {
            let template = String::from_utf8(bytes)
                .map_err(|error| TokenizerError::Config { path, message: error.to_string() })?;
            values.insert("chat_template".to_owned(), template.into());
        }
        Ok(Self { values })
    }

    /// Our own part; of a file of an earlier version, what it has of it.
    pub(super) fn borders(&self) -> Option<Borders> {
        if let Some(own) = self.values.get(OWN) {
            return serde_json::from_value(own.clone()).ok();
        }
        let planned = self.values.get("planned_vocab_size")?.as_u64()?;
        let planned_vocab_size = usize::try_from(planned).ok()?;
        Some(Borders {
            end_of_text: self.token("eos_token")?,
            pad: self.token("pad_token")?,
            planned_vocab_size,
            series: None,
        })
    }

    /// A special token by its role (`eos_token`): a text, or an object with its `content`.
    pub(super) fn token(&self, role: &str) -> Option<String> {
        let value = self.values.get(role)?;
        value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
    }

    /// Every special token by its role.
    pub(super) fn tokens(&self) -> BTreeMap<String, String> {
        let roles = self.values.keys().filter(|key| key.ends_with("_token"));
        roles.filter_map(|role| Some((role.clone(), self.token(role)?))).collect()
    }

    /// Chat templates by name; one without a name is `default`.
    pub(super) fn templates(&self) -> BTreeMap<String, String> {
        match self.values.get("chat_template") {
            Some(Value::String(template)) => BTreeMap::from([("default".to_owned(), template.clone())]),
            Some(Value::Array(list)) => {
                let text = |entry: &Value, key: &str| entry.get(key)?.as_str().map(str::to_owned);
                list.iter()
                    .filter_map(|entry| Some((text(entry, "name")?, text(entry, "template")?)))
                    .collect()
            }
            _ => BTreeMap::new(),
        }
    }

    /// Takes a chat template in the place of those that are there.
    pub(super) fn set_template(&mut self, template: &str) {
        self.values.insert("chat_template".to_owned(), template.into());
    }

    /// Writes the file beside a `tokenizer.json`, with our own part in it; roles without a token get the borders, so
    /// that other libraries find them.
    pub(super) fn save(&self, tokenizer: &Path, borders: &Borders) -> Result<(), TokenizerError> {
        let path = tokenizer.with_file_name(CONFIG);
        let failed = |source| TokenizerError::Io { path: path.clone(), source };
        let mut values = self.values.clone();
        values.remove("planned_vocab_size");
        for (role, token) in [("eos_token", &borders.end_of_text), ("pad_token", &borders.pad)] {
            if self.token(role).is_none() {
                values.insert(role.to_owned(), token.as_str().into());
            }
        }
        let own = serde_json::to_value(borders).map_err(|error| failed(error.into()))?;
        values.insert(OWN.to_owned(), own);
        let bytes = serde_json::to_vec_pretty(&values).map_err(|error| failed(error.into()))?;
        files::write_atomically(&path, &bytes).map_err(failed)
    }
}

/// A file, if there is one.
fn read(path: &PathBuf) -> Result<Option<Vec<u8>>, TokenizerError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Io { path: path.clone(), source }),
    }
}
