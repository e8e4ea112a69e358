//! The root-mean-square norm, with the addition of the residual stream before it.
//!
//! `h = x + residual`, `y = h / sqrt(mean(h^2) + eps) * weight` over the last dimension (Zhang & Sennrich 2019).

mod cpu;
mod cuda;
mod reference;
pub(crate) mod rows;

use tch::{Device, Kind, Tensor};
use torch_bridge::Result;

use crate::operands::{Operands, compute_kind};
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
    if policy::fast() && args.x.device() == Device::Cpu && args.x.numel() > 0 {
        return if cpu::takes(args) { cpu::rms_norm(args) } else { widened(args) };
    }
    reference::rms_norm(args)
}

/// On the CPU, of several types or in 16 bits: through the type that the norm is computed in.
fn widened(args: &RmsNorm<'_>) -> Result<(Tensor, Tensor)> {
    let sum = match args.residual {
        Some(residual) => args.x.f_add(residual)?,
        None => args.x.shallow_clone(),
    };
    let wide = compute_kind(&sum);
    let (x, weight) = (sum.f_to_kind(wide)?, args.weight.f_to_kind(wide)?);
    let (y, _) =
        cpu::rms_norm(&RmsNorm { x: &x, weight: &weight, residual: None, eps: args.eps, output: None })?;
    Ok((y.f_to_kind(args.output.unwrap_or(sum.kind()))?, sum))
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
