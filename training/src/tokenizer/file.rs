//! `kind: file`: a `tokenizer.json` from elsewhere.

use std::path::Path;

use hymba_plus::{component_config, config::RecipePath, register};
use tokenizers::Tokenizer as Library;

use super::{END_OF_TEXT, PAD, Tokenizer, TokenizerError, config::TokenizerConfig};
use crate::slot::{Resolve, TokenizerSpec, tokenizer};

/// A tokenizer read from a `tokenizer.json`, as the Hugging Face libraries write it. A `tokenizer_config.json` and a
/// `chat_template.jinja` beside it come along: names of special tokens, the template of chats.
#[component_config]
pub struct TokenizerFile {
    /// The file.
    #[schemars(extend("x-exists" = true))]
    pub path: RecipePath,
    /// The token between documents, as the file spells it; by default the `eos_token` of the `tokenizer_config.json`,
    /// else `<|endoftext|>`.
    pub end_of_text: Option<String>,
    /// The token that fills short rows; by default the `pad_token` of the `tokenizer_config.json`, else `<|pad|>` when
    /// the file has it, else `end_of_text`.
    pub pad: Option<String>,
}

register!(tokenizer "file" => TokenizerFile);

impl TokenizerFile {
    /// Reads a tokenizer with what stands beside it, and finds its borders.
    pub(super) fn read(
        path: &Path,
        end_of_text: Option<&str>,
        pad: Option<&str>,
    ) -> Result<Tokenizer, TokenizerError> {
        let (library, config) = (Self::open(path)?, TokenizerConfig::beside(path)?);
        let own = config.borders();
        let said = |told: Option<&str>, own: Option<&String>, role: &str| {
            told.map(str::to_owned).or_else(|| own.cloned()).or_else(|| config.token(role))
        };
        let end_of_text = said(end_of_text, own.as_ref().map(|own| &own.end_of_text), "eos_token");
        let end_of_text = end_of_text.unwrap_or_else(|| END_OF_TEXT.to_owned());
        let pad = said(pad, own.as_ref().map(|own| &own.pad), "pad_token")
            .or_else(|| library.token_to_id(PAD).map(|_| PAD.to_owned()))
            .unwrap_or_else(|| end_of_text.clone());
        let eos = Self::find(path, &library, &end_of_text, "the border between documents", "end_of_text")?;
        let pad = Self::find(path, &library, &pad, "filling short rows", "pad")?;
        let planned = library.get_vocab_size(true);
        Ok(Tokenizer::new(library, planned, eos, pad)?.with_config(config))
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
        Self::read(&resolve(&self.path), self.end_of_text.as_deref(), self.pad.as_deref())
    }
}
