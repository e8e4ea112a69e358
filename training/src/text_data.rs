//! Text made ready for training: corpus, tokenizer, token streams.

use std::sync::Arc;

use hymba_plus::config::Recipe;

use crate::{
    data::{Blocks, Corpus, DataError, Fingerprint, TokenStream, ValidationBlocks},
    error::TrainError,
    run::Run,
    tokenizer::Tokenizer,
    trainer::TokenizerSection,
};

/// The text of a recipe as tokens, and what it was made from.
#[derive(Debug, Clone)]
pub struct TextData {
    /// The tokenizer, trained on the training split or read from a file.
    pub tokenizer: Tokenizer,
    /// The texts, as they were tokenized.
    pub corpus: Arc<Corpus>,
    /// The training split.
    pub train: Arc<TokenStream>,
    /// The validation split, possibly empty.
    pub validation: Arc<TokenStream>,
    /// Bytes of the validation texts.
    pub validation_bytes: usize,
    /// Files and tokenizer.
    pub fingerprint: Fingerprint,
}

impl TextData {
    /// Reads the section `tokenizer`, trains the tokenizer if need be, and leaves the manifest of the data and the
    /// tokenizer in the run directory. Later stages and a resumed run take the tokenizer that was left there.
    ///
    /// # Errors
    /// When the section is missing, or the tokenizer fails.
    pub fn prepare(run: &Run, recipe: &Recipe, corpus: Corpus) -> Result<Self, TrainError> {
        let tokenizer: TokenizerSection = recipe.require("to turn text into tokens")?;
        let resolve = |path: &hymba_plus::config::RecipePath| recipe.path(path);
        run.directory().write_data_manifest(&corpus.files)?;

        let (spec, saved) = (tokenizer.0.make()?, run.directory().tokenizer());
        let tokenizer = if spec.needs_training() && saved.exists() {
            Tokenizer::load(&saved)?
        } else {
            let tokenizer = spec.build(&corpus.training_texts(), &resolve)?;
            // What the run has learnt is in the tokens of the one that lies there.
            if saved.exists() && Tokenizer::load(&saved)?.hash() != tokenizer.hash() {
                return Err(TrainError::TokenizerChanged { path: saved });
            }
            tokenizer.save(&saved)?;
            tokenizer
        };
        if let Some(notice) = tokenizer.notice() {
            run.console().line(&notice);
        }
        Ok(Self::encode(corpus, tokenizer)?)
    }

    /// A corpus as tokens.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode(corpus: Corpus, tokenizer: Tokenizer) -> Result<Self, DataError> {
        let train = Arc::new(TokenStream::encode(&corpus.train, &tokenizer)?);
        let validation = Arc::new(TokenStream::encode(&corpus.validation, &tokenizer)?);
        let fingerprint = Fingerprint::of_files(&corpus.files).and(&corpus.settings);
        let fingerprint = fingerprint.with("tokenizer", tokenizer.hash());
        let validation_bytes = corpus.validation.iter().map(|document| document.text.len()).sum();
        Ok(Self { tokenizer, corpus: Arc::new(corpus), train, validation, validation_bytes, fingerprint })
    }

    /// Shuffled windows of the training split.
    ///
    /// # Errors
    /// When the split is shorter than a window.
    pub fn training_blocks(&self, sequence_length: usize, run: &Run) -> Result<Blocks, DataError> {
        Blocks::new(
            Arc::clone(&self.train),
            sequence_length,
            run.seed(),
            run.device(),
            self.fingerprint.clone(),
        )
    }

    /// Windows of the validation split in order; `None` when nothing was held out.
    ///
    /// # Errors
    /// When a size is zero.
    pub fn validation_blocks(
        &self,
        sequence_length: usize,
        batch_size: usize,
        run: &Run,
    ) -> Result<Option<ValidationBlocks>, DataError> {
        if self.validation.is_empty() {
            return Ok(None);
        }
        let (stream, pad) = (Arc::clone(&self.validation), self.tokenizer.pad());
        ValidationBlocks::new(stream, sequence_length, batch_size, pad, run.device()).map(Some)
    }
}
