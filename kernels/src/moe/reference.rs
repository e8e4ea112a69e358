//! The definition: every expert on every token.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::Experts;
use crate::operands::compute_kind;

/// The operands have been checked; autograd follows the operations below.
pub(super) fn experts(args: &Experts<'_>) -> Result<Tensor> {
    let kind = compute_kind(args.x);
    let weights = args.weights.f_to_kind(kind)?;
    let mut y = args.x.f_zeros_like()?.f_to_kind(kind)?;
    for e in 0..args.gate.size()[0] {
        let matrix = |x: &Tensor| x.f_select(0, e);
        let (gate, up, down) = (matrix(args.gate)?, matrix(args.up)?, matrix(args.down)?);
        let linear = |x: &Tensor, matrix: &Tensor| x.f_linear(matrix, None::<&Tensor>);
        let hidden = linear(args.x, &gate)?.f_silu()? * linear(args.x, &up)?;
        let given = linear(&hidden, &down)?.f_to_kind(kind)?;
        let chosen = args.choice.f_eq(e)?.f_to_kind(kind)?;
        let weight = (chosen * &weights).f_sum_dim_intlist([1i64].as_slice(), true, Kind::Double)?;
        y += given * weight.f_to_kind(kind)?;
    }
    Ok(y.f_to_kind(args.x.kind())?)
}
