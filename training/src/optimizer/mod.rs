//! Optimizers: what turns gradients into changes of parameters, with a state that can be saved by name.

mod adamw;
mod muon;

pub use adamw::AdamW;
pub use muon::{Muon, Scale};

use hymba_plus::params::Parameters;
use tch::Tensor;

use crate::checkpoint::{CheckpointError, NamedTensors, TensorFile};

/// Why an optimizer could not be made or make a step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptimizerError {
    /// A setting is out of range.
    #[error("optimizer setting {name} is {value}; it must be {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What would be right.
        expected: &'static str,
    },
    /// A pattern of parameters is none.
    #[error(
        "optimizer: `{pattern}` is no pattern of parameter names: {message}; write one like `layers.*.conv.weight`"
    )]
    Pattern {
        /// What was given.
        pattern: String,
        /// What is wrong with it.
        message: String,
    },
    /// libtorch failed.
    #[error("optimizer: {0}")]
    Torch(#[from] torch_bridge::Error),
}

impl From<tch::TchError> for OptimizerError {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(error.into())
    }
}

/// An optimizer over the parameters it was built for.
pub trait Optimizer {
    /// Changes the parameters by their gradients, the learning rate multiplied by `factor`.
    ///
    /// A parameter without a gradient counts as one whose gradient is zero, so that a step does not depend on what
    /// happened in earlier ones.
    ///
    /// # Errors
    /// When libtorch fails.
    fn step(&mut self, factor: f64) -> Result<(), OptimizerError>;

    /// The whole state as named tensors, `exp_avg.NAME` and the like. They share storage with the optimizer.
    fn state(&self) -> NamedTensors;

    /// Takes over a saved state.
    ///
    /// # Errors
    /// When its names, shapes or types differ from this optimizer's; all differences are listed.
    fn load_state(&mut self, file: &TensorFile) -> Result<(), CheckpointError> {
        file.load_into(&self.state())
    }
}

/// The gradients of all trained parameters in their order; zeros where nothing flowed.
///
/// # Errors
/// When libtorch fails (out of memory).
pub fn gradients(parameters: &Parameters) -> Result<Vec<Tensor>, tch::TchError> {
    parameters
        .trained()
        .map(|parameter| {
            let gradient = parameter.tensor.f_grad()?;
            if gradient.defined() { Ok(gradient) } else { parameter.tensor.f_zeros_like()?.f_detach() }
        })
        .collect()
}

/// Sets every gradient to zero.
///
/// # Errors
/// When libtorch fails.
pub fn zero_gradients(parameters: &Parameters) -> Result<(), torch_bridge::Error> {
    let gradients: Vec<Tensor> = parameters
        .trained()
        .map(|parameter| parameter.tensor.f_grad())
        .filter(|gradient| gradient.as_ref().map_or(true, Tensor::defined))
        .collect::<Result<_, _>>()?;
    if gradients.is_empty() { Ok(()) } else { torch_bridge::optim::foreach_zero_(&gradients) }
}

/// Names of parameters that no gradient has reached yet.
pub fn without_gradient(parameters: &Parameters) -> Vec<String> {
    parameters
        .trained()
        .filter(|parameter| !parameter.tensor.grad().defined())
        .map(|parameter| parameter.plan.name.clone())
        .collect()
}
