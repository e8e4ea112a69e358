//! Generation: prompts in, tokens out, by the same pass that trains the model.
//!
//! ```no_run
//! use hymba_plus::{generate::{GenerateOptions, Sampling, generate}, model::Model};
//!
//! fn continue_both(model: &Model) -> torch_bridge::Result<()> {
//!     // Prompts are token ids, of any lengths; a document begins with the end-of-text token.
//!     let prompts = [vec![0, 17, 4], vec![0, 9]];
//!     let options = GenerateOptions {
//!         max_new_tokens: 50,
//!         stop_tokens: vec![0],
//!         sampling: Sampling { temperature: 0.7, top_p: Some(0.9), ..Sampling::default() },
//!         seed: 1,
//!         ..GenerateOptions::default()
//!     };
//!     for sequence in generate(model, &prompts, &options)? {
//!         println!("prompt {}: {:?}, {:?}", sequence.prompt, sequence.tokens, sequence.finish);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! * [`generate_streaming`] hears of every token as it comes and can end a sequence; [`StopStrings`] finds the place
//!   where a text ends, whatever the tokens are.
//! * [`beam_search`] looks for the likeliest whole texts (`beams.num_beams`).
//! * [`processors`](mod@processors) has every penalty and filter, and their order.
//!
//! What a sequence becomes depends on its prompt, its seed and the options alone: not on what stands beside it in the
//! batch, nor on how its prompt is cut into chunks. (In floating point, sums of another order can differ in their last
//! bits; where two tokens are that close, they can change places.)

mod beams;
mod decode;
pub mod fixed;
mod history;
mod hypotheses;
mod logits;
mod logprobs;
mod options;
mod prefill;
pub mod processors;
mod sampler;
mod scores;
mod stepper;
mod stop;

use torch_bridge::{Error, Result, guards::NoGrad};

pub use history::History;
pub use logprobs::TokenLogprobs;
pub use options::{Beams, EarlyStopping, GenerateOptions, OptionError, Sampling};
pub use processors::{LogitsProcessor, processors};
pub use sampler::Sampler;
pub use scores::Scores;
pub use stop::StopStrings;

use crate::model::Model;

/// What came of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// Index of its prompt.
    pub prompt: usize,
    /// The seed that it was drawn with; a beam search does not use it.
    pub seed: u64,
    /// The new tokens, without the one that ended it.
    pub tokens: Vec<i64>,
    /// Why it ended.
    pub finish: Finish,
    /// What the model thought of each new token, if that was asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// The score by which a beam search prefers it.
    pub score: Option<f64>,
}

impl Sequence {
    fn new(prompt: usize, seed: u64) -> Self {
        let (tokens, logprobs) = (Vec::new(), Vec::new());
        Self { prompt, seed, tokens, finish: Finish::MaxNewTokens, logprobs, score: None }
    }

    fn ended(self, finish: Option<Finish>) -> Self {
        Self { finish: finish.unwrap_or(self.finish), ..self }
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// This token came, one of `stop_tokens`.
    StopToken(i64),
    /// It has `max_new_tokens`.
    MaxNewTokens,
    /// It is as long as the model is made for.
    ModelLength,
    /// The caller ended it.
    Listener,
    /// Every token was banned.
    NoToken,
}

/// A token that has just been chosen.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Index of the sequence: sequence `j` of prompt `i` is `i * num_return_sequences + j`.
    pub sequence: usize,
    /// The token.
    pub token: i64,
    /// What the model thought of it, if that was asked for.
    pub logprobs: Option<&'a TokenLogprobs>,
}

/// Hears of sequences as they grow; a closure `|step| ...` is one.
pub trait Listener {
    /// A new token. When it returns false, the sequence ends with it.
    fn token(&mut self, step: &Step<'_>) -> bool;

    /// A sequence has ended: no token of it comes any more.
    fn end(&mut self, _sequence: usize, _finish: Finish) {}
}

impl<F: FnMut(&Step<'_>) -> bool> Listener for F {
    fn token(&mut self, step: &Step<'_>) -> bool {
        self(step)
    }
}

/// Continues every prompt: `num_return_sequences` sequences for each, in the order of the prompts. A beam search that
/// finds fewer gives fewer.
///
/// # Errors
/// When a prompt is empty (start one with the end-of-text token) or longer than the model is made for, when settings
/// contradict each other, or when libtorch refuses.
pub fn generate(model: &Model, prompts: &[Vec<i64>], options: &GenerateOptions) -> Result<Vec<Sequence>> {
    if options.is_beam_search() {
        beam_search(model, prompts, options, |_| false)
    } else {
        generate_streaming(model, prompts, options, &mut |_: &Step<'_>| true)
    }
}

/// [`generate`] by drawing, with a listener that hears of every new token as it comes and can end a sequence.
///
/// # Errors
/// As [`generate`]; also when the options ask for a beam search, which knows its tokens only at its end.
pub fn generate_streaming(
    model: &Model,
    prompts: &[Vec<i64>],
    options: &GenerateOptions,
    listener: &mut impl Listener,
) -> Result<Vec<Sequence>> {
    if options.is_beam_search() {
        return Err(Error::other("a beam search cannot stream: it knows its tokens only at its end"));
    }
    let _guard = NoGrad::new();
    check(model, prompts, options)?;
    if prompts.is_empty() || options.max_new_tokens == 0 {
        let copies = options.num_return_sequences;
        let all = 0..prompts.len() * copies;
        let ended = all.map(|i| {
            listener.end(i, Finish::MaxNewTokens);
            Sequence::new(i / copies, options.seed.wrapping_add(i as u64))
        });
        return Ok(ended.collect());
    }
    decode::decode(model, prompts, options, listener)
}

/// [`generate`] by beam search: for each prompt the `num_return_sequences` best of the texts found, best first. `ends`
/// says of the new tokens of a text whether they are complete (with a stop string, say).
///
/// # Errors
/// As [`generate`].
pub fn beam_search(
    model: &Model,
    prompts: &[Vec<i64>],
    options: &GenerateOptions,
    ends: impl Fn(&[i64]) -> bool,
) -> Result<Vec<Sequence>> {
    let _guard = NoGrad::new();
    check(model, prompts, options)?;
    if prompts.is_empty() || options.max_new_tokens == 0 {
        return Ok((0..prompts.len()).map(|i| Sequence::new(i, options.seed)).collect());
    }
    beams::search(model, prompts, options, &ends)
}

fn check(model: &Model, prompts: &[Vec<i64>], options: &GenerateOptions) -> Result<()> {
    options.check()?;
    for (i, prompt) in prompts.iter().enumerate() {
        if prompt.is_empty() {
            return Err(Error::other(format!(
                "prompt {i} is empty: give at least one token, such as end-of-text"
            )));
        }
        if let Some(most) = model.plan().longest_document()
            && prompt.len() as u64 > most.max(0) as u64
        {
            let tokens = prompt.len();
            return Err(Error::other(format!(
                "prompt {i} has {tokens} tokens, and the model is made for {most}: use a shorter one"
            )));
        }
    }
    Ok(())
}

/// Most new tokens after a prompt, and why there are no more.
fn limit(model: &Model, prompt: &[i64], options: &GenerateOptions) -> (usize, Finish) {
    // The last new token is not read by the model.
    let room = match model.plan().longest_document() {
        Some(most) => usize::try_from(most).map_or(0, |most| (most + 1).saturating_sub(prompt.len())),
        None => usize::MAX,
    };
    if room < options.max_new_tokens {
        (room, Finish::ModelLength)
    } else {
        (options.max_new_tokens, Finish::MaxNewTokens)
    }
}
