//! The rotary position embedding of queries and keys.
//!
//! Channels `i` and `i + d / 2` of a head turn together by `position * frequency_i` (Su et al. 2021, in the half-split
//! layout of GPT-NeoX and Llama), and are multiplied by a scale.

mod cpu;
mod cuda;
mod reference;

use tch::{Device, Tensor};
use torch_bridge::Result;

use crate::operands::Operands;
use crate::policy;

/// The operands of [`rotary`], all on one device.
#[derive(Clone, Copy, Debug)]
pub struct Rotary<'a> {
    /// `[batch, heads, time, d]` with `d` even, any strides; f16, bf16, f32 or f64.
    pub x: &'a Tensor,
    /// `[batch or 1, time]`, int64.
    pub positions: &'a Tensor,
    /// Radians per position of each pair, `d / 2` of them.
    pub frequencies: &'a [f64],
    /// What the result is multiplied by.
    pub scale: f64,
}

/// The turned heads, of `x`'s shape and type; angles, sines and cosines are computed in f32 (f64 if `x` is).
/// Differentiable in `x`.
///
/// # Errors
/// A shape, dtype or device that does not fit.
pub fn rotary(args: &Rotary<'_>) -> Result<Tensor> {
    check(args)?;
    if policy::fast()
        && args.x.device().is_cuda()
        && args.x.numel() > 0
        && let Some(y) = cuda::rotary(args)?
    {
        return Ok(y);
    }
    if policy::fast() && args.x.device() == Device::Cpu && args.x.numel() > 0 {
        return cpu::rotary(args);
    }
    reference::rotary(args)
}

/// The definition that [`rotary`] is tested against: plain tensor operations, on any device.
///
/// # Errors
/// As [`rotary`].
pub fn reference(args: &Rotary<'_>) -> Result<Tensor> {
    check(args)?;
    reference::rotary(args)
}

fn check(args: &Rotary<'_>) -> Result<()> {
    let ops = Operands::of("rotary", args.x);
    let [batch, heads, time, d] = ops.sizes("x", args.x, "[batch, heads, time, d]")?;
    ops.activation("x", args.x, &[batch, heads, time, d])?;
    let rows = if args.positions.size().first() == Some(&1) { 1 } else { batch };
    ops.indices("positions", args.positions, &[rows, time])?;
    let given = args.frequencies.len();
    if d % 2 != 0 || given as i64 != d / 2 {
        let expected = format!("{} numbers, half as many as an even number of channels", d / 2);
        return Err(ops.refusal("frequencies", &expected, &format!("{given} for {d} channels")));
    }
    Ok(())
}
