//! AdamW in one call for a whole list of parameters.

use tch::Tensor;

use crate::error::Result;
use crate::guards::NoGrad;
use crate::ops::{Argument, Operator};

/// The arguments of [`fused_adamw_`]: lists of equal length, one entry per parameter, and the group's numbers.
#[derive(Debug, Clone, Copy)]
pub struct FusedAdamW<'a> {
    /// The parameters; written.
    pub params: &'a [Tensor],
    /// Their gradients, of the same shapes and kinds.
    pub grads: &'a [Tensor],
    /// First moments; written.
    pub exp_avgs: &'a [Tensor],
    /// Second moments; written.
    pub exp_avg_sqs: &'a [Tensor],
    /// The largest second moments so far; written. Empty unless `amsgrad`.
    pub max_exp_avg_sqs: &'a [Tensor],
    /// How many steps each parameter has made, this one included: scalar `float32` tensors on the parameters' device.
    /// The caller counts, with [`foreach_add_scalar_`](super::foreach_add_scalar_) before the step.
    pub state_steps: &'a [Tensor],
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Decoupled weight decay: the parameter is first multiplied by `1 - lr * weight_decay`.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Divide by the largest second moment so far.
    pub amsgrad: bool,
    /// Climb instead of descend.
    pub maximize: bool,
}

/// One step of AdamW (Loshchilov and Hutter 2019, algorithm 2, as PyTorch has it) for all parameters at once.
///
/// # Errors
/// The lists differ in length, shape, kind or device. An empty list is a step that does nothing.
pub fn fused_adamw_(step: &FusedAdamW<'_>) -> Result<()> {
    if step.params.is_empty() {
        return Ok(());
    }
    let _no_grad = NoGrad::new();
    Operator::find("_fused_adamw_", "")?
        .call_with(&[
            Argument::Tensors(step.params),
            Argument::Tensors(step.grads),
            Argument::Tensors(step.exp_avgs),
            Argument::Tensors(step.exp_avg_sqs),
            Argument::Tensors(step.max_exp_avg_sqs),
            Argument::Tensors(step.state_steps),
            Argument::Double(step.lr),
            Argument::Double(step.beta1),
            Argument::Double(step.beta2),
            Argument::Double(step.weight_decay),
            Argument::Double(step.eps),
            Argument::Bool(step.amsgrad),
            Argument::Bool(step.maximize),
        ])
        .map(drop)
}
