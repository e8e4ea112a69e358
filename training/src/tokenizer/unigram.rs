//! `kind: unigram`: a unigram language model over bytes (Kudo 2018).

use std::collections::BTreeMap;

use hymba_plus::{component_config, register};
use tokenizers::{
    Tokenizer as Library,
    models::unigram::{Unigram as Model, UnigramTrainer},
    pre_tokenizers::byte_level::ByteLevel,
};

use super::{Tokenizer, TokenizerError, special};
use crate::slot::{Resolve, TokenizerSpec, tokenizer};

/// A unigram language model over bytes, trained on the run's training text: the most probable split of each word, from
/// a vocabulary that starts large and is pruned. Loses nothing of any text.
#[component_config]
pub struct Unigram {
    /// Planned size of the vocabulary: 256 bytes, the special tokens and the pieces.
    #[schemars(range(min = 258))]
    pub vocab_size: usize,
    /// Longest piece, in bytes.
    #[schemars(range(min = 1))]
    #[default(16)]
    pub max_piece_length: usize,
    /// Special tokens besides `<|endoftext|>` and `<|pad|>`.
    #[default(Vec::new())]
    pub special_tokens: Vec<String>,
}

register!(tokenizer "unigram" => Unigram);

/// Words are cut at this many bytes for training: the library's sums overflow on endless ones.
const LONGEST_WORD: usize = 256;

/// The library's step between the scores of bytes that training has not seen.
const UNSEEN_STEP: f64 = 0.0001;

/// Score of special tokens inside the model: so low that no split of a text ever takes one.
const NEVER: f64 = -1e6;

impl TokenizerSpec for Unigram {
    fn vocab_size(&self, _resolve: Resolve<'_>) -> Result<usize, TokenizerError> {
        Ok(self.vocab_size)
    }

    fn needs_training(&self) -> bool {
        true
    }

    fn build(&self, texts: &[&str], _resolve: Resolve<'_>) -> Result<Tokenizer, TokenizerError> {
        let specials = special::all(&self.special_tokens)?;
        if self.vocab_size < 256 + specials.len() {
            return Err(TokenizerError::VocabularyTooSmall {
                vocab_size: self.vocab_size,
                specials: specials.len(),
            });
        }
        let words = count_words(texts)?;
        if words.is_empty() {
            return Err(TokenizerError::NoText);
        }
        let trainer = UnigramTrainer::builder()
            .vocab_size((self.vocab_size - specials.len()) as u32)
            .max_piece_length(self.max_piece_length)
            .initial_alphabet(ByteLevel::alphabet())
            .show_progress(false)
            .build()
            .map_err(|error| TokenizerError::Library {
                doing: "setting up unigram",
                message: error.to_string(),
            })?;
        let pieces = canonical(train_on_one_thread(&trainer, words)?, self.vocab_size - specials.len());
        let vocabulary = specials.iter().map(|token| (token.content.clone(), NEVER)).chain(pieces).collect();
        let model = Model::from(vocabulary, None, false).map_err(|error| TokenizerError::Library {
            doing: "setting up the unigram model",
            message: error.to_string(),
        })?;
        let mut library = Library::new(model);
        library.with_pre_tokenizer(Some(special::byte_level()));
        library.with_decoder(Some(special::byte_level()));
        library.add_special_tokens(specials).map_err(TokenizerError::library("adding the special tokens"))?;
        Tokenizer::with_own_specials(library, self.vocab_size)
    }
}

/// Words and how often each occurs, sorted, so that equal texts give equal sums.
fn count_words(texts: &[&str]) -> Result<Vec<(String, u32)>, TokenizerError> {
    let mut counts = BTreeMap::<String, u32>::new();
    for text in texts {
        for word in special::words(text)? {
            if word.chars().count() <= LONGEST_WORD {
                count(&mut counts, word);
            } else {
                let characters: Vec<char> = word.chars().collect();
                characters.chunks(LONGEST_WORD).for_each(|chunk| count(&mut counts, chunk.iter().collect()));
            }
        }
    }
    Ok(counts.into_iter().collect())
}

fn count(counts: &mut BTreeMap<String, u32>, word: String) {
    let n = counts.entry(word).or_default();
    *n = n.saturating_add(1);
}

/// Trains in a pool of one thread: the library sums floats per thread, so their number would show in the scores.
fn train_on_one_thread(
    trainer: &UnigramTrainer,
    words: Vec<(String, u32)>,
) -> Result<Vec<(String, f64)>, TokenizerError> {
    let failed = |message: String| TokenizerError::Library { doing: "training unigram", message };
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|error| failed(error.to_string()))?;
    pool.install(|| {
        let mut model = Model::default();
        trainer.do_train(words, &mut model).map_err(|error| failed(error.to_string()))?;
        Ok(model.iter().cloned().collect())
    })
}

/// The library hands out the scores of unseen bytes, and orders ties, as its hash map happens to lie. Here the same
/// scores go to the same bytes by code point, and pieces of equal score are sorted. At most `limit` pieces stay, every
/// byte among them.
fn canonical(mut pieces: Vec<(String, f64)>, limit: usize) -> Vec<(String, f64)> {
    let single = |piece: &str| piece.chars().nth(1).is_none();
    let lowest = pieces.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
    // The library adds the steps one by one; so must we, to meet its exact sums.
    let (mut unseen_scores, mut penalty) = (Vec::with_capacity(256), 0.0);
    for _ in 0..256 {
        unseen_scores.push(lowest + penalty);
        penalty += UNSEEN_STEP;
    }
    let is_unseen = |(piece, score): &(String, f64)| single(piece) && unseen_scores.contains(score);
    let (mut unseen, mut rest): (Vec<_>, Vec<_>) = pieces.drain(..).partition(is_unseen);
    let mut scores: Vec<f64> = unseen.iter().map(|(_, score)| *score).collect();
    scores.sort_by(f64::total_cmp);
    unseen.sort_by(|(a, _), (b, _)| a.cmp(b));
    rest.extend(unseen.into_iter().zip(scores).map(|((piece, _), score)| (piece, score)));
    rest.sort_by(|(a, x), (b, y)| y.total_cmp(x).then_with(|| a.cmp(b)));
    let mut longer = limit.saturating_sub(rest.iter().filter(|(piece, _)| single(piece)).count());
    rest.retain(|(piece, _)| {
        let keep = single(piece) || longer > 0;
        longer -= usize::from(keep && !single(piece));
        keep
    });
    rest
}
