//! The sum of several branches, each normed by its root mean square: how Hymba joins attention and state space.
//!
//! `y = sum_i x_i / sqrt(mean(x_i^2) + eps) * weight_i` over the last dimension (Dong et al. 2024, eq. 3; a mean or
//! learned factors are part of the weights).

mod cuda;
mod reference;

use tch::{Device, Kind, Tensor};
use torch_bridge::Result;

use crate::operands::{Operands, compute_kind};
use crate::policy;
use crate::rms_norm::{RmsNorm, rms_norm};

/// The sum `[.., d]` in the branches' type, in one pass on a GPU; computed in f32 (f64 if they are). Differentiable in
/// branches and weights.
///
/// `branches`: one or more, `[.., d]`, of one type (f16, bf16, f32 or f64); `weights`: as many, `[d]`, of any of these.
///
/// # Errors
/// A number, shape, dtype or device that does not fit.
pub fn rms_norm_sum(branches: &[&Tensor], weights: &[&Tensor], eps: f64) -> Result<Tensor> {
    let first = check(branches, weights)?;
    if policy::fast()
        && first.device().is_cuda()
        && first.numel() > 0
        && let Some(y) = cuda::rms_norm_sum(branches, weights, eps)?
    {
        return Ok(y);
    }
    if policy::fast() && first.device() == Device::Cpu && first.numel() > 0 {
        return one_by_one(branches, weights, eps);
    }
    reference::rms_norm_sum(branches, weights, eps)
}

/// The sum of norms, each in a pass.
fn one_by_one(branches: &[&Tensor], weights: &[&Tensor], eps: f64) -> Result<Tensor> {
    let kind = branches.first().map_or(Kind::Float, |x| x.kind());
    let mut sum: Option<Tensor> = None;
    for (x, weight) in branches.iter().zip(weights) {
        let output = Some(compute_kind(x));
        let (y, _) = rms_norm(&RmsNorm { x, residual: None, weight, eps, output })?;
        sum = Some(match sum {
            Some(sum) => sum.f_add(&y)?,
            None => y,
        });
    }
    let sum = sum.ok_or_else(|| torch_bridge::Error::other("rms_norm_sum: no branch to sum"))?;
    Ok(sum.f_to_kind(kind)?)
}

/// The definition that [`rms_norm_sum`] is tested against: plain tensor operations, on any device.
///
/// # Errors
/// As [`rms_norm_sum`].
pub fn reference(branches: &[&Tensor], weights: &[&Tensor], eps: f64) -> Result<Tensor> {
    check(branches, weights)?;
    reference::rms_norm_sum(branches, weights, eps)
}

/// The first branch, if everything fits it.
fn check<'a>(branches: &[&'a Tensor], weights: &[&Tensor]) -> Result<&'a Tensor> {
    let Some(first) = branches.first() else {
        return Err(torch_bridge::Error::other("rms_norm_sum: no branch to sum"));
    };
    let ops = Operands::of("rms_norm_sum", first);
    let shape = first.size();
    let Some(d) = shape.last() else { return Err(ops.refusal("branches", "[.., d]", "a scalar")) };
    if weights.len() != branches.len() {
        let expected = format!("{} tensors, one for each branch", branches.len());
        return Err(ops.refusal("weights", &expected, &weights.len().to_string()));
    }
    for (branch, weight) in branches.iter().zip(weights) {
        ops.activation("branches", branch, &shape)?;
        ops.parameter("weights", weight, &[*d])?;
        if branch.kind() != first.kind() {
            let (wanted, given) = (format!("{:?}", first.kind()), format!("{:?}", branch.kind()));
            return Err(ops.refusal("branches", &wanted, &given));
        }
    }
    Ok(first)
}
