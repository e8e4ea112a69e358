//! `kind: byte_level_bpe`: byte-pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019).

use hymba_plus::{component_config, register};
use tokenizers::{
    TokenizerBuilder, TokenizerImpl,
    models::bpe::{BPE, BpeTrainer},
    normalizers::NormalizerWrapper,
    pre_tokenizers::byte_level::ByteLevel,
};

use super::{Tokenizer, TokenizerError, special};
use crate::slot::{Resolve, TokenizerSpec, tokenizer};

/// Byte-pair encoding over bytes, trained on the run's training text: the most frequent pair of neighbours becomes a
/// token, again and again. Loses nothing of any text.
#[component_config]
pub struct ByteLevelBpe {
    /// Planned size of the vocabulary: 256 bytes, the special tokens and the merges.
    #[schemars(range(min = 258))]
    pub vocab_size: usize,
    /// How often a pair must occur to become a token.
    #[schemars(range(min = 1))]
    #[default(2)]
    pub min_frequency: u64,
    /// Special tokens besides `<|endoftext|>` and `<|pad|>`.
    #[default(Vec::new())]
    pub special_tokens: Vec<String>,
}

register!(tokenizer "byte_level_bpe" | "bpe" => ByteLevelBpe);

impl TokenizerSpec for ByteLevelBpe {
    fn vocab_size(&self, _resolve: Resolve<'_>) -> Result<usize, TokenizerError> {
        Ok(self.vocab_size)
    }

    fn needs_training(&self) -> bool {
        true
    }

    fn build(&self, texts: &[&str], _resolve: Resolve<'_>) -> Result<Tokenizer, TokenizerError> {
        if texts.iter().all(|text| text.is_empty()) {
            return Err(TokenizerError::NoText);
        }
        let specials = special::all(&self.special_tokens)?;
        if self.vocab_size < 256 + specials.len() {
            return Err(TokenizerError::VocabularyTooSmall {
                vocab_size: self.vocab_size,
                specials: specials.len(),
            });
        }
        let mut trainer = BpeTrainer::builder()
            .vocab_size(self.vocab_size)
            .min_frequency(self.min_frequency)
            .special_tokens(specials)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .show_progress(false)
            .build();
        let mut library: TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel> =
            TokenizerBuilder::default()
                .with_model(BPE::default())
                .with_normalizer(None)
                .with_pre_tokenizer(Some(special::byte_level()))
                .with_post_processor(None)
                .with_decoder(Some(special::byte_level()))
                .build()
                .map_err(TokenizerError::library("setting up byte-pair encoding"))?;
        // Counts are whole numbers and ties go by token id, so the result does not depend on threads.
        library
            .train(&mut trainer, texts.iter())
            .map_err(TokenizerError::library("training byte-pair encoding"))?;
        Tokenizer::with_own_specials(library.into(), self.vocab_size)
    }
}
