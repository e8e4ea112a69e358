//! The definition of the selective scan: plain tensor operations, one token at a time.

use tch::Tensor;

use super::SelectiveScan;
use crate::operands::compute_kind;

/// `y [batch, time, d_inner]` in `u`'s dtype and the final state `[batch, d_inner, d_state]` in the state's
/// dtype.
///
/// The operands have been checked by [`super::selective_scan`]; autograd follows the operations below.
pub(super) fn selective_scan(args: &SelectiveScan<'_>) -> (Tensor, Tensor) {
    let kind = compute_kind(args.u);
    let [u, delta, a, b, c] = [args.u, args.delta, args.a, args.b, args.c].map(|x| x.to_kind(kind));
    let [bias, d, z, reset_state] =
        [args.delta_bias, args.d, args.z, args.reset_state].map(|x| x.map(|x| x.to_kind(kind)));
    let (batch, time, d_inner) = (u.size()[0], u.size()[1], u.size()[2]);

    let mut delta = match &bias {
        Some(bias) => delta + bias,
        None => delta,
    };
    if args.delta_softplus {
        // log(1 + e^x). `Tensor::softplus` is the identity above 20, which is 2e-9 off in f64.
        delta = delta.logaddexp(&delta.zeros_like());
    }

    let mut h = args.initial_state.to_kind(kind).expand([batch, d_inner, a.size()[1]], false);
    let mut ys = Vec::new();
    for t in 0..time {
        let [u_t, delta_t, b_t, c_t] = [&u, &delta, &b, &c].map(|x| x.select(1, t));
        let before = match (args.resets, &reset_state) {
            (Some(resets), Some(start)) => start.where_self(&per_row(resets, t, 3), &h),
            _ => h.shallow_clone(),
        };
        // h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t
        let decay = (delta_t.unsqueeze(-1) * &a).exp();
        let after = decay * before + (&delta_t * &u_t).unsqueeze(-1) * b_t.unsqueeze(1);
        // y_t = (C_t h_t + D u_t) silu(z_t)
        let y_t = (&after * c_t.unsqueeze(1)).sum_dim_intlist([-1i64].as_slice(), false, kind);
        let y_t = match &d {
            Some(d) => y_t + d * u_t,
            None => y_t,
        };
        let y_t = match &z {
            Some(z) => y_t * z.select(1, t).silu(),
            None => y_t,
        };
        if let Some(valid) = args.valid {
            ys.push(y_t.where_self(&per_row(valid, t, 2), &y_t.zeros_like()));
            h = after.where_self(&per_row(valid, t, 3), &h);
        } else {
            ys.push(y_t);
            h = after;
        }
    }
    let y = if ys.is_empty() { u } else { Tensor::stack(&ys, 1) };
    (y.to_kind(args.u.kind()), h.to_kind(args.initial_state.kind()))
}

/// Column `t` of a `[batch, time]` mask, shaped to broadcast over a tensor of `rank` dimensions that starts
/// with `batch`.
fn per_row(mask: &Tensor, t: i64, rank: usize) -> Tensor {
    let mut shape = vec![1; rank];
    shape[0] = -1;
    mask.select(1, t).reshape(shape)
}
