//! The mLSTM in chunks: inside a chunk a masked matrix of scores, between chunks the state (Beck et al. 2025,
//! arXiv 2503.14376, in the notation of our own below).
//!
//! With `b_t` the sum of `log f` in the chunk up to token `t`, what token `j` writes reaches token `t` with the weight
//! `exp(b_t - b_j + i_j)`, and the state before the chunk with `exp(b_t + m)`. All weights of token `t` are taken
//! relative to their maximum `m_t`. Three things keep them right whatever the gates are:
//!
//! * sums of gates and their differences are made in 64 bits: `b` may be thousands where a difference is near 0;
//! * a weight that must not count is `-inf` before the exponential, so that no gradient comes from an overflow;
//! * outputs do not depend on `m_t` except through `eps` (and the last state, which is relative to it), so the weights
//!   take it as a constant and those two get its gradient by a factor that is 1. Gradients are exact all the same, and
//!   large terms that cancel never arise.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::{M_FLOOR, Mlstm, MlstmState};
use crate::operands::compute_kind;

/// Chunks that are computed side by side; more tokens come in the next round, from the state of this one. Bounds the
/// memory of a long call without gradients.
const CHUNKS_AT_ONCE: i64 = 32;

/// As [`super::mlstm`], for operands that are not empty.
pub(super) fn mlstm(args: &Mlstm<'_>) -> Result<(Tensor, MlstmState)> {
    let kind = compute_kind(args.q);
    let [batch, time, heads] = [0, 1, 2].map(|dimension| args.q.size()[dimension]);
    let initial = Memory::of(args.initial_state, kind)?.expand(batch)?;
    let reset = args.reset_state.filter(|_| args.resets.is_some());
    let reset = reset.map(|state| Memory::of(state, kind)).transpose()?;
    let neutral = Neutral::of(args, kind)?;

    let (mut hs, mut memory, mut start) = (Vec::new(), initial, 0);
    while start < time {
        let length = (time - start).min(CHUNKS_AT_ONCE.saturating_mul(args.chunk_size));
        let chunks = (length + args.chunk_size - 1) / args.chunk_size;
        let layout = Layout { batch, heads, start, length, chunks, size: (length + chunks - 1) / chunks };
        let (h, after) = round(&neutral, &layout, &memory, reset.as_ref(), args.eps)?;
        hs.push(h);
        memory = after;
        start += length;
    }
    let h = if let [h] = hs.as_slice() { h.shallow_clone() } else { Tensor::f_cat(&hs, 1)? };
    Ok((h.f_to_kind(args.v.kind())?, memory.state(args.initial_state)?))
}

/// A state with `n` as one more column of `C`, `[batch or 1, heads, d_qk, d_v + 1]`.
struct Memory {
    c_n: Tensor,
    /// `[batch or 1, heads]`, 64 bits.
    m: Tensor,
}

impl Memory {
    fn of(state: &MlstmState, kind: Kind) -> Result<Self> {
        let c_n = Tensor::f_cat(&[state.c.f_to_kind(kind)?, state.n.f_to_kind(kind)?.f_unsqueeze(-1)?], -1)?;
        Ok(Self { c_n, m: state.m.f_to_kind(Kind::Double)? })
    }

    fn expand(&self, batch: i64) -> Result<Self> {
        let rows = |x: &Tensor| -> Result<Tensor> {
            let mut size = x.size();
            size[0] = batch;
            Ok(x.f_expand(size, false)?)
        };
        Ok(Self { c_n: rows(&self.c_n)?, m: rows(&self.m)? })
    }

    fn state(&self, like: &MlstmState) -> Result<MlstmState> {
        let d_v = self.c_n.size()[3] - 1;
        Ok(MlstmState {
            c: self.c_n.f_narrow(3, 0, d_v)?.f_contiguous()?.f_to_kind(like.c.kind())?,
            n: self.c_n.f_select(3, d_v)?.f_contiguous()?.f_to_kind(like.n.kind())?,
            m: self.m.f_to_kind(like.m.kind())?,
        })
    }
}

