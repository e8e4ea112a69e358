//! The definition of the causal convolution: plain tensor operations, one token at a time.

use tch::Tensor;

use super::CausalConv1d;
use crate::operands::compute_kind;

/// `y [batch, time, d]` in `x`'s dtype and the new tail `[batch, width - 1, d]` in the tail's dtype.
///
/// The operands have been checked by [`super::causal_conv1d`]; autograd follows the operations below.
pub(super) fn causal_conv1d(args: &CausalConv1d<'_>) -> (Tensor, Tensor) {
    let kind = compute_kind(args.x);
    let [x, weight] = [args.x, args.weight].map(|x| x.to_kind(kind));
    let [bias, reset_tail] = [args.bias, args.reset_tail].map(|x| x.map(|x| x.to_kind(kind)));
    let (batch, time, d) = (x.size()[0], x.size()[1], x.size()[2]);
    let taps = weight.transpose(0, 1); // [width, d], the oldest input's first
    let history_len = taps.size()[0] - 1;

    let mut history = args.tail.to_kind(kind).expand([batch, history_len, d], false);
    let mut ys = Vec::new();
    for t in 0..time {
        let before = match (args.resets, &reset_tail) {
            (Some(resets), Some(start)) => {
                start.where_self(&resets.select(1, t).reshape([batch, 1, 1]), &history)
            }
            _ => history.shallow_clone(),
        };
        // The `width` inputs that y_t sees, oldest first.
        let window = Tensor::cat(&[before, x.narrow(1, t, 1)], 1);
        // y_t = bias + sum_k weight_k x_{t - (width - 1) + k}
        let y_t = (&window * &taps).sum_dim_intlist([1i64].as_slice(), false, kind);
        let y_t = match &bias {
            Some(bias) => y_t + bias,
            None => y_t,
        };
        let y_t = if args.silu { y_t.silu() } else { y_t };
        let after = window.narrow(1, 1, history_len);
        if let Some(lengths) = args.lengths {
            let valid = lengths.gt(t);
            ys.push(y_t.where_self(&valid.reshape([batch, 1]), &y_t.zeros_like()));
            history = after.where_self(&valid.reshape([batch, 1, 1]), &history);
        } else {
            ys.push(y_t);
            history = after;
        }
    }
    let y = if ys.is_empty() { x } else { Tensor::stack(&ys, 1) };
    (y.to_kind(args.x.kind()), history.to_kind(args.tail.kind()))
}
