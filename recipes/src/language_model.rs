//! A language model as something to train: next-token loss from the initial state.

use hymba_plus::{
    component_config,
    model::{Model, Observers, Statistics, TokenLoss},
    params::Parameters,
    state::{ModelState, SpanInput},
};
use tch::{Kind, Tensor};
use training::{
    Loss, Task, TaskError,
    data::{Batch, IGNORE_INDEX, ValidationBlocks},
};

use crate::auxiliary::with_auxiliary;

/// What a further head predicts (multi-token prediction: Gloeckle et al. 2024).
#[component_config]
pub struct Target {
    /// Name of the head in `model.heads`.
    pub head: String,
    /// Which token after the input it predicts; 1 is the next one, which the main head predicts, too.
    #[schemars(range(min = 1, max = 65_536))]
    pub offset: usize,
    /// What its loss is multiplied by.
    #[default(1.0)]
    #[schemars(range(min = 0.0))]
    pub weight: f64,
}

/// A model, how its loss is taken, and what it is validated on.
#[derive(Debug)]
pub struct LanguageModel {
    /// The model.
    pub model: Model,
    /// Share of the target distribution that is spread over the whole vocabulary.
    pub label_smoothing: f64,
    /// Weight of `log(sum exp logits)^2`.
    pub z_loss: f64,
    /// What further heads predict. Their losses are added to the main one's, all of them per input token.
    pub targets: Vec<Target>,
    /// Held-out tokens.
    pub validation: Option<ValidationBlocks>,
    /// Bytes of held-out text, for bits per byte.
    pub validation_bytes: usize,
}

fn failed(error: torch_bridge::Error) -> TaskError {
    error.into()
}

/// Hidden vectors of a batch from the state that every document starts from.
fn hidden(
    model: &Model,
    batch: &Batch,
    initial: &ModelState,
    training: bool,
    observers: Observers<'_>,
) -> torch_bridge::Result<Tensor> {
    let resets = batch.has_resets().then_some(&batch.resets);
    let input = SpanInput { resets, training, ..SpanInput::default() };
    Ok(model.forward_observed(&batch.tokens, initial, initial, input, observers)?.0)
}

/// Mean loss per token in nats over all validation tokens, and their number.
///
/// # Errors
/// When libtorch refuses or a batch cannot be made.
pub fn validation_loss(model: &Model, blocks: &ValidationBlocks) -> Result<(f64, u64), TaskError> {
    let mut all = validation_losses(model, blocks, &[])?;
    Ok(all.pop().unwrap_or_default())
}

/// The same for the main head and each further one: their mean losses over the tokens that they predict, and how many
/// those are.
fn validation_losses(
    model: &Model,
    blocks: &ValidationBlocks,
    targets: &[Target],
) -> Result<Vec<(f64, u64)>, TaskError> {
    let initial = model.initial_state(false).map_err(failed)?;
    let mut sums = vec![(0.0, 0); 1 + targets.len()];
    for batch in blocks.batches() {
        let batch = batch?;
        let hidden = hidden(model, &batch, &initial, false, Observers::default()).map_err(failed)?;
        let mut add = |place: usize, head: Option<&str>, targets: &Tensor| -> Result<(), TaskError> {
            let loss =
                model.cross_entropy(head, &hidden, &TokenLoss::plain(targets), false).map_err(failed)?.sum;
            sums[place].0 += f64::try_from(&loss.f_to_kind(Kind::Double)?)?;
            sums[place].1 += i64::try_from(&targets.f_ne(IGNORE_INDEX)?.f_sum(Kind::Int64)?)? as u64;
            Ok(())
        };
        add(0, None, &batch.targets)?;
        for (i, target) in targets.iter().enumerate() {
            add(i + 1, Some(&target.head), &batch.targets_at(target.offset)?)?;
        }
    }
    Ok(sums.into_iter().map(|(sum, tokens)| (sum / tokens.max(1) as f64, tokens)).collect())
}

impl Task for LanguageModel {
    type Batch = Batch;

    fn parameters(&self) -> &Parameters {
        self.model.parameters()
    }

    fn loss(&self, batch: &Batch) -> Result<Loss, TaskError> {
        let statistics = Statistics::default();
        let observers = Observers::statistics(&statistics);
        // Once per micro-batch: the meta tokens' gradients come from all its documents.
        let initial = self.model.initial_state_observed(true, observers).map_err(failed)?;
        let hidden = hidden(&self.model, batch, &initial, true, observers).map_err(failed)?;
        let loss = |head: Option<&str>, targets: &Tensor| {
            let loss = TokenLoss { targets, label_smoothing: self.label_smoothing, z_loss: self.z_loss };
            self.model.cross_entropy(head, &hidden, &loss, true).map_err(failed)
        };
        let main = loss(None, &batch.targets)?;
        let auxiliary = self.model.auxiliary_losses(&statistics).map_err(failed)?;
        let tokens = &batch.target_count;
        let mut all =
            with_auxiliary(main.sum, "cross_entropy", tokens, &auxiliary, &statistics).map_err(failed)?;
        if self.z_loss > 0.0 {
            all.measured.push(("z_loss".to_owned(), main.square.f_div(&tokens.f_clamp_min(1)?)?));
        }
        for target in &self.targets {
            let further = loss(Some(&target.head), &batch.targets_at(target.offset)?)?.sum;
            all.sum = all.sum.f_add(&further.f_mul_scalar(target.weight)?)?;
        }
        Ok(all)
    }

    fn after_step(&mut self, statistics: &Statistics) -> Result<(), TaskError> {
        self.model.rebalance(statistics).map_err(failed)
    }

    fn evaluate(&mut self) -> Result<Vec<(String, f64)>, TaskError> {
        let Some(blocks) = &self.validation else { return Ok(Vec::new()) };
        let losses = validation_losses(&self.model, blocks, &self.targets)?;
        let (loss, tokens) = losses[0];
        let mut values = vec![("validation_loss".to_owned(), loss)];
        if self.validation_bytes > 0 {
            let bits = loss * tokens as f64 / std::f64::consts::LN_2;
            values.push(("bits_per_byte".to_owned(), bits / self.validation_bytes as f64));
        }
        for (target, (loss, _)) in self.targets.iter().zip(&losses[1..]) {
            values.push((format!("validation_loss_{}", target.head), *loss));
        }
        Ok(values)
    }
}
