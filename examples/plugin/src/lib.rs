//! Linear attention with a learned decay for each head: `S_t = exp(-r) S_{t-1} + k_t v_t^T`, `y_t = q_t S_t`
//! (retention with learned decays; Sun et al. 2023, eq. 5 and Yang et al. 2023, eq. 3).
//!
//! A component outside the workspace's crates, from its equation to its registration, in one file.

use hymba_plus::prelude::*;

/// Linear attention whose memory of each head fades at a learned rate. It needs no position encoding and keeps no keys:
/// its state is one matrix for each head.
#[component_config]
pub struct DecayAttention {
    /// Heads, each with a decay of its own.
    #[schemars(range(min = 1))]
    pub n_heads: i64,
    /// Width of a query and a key, per head.
    #[default(16)]
    #[schemars(range(min = 1))]
    pub head_dim: i64,
}

register!(sequence_mixer "decay_attention" => DecayAttention);

conformance!(sequence_mixer "decay_attention": { n_heads: 2, head_dim: 3 });

impl SequenceMixer for DecayAttention {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        let d_model = plan.context.d_model;
        let d_value = plan.divide(d_model, self.n_heads, "n_heads", "the width of a value")?;
        plan.input("q", self.n_heads * self.head_dim);
        plan.input("k", self.n_heads * self.head_dim);
        plan.input("v", d_model);
        // Rates from exp(-5) to exp(-1) keep a token for 150 down to 3 steps.
        plan.parameter("log_rate", &[self.n_heads], Init::Uniform { bound: 2.0 }).without_weight_decay();
        plan.state("memory", &[self.n_heads, self.head_dim, d_value], StateKind::Float);
        plan.flops_per_token(4 * self.n_heads * self.head_dim * d_value);
        plan.output(d_model);
        Ok(())
    }

    /// The recurrence, unrolled over the tokens of the call. Tensors are `[batch or 1, heads, ...]`.
    fn forward(&self, parts: &Parts, x: &Inputs, state: &State, call: &Call<'_>) -> Result<MixerOutput> {
        let (span, memory, initial) = (call.span, state.get("memory")?, call.initial.get("memory")?);
        let kind = memory.kind();
        if span.time == 0 {
            return Ok((x.get("v")?.shallow_clone(), state.share()).into());
        }
        let heads = |name: &str| -> Result<Tensor> {
            let x = x.get(name)?.f_unflatten(2, [self.n_heads, -1])?;
            Ok(x.f_transpose(1, 2)?.f_to_kind(kind)?)
        };
        let (q, k, v) = (heads("q")? / (self.head_dim as f64).sqrt(), heads("k")?, heads("v")?);
        let rate = (parts.parameter("log_rate")?.f_to_kind(kind)? - 3.0).f_exp()?.f_view([1, -1, 1, 1])?;
        let Clock { document, since } = Clock::new(span, parts.plan.context.meta_tokens)?;

        // A token sees itself and those before it in its document, faded by their distance: `[.., i, j]`,
        let apart = since.f_unsqueeze(2)? - since.f_unsqueeze(1)?;
        let same = document.f_unsqueeze(2)?.f_eq_tensor(&document.f_unsqueeze(1)?)?;
        let seen = apart.f_ge(0)?.f_logical_and(&same)?.f_unsqueeze(1)?;
        let fade = (apart.f_clamp_min(0)?.f_unsqueeze(1)? * &rate).f_neg()?.f_exp()? * seen;
        // and what was there before them, the state or a new document's initial state: `[.., i, 1]`.
        let carried = document.f_eq(0)?.f_unsqueeze(1)?.f_unsqueeze(3)?;
        let before = (since.f_unsqueeze(1)?.f_unsqueeze(3)? * rate).f_neg()?.f_exp()?;
        let old = q.f_matmul(memory)?.f_where_self(&carried, &q.f_matmul(initial)?)?;
        let y = (q.f_matmul(&k.f_transpose(2, 3)?)? * &fade).f_matmul(&v)? + old * &before;

        // The state after the call is what its last token sees.
        let last = |of_tokens: &Tensor| last_token(of_tokens, span);
        let new = (k * last(&fade)?.f_transpose(2, 3)?).f_transpose(2, 3)?.f_matmul(&v)?;
        let base = memory.f_where_self(&last(&carried)?, initial)?;
        let mut after = new + base * last(&before)?;
        if let Some(lengths) = &span.lengths {
            // A row of padding alone has not moved.
            after = after.f_where_self(&lengths.f_gt(0)?.f_view([-1, 1, 1, 1])?, memory)?;
        }
        let y = y.f_transpose(1, 2)?.f_flatten(2, 3)?.f_to_kind(x.get("v")?.kind())?;
        Ok((y, state.with("memory", after)).into())
    }
}

/// Where the tokens of a call stand, `[batch or 1, time]` each.
struct Clock {
    /// Documents that started in the call up to a token: 0 for those that go on with the state.
    document: Tensor,
    /// Tokens since the document or the call began, this one included.
    since: Tensor,
}

impl Clock {
    fn new(span: &Span, meta_tokens: i64) -> Result<Self> {
        let steps = Tensor::f_arange(span.time, (Kind::Int64, span.positions.device()))?.f_unsqueeze(0)? + 1;
        Ok(match &span.document {
            None => Self { document: steps.f_zeros_like()?, since: steps },
            // The positions of a document start behind the meta tokens.
            Some(document) => Self {
                document: document.shallow_clone(),
                since: steps.f_where_self(&document.f_eq(0)?, &(&span.positions + 1 - meta_tokens))?,
            },
        })
    }
}

/// `[batch or 1, heads, time, width]` at the last token of each row that is not padding (which is at the rows' ends).
fn last_token(x: &Tensor, span: &Span) -> Result<Tensor> {
    let Some(lengths) = &span.lengths else { return Ok(x.f_narrow(2, span.time - 1, 1)?) };
    let [_, heads, _, width] = x.size()[..] else { return Err(Error::other("four dimensions")) };
    let index = (lengths - 1).f_clamp_min(0)?.f_view([-1, 1, 1, 1])?;
    let x = x.f_expand([span.batch, -1, -1, -1], false)?;
    Ok(x.f_gather(2, &index.f_expand([span.batch, heads, 1, width], false)?, false)?)
}

#[cfg(test)]
hymba_plus::conformance_test!();
