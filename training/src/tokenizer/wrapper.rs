//! The one tokenizer that everything else uses, whatever trained it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer as Library;

use super::{StreamDecoder, TokenizerError, special};
use crate::files;

/// The file beside a `tokenizer.json` that names its borders, as the Hugging Face libraries read it.
const CONFIG: &str = "tokenizer_config.json";

/// What that file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Borders {
    eos_token: String,
    pad_token: String,
    planned_vocab_size: Option<usize>,
}

/// A tokenizer with its borders named: one `tokenizer.json` and the ids of the two tokens that training needs.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    library: Library,
    json: String,
    planned: usize,
    end_of_text: u32,
    pad: u32,
}

impl Tokenizer {
    /// Wraps a finished tokenizer; `planned` is the size of the vocabulary that the recipe asked for.
    pub(super) fn new(
        mut library: Library,
        planned: usize,
        end_of_text: u32,
        pad: u32,
    ) -> Result<Self, TokenizerError> {
        // What a text says stays text: `<|endoftext|>` inside a document must not end it.
        library.set_encode_special_tokens(true);
        let json =
            library.to_string(false).map_err(TokenizerError::library("writing the tokenizer as JSON"))?;
        Ok(Self { library, json, planned, end_of_text, pad })
    }

    /// Wraps a tokenizer with our own two special tokens in its vocabulary.
    pub(super) fn with_own_specials(library: Library, planned: usize) -> Result<Self, TokenizerError> {
        let id = |token: &str| {
            library.token_to_id(token).ok_or_else(|| TokenizerError::Library {
                doing: "finding the special tokens",
                message: format!("`{token}` is not in the vocabulary"),
            })
        };
        let (end_of_text, pad) = (id(special::END_OF_TEXT)?, id(special::PAD)?);
        Self::new(library, planned, end_of_text, pad)
    }

    /// Reads a `tokenizer.json`, and its borders from the `tokenizer_config.json` beside it; without one they are
    /// `<|endoftext|>` and `<|pad|>`.
    ///
    /// # Errors
    /// When a file cannot be read, or the vocabulary lacks one of the borders.
    pub fn load(path: &Path) -> Result<Self, TokenizerError> {
        let beside = path.with_file_name(CONFIG);
        let borders: Option<Borders> = match std::fs::read(&beside) {
            Ok(bytes) => Some(
                serde_json::from_slice(&bytes)
                    .map_err(|error| TokenizerError::Format { path: beside, message: error.to_string() })?,
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(TokenizerError::Io { path: beside, source }),
        };
        let eos = borders.as_ref().map_or(special::END_OF_TEXT, |borders| &borders.eos_token);
        let pad = borders.as_ref().map_or(special::PAD, |borders| &borders.pad_token);
        let mut tokenizer = super::TokenizerFile::read(path, eos, pad)?;
        if let Some(planned) = borders.and_then(|borders| borders.planned_vocab_size) {
            tokenizer.planned = planned;
        }
        Ok(tokenizer)
    }

    /// Writes the `tokenizer.json`, and its borders to a `tokenizer_config.json` beside it, each whole or not at all.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), TokenizerError> {
        let name = |id| self.library.id_to_token(id).unwrap_or_default();
        let borders = Borders {
            eos_token: name(self.end_of_text),
            pad_token: name(self.pad),
            planned_vocab_size: Some(self.planned),
        };
        let write = |path: &Path, bytes: &[u8]| {
            files::write_atomically(path, bytes)
                .map_err(|source| TokenizerError::Io { path: path.to_owned(), source })
        };
        let beside = path.with_file_name(CONFIG);
        let borders = serde_json::to_vec_pretty(&borders)
            .map_err(|error| TokenizerError::Io { path: beside.clone(), source: error.into() })?;
        write(&beside, &borders)?;
        write(path, self.json.as_bytes())
    }

    /// Token ids of a text, without any token at its borders. Special tokens that the text spells out are text.
    ///
    /// # Errors
    /// When the library fails (a file's own rules can).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding =
            self.library.encode_fast(text, false).map_err(TokenizerError::library("encoding a text"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of many texts, worked on in parallel, in the order of the texts.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let encodings = self
            .library
            .encode_batch_fast(texts.to_vec(), false)
            .map_err(TokenizerError::library("encoding a batch of texts"))?;
        Ok(encodings.iter().map(|encoding| encoding.get_ids().to_vec()).collect())
    }

    /// The text of token ids; special tokens appear by name. Ids beyond the vocabulary give nothing.
    ///
    /// # Errors
    /// When the library fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.library.decode(ids, false).map_err(TokenizerError::library("decoding token ids"))
    }

    /// A decoder for tokens that come one by one.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// Size of the vocabulary for a model: what the recipe planned, which a small text may not fill.
    pub fn planned_vocab_size(&self) -> usize {
        self.planned
    }

    /// Number of tokens that exist, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.library.get_vocab_size(true)
    }

    /// A sentence for the user when the text did not fill the planned vocabulary.
    pub fn notice(&self) -> Option<String> {
        let (have, planned) = (self.vocab_size(), self.planned);
        (have < planned).then(|| {
            format!(
                "the training text gave a vocabulary of {have} tokens, not the planned {planned}; the model keeps \
                 {planned} rows, and the last {} are never used",
                planned - have
            )
        })
    }

    /// Id of the border between documents.
    pub fn eos(&self) -> u32 {
        self.end_of_text
    }

    /// Id of the filler of short rows.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// The id of a token, special or not, by its exact spelling in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.library.token_to_id(token)
    }

    /// SHA-256 of the `tokenizer.json`, in hexadecimal.
    pub fn hash(&self) -> String {
        files::hex(&Sha256::digest(self.json.as_bytes()))
    }
}
