//! The language head and its loss in one: cross-entropy of `hidden weight^T` without the logits of all tokens ever
//! standing in memory.
//!
//! The logits of a model with a large vocabulary are larger than everything else in a training step. Here they are made
//! for some rows at a time, turned into their own gradient in place, and used up by the two products that need it, in
//! the forward pass already: the gradient of a sum of losses is known up to a factor before the backward begins. So the
//! same three products of matrices are done as without it, and the logits pass through memory once. (The idea is that of
//! Liger-Kernel and of Wijmans et al. 2024, "Cut your losses".)

mod chunks;
mod cuda;
mod reference;
mod rows;

use tch::Tensor;
use torch_bridge::Result;

use crate::operands::Operands;
use crate::policy;

/// A target that stands for none.
pub const IGNORE_INDEX: i64 = -100;

/// The operands of [`linear_cross_entropy`], all on one device; any may be non-contiguous.
#[derive(Clone, Copy, Debug)]
pub struct LinearCrossEntropy<'a> {
    /// `[.., d]`, f16, bf16, f32 or f64.
    pub hidden: &'a Tensor,
    /// `[vocab, d]`, of any of these types.
    pub weight: &'a Tensor,
    /// `[..]`, int64: indices below `vocab`, or [`IGNORE_INDEX`].
    pub targets: &'a Tensor,
    /// Settings of the loss.
    pub settings: Settings,
}

/// How the loss is taken from logits `x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The target distribution is `1 - e` on the target and `e / vocab` everywhere (Szegedy et al. 2016).
    pub label_smoothing: f64,
    /// Weight of `log(sum exp x)^2`, which keeps logits from drifting (Chowdhery et al. 2022, section 5).
    pub z_loss: f64,
    /// `x` becomes `soft_cap tanh(x / soft_cap)` first.
    pub soft_cap: Option<f64>,
}

impl Settings {
    /// The plain cross-entropy.
    pub const PLAIN: Self = Self { label_smoothing: 0.0, z_loss: 0.0, soft_cap: None };
}

impl Default for Settings {
    fn default() -> Self {
        Self::PLAIN
    }
}

/// Sums over all targets that are not ignored, scalars in f32 (f64 if `hidden` is): the loss, with `z_loss` times the sum
/// of `log(sum exp)^2` in it, and that sum alone. Only the first can be differentiated, by `hidden` and `weight`.
///
/// Products run in autocast's type where it is on, else in `hidden`'s; everything between them in f32 (or f64).
///
/// # Errors
/// A shape, dtype or device that does not fit, or on the CPU a target that is no index of the vocabulary. (On a GPU that
/// ends the device's work, as in libtorch's own loss.)
pub fn linear_cross_entropy(args: &LinearCrossEntropy<'_>) -> Result<(Tensor, Tensor)> {
    check(args)?;
    if policy::fast() { chunks::linear_cross_entropy(args) } else { reference::linear_cross_entropy(args) }
}

/// The definition that [`linear_cross_entropy`] is tested against: all logits at once, in plain tensor operations.
///
/// # Errors
/// As [`linear_cross_entropy`].
pub fn reference(args: &LinearCrossEntropy<'_>) -> Result<(Tensor, Tensor)> {
    check(args)?;
    reference::linear_cross_entropy(args)
}

/// The same sums of logits `[.., vocab]` that are there, in plain tensor operations.
///
/// # Errors
/// As [`linear_cross_entropy`].
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, settings: Settings) -> Result<(Tensor, Tensor)> {
    let ops = Operands::of("cross_entropy", logits);
    let shape = logits.size();
    let Some((vocab, rows)) = shape.split_last() else {
        return Err(ops.refusal("logits", "[.., vocab]", "a scalar"));
    };
    if *vocab == 0 {
        return Err(ops.refusal("logits", "at least one token", "none"));
    }
    ops.activation("logits", logits, &shape)?;
    ops.indices("targets", targets, rows)?;
    reference::cross_entropy(logits, targets, settings)
}

fn check(args: &LinearCrossEntropy<'_>) -> Result<()> {
    let ops = Operands::of("linear_cross_entropy", args.hidden);
    let mut rows = args.hidden.size();
    let d = rows.pop().ok_or_else(|| ops.refusal("hidden", "[.., d]", "a scalar"))?;
    let [vocab, _] = ops.sizes("weight", args.weight, "[vocab, d]")?;
    ops.activation("hidden", args.hidden, &args.hidden.size())?;
    ops.parameter("weight", args.weight, &[vocab, d])?;
    ops.indices("targets", args.targets, &rows)?;
    if vocab == 0 {
        return Err(ops.refusal("weight", "at least one row", "[0, d]"));
    }
    Ok(())
}
