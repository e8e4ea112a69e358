//! The matrices of a run of chunks.
//!
//! With `s_t = sum_{r <= t} dt_r a` inside a chunk, a token `u` reaches a later one `t` with weight `exp(s_t - s_u)`,
//! and a start state reaches `t` with `exp(s_t)`. A document that starts at `r` cuts both: nothing from before `r`
//! reaches it, and its own start state does with `exp(s_t - s_{r-1})`.

use tch::{Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::{Error, Result};

use super::Ssd;

/// Sizes of a run, once it is cut into chunks.
#[derive(Clone, Copy)]
struct Sizes {
    batch: i64,
    chunks: i64,
    length: i64,
    heads: i64,
    head_dim: i64,
    groups: i64,
    d_state: i64,
}

/// How strongly tokens and start states reach tokens.
struct Reach {
    /// From token `u` to token `t`: `[batch, chunks, heads, t, u]`, zero where `u` is later or of another document.
    tokens: Tensor,
    /// From the chunk's start state to each token: `[batch, chunks, heads, length]`.
    start: Tensor,
    /// From the state that documents start from to each token, `[batch, chunks, heads, length]`; none without resets.
    reset: Option<Tensor>,
}

/// Runs tokens that are not padding through chunks of `length`, from the state `h [batch, heads, head_dim, d_state]`.
/// Everything is in `kind`, the state too. Gives `y [batch, time, heads, head_dim]` and the state after the last token.
///
/// The matrices take memory in proportion to `time * length`: the caller keeps the run short enough.
pub(super) fn run(args: &Ssd<'_>, h: &Tensor, length: i64, kind: Kind) -> Result<(Tensor, Tensor)> {
    let (size, b_size) = (args.x.size(), args.b.size());
    let (batch, time, heads, head_dim) = (size[0], size[1], size[2], size[3]);
    let chunks = (time + length - 1) / length;
    let sizes = Sizes { batch, chunks, length, heads, head_dim, groups: b_size[2], d_state: b_size[3] };
    // [batch, time, n, ..] to [batch, chunks, n, length, ..]; what is added at the end is zero, as padding is.
    let cut = |x: &Tensor| -> Result<Tensor> {
        let x = x.f_to_kind(kind)?;
        let missing = chunks * length - time;
        let mut shape = x.size();
        shape[1] = missing;
        let x = if missing == 0 {
            x
        } else {
            Tensor::f_cat(&[&x, &x.f_new_zeros(&shape, (kind, x.device()))?], 1)?
        };
        shape.splice(1..2, [chunks, length]);
        Ok(x.f_reshape(&shape)?.f_transpose(2, 3)?)
    };
    let (x, dt, b, c) = (cut(args.x)?, cut(args.dt)?, cut(args.b)?, cut(args.c)?);
    let resets = match args.resets {
        Some(resets) => {
            let resets = resets.f_constant_pad_nd([0, chunks * length - time])?;
            Some(resets.f_reshape([batch, chunks, 1, length])?)
        }
        None => None,
    };
    let reset_state = args.reset_state.filter(|_| resets.is_some());

    let log_decay = &dt * args.a.f_reshape([heads, 1])?;
    let reach = Reach::of(&log_decay, resets.as_ref(), kind)?;
    let written = &x * dt.f_unsqueeze(-1)?;
    let (starts, last) = sizes.states(&written, &b, &reach, h, reset_state)?;

    // Tokens of the chunk read each other: (C B^T * reach) (dt x).
    let scores = c.f_matmul(&b.f_transpose(-1, -2)?)?.f_unsqueeze(3)?;
    let reach_of_group =
        reach.tokens.f_reshape([batch, chunks, sizes.groups, sizes.per_group(), length, length])?;
    let scores = (scores * reach_of_group).f_reshape([batch, chunks, heads, length, length])?;
    let mut y = scores.f_matmul(&written)?;
    // And what was there before: C h.
    y += sizes.read(&c, &starts)? * reach.start.f_unsqueeze(-1)?;
    if let (Some(state), Some(reach)) = (reset_state, &reach.reset) {
        y += sizes.read(&c, &state.f_unsqueeze(1)?)? * reach.f_unsqueeze(-1)?;
    }
    if let Some(d) = args.d {
        y += x * d.f_reshape([heads, 1, 1])?;
    }
    let y = y.f_transpose(2, 3)?.f_reshape([batch, chunks * length, heads, head_dim])?;
    Ok((y.f_narrow(1, 0, time)?, last))
}

impl Sizes {
    fn per_group(self) -> i64 {
        self.heads / self.groups
    }

    /// The state at the start of each chunk, `[batch, chunks, heads, head_dim, d_state]`, and after the last one.
    fn states(
        self,
        written: &Tensor,
        b: &Tensor,
        reach: &Reach,
        h: &Tensor,
        reset_state: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let Self { batch, chunks, length, heads, head_dim, groups, d_state } = self;
        let end = length - 1;
        // What each chunk's tokens leave at its end: (dt x * reach)^T B, the heads of a group in one product.
        let left = written * reach.tokens.f_select(3, end)?.f_unsqueeze(-1)?;
        let left = left.f_transpose(-1, -2)?.f_reshape([
            batch,
            chunks,
            groups,
            self.per_group() * head_dim,
            length,
        ])?;
        let left = left.f_matmul(b)?.f_reshape([batch, chunks, heads, head_dim, d_state])?;
        let at_end = |x: &Tensor| -> Result<Tensor> {
            Ok(x.f_select(-1, end)?.f_reshape([batch, chunks, heads, 1, 1])?)
        };
        let kept = at_end(&reach.start)?;
        let left = match (reset_state, &reach.reset) {
            (Some(state), Some(reach)) => left + at_end(reach)? * state.f_unsqueeze(1)?,
            _ => left,
        };
        let mut h = h.f_expand([batch, heads, head_dim, d_state], false)?;
        let mut starts = Vec::with_capacity(chunks as usize);
        for chunk in 0..chunks {
            let next = left.f_select(1, chunk)?.f_addcmul(&kept.f_select(1, chunk)?, &h)?;
            starts.push(std::mem::replace(&mut h, next));
        }
        Ok((Tensor::f_stack(&starts, 1)?, h))
    }

    /// What each token reads of a state `[batch or 1, chunks or 1, heads, head_dim, d_state]`: `[batch, chunks, heads,
    /// length, head_dim]`.
    fn read(self, c: &Tensor, state: &Tensor) -> Result<Tensor> {
        let Self { batch, chunks, length, heads, head_dim, groups, d_state } = self;
        let size = state.size();
        let width = self.per_group() * head_dim;
        let state = state.f_reshape([size[0], size[1], groups, width, d_state])?;
        let read = c.f_matmul(&state.f_transpose(-1, -2)?)?;
        let read = read.f_reshape([batch, chunks, groups, length, self.per_group(), head_dim])?;
        Ok(read.f_transpose(3, 4)?.f_reshape([batch, chunks, heads, length, head_dim])?)
    }
}

impl Reach {
    /// From `dt a [batch, chunks, heads, length]` and `resets [batch, chunks, 1, length]`.
    fn of(log_decay: &Tensor, resets: Option<&Tensor>, kind: Kind) -> Result<Self> {
        let length = log_decay.size()[3];
        let device = log_decay.device();
        // Widened first: the gradient of a sum is summed in the type of its input.
        let log_decay = log_decay.f_to_kind(Kind::Double)?;
        let sums = log_decay.f_cumsum(-1, Kind::Double)?;
        let differences = autograd::apply("ssd", Differences { kind }, &[&sums])?;
        let [between] = differences.try_into().map_err(|_| Error::other("ssd: not one matrix"))?;
        let mut blocked = Tensor::f_ones([length, length], (Kind::Bool, device))?.f_triu(1)?;
        let document = resets.map(|resets| resets.f_cumsum(-1, Kind::Int64)).transpose()?;
        if let Some(document) = &document {
            let differ = document.f_unsqueeze(-1)?.f_ne_tensor(&document.f_unsqueeze(-2)?)?;
            blocked = blocked.f_logical_or(&differ)?;
        }
        let tokens = between.f_masked_fill(&blocked, f64::NEG_INFINITY)?.f_exp()?;
        let (Some(document), Some(resets)) = (document, resets) else {
            return Ok(Self { tokens, start: sums.f_exp()?.f_to_kind(kind)?, reset: None });
        };
        let started = document.f_gt(0)?;
        let start = sums.f_masked_fill(&started, f64::NEG_INFINITY)?.f_exp()?.f_to_kind(kind)?;
        // Where the token's document started, and the sum before that token; any index before the first start.
        let steps = Tensor::f_arange(length, (Kind::Int64, device))?;
        let first = steps.f_where_self(resets, &steps.f_zeros_like()?)?.f_cummax(-1)?.0.f_expand_as(&sums)?;
        let before = (&sums - &log_decay).f_gather(-1, &first, false)?;
        let since = (&sums - before).f_masked_fill(&started.f_logical_not()?, f64::NEG_INFINITY)?;
        Ok(Self { tokens, start, reset: Some(since.f_exp()?.f_to_kind(kind)?) })
    }
}

/// `s_t - s_u` for all `t, u`: `s [.., length]` in 64 bits to `[.., length, length]` in `kind`.
///
/// Long sums in 32 bits would lose what short distances need, and their gradients would be small differences of large
/// sums. So both directions go through 64 bits, without a matrix of 64 bits.
struct Differences {
    kind: Kind,
}

impl Function for Differences {
    fn forward(&mut self, _saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let differences =
            |x: &Tensor| -> Result<Tensor> { Ok(x.f_unsqueeze(-1)?.f_sub(&x.f_unsqueeze(-2)?)?) };
        let high = inputs[0].f_to_kind(self.kind)?;
        let mut between = differences(&high)?;
        if self.kind != Kind::Double {
            let low = (&inputs[0] - high.f_to_kind(Kind::Double)?).f_to_kind(self.kind)?;
            between += differences(&low)?;
        }
        Ok(vec![between])
    }

    fn backward(&mut self, _saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = grads.first().and_then(Option::as_ref) else { return Ok(vec![None]) };
        let sum = |dimension: i64| grad.f_sum_dim_intlist([dimension].as_slice(), false, Kind::Double);
        Ok(vec![Some(sum(-1)?.f_sub(&sum(-2)?)?)])
    }
}
