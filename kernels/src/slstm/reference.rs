//! The definition of the sLSTM: plain tensor operations, one token at a time, heads in front so that the recurrence is
//! one batched product.

use tch::{Kind, Tensor};
use torch_bridge::{Error, Result};

use super::{Slstm, SlstmState};
use crate::operands::compute_kind;

/// `h [batch, time, heads, head_dim]` in the dtype of `gates` and the final state in the initial state's dtypes.
///
/// The operands have been checked by [`super::slstm`]; autograd follows the operations below.
pub(super) fn slstm(args: &Slstm<'_>) -> Result<(Tensor, SlstmState)> {
    let kind = compute_kind(args.gates);
    let [batch, time, _, heads, head_dim] = [0, 1, 2, 3, 4].map(|dimension| args.gates.size()[dimension]);
    // [time] of [heads, batch, 4 head_dim]
    let gates = args.gates.f_to_kind(kind)?;
    let gates = match args.bias {
        Some(bias) => gates + bias.f_to_kind(kind)?,
        None => gates,
    };
    let gates = gates.f_permute([1, 3, 0, 2, 4])?;
    let gates = gates.f_reshape([time, heads, batch, 4 * head_dim])?.f_unbind(0)?;
    // [heads, inputs, 4 head_dim]
    let recurrent = args.recurrent.f_to_kind(kind)?.f_permute([1, 3, 0, 2])?;
    let recurrent = recurrent.f_reshape([heads, head_dim, 4 * head_dim])?;
    let mask = |x: &Tensor| -> Result<Vec<Tensor>> {
        Ok(x.f_transpose(0, 1)?.f_reshape([time, 1, batch, 1])?.f_unbind(0)?)
    };
    let [resets, valid] = [args.resets, args.valid].map(|x| x.map(mask).transpose());
    let (resets, valid) = (resets?, valid?);
    let reset_state = args.reset_state.map(|state| heads_first(state, batch, kind)).transpose()?;

    let mut state = heads_first(args.initial_state, batch, kind)?;
    let mut hs = Vec::new();
    for t in 0..time as usize {
        let before = match (&resets, &reset_state) {
            (Some(resets), Some(start)) => choose(&resets[t], start, &state)?,
            _ => state.each_ref().map(Tensor::shallow_clone),
        };
        let after = step(&gates[t], &recurrent, &before)?;
        if let Some(valid) = &valid {
            hs.push(after[0].f_where_self(&valid[t], &after[0].f_zeros_like()?)?);
            state = choose(&valid[t], &after, &state)?;
        } else {
            hs.push(after[0].shallow_clone());
            state = after;
        }
    }
    let h = if hs.is_empty() {
        args.gates.f_select(2, 0)?
    } else {
        Tensor::f_stack(&hs, 0)?.f_permute([2, 0, 1, 3])?.f_to_kind(args.gates.kind())?
    };
    let back =
        |x: &Tensor, like: &Tensor| -> Result<Tensor> { Ok(x.f_transpose(0, 1)?.f_to_kind(like.kind())?) };
    let [after_h, c, n, m] = &state;
    let like = args.initial_state;
    let last = SlstmState {
        h: back(after_h, &like.h)?,
        c: back(c, &like.c)?,
        n: back(n, &like.n)?,
        m: back(m, &like.m)?,
    };
    Ok((h, last))
}

/// The state `[h, c, n, m]` after one token, each `[heads, batch, head_dim]`.
fn step(gates: &Tensor, recurrent: &Tensor, state: &[Tensor; 4]) -> Result<[Tensor; 4]> {
    let [h, c, n, m] = state;
    let raw = gates.f_baddbmm(h, recurrent, 1.0, 1.0)?.f_chunk(4, -1)?;
    let [i, f, z, o] = raw.as_slice() else { return Err(Error::other("slstm: not four gates")) };
    // Where nothing is remembered, there is no maximum before this token's.
    let kept = f.f_log_sigmoid()? + m.f_masked_fill(&n.f_eq(0.0)?, f64::NEG_INFINITY)?;
    let m = kept.f_maximum(i)?;
    let (f, i) = ((kept - &m).f_exp()?, (i - &m).f_exp()?);
    let c = &f * c + &i * z.f_tanh()?;
    let n = f * n + i;
    let h = o.f_sigmoid()? * &c / &n;
    Ok([h, c, n, m])
}

/// The parts of a state as `[heads, batch, head_dim]`.
fn heads_first(state: &SlstmState, batch: i64, kind: Kind) -> Result<[Tensor; 4]> {
    let part = |x: &Tensor| -> Result<Tensor> {
        let mut size = x.size();
        size[0] = batch;
        Ok(x.f_to_kind(kind)?.f_expand(size, false)?.f_transpose(0, 1)?)
    };
    let [h, c, n, m] = state.parts().map(part);
    Ok([h?, c?, n?, m?])
}

/// Each row's state from `yes` where `which [1, batch, 1]` is true, else from `no`.
fn choose(which: &Tensor, yes: &[Tensor; 4], no: &[Tensor; 4]) -> Result<[Tensor; 4]> {
    let pick = |at: usize| -> Result<Tensor> { Ok(yes[at].f_where_self(which, &no[at])?) };
    Ok([pick(0)?, pick(1)?, pick(2)?, pick(3)?])
}
