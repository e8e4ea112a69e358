//! Softmax attention: multi-head, grouped-query or multi-query, over everything or over a window.

use hymba_plus::{prelude::*, serde_json};
use kernels::attention::{Attention as Operands, Visibility, attention};

/// Attention (Vaswani et al. 2017) with grouped keys and values (Ainslie et al. 2023). Every token sees all meta
/// tokens; of the text it sees the last `window` tokens, itself among them, or all.
#[component_config]
pub struct Attention {
    /// Query heads.
    #[schemars(range(min = 1, max = 65_536))]
    pub n_heads: i64,
    /// Heads of keys and values, a divisor of `n_heads`; left out, as many as `n_heads`.
    #[schemars(range(min = 1, max = 65_536))]
    pub n_kv_heads: Option<i64>,
    /// Width of a query and a key, per head; left out, `d_model / n_heads`.
    #[schemars(range(min = 1, max = 65_536))]
    pub head_dim: Option<i64>,
    /// Width of a value, per head; left out, `head_dim`.
    #[schemars(range(min = 1, max = 65_536))]
    pub v_head_dim: Option<i64>,
    /// Text tokens a token sees, itself among them, in training and in decoding alike; left out, all.
    #[schemars(range(min = 1, max = 1_073_741_824))]
    pub window: Option<i64>,
    /// Tells queries and keys where they stand.
    pub position: Component<position>,
    /// Norm of queries and keys before they are turned.
    #[default(QkNorm::None)]
    pub qk_norm: QkNorm,
    /// Added to the mean square in that norm.
    #[default(1e-6)]
    #[schemars(range(min = 0.0))]
    pub qk_norm_eps: f64,
    /// Probability with which a weight is dropped in training.
    #[default(0.0)]
    #[schemars(range(min = 0.0, max = 0.99))]
    pub dropout: f64,
}

/// Norms of queries and keys.
#[component_config]
pub enum QkNorm {
    /// None.
    None,
    /// Root mean square over a head's channels, one weight vector for all heads.
    Rms,
    /// Root mean square over a head's channels, a weight vector for each head.
    PerHead,
}

register!(sequence_mixer "attention" => Attention);

conformance!(sequence_mixer "attention": { n_heads: 4, position: rope });
conformance!(sequence_mixer "attention": { n_heads: 4, n_kv_heads: 2, window: 5, position: rope });
conformance!(sequence_mixer "attention": { n_heads: 2, n_kv_heads: 1, head_dim: 6, v_head_dim: 4, window: 1, position: none, qk_norm: rms });
conformance!(sequence_mixer "attention": { n_heads: 4, n_kv_heads: 2, window: 7, position: rope, qk_norm: per_head },
    consumer: { n_heads: 4, n_kv_heads: 2, window: 3, position: rope, qk_norm: per_head });
conformance!(sequence_mixer "attention": { n_heads: 4, position: { kind: rope_dynamic_ntk, original_max_positions: 8 } });

/// The widths that a configuration comes to.
#[derive(Debug, Clone, Copy)]
struct Heads {
    q: i64,
    kv: i64,
    dim: i64,
    v_dim: i64,
}

impl Attention {
    fn heads(&self, d_model: i64) -> Heads {
        let dim = self.head_dim.unwrap_or(d_model / self.n_heads);
        let kv = self.n_kv_heads.unwrap_or(self.n_heads);
        Heads { q: self.n_heads, kv, dim, v_dim: self.v_head_dim.unwrap_or(dim) }
    }
}