/// The operands with padding made neutral (it writes nothing, forgets nothing, reads nothing), heads before time.
struct Neutral {
    /// `[batch, heads, time, d]`.
    q: Tensor,
    k: Tensor,
    /// Values with a column of ones, which makes the normaliser.
    v: Tensor,
    /// `[batch, heads, time]`, 64 bits.
    log_i: Tensor,
    log_f: Tensor,
    /// `[batch, 1, time]`.
    resets: Option<Tensor>,
}

impl Neutral {
    fn of(args: &Mlstm<'_>, kind: Kind) -> Result<Self> {
        let padding = args.valid.map(Tensor::f_logical_not).transpose()?;
        let fill = |x: &Tensor, value: f64| -> Result<Tensor> {
            let Some(padding) = &padding else { return Ok(x.shallow_clone()) };
            let mut shape = padding.size();
            shape.resize(x.dim(), 1);
            Ok(x.f_masked_fill(&padding.f_view(shape.as_slice())?, value)?)
        };
        let heads_first = |x: &Tensor, kind: Kind, value: f64| -> Result<Tensor> {
            Ok(fill(&x.f_to_kind(kind)?, value)?.f_transpose(1, 2)?)
        };
        let q = heads_first(args.q, kind, 0.0)? * (args.q.size()[3] as f64).powf(-0.5);
        let v = heads_first(args.v, kind, 0.0)?;
        let mut ones = v.size();
        ones[3] = 1;
        let v = Tensor::f_cat(&[&v, &Tensor::f_ones(ones, (kind, v.device()))?], -1)?;
        let resets = match (args.resets, args.valid) {
            (Some(resets), Some(valid)) => Some(resets.f_logical_and(valid)?.f_unsqueeze(1)?),
            (resets, _) => resets.map(|resets| resets.f_unsqueeze(1)).transpose()?,
        };
        Ok(Self {
            q,
            k: heads_first(args.k, kind, 0.0)?,
            v,
            log_i: heads_first(args.input_gate, Kind::Double, f64::NEG_INFINITY)?,
            log_f: heads_first(args.forget_gate, Kind::Double, f64::INFINITY)?.f_log_sigmoid()?,
            resets,
        })
    }
}

/// How a round's tokens are cut: `chunks` of `size`, the last one padded.
struct Layout {
    batch: i64,
    heads: i64,
    start: i64,
    length: i64,
    chunks: i64,
    size: i64,
}

impl Layout {
    /// `[.., time, ..]` with time in dimension 2 to `[.., chunks, size, ..]`, padded with `value`.
    fn cut(&self, x: &Tensor, value: f64) -> Result<Tensor> {
        let x = x.f_narrow(2, self.start, self.length)?;
        let missing = self.chunks * self.size - self.length;
        let x = if missing == 0 {
            x
        } else {
            let mut pad = vec![0; 2 * (x.dim() - 2)];
            if let Some(last) = pad.last_mut() {
                *last = missing;
            }
            x.f_pad(pad, "constant", value)?
        };
        let mut shape = x.size();
        shape.splice(2..3, [self.chunks, self.size]);
        Ok(x.f_reshape(shape)?)
    }
}

/// Where documents start in the chunks.
struct Starts {
    /// Index in the chunk of the last start at or before each token, 0 where there is none: `[batch, heads, chunks,
    /// size]`.
    last: Tensor,
    /// Whether there is one, `[batch, 1, chunks, size]`.
    fresh: Tensor,
}

impl Starts {
    fn of(resets: &Tensor, layout: &Layout) -> Result<Self> {
        let resets = layout.cut(&resets.f_to_kind(Kind::Int64)?, 0.0)?;
        let steps = Tensor::f_arange(layout.size, (Kind::Int64, resets.device()))?;
        // A start at index s is s + 1, so that 0 is none.
        let last = (resets * (steps + 1)).f_cummax(-1)?.0;
        let fresh = last.f_gt(0)?;
        let last = (last - 1).f_clamp_min(0)?;
        let size = [layout.batch, layout.heads, layout.chunks, layout.size];
        Ok(Self { last: last.f_expand(size, false)?, fresh })
    }
}

