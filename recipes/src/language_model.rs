//! A language model as something to train: next-token loss from the initial state.

use std::collections::BTreeMap;

use hymba_plus::{
    model::{AuxiliaryLoss, Model, Observers, Statistics},
    params::Parameters,
    state::{ModelState, SpanInput},
};
use tch::{Kind, Tensor};
use training::{
    Loss, Task, TaskError,
    data::{Batch, ValidationBlocks, Weighted},
    loss::cross_entropy_sum,
};

/// A model, how its loss is taken, and what it is validated on.
#[derive(Debug)]
pub struct LanguageModel {
    /// The model.
    pub model: Model,
    /// Share of the target distribution that is spread over the whole vocabulary.
    pub label_smoothing: f64,
    /// Held-out tokens.
    pub validation: Option<ValidationBlocks>,
    /// Bytes of held-out text, for bits per byte.
    pub validation_bytes: usize,
    /// What modules recorded since the last step, for their balance.
    pub statistics: Statistics,
}

fn failed(error: torch_bridge::Error) -> TaskError {
    error.into()
}

/// Logits of a batch from the state that every document starts from.
fn logits(
    model: &Model,
    batch: &Batch,
    initial: &ModelState,
    training: bool,
    observers: Observers<'_>,
) -> torch_bridge::Result<Tensor> {
    let resets = batch.has_resets().then_some(&batch.resets);
    let input = SpanInput { resets, training, ..SpanInput::default() };
    let (hidden, _) = model.forward_observed(&batch.tokens, initial, initial, input, observers)?;
    model.head(&hidden)
}

/// The cross-entropy of a micro-batch with the losses that modules add to it. Those are means over its tokens, meta
/// tokens among them; times its targets, they are sums as the cross-entropy is.
fn with_auxiliary(
    cross_entropy: Tensor,
    targets: i64,
    auxiliary: &[AuxiliaryLoss],
) -> torch_bridge::Result<Loss> {
    if auxiliary.is_empty() {
        return Ok(Loss::of_sum(cross_entropy));
    }
    let mut sum = cross_entropy.shallow_clone();
    let mut by_name: BTreeMap<&str, Vec<Tensor>> = BTreeMap::new();
    for loss in auxiliary {
        if loss.weight > 0.0 {
            sum = sum.f_add(&loss.value.f_mul_scalar(loss.weight * targets as f64)?)?;
        }
        by_name.entry(loss.name).or_default().push(loss.value.f_detach()?);
    }
    let mean = cross_entropy.f_detach()?.f_div_scalar(targets.max(1))?;
    let mut measured = vec![("cross_entropy".to_owned(), mean)];
    for (name, of_modules) in by_name {
        measured.push((name.to_owned(), Tensor::f_stack(&of_modules, 0)?.f_mean(None)?));
    }
    Ok(Loss { sum, measured })
}

/// Mean loss per token in nats over all validation tokens, and their number.
///
/// # Errors
/// When libtorch refuses or a batch cannot be made.
pub fn validation_loss(model: &Model, blocks: &ValidationBlocks) -> Result<(f64, u64), TaskError> {
    let initial = model.initial_state(false).map_err(failed)?;
    let (mut sum, mut tokens) = (0.0, 0);
    for batch in blocks.batches() {
        let batch = batch?;
        let loss = logits(model, &batch, &initial, false, Observers::default())
            .and_then(|logits| cross_entropy_sum(&logits, &batch.targets, 0.0))
            .and_then(|loss| Ok(f64::try_from(&loss.f_to_kind(Kind::Double)?)?))
            .map_err(failed)?;
        sum += loss;
        tokens += batch.target_tokens() as u64;
    }
    Ok((sum / tokens.max(1) as f64, tokens))
}

impl Task for LanguageModel {
    type Batch = Batch;

    fn parameters(&self) -> &Parameters {
        self.model.parameters()
    }

    fn loss(&mut self, batch: &Batch) -> Result<Loss, TaskError> {
        let statistics = Statistics::default();
        let observers = Observers::statistics(&statistics);
        // Once per micro-batch: the meta tokens' gradients come from all its documents.
        let loss = self.model.initial_state_observed(true, observers).and_then(|initial| {
            let logits = logits(&self.model, batch, &initial, true, observers)?;
            let cross_entropy = cross_entropy_sum(&logits, &batch.targets, self.label_smoothing)?;
            let auxiliary = self.model.auxiliary_losses(&statistics)?;
            statistics.detach_into(&self.statistics)?;
            with_auxiliary(cross_entropy, batch.target_tokens(), &auxiliary)
        });
        loss.map_err(failed)
    }

    fn after_step(&mut self) -> Result<(), TaskError> {
        let statistics = std::mem::take(&mut self.statistics);
        self.model.rebalance(&statistics).map_err(failed)
    }

    fn evaluate(&mut self) -> Result<Vec<(String, f64)>, TaskError> {
        let Some(blocks) = &self.validation else { return Ok(Vec::new()) };
        let (loss, tokens) = validation_loss(&self.model, blocks)?;
        let bits = loss * tokens as f64 / std::f64::consts::LN_2;
        Ok(vec![
            ("validation_loss".to_owned(), loss),
            ("bits_per_byte".to_owned(), bits / self.validation_bytes.max(1) as f64),
        ])
    }
}