impl SequenceMixer for Attention {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        if self.head_dim.is_none() {
            plan.divide(
                plan.context.d_model,
                self.n_heads,
                "n_heads",
                "`head_dim` is not given and d_model / n_heads",
            )?;
        }
        let heads = self.heads(plan.context.d_model);
        if let Err(finding) =
            plan.divide(heads.q, heads.kv, "n_kv_heads", "queries for each head of keys and values")
        {
            plan.refuse(finding);
        }
        let consumes = matches!(plan.context.kv, KvRole::Consumer { .. });
        plan.input("q", heads.q * heads.dim);
        if !consumes {
            plan.input("k", heads.kv * heads.dim);
            plan.input("v", heads.kv * heads.v_dim);
            let growth = self.window.map_or(Growth::Unbounded, Growth::Window);
            for (name, width) in [("k", heads.dim), ("v", heads.v_dim)] {
                plan.growing_state(
                    &format!("meta_{name}"),
                    &[heads.kv, width],
                    2,
                    Growth::Prefix,
                    StateKind::Compute,
                );
                plan.growing_state(name, &[heads.kv, width], 2, growth, StateKind::Compute);
            }
            plan.growing_state("position", &[], 1, growth, StateKind::Int64);
        }
        for (name, n) in [("q_norm", heads.q), ("k_norm", heads.kv)] {
            match self.qk_norm {
                _ if consumes && name == "k_norm" => continue,
                QkNorm::None => continue,
                QkNorm::Rms => plan.parameter(name, &[heads.dim], Init::ONES).without_weight_decay(),
                QkNorm::PerHead => plan.parameter(name, &[n, heads.dim], Init::ONES).without_weight_decay(),
            };
        }
        plan.position("position", &self.position, heads.dim);
        plan.output(heads.q * heads.v_dim);
        plan.flops.per_key = 2.0 * (heads.q * (heads.dim + heads.v_dim)) as f64;
        plan.flops.window = self.window;
        plan.kv_shape = Some(KvShape {
            n_kv_heads: heads.kv,
            head_dim: heads.dim,
            v_head_dim: heads.v_dim,
            window: self.window,
            position: serde_json::to_value(&self.position).unwrap_or_default(),
        });
        Ok(())
    }

    fn forward(&self, parts: &Parts, x: &Inputs, state: &State, call: &Call<'_>) -> Result<MixerOutput> {
        let (span, heads) = (call.span, self.heads(parts.plan.context.d_model));
        let q = self.turned(parts, x.get("q")?, "q_norm", heads.q, heads.dim, span)?;
        let (keys, after) = match parts.plan.context.kv {
            KvRole::Consumer { producer } => {
                let view = call.shared.ok_or_else(|| {
                    Error::other(format!(
                        "{} reads keys of layer {producer}, which shares none",
                        parts.plan.name
                    ))
                })?;
                (Keys::from_view(view)?, State::empty())
            }
            _ => self.own_keys(parts, x, state, span, heads)?,
        };
        let prefix = span.phase == Phase::Prefix;
        let cached = keys.cached_positions.size()[1];
        let visibility = Visibility {
            meta: keys.k.size()[2] - cached - span.time,
            cached,
            window: if prefix { None } else { self.window },
            cached_positions: &keys.cached_positions,
            positions: &span.positions,
            valid: span.valid.as_ref(),
            document: span.document.as_ref(),
            uniform: span.uniform && keys.cached_positions.size()[0] == 1,
        };
        let dropout = if span.training { self.dropout } else { 0.0 };
        let y = if span.time == 0 {
            Tensor::f_zeros([span.batch, heads.q, 0, heads.v_dim], (q.kind(), q.device()))?
        } else {
            attention(&Operands {
                query: &q,
                key: &keys.k,
                value: &keys.v,
                visibility: &visibility,
                dropout,
            })?
        };
        let y = y.f_transpose(1, 2)?.f_reshape([span.batch, span.time, heads.q * heads.v_dim])?;
        let view = (parts.plan.context.kv == KvRole::Producer).then(|| keys.view());
        Ok(MixerOutput { y, state: after, view })
    }
}

/// Every key and value that a call may look at, and what is needed to say who sees which: what a producer shares.
struct Keys {
    /// Meta tokens, cached tokens, tokens of the call: `[batch, n_kv_heads, keys, head_dim]`.
    k: Tensor,
    /// The same for values.
    v: Tensor,
    /// Positions of the cached tokens, below 0 where there is none: `[batch or 1, cached]`.
    cached_positions: Tensor,
}

impl Keys {
    fn from_view(view: &State) -> Result<Self> {
        let copy = |name| -> Result<Tensor> { Ok(view.get(name)?.shallow_clone()) };
        Ok(Self { k: copy("k")?, v: copy("v")?, cached_positions: copy("cached_positions")? })
    }

    fn view(&self) -> State {
        State::empty()
            .with("k", self.k.shallow_clone())
            .with("v", self.v.shallow_clone())
            .with("cached_positions", self.cached_positions.shallow_clone())
    }
}

