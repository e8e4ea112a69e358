//! The definition: plain tensor operations, one token at a time.

use tch::Tensor;
use torch_bridge::Result;

use super::Ssd;
use crate::operands::compute_kind;

/// `y [batch, time, heads, head_dim]` in `x`'s dtype and the final state `[batch, heads, head_dim, d_state]` in the
/// state's dtype.
///
/// The operands have been checked, and there is no padding; autograd follows the operations below.
pub(super) fn ssd(args: &Ssd<'_>) -> Result<(Tensor, Tensor)> {
    let kind = compute_kind(args.x);
    let wide = |x: &Tensor| x.f_to_kind(kind);
    let (x, dt, a, b, c) = (wide(args.x)?, wide(args.dt)?, wide(args.a)?, wide(args.b)?, wide(args.c)?);
    let (d, reset_state) = (args.d.map(wide).transpose()?, args.reset_state.map(wide).transpose()?);
    let (size, groups, d_state) = (x.size(), b.size()[2], b.size()[3]);
    let (batch, time, heads, head_dim) = (size[0], size[1], size[2], size[3]);
    // A group's vector, once for each of its heads: [batch, groups, d_state] to [batch, heads, 1, d_state].
    let per_head = |x: Tensor| -> Result<Tensor> {
        let x = x.f_unsqueeze(2)?.f_expand([batch, groups, heads / groups, d_state], false)?;
        Ok(x.f_reshape([batch, heads, 1, d_state])?)
    };

    let mut h = wide(args.initial_state)?.f_expand([batch, heads, head_dim, d_state], false)?;
    let mut ys = Vec::new();
    for t in 0..time {
        let (x_t, dt_t) = (x.f_select(1, t)?, dt.f_select(1, t)?);
        let (b_t, c_t) = (per_head(b.f_select(1, t)?)?, per_head(c.f_select(1, t)?)?);
        if let (Some(resets), Some(start)) = (args.resets, &reset_state) {
            h = start.f_where_self(&resets.f_select(1, t)?.f_reshape([batch, 1, 1, 1])?, &h)?;
        }
        // h_t = exp(dt_t a) h_{t-1} + dt_t x_t B_t^T
        let decay = (&dt_t * &a).f_exp()?.f_reshape([batch, heads, 1, 1])?;
        let written = (dt_t.f_unsqueeze(-1)? * &x_t).f_unsqueeze(-1)?;
        h = (decay * h).f_addcmul(&written, &b_t)?;
        // y_t = h_t C_t + D x_t
        let y_t = h.f_matmul(&c_t.f_transpose(-1, -2)?)?.f_squeeze_dim(-1)?;
        ys.push(match &d {
            Some(d) => y_t + d.f_unsqueeze(-1)? * x_t,
            None => y_t,
        });
    }
    let y = if ys.is_empty() { x } else { Tensor::f_stack(&ys, 1)? };
    Ok((y.f_to_kind(args.x.kind())?, h.f_to_kind(args.initial_state.kind())?))
}
