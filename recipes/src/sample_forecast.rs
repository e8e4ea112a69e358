//! Forecasts of a language model that has learnt numbers as tokens: it goes on, many times.

use hymba_plus::{
    generate::{GenerateOptions, Sampling, Sequence, Step, generate_streaming},
    model::Model,
};
use training::tokenizer::{SeriesTokens, Tokenizer};

use crate::context::StageError;

/// Samples `samples` continuations of `horizon` values after the values that are known, each by its own seed. Where a
/// sample writes a token that is no number, it ends: the rest of it is missing.
///
/// # Errors
/// When nothing is known, the tokenizer has no tokens for numbers, or the model fails.
pub fn sample_forecast(
    model: &Model,
    tokenizer: &Tokenizer,
    known: &[f64],
    horizon: usize,
    samples: usize,
    sampling: &Sampling,
    seed: u64,
) -> Result<Vec<Vec<Option<f64>>>, StageError> {
    let other = |message: &str| StageError::Other(message.to_owned());
    if known.is_empty() {
        return Err(other("a forecast needs values that are known"));
    }
    let tokens = tokenizer
        .series()
        .ok_or_else(|| other("the tokenizer has no tokens for numbers: put it into `kind: with_series`"))?;
    let scale = SeriesTokens::scale(known);
    let mut prompt = vec![i64::from(tokenizer.eos())];
    prompt.extend(tokens.encode(known, scale).into_iter().map(i64::from));
    let length = prompt.len() + horizon.saturating_sub(1);
    if let Some(most) = model.plan().longest_document()
        && i64::try_from(length).is_ok_and(|length| length > most)
    {
        let known = known.len();
        return Err(other(&format!(
            "{known} known values and {horizon} more are {length} tokens, and the model is made for {most}"
        )));
    }
    let options = GenerateOptions {
        max_new_tokens: horizon,
        stop_tokens: vec![i64::from(tokenizer.eos())],
        sampling: sampling.clone(),
        num_return_sequences: samples,
        seed,
        ..GenerateOptions::default()
    };
    let is_number = |id: i64| u32::try_from(id).is_ok_and(|id| tokens.ids().contains(&id));
    let output =
        generate_streaming(model, &[prompt], &options, &mut |step: &Step<'_>| is_number(step.token))?;
    let values = |sequence: Sequence| {
        let ids: Vec<u32> = sequence.tokens.into_iter().map(|id| id as u32).collect();
        let mut values = tokens.decode(&ids, scale);
        values.resize(horizon, None);
        values
    };
    Ok(output.into_iter().map(values).collect())
}
