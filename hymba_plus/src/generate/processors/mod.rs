//! Logits processors: small steps between the model's logits and the choice of a token.
//!
//! They apply in the order in which transformers applies them:
//!
//! | step | setting | when |
//! |---|---|---|
//! | [`RepetitionPenalty`] | `repetition_penalty` | always |
//! | [`OutputPenalty`] | `frequency_penalty`, `presence_penalty` (OpenAI's; transformers has none) | always |
//! | [`NoRepeatNGram`] | `no_repeat_ngram` | always |
//! | [`MinNewTokens`] | `min_new_tokens` | always |
//! | [`Temperature`] | `temperature` | drawing |
//! | [`TopK`] | `top_k` | drawing |
//! | [`TopP`] | `top_p` | drawing |
//! | [`MinP`] | `min_p` | drawing |
//!
//! The likeliest token (`temperature: 0`) and beam search see the first four only. In a beam search the scores are
//! log-probabilities, elsewhere logits.

mod bans;
mod filters;
mod penalties;

use std::fmt::Debug;

pub use bans::{MinNewTokens, NoRepeatNGram};
pub use filters::{MinP, Temperature, TopK, TopP};
pub use penalties::{OutputPenalty, RepetitionPenalty};

use super::{GenerateOptions, History, Scores, options::is_neutral};

/// One step from logits to a choice. It keeps nothing between calls: all it may look at is the sequence.
pub trait LogitsProcessor: Debug {
    /// Changes the scores of the next token of a sequence.
    fn process(&self, history: &History, scores: &mut Scores);
}

/// The processors that the options ask for, in order; a setting at its neutral value asks for none.
pub fn processors(options: &GenerateOptions) -> Vec<Box<dyn LogitsProcessor>> {
    let sampling = &options.sampling;
    let mut list: Vec<Box<dyn LogitsProcessor>> = Vec::new();
    if !is_neutral(sampling.repetition_penalty, 1.0) {
        list.push(Box::new(RepetitionPenalty(sampling.repetition_penalty)));
    }
    let (frequency, presence) = (sampling.frequency_penalty, sampling.presence_penalty);
    if frequency != 0.0 || presence != 0.0 {
        list.push(Box::new(OutputPenalty { frequency, presence }));
    }
    if let Some(size) = sampling.no_repeat_ngram {
        list.push(Box::new(NoRepeatNGram(size)));
    }
    if options.min_new_tokens > 0 && !options.stop_tokens.is_empty() {
        let (least, stop_tokens) = (options.min_new_tokens, options.stop_tokens.clone());
        list.push(Box::new(MinNewTokens { least, stop_tokens }));
    }
    if sampling.is_greedy() || options.is_beam_search() {
        return list;
    }
    if !is_neutral(sampling.temperature, 1.0) {
        list.push(Box::new(Temperature(sampling.temperature)));
    }
    if let Some(k) = sampling.top_k {
        list.push(Box::new(TopK(k)));
    }
    if let Some(p) = sampling.top_p.filter(|p| *p < 1.0) {
        list.push(Box::new(TopP(p)));
    }
    if let Some(p) = sampling.min_p.filter(|p| *p > 0.0) {
        list.push(Box::new(MinP(p)));
    }
    list
}
