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

    fn forward(&self, parts: &Parts, x: &Inputs, state: &State, call: &Call<'_>) -> Result<MixerOutput> {
        let (span, memory) = (call.span, state.get("memory")?);
        let kind = memory.kind();
        let heads = |name: &str| -> Result<Tensor> {
            let (batch, time, rows) = (span.batch, span.time, x.get(name)?.size()[2]);
            let heads = x.get(name)?.f_view([batch, time, self.n_heads, rows / self.n_heads])?;
            Ok(heads.f_transpose(1, 2)?.f_to_kind(kind)?)
        };
        let (q, k, v) = (heads("q")? / (self.head_dim as f64).sqrt(), heads("k")?, heads("v")?);
        // Everything below is [batch or 1, heads, ...]; `rate` is negative: the log of the decay per token.
        let rate =
            (parts.parameter("log_rate")?.f_to_kind(kind)? - 3.0).f_exp()?.f_neg()?.f_view([1, -1, 1])?;
        let clock = Clock::new(span)?;

        // Tokens of the call: each sees those before it in its document, faded by their distance.
        let apart = clock.steps.f_unsqueeze(2)? - clock.steps.f_unsqueeze(1)?;
        let same = clock.document.f_unsqueeze(2)?.f_eq_tensor(&clock.document.f_unsqueeze(1)?)?;
        let seen = apart.f_ge(0)?.f_logical_and(&same)?.f_unsqueeze(1)?.f_to_kind(kind)?;
        let fade = (apart.f_clamp_min(0)?.f_unsqueeze(1)? * rate.f_unsqueeze(3)?).f_exp()? * seen;
        let near = (q.f_matmul(&k.f_transpose(2, 3)?)? * fade).f_matmul(&v)?;

        // What was there before: the state, or the initial one for a document that starts in this call.
        let running = clock.document.f_eq(0)?.f_unsqueeze(1)?.f_unsqueeze(3)?;
        let old = q.f_matmul(memory)?.f_where_self(&running, &q.f_matmul(call.initial.get("memory")?)?)?;
        let since = (clock.since.f_unsqueeze(1)? * &rate).f_exp()?.f_unsqueeze(3)?;
        let y = near + old * since;

        let y = y.f_transpose(1, 2)?.f_reshape([span.batch, span.time, parts.plan.output_width])?;
        let memory = clock.memory_after(&rate, &k, &v, memory, call.initial.get("memory")?)?;
        Ok((y.f_to_kind(x.get("v")?.kind())?, state.with("memory", memory)).into())
    }
}

/// Where the tokens of a call stand in time and in documents.
struct Clock {
    /// Index in the call, `[1, time]`.
    steps: Tensor,
    /// Documents started so far in the call, `[batch or 1, time]`.
    document: Tensor,
    /// Tokens since the document or the call began, this one included, `[batch or 1, time]`.
    since: Tensor,
    /// Tokens of each row that are not padding, `[batch or 1]`.
    lengths: Tensor,
}

impl Clock {
    fn new(span: &Span) -> Result<Self> {
        let options = (Kind::Int64, span.positions.device());
        let steps = Tensor::f_arange(span.time, options)?.f_unsqueeze(0)?;
        let running = &steps + 1;
        let (document, since) = match (&span.document, &span.resets) {
            (Some(document), Some(resets)) => {
                let none = Tensor::f_full([1], -1, options)?;
                let started = steps.f_where_self(resets, &none)?;
                let started = if span.time == 0 { started } else { started.f_cummax(1)?.0 };
                (document.shallow_clone(), (&running - started).f_where_self(&document.f_gt(0)?, &running)?)
            }
            _ => (steps.f_zeros_like()?, running),
        };
        let lengths = match &span.lengths {
            Some(lengths) => lengths.shallow_clone(),
            None => Tensor::f_full([1], span.time, options)?,
        };
        Ok(Self { steps, document, since, lengths })
    }

    /// `[batch, heads, head_dim, d_value]`: what the last document of each row leaves behind.
    fn memory_after(
        &self,
        rate: &Tensor,
        k: &Tensor,
        v: &Tensor,
        old: &Tensor,
        initial: &Tensor,
    ) -> Result<Tensor> {
        let batch = k.size()[0];
        if k.size()[2] == 0 {
            return expand_batch(old, batch);
        }
        let last = (&self.lengths - 1).f_unsqueeze(1)?;
        let at_last = |tensor: &Tensor| -> Result<Tensor> {
            let wide = tensor.f_expand([batch, -1], false)?;
            Ok(wide.f_gather(1, &last.f_clamp_min(0)?.f_expand([batch, 1], false)?, false)?)
        };
        let document = at_last(&self.document)?;
        let distance = &last - &self.steps;
        let kept = distance.f_ge(0)?.f_logical_and(&self.document.f_eq_tensor(&document)?)?;
        let fade = (distance.f_clamp_min(0)?.f_unsqueeze(1)? * rate).f_exp()? * kept.f_unsqueeze(1)?;
        let new = (k * fade.f_unsqueeze(3)?).f_transpose(2, 3)?.f_matmul(v)?;
        let base = old.f_where_self(&document.f_eq(0)?.f_view([batch, 1, 1, 1])?, initial)?;
        let after = new + base * (at_last(&self.since)?.f_unsqueeze(1)? * rate).f_exp()?.f_unsqueeze(3)?;
        // A row of padding alone has not moved.
        Ok(after.f_where_self(&self.lengths.f_gt(0)?.f_view([-1, 1, 1, 1])?, old)?)
    }
}
