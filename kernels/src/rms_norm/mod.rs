//! The root-mean-square norm, with the addition of the residual stream before it.
//!
//! `h = x + residual`, `y = h / sqrt(mean(h^2) + eps) * weight` over the last dimension (Zhang & Sennrich 2019).

mod cpu;
mod cuda;
mod reference;

pub(crate) use cuda::ROWS;

use tch::{Device, Kind, Tensor};
use torch_bridge::Result;

use crate::operands::Operands;
use crate::policy;

/// The operands of [`rms_norm`], all on one device; any may be non-contiguous.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm<'a> {
    /// `[.., d]`, f16, bf16, f32 or f64.
    pub x: &'a Tensor,
    /// Added to `x` first, of its shape; of a wider type if the residual stream is kept in one.
    pub residual: Option<&'a Tensor>,
    /// `[d]`, of any of these types.
    pub weight: &'a Tensor,
    /// Added to the mean square.
    pub eps: f64,
    /// The type of `y`; left out, that of `h`. Under autocast the product that follows wants 16 bits.
    pub output: Option<Kind>,
}

/// `y [.., d]` and `h [.., d]`, `h` in the wider of `x`'s and `residual`'s types; computed in f32 (f64 if `h` is), from `h`
/// as it was rounded. Differentiable
/// in `x`, `residual` and `weight`, through both results.
///
/// # Errors
/// A shape, dtype or device that does not fit.
pub fn rms_norm(args: &RmsNorm<'_>) -> Result<(Tensor, Tensor)> {
    check(args)?;
    if policy::fast()
        && args.x.device().is_cuda()
        && args.x.numel() > 0
        && let Some(outputs) = cuda::rms_norm(args)?
    {
        return Ok(outputs);
    }
    if policy::fast() && args.x.device() == Device::Cpu && args.x.numel() > 0 && cpu::takes(args) {
        return cpu::rms_norm(args);
    }
    reference::rms_norm(args)
}

/// The definition that [`rms_norm`] is tested against: plain tensor operations, on any device.
///
/// # Errors
/// As [`rms_norm`].
pub fn reference(args: &RmsNorm<'_>) -> Result<(Tensor, Tensor)> {
    check(args)?;
    reference::rms_norm(args)
}

fn check(args: &RmsNorm<'_>) -> Result<()> {
    let ops = Operands::of("rms_norm", args.x);
    let shape = args.x.size();
    let Some(d) = shape.last() else { return Err(ops.refusal("x", "[.., d]", "a scalar")) };
    ops.activation("x", args.x, &shape)?;
    ops.parameter("weight", args.weight, &[*d])?;
    if let Some(residual) = args.residual {
        ops.activation("residual", residual, &shape)?;
    }
    Ok(())
}
