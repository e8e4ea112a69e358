//! The definition of the mLSTM: plain tensor operations, one token at a time.

use tch::Tensor;
use torch_bridge::Result;

use super::{M_FLOOR, Mlstm, MlstmState};
use crate::operands::compute_kind;

/// One token of every row: `q, k [batch, heads, d_qk]`, `v [batch, heads, d_v]`, gates `[batch, heads]`.
struct Token<'a> {
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
    input_gate: &'a Tensor,
    forget_gate: &'a Tensor,
}

/// `h [batch, time, heads, d_v]` in `v`'s dtype and the final state in the initial state's dtypes.
///
/// The operands have been checked by [`super::mlstm`]; autograd follows the operations below.
pub(super) fn mlstm(args: &Mlstm<'_>) -> Result<(Tensor, MlstmState)> {
    let kind = compute_kind(args.q);
    let [batch, time] = [args.q.size()[0], args.q.size()[1]];
    let tokens = |x: &Tensor| -> Result<Vec<Tensor>> { Ok(x.f_to_kind(kind)?.f_unbind(1)?) };
    let masks = |x: Option<&Tensor>| x.map(|x| x.f_unbind(1)).transpose();
    let rows = |x: &Tensor| -> Result<Tensor> {
        let mut size = x.size();
        size[0] = batch;
        Ok(x.f_to_kind(kind)?.f_expand(size, false)?)
    };
    let [q, k, v] = [tokens(args.q)?, tokens(args.k)?, tokens(args.v)?];
    let [input_gate, forget_gate] = [tokens(args.input_gate)?, tokens(args.forget_gate)?];
    let [resets, valid] = [masks(args.resets)?, masks(args.valid)?];
    let reset_state = args.reset_state.map(|state| state.map(rows)).transpose()?;

    let mut state = args.initial_state.map(rows)?;
    let mut hs = Vec::new();
    for t in 0..time as usize {
        let before = match (&resets, &reset_state) {
            (Some(resets), Some(start)) => choose(&resets[t], start, &state)?,
            _ => state.share(),
        };
        let token =
            Token { q: &q[t], k: &k[t], v: &v[t], input_gate: &input_gate[t], forget_gate: &forget_gate[t] };
        let (h, after) = step(&token, &before, args.eps)?;
        if let Some(valid) = &valid {
            hs.push(h.f_where_self(&like(&valid[t], &h)?, &h.f_zeros_like()?)?);
            state = choose(&valid[t], &after, &state)?;
        } else {
            hs.push(h);
            state = after;
        }
    }
    let h = if hs.is_empty() { args.v.shallow_clone() } else { Tensor::f_stack(&hs, 1)? };
    let last = MlstmState {
        c: state.c.f_to_kind(args.initial_state.c.kind())?,
        n: state.n.f_to_kind(args.initial_state.n.kind())?,
        m: state.m.f_to_kind(args.initial_state.m.kind())?,
    };
    Ok((h.f_to_kind(args.v.kind())?, last))
}

/// `h [batch, heads, d_v]` of one token and the state after it.
fn step(token: &Token<'_>, state: &MlstmState, eps: f64) -> Result<(Tensor, MlstmState)> {
    let &Token { q, k, v, input_gate, forget_gate } = token;
    let log_f = forget_gate.f_log_sigmoid()?;
    let m = (&log_f + &state.m).f_maximum(input_gate)?.f_clamp_min(M_FLOOR)?;
    // Relative to the new maximum: f = exp(log f + m_before - m), i = exp(input_gate - m).
    let f = (log_f + &state.m - &m).f_exp()?.f_unsqueeze(-1)?;
    let i = (input_gate - &m).f_exp()?.f_unsqueeze(-1)?;
    let written = i * k;
    let c = f.f_unsqueeze(-1)? * &state.c + written.f_unsqueeze(-1)? * v.f_unsqueeze(-2)?;
    let n = f * &state.n + written;
    let q = q * (q.size()[2] as f64).powf(-0.5);
    let numerator = q.f_unsqueeze(-2)?.f_matmul(&c)?.f_squeeze_dim(-2)?;
    let q_n = (q * &n).f_sum_dim_intlist([-1i64].as_slice(), false, None)?;
    let denominator = q_n.f_abs()?.f_maximum(&m.f_neg()?.f_exp()?)? + eps;
    Ok((numerator / denominator.f_unsqueeze(-1)?, MlstmState { c, n, m }))
}

/// Each row's state from `yes` where `which [batch]` is true, else from `no`.
fn choose(which: &Tensor, yes: &MlstmState, no: &MlstmState) -> Result<MlstmState> {
    let pick =
        |yes: &Tensor, no: &Tensor| -> Result<Tensor> { Ok(yes.f_where_self(&like(which, yes)?, no)?) };
    Ok(MlstmState { c: pick(&yes.c, &no.c)?, n: pick(&yes.n, &no.n)?, m: pick(&yes.m, &no.m)? })
}

/// A `[batch]` mask that broadcasts over `x [batch, ..]`.
fn like(mask: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; x.dim()];
    shape[0] = -1;
    Ok(mask.f_view(shape.as_slice())?)
}
