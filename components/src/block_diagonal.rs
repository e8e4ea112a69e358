//! Linear maps whose matrix is block-diagonal: neighbouring channels in groups, a small square matrix for each group.

use hymba_plus::prelude::*;

/// Plans `name [n_blocks, width, width]` for a map of `n_blocks * width` channels, normal with `std`.
pub(crate) fn plan(plan: &mut ModulePlan, name: &str, n_blocks: i64, width: i64, std: f64) {
    plan.parameter(name, &[n_blocks, width, width], Init::Normal { std });
    plan.flops_per_token(2 * n_blocks * width * width);
}

/// `x [batch, time, n_blocks * width]` through `weight [n_blocks, width, width]`, rows of which are outputs.
pub(crate) fn forward(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (size, [n_blocks, width]) = (x.size(), [weight.size()[0], weight.size()[1]]);
    let blocks = x.f_reshape([-1, n_blocks, width])?.f_transpose(0, 1)?;
    let y = blocks.f_matmul(&weight.f_transpose(1, 2)?)?;
    Ok(y.f_transpose(0, 1)?.f_reshape(size)?)
}
