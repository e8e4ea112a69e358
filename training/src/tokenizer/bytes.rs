//! `kind: bytes`: a token is a byte.

use hymba_plus::{component_config, register};
use tokenizers::{
    Tokenizer as Library,
    models::bpe::{BPE, Vocab},
    pre_tokenizers::byte_level::ByteLevel,
};

use super::{Tokenizer, TokenizerError, special};
use crate::slot::{Resolve, TokenizerSpec, tokenizer};

/// A token is a byte: ids 0 to 255 are the bytes, special tokens follow. Needs no training and loses nothing.
#[component_config]
pub struct Bytes {
    /// Special tokens besides `<|endoftext|>` and `<|pad|>`.
    #[default(Vec::new())]
    pub special_tokens: Vec<String>,
}

register!(tokenizer "bytes" => Bytes);

impl TokenizerSpec for Bytes {
    fn vocab_size(&self, _resolve: Resolve<'_>) -> Result<usize, TokenizerError> {
        Ok(256 + special::all(&self.special_tokens)?.len())
    }

    fn needs_training(&self) -> bool {
        false
    }

    fn build(&self, _texts: &[&str], _resolve: Resolve<'_>) -> Result<Tokenizer, TokenizerError> {
        let vocab: Vocab = special::byte_characters()
            .iter()
            .zip(0..)
            .map(|(character, id)| (character.to_string(), id))
            .collect();
        let model = BPE::builder()
            .vocab_and_merges(vocab, Vec::new())
            .cache_capacity(0)
            .build()
            .map_err(TokenizerError::library("setting up the byte tokenizer"))?;
        let whole_text = ByteLevel::new(false, false, false); // no word borders: there is nothing to merge
        let mut library = Library::new(model);
        library.with_pre_tokenizer(Some(whole_text));
        library.with_decoder(Some(whole_text));
        let specials = special::all(&self.special_tokens)?;
        let planned = 256 + specials.len();
        library.add_special_tokens(specials).map_err(TokenizerError::library("adding the special tokens"))?;
        Tokenizer::with_own_specials(library, planned)
    }
}