/// The tokens of a layout: `h [batch, length, heads, d_v]` and the memory after them.
fn round(
    all: &Neutral,
    layout: &Layout,
    memory: &Memory,
    reset: Option<&Memory>,
    eps: f64,
) -> Result<(Tensor, Memory)> {
    let kind = all.q.kind();
    let [q, k, v] = [layout.cut(&all.q, 0.0)?, layout.cut(&all.k, 0.0)?, layout.cut(&all.v, 0.0)?];
    let starts = all.resets.as_ref().map(|resets| Starts::of(resets, layout)).transpose()?;
    let reset = reset.zip(starts.as_ref());
    let weights = Weights::of(all, layout, &memory.m, reset, kind)?;

    // What each chunk adds to the memory, and the memory before each chunk.
    let last = layout.size - 1;
    let written =
        (&k * weights.inside.f_select(3, last)?.f_unsqueeze(-1)?).f_transpose(3, 4)?.f_matmul(&v)?;
    let column =
        |x: &Tensor| -> Result<Tensor> { Ok(x.f_select(3, last)?.f_unsqueeze(-1)?.f_unsqueeze(-1)?) };
    let kept = column(&weights.before)?;
    let written = match (&weights.reset, reset) {
        (Some(weight), Some((reset, _))) => written + column(weight)? * reset.c_n.f_unsqueeze(2)?,
        _ => written,
    };
    let (mut before, mut c_n) = (Vec::new(), memory.c_n.shallow_clone());
    for chunk in 0..layout.chunks {
        let after = written.f_select(2, chunk)?.f_addcmul(&kept.f_select(2, chunk)?, &c_n)?;
        before.push(std::mem::replace(&mut c_n, after));
    }
    let before = Tensor::f_stack(&before, 2)?;

    // [numerator | q n] of every token.
    let scores = q.f_matmul(&k.f_transpose(3, 4)?)? * &weights.inside;
    let mut read = scores.f_matmul(&v)? + (&q * weights.before.f_unsqueeze(-1)?).f_matmul(&before)?;
    if let (Some(weight), Some((reset, _))) = (&weights.reset, reset) {
        read += (&q * weight.f_unsqueeze(-1)?).f_matmul(&reset.c_n.f_unsqueeze(2)?)?;
    }
    let d_v = v.size()[4] - 1;
    let m = weights.m.f_detach()?;
    let one = (&weights.m - &m).f_exp()?.f_to_kind(kind)?;
    let bound = m.f_neg()?.f_exp()?.f_to_kind(kind)?;
    let denominator = read.f_select(4, d_v)?.f_abs()?.f_maximum(&bound)? + one * eps;
    let h = read.f_narrow(4, 0, d_v)? / denominator.f_unsqueeze(-1)?;
    let h = h.f_reshape([layout.batch, layout.heads, layout.chunks * layout.size, d_v])?;
    let h = h.f_narrow(2, 0, layout.length)?.f_transpose(1, 2)?;

    let one = (weights.last_m.f_detach()? - &weights.last_m).f_exp()?.f_to_kind(kind)?;
    let c_n = c_n * one.f_unsqueeze(-1)?.f_unsqueeze(-1)?;
    Ok((h, Memory { c_n, m: weights.last_m }))
}

/// The weights of what each token reads, relative to `m`.
struct Weights {
    /// Of what each token of its chunk wrote, `[batch, heads, chunks, size, size]`; 0 for later tokens and other
    /// documents.
    inside: Tensor,
    /// Of the memory before the chunk, `[batch, heads, chunks, size]`.
    before: Tensor,
    /// Of the reset state, the same.
    reset: Option<Tensor>,
    /// The maximum at each token, `[batch, heads, chunks, size]`, 64 bits.
    m: Tensor,
    /// The maximum after the last chunk, `[batch, heads]`.
    last_m: Tensor,
}

