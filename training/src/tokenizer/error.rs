//! What can go wrong with a tokenizer.

use std::path::PathBuf;

use super::chat::ChatError;

/// Why a tokenizer could not be made, read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file could not be read or written.
    #[error("tokenizer file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not a tokenizer.json that this library reads.
    #[error("{path} is not a tokenizer.json that can be read: {message}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        message: String,
    },
    /// A file beside the tokenizer is not what it should be.
    #[error("{path} cannot be read: {message}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        message: String,
    },
    /// A chat did not become a text.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// A special token that the run needs is not in the vocabulary.
    #[error(
        "{path} has no token `{token}` for {role}; its special tokens are: {}. Name the right one as `{key}`",
        if known.is_empty() { "none".to_owned() } else { known.join(" ") }
    )]
    MissingSpecial {
        /// The file.
        path: PathBuf,
        /// The token that was looked for.
        token: String,
        /// What it is needed for.
        role: &'static str,
        /// The key of the configuration that names it.
        key: &'static str,
        /// Special tokens that the file has.
        known: Vec<String>,
    },
    /// A special token could come out of ordinary text.
    #[error(
        "special token `{token}` could come out of ordinary text: {reason}; write it like `<|name|>`, a name between symbols"
    )]
    Special {
        /// The token.
        token: String,
        /// Why not.
        reason: &'static str,
    },
    /// The vocabulary cannot hold what it must.
    #[error("vocab_size {vocab_size} is too small: 256 bytes and {specials} special tokens need at least {}", 256 + specials)]
    VocabularyTooSmall {
        /// What the recipe asks for.
        vocab_size: usize,
        /// Number of special tokens.
        specials: usize,
    },
    /// There is no text to train on.
    #[error("no text to train the tokenizer on: the training split is empty")]
    NoText,
    /// The tokenizers library failed.
    #[error("{doing}: {message}")]
    Library {
        /// What was being done.
        doing: &'static str,
        /// What the library says.
        message: String,
    },
}

impl TokenizerError {
    /// Wraps an error of the tokenizers library.
    #[allow(clippy::needless_pass_by_value)] // `map_err` hands the error over
    pub(super) fn library(doing: &'static str) -> impl Fn(tokenizers::Error) -> Self {
        move |error| Self::Library { doing, message: error.to_string() }
    }
}
