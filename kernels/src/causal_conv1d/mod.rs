//! The short depthwise causal convolution in front of a state-space or gated recurrent layer.
//!
//! `y_t = bias + sum_k weight_k x_{t - (width - 1) + k}` per channel (Gu & Dao 2023, section 3.4), from the
//! inputs that came before the call (the tail), with documents packed one after another each starting from
//! its own tail.

mod cpu;
mod cuda;
mod given;
mod reference;

use tch::{Device, Tensor};
use torch_bridge::Result;

use crate::operands::Operands;
use crate::policy;

/// The widest filter [`causal_conv1d`] takes.
pub const MAX_WIDTH: i64 = 8;

/// The operands of [`causal_conv1d`].
///
/// `x` may be f16, bf16, f32 or f64, the other floating tensors f32 or f64 as well; all live on one device
/// and any may be non-contiguous.
#[derive(Clone, Copy, Debug)]
pub struct CausalConv1d<'a> {
    /// Inputs, `[batch, time, d]`.
    pub x: &'a Tensor,
    /// Taps, the oldest input's first, `[d, width]` with `width` in `1..=8`.
    pub weight: &'a Tensor,
    /// Added to every output, `[d]`.
    pub bias: Option<&'a Tensor>,
    /// The inputs before the call, oldest first, `[batch or 1, width - 1, d]`.
    pub tail: &'a Tensor,
    /// The inputs before a document's first token, `[batch or 1, width - 1, d]`; needed when `resets` is
    /// given.
    pub reset_tail: Option<&'a Tensor>,
    /// True where a token is the first of its document, `[batch, time]`, bool.
    pub resets: Option<&'a Tensor>,
    /// Tokens of each row that count, the rest is padding on the right (`y` is 0 there, nothing enters the
    /// tail, no reset happens), `[batch]`, int64; clamped to `0..=time`.
    pub lengths: Option<&'a Tensor>,
    /// Whether `silu` is applied to the result.
    pub silu: bool,
}

/// `y_t = bias + sum_k weight_k x_{t - (width - 1) + k}`, then `silu` if asked.
///
/// Returns `y [batch, time, d]` in `x`'s dtype and the last `width - 1` inputs of each row's last document,
/// `[batch, width - 1, d]` in `tail`'s dtype: entries of `tail` or `reset_tail` are among them when fewer
/// tokens came. Inside, everything is f64 if `x` is, else f32. `time` may be 0. Differentiable in every
/// floating operand, through both results; the gradient of a broadcast tail is summed over the batch.
///
/// # Errors
/// A shape, dtype or device that does not fit, a width out of `1..=8`, or `resets` without `reset_tail`.
pub fn causal_conv1d(args: &CausalConv1d<'_>) -> Result<(Tensor, Tensor)> {
    check(args)?;
    // Without tokens only the tail is handed through, which the definition does well enough.
    if args.x.numel() > 0 && policy::fast() {
        match args.x.device() {
            Device::Cpu => return cpu::causal_conv1d(args),
            Device::Cuda(_) => {
                if let Some(outputs) = cuda::causal_conv1d(args)? {
                    return Ok(outputs);
                }
            }
            _ => {}
        }
    }
    Ok(reference::causal_conv1d(args))
}

/// The definition that [`causal_conv1d`] is tested against: plain tensor operations, token by token, on any device.
///
/// # Errors
/// As [`causal_conv1d`].
pub fn reference(args: &CausalConv1d<'_>) -> Result<(Tensor, Tensor)> {
    check(args)?;
    Ok(reference::causal_conv1d(args))
}

fn check(args: &CausalConv1d<'_>) -> Result<()> {
    let ops = Operands::of("causal_conv1d", args.x);
    let [batch, time, d] = ops.sizes("x", args.x, "[batch, time, d]")?;
    let [_, width] = ops.sizes("weight", args.weight, "[d, width]")?;
    if !(1..=MAX_WIDTH).contains(&width) {
        return Err(ops.refusal(
            "weight",
            &format!("[{d}, width] with width in 1..={MAX_WIDTH}"),
            &format!("{:?}", args.weight.size()),
        ));
    }
    ops.activation("x", args.x, &[batch, time, d])?;
    ops.parameter("weight", args.weight, &[d, width])?;
    args.bias.map_or(Ok(()), |x| ops.parameter("bias", x, &[d]))?;
    ops.state("tail", args.tail, &[batch, width - 1, d])?;
    args.reset_tail.map_or(Ok(()), |x| ops.state("reset_tail", x, &[batch, width - 1, d]))?;
    args.resets.map_or(Ok(()), |x| ops.mask("resets", x, &[batch, time]))?;
    args.lengths.map_or(Ok(()), |x| ops.indices("lengths", x, &[batch]))?;
    ops.present_with("reset_tail", args.reset_tail, "resets", args.resets)
}
