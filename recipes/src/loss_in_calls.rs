//! The next-token loss of a model that reads its sequences piece by piece, as it does when it generates.

use std::num::NonZeroUsize;

use hymba_plus::{
    model::{Model, TokenLoss},
    state::{ModelState, SpanInput},
};
use tch::{Kind, Tensor};
use training::{
    TaskError,
    data::{Batch, DataError, Weighted},
};

/// Mean loss per token in nats over batches, and the number of tokens. Each sequence is read in calls of `call_length`
/// tokens that hand their state on, or in one call.
///
/// # Errors
/// When libtorch refuses or a batch cannot be made.
pub fn loss_in_calls(
    model: &Model,
    batches: impl Iterator<Item = Result<Batch, DataError>>,
    call_length: Option<NonZeroUsize>,
) -> Result<(f64, u64), TaskError> {
    let initial = model.initial_state(false)?;
    let (mut sum, mut tokens) = (0.0, 0);
    for batch in batches {
        let batch = batch?;
        sum += batch_loss(model, &batch, &initial, call_length)?;
        tokens += batch.target_tokens() as u64;
    }
    Ok((sum / tokens.max(1) as f64, tokens))
}

/// The summed loss of a batch.
fn batch_loss(
    model: &Model,
    batch: &Batch,
    initial: &ModelState,
    call_length: Option<NonZeroUsize>,
) -> torch_bridge::Result<f64> {
    let time = batch.sequence_length();
    let step = call_length.map_or(time, |length| i64::try_from(length.get()).unwrap_or(time)).max(1);
    let (mut state, mut sum, mut start) = (initial.share(), 0.0, 0);
    while start < time {
        let length = step.min(time - start);
        let part = |tensor: &Tensor| tensor.f_narrow(1, start, length);
        let resets = batch.has_resets().then(|| part(&batch.resets)).transpose()?;
        let input = SpanInput { resets: resets.as_ref(), ..SpanInput::default() };
        let (hidden, after) = model.forward(&part(&batch.tokens)?, &state, initial, input)?;
        let loss = model.cross_entropy(None, &hidden, &TokenLoss::plain(&part(&batch.targets)?), false)?.sum;
        sum += f64::try_from(&loss.f_to_kind(Kind::Double)?)?;
        (state, start) = (after, start + length);
    }
    Ok(sum)
}
