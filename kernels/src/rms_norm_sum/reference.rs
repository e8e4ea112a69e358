//! The definition, in plain tensor operations.

use tch::{Kind, Tensor};
use torch_bridge::{Error, Result};

use crate::operands::compute_kind;

pub(super) fn rms_norm_sum(branches: &[&Tensor], weights: &[&Tensor], eps: f64) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (x, weight) in branches.iter().zip(weights) {
        let wide = x.f_to_kind(compute_kind(x))?;
        let mean_square = wide.f_square()?.f_mean_dim([-1_i64].as_slice(), true, None::<Kind>)?;
        let normed = wide.f_mul(&mean_square.f_add_scalar(eps)?.f_rsqrt()?)?;
        let y = normed.f_mul(&weight.f_to_kind(wide.kind())?)?;
        sum = Some(match sum {
            Some(sum) => sum.f_add(&y)?,
            None => y,
        });
    }
    let kind = branches.first().map_or(Kind::Float, |x| x.kind());
    Ok(sum.ok_or_else(|| Error::other("rms_norm_sum: no branch to sum"))?.f_to_kind(kind)?)
}