impl Weights {
    fn of(
        all: &Neutral,
        layout: &Layout,
        m: &Tensor,
        reset: Option<(&Memory, &Starts)>,
        kind: Kind,
    ) -> Result<Self> {
        let size = layout.size;
        let b = layout.cut(&all.log_f, 0.0)?.f_cumsum(-1, None)?;
        // b_t - b_j + i_j = b_t + w_j
        let w = layout.cut(&all.log_i, f64::NEG_INFINITY)? - &b;
        let steps = Tensor::f_arange(size, (Kind::Int64, b.device()))?;
        let later = steps.f_unsqueeze(0)?.f_gt_tensor(&steps.f_unsqueeze(1)?)?;
        // Sum of log f since the chunk's or the document's start, hidden tokens, and the largest w that a token sees.
        let (since, hidden, largest) = match reset {
            None => (b.shallow_clone(), later, w.f_cummax(-1)?.0),
            Some((_, starts)) => {
                let earlier = b.f_narrow(-1, 0, size - 1)?.f_pad([1, 0], "constant", 0.0)?;
                let base = earlier.f_gather(3, &starts.last, false)?;
                let base = base.f_where_self(&starts.fresh, &base.f_zeros_like()?)?;
                let hidden = steps.f_lt_tensor(&starts.last.f_unsqueeze(-1)?)?.f_logical_or(&later)?;
                let visible = w.f_unsqueeze(3)?.f_masked_fill(&hidden, f64::NEG_INFINITY)?;
                (&b - base, hidden, visible.f_max_dim(-1, false)?.0)
            }
        };
        // The maximum at the end of each chunk, in order; the next chunk's memory is relative to it.
        let (mut ends, mut starts, mut constants) = (m.shallow_clone(), Vec::new(), Vec::new());
        let [end_since, end_largest] = [since.f_select(3, size - 1)?, (&b + &largest).f_select(3, size - 1)?];
        let end_fresh = reset.map(|(_, starts)| starts.fresh.f_select(3, size - 1)).transpose()?;
        for chunk in 0..layout.chunks {
            starts.push(ends.shallow_clone());
            constants.push(if chunk == 0 { ends.shallow_clone() } else { ends.f_detach()? });
            let from = match (reset, &end_fresh) {
                (Some((reset, _)), Some(fresh)) => reset.m.f_where_self(&fresh.f_select(2, chunk)?, &ends)?,
                _ => ends,
            };
            ends = (end_since.f_select(2, chunk)? + from)
                .f_maximum(&end_largest.f_select(2, chunk)?)?
                .f_clamp_min(M_FLOOR)?;
        }
        // The exponent with which what was there at the start reaches each token.
        let reached = |starts: &[Tensor]| -> Result<Tensor> {
            let start = Tensor::f_stack(starts, 2)?.f_unsqueeze(-1)?;
            Ok(&since
                + match reset {
                    None => start,
                    Some((reset, starts)) => {
                        let from = reset.m.f_unsqueeze(-1)?.f_unsqueeze(-1)?;
                        from.f_where_self(&starts.fresh, &start)?
                    }
                })
        };
        let m = reached(&starts)?.f_maximum(&(&b + largest))?.f_clamp_min(M_FLOOR)?;
        let constant = m.f_detach()?;
        let start = (reached(&constants)? - &constant).f_exp()?.f_to_kind(kind)?;
        let (before, reset) = match reset {
            None => (start, None),
            Some((_, starts)) => {
                let none = start.f_zeros_like()?;
                let before = none.f_where_self(&starts.fresh, &start)?;
                (before, Some(start.f_where_self(&starts.fresh, &none)?))
            }
        };
        let mut inside = ((b - constant).f_unsqueeze(4)? + w.f_unsqueeze(3)?).f_to_kind(kind)?;
        let _ = inside.f_masked_fill_(&hidden, f64::NEG_INFINITY)?.f_exp_()?;
        Ok(Self { inside, before, reset, m, last_m: ends })
    }
}
