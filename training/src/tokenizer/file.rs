//! `kind: file`: a `tokenizer.json` from elsewhere.

use std::path::Path;

use hymba_plus::{component_config, config::RecipePath, register};
use tokenizers::Tokenizer as Library;

use super::{END_OF_TEXT, PAD, Tokenizer, TokenizerError};
use crate::slot::{Resolve, TokenizerSpec, tokenizer};

/// A tokenizer read from a `tokenizer.json`, as the Hugging Face libraries write it.
#[component_config]
pub struct TokenizerFile {
    /// The file.
    #[schemars(extend("x-exists" = true))]
    pub path: RecipePath,
    /// The token between documents, as the file spells it.
    #[default(END_OF_TEXT.to_owned())]
    pub end_of_text: String,
    /// The token that fills short rows; by default `<|pad|>` when the file has it, else `end_of_text`.
    pub pad: Option<String>,
}

register!(tokenizer "file" => TokenizerFile);

impl TokenizerFile {
    /// Reads a tokenizer and finds its borders.
    pub(super) fn read(path: &Path, end_of_text: &str, pad: &str) -> Result<Tokenizer, TokenizerError> {
        let library = Self::open(path)?;
        let (eos, pad) = (
            Self::find(path, &library, end_of_text, "the border between documents", "end_of_text")?,
            Self::find(path, &library, pad, "filling short rows", "pad")?,
        );
        let planned = library.get_vocab_size(true);
        Tokenizer::new(library, planned, eos, pad)
    }

    fn open(path: &Path) -> Result<Library, TokenizerError> {
        let bytes =
            std::fs::read(path).map_err(|source| TokenizerError::Io { path: path.to_owned(), source })?;
        Library::from_bytes(bytes)
            .map_err(|error| TokenizerError::Format { path: path.to_owned(), message: error.to_string() })
    }

    fn find(
        path: &Path,
        library: &Library,
        token: &str,
        role: &'static str,
        key: &'static str,
    ) -> Result<u32, TokenizerError> {
        library.token_to_id(token).ok_or_else(|| {
            let mut known: Vec<_> = library.get_added_tokens_decoder().into_iter().collect();
            known.sort_by_key(|(id, _)| *id);
            TokenizerError::MissingSpecial {
                path: path.to_owned(),
                token: token.to_owned(),
                role,
                key,
                known: known.into_iter().map(|(_, token)| token.content).collect(),
            }
        })
    }
}

impl TokenizerSpec for TokenizerFile {
    fn vocab_size(&self, resolve: Resolve<'_>) -> Result<usize, TokenizerError> {
        Ok(Self::open(&resolve(&self.path))?.get_vocab_size(true))
    }

    fn needs_training(&self) -> bool {
        false
    }

    fn build(&self, _texts: &[&str], resolve: Resolve<'_>) -> Result<Tokenizer, TokenizerError> {
        let path = resolve(&self.path);
        let pad = match &self.pad {
            Some(pad) => pad.as_str(),
            None if Self::open(&path)?.token_to_id(PAD).is_some() => PAD,
            None => &self.end_of_text,
        };
        Self::read(&path, &self.end_of_text, pad)
    }
}