impl Attention {
    /// `[batch, time, n * dim]` to normed and turned heads `[batch, n, time, dim]`.
    fn turned(&self, parts: &Parts, x: &Tensor, norm: &str, n: i64, dim: i64, span: &Span) -> Result<Tensor> {
        let mut heads = x.f_view([span.batch, span.time, n, dim])?;
        if let Some(weight) = parts.optional_parameter(norm) {
            let wide = if x.kind() == Kind::Double {
                heads.shallow_clone()
            } else {
                heads.f_to_kind(Kind::Float)?
            };
            let mean_square = wide.f_square()?.f_mean_dim([-1].as_slice(), true, None)?;
            heads = (wide * (mean_square + self.qk_norm_eps).f_rsqrt()?).f_to_kind(x.kind())? * weight;
        }
        parts.position("position")?.forward(&heads.f_transpose(1, 2)?, &span.positions)
    }

    /// The keys of meta tokens, cache and call, and the state after the call.
    fn own_keys(
        &self,
        parts: &Parts,
        x: &Inputs,
        state: &State,
        span: &Span,
        heads: Heads,
    ) -> Result<(Keys, State)> {
        let k = self.turned(parts, x.get("k")?, "k_norm", heads.kv, heads.dim, span)?;
        let v = x.get("v")?.f_view([span.batch, span.time, heads.kv, heads.v_dim])?.f_transpose(1, 2)?;
        let old_positions = state.get("position")?.shallow_clone();
        let join = |names: [&str; 2], new: &Tensor| -> Result<Tensor> {
            let meta = expand_batch(state.get(names[0])?, span.batch)?.f_to_kind(new.kind())?;
            let cached = expand_batch(state.get(names[1])?, span.batch)?.f_to_kind(new.kind())?;
            Ok(Tensor::f_cat(&[&meta, &cached, new], 2)?)
        };
        let (all_k, all_v) = (join(["meta_k", "k"], &k)?, join(["meta_v", "v"], &v)?);
        let keys = Keys { k: all_k, v: all_v, cached_positions: old_positions };
        let after = if span.phase == Phase::Prefix {
            state.with("meta_k", k).with("meta_v", v)
        } else {
            self.remember(&keys, state, span)?
        };
        Ok((keys, after))
    }

    /// The state after a call: the keys that the running document of each row may still look at, newest last.
    fn remember(&self, keys: &Keys, state: &State, span: &Span) -> Result<State> {
        let cached = keys.cached_positions.size()[1];
        let meta = keys.k.size()[2] - cached - span.time;
        let text = cached + span.time;
        let (mut k, mut v) = (keys.k.f_narrow(2, meta, text)?, keys.v.f_narrow(2, meta, text)?);
        let ragged = span.valid.is_some() || span.document.is_some();
        let rows = keys.cached_positions.size()[0].max(span.positions.size()[0]);
        let rows = if ragged { span.batch } else { rows };
        let old = expand_batch(&keys.cached_positions, rows)?;
        let mut new = expand_batch(&span.positions, rows)?;
        let gone = Tensor::f_full([1], -1, (Kind::Int64, new.device()))?;
        let mut old = old;
        if let Some(document) = span.document.as_ref().filter(|_| span.time > 0) {
            let last = document.f_narrow(1, span.time - 1, 1)?;
            new = new.f_where_self(&document.f_eq_tensor(&last)?, &gone)?;
            old = old.f_where_self(&last.f_eq(0)?, &gone)?;
        }
        if let Some(valid) = &span.valid {
            new = new.f_where_self(valid, &gone)?;
        }
        let mut positions = Tensor::f_cat(&[old, new], 1)?;
        if span.valid.is_some() {
            // Rows end at different places: existing keys move to the right end, in order.
            let order = positions.f_ge(0)?.f_to_kind(Kind::Int)?.f_argsort_stable(true, 1, false)?;
            positions = positions.f_gather(1, &order, false)?;
            let order = order.f_unsqueeze(1)?.f_unsqueeze(3)?;
            k = k.f_gather(2, &order.f_expand_as(&k)?, false)?;
            v = v.f_gather(2, &order.f_expand_as(&v)?, false)?;
        }
        if let Some(extra) = self.window.map(|window| text - window).filter(|extra| *extra > 0) {
            k = k.f_narrow(2, extra, text - extra)?;
            v = v.f_narrow(2, extra, text - extra)?;
            positions = positions.f_narrow(1, extra, text - extra)?;
        }
        Ok(state.with("k", k).with("v", v).with("position", positions))
    }
}
