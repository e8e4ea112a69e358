//! The definition, in plain tensor operations.

use tch::Tensor;
use torch_bridge::Result;

use super::Rotary;
use crate::operands::compute_kind;

pub(super) fn rotary(args: &Rotary<'_>) -> Result<Tensor> {
    let x = args.x;
    let half = args.frequencies.len() as i64;
    let kind = compute_kind(x);
    let frequencies = Tensor::f_from_slice(args.frequencies)?.f_to_kind(kind)?.f_to_device(x.device())?;
    // [batch or 1, 1, time, d / 2]
    let angles = args.positions.f_to_kind(kind)?.f_unsqueeze(-1)?.f_unsqueeze(1)?.f_mul(&frequencies)?;
    let cos = angles.f_cos()?.f_mul_scalar(args.scale)?.f_to_kind(x.kind())?;
    let sin = angles.f_sin()?.f_mul_scalar(args.scale)?.f_to_kind(x.kind())?;
    let (first, second) = (x.f_narrow(3, 0, half)?, x.f_narrow(3, half, half)?);
    let turned =
        [first.f_mul(&cos)?.f_sub(&second.f_mul(&sin)?)?, second.f_mul(&cos)?.f_add(&first.f_mul(&sin)?)?];
    Ok(Tensor::f_cat(&turned, 3)?)
}
