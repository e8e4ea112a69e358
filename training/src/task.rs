//! What a stage implements so that the loop can train it.

use hymba_plus::{model::Statistics, params::Parameters};
use serde_json::Value;
use tch::Tensor;

use crate::{
    data::{Recordable, Weighted},
    error::TaskError,
};

/// Something with parameters and a loss. The loop knows nothing else of a stage.
pub trait Task {
    /// What the loader gives.
    type Batch: Weighted + Recordable;

    /// The parameters that are trained.
    fn parameters(&self) -> &Parameters;

    /// The loss of one micro-batch. Runs with gradients on, and under autocast if the precision wants it.
    ///
    /// On a GPU the loop may record what it computes as a CUDA graph and replay that for later micro-batches of the same
    /// shapes, without calling this again: so it changes nothing of the task, and the values of a batch matter on the
    /// device only.
    ///
    /// # Errors
    /// Whatever the stage reports; it stops the run.
    fn loss(&self, batch: &Self::Batch) -> Result<Loss, TaskError>;

    /// Called after each step of the optimizer, with the parameters as they are then and the sums of
    /// [`Loss::statistics`] over the step's micro-batches; without gradients.
    ///
    /// # Errors
    /// Whatever the stage reports; it stops the run.
    fn after_step(&mut self, _statistics: &Statistics) -> Result<(), TaskError> {
        Ok(())
    }

    /// What there is to measure on held-out data, by name. Runs without gradients, under autocast if the precision wants it; random numbers that
    /// it draws do not change the training.
    ///
    /// # Errors
    /// Whatever the stage reports; it stops the run.
    fn evaluate(&mut self) -> Result<Vec<(String, f64)>, TaskError>;

    /// The measurement, lower being better, that chooses the best checkpoint.
    fn best_metric(&self) -> &'static str {
        "validation_loss"
    }

    /// State besides the parameters that a resumed run needs, as JSON.
    fn state(&self) -> Value {
        Value::Null
    }

    /// Takes over a saved state.
    ///
    /// # Errors
    /// When it is not one of this task's.
    fn restore(&mut self, _state: &Value) -> Result<(), TaskError> {
        Ok(())
    }
}

/// The loss of a micro-batch.
#[derive(Debug)]
pub struct Loss {
    /// Sum over the micro-batch's [`target_tokens`](Weighted::target_tokens), a differentiable scalar `[]`. The loop
    /// divides by the targets of the whole step, so gradients do not depend on how it was cut into micro-batches.
    pub sum: Tensor,
    /// What is shown beside the loss, by name: scalars `[]`, each a mean over the micro-batch. The loop averages them over
    /// the step's micro-batches by their targets. Every loss of a task names the same.
    pub measured: Vec<(String, Tensor)>,
    /// What modules recorded, for [`Task::after_step`]; without history.
    pub statistics: Statistics,
}

impl Loss {
    /// A loss from its sum over the targets.
    pub fn of_sum(sum: Tensor) -> Self {
        Self { sum, measured: Vec::new(), statistics: Statistics::default() }
    }
}
