//! The definition, in plain tensor operations.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::RmsNorm;
use crate::operands::compute_kind;

pub(super) fn rms_norm(args: &RmsNorm<'_>) -> Result<(Tensor, Tensor)> {
    let sum = match args.residual {
        Some(residual) => args.x.f_add(residual)?,
        None => args.x.shallow_clone(),
    };
    let wide = sum.f_to_kind(compute_kind(&sum))?;
    let mean_square = wide.f_square()?.f_mean_dim([-1_i64].as_slice(), true, None::<Kind>)?;
    let normed = wide.f_mul(&(mean_square + args.eps).f_rsqrt()?)?;
    let y =
        normed.f_mul(&args.weight.f_to_kind(wide.kind())?)?.f_to_kind(args.output.unwrap_or(sum.kind()))?;
    Ok((y, sum))
}
