//! Softmax attention: multi-head, grouped-query or multi-query, over everything or over a window.

use hymba_plus::{prelude::*, serde_json};
use kernels::{
    attention::{Attention as Operands, attention},
    kv_quant::{Bits, Shared},
};

use crate::kv_cache::{Codes, Seen, TokenMemory};

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
    /// What the cache keeps of older text tokens, in inference; a call sees its own tokens as they are.
    #[default(Cache::Full)]
    pub cache: Cache,
    /// Tokens that become codes together: they share a scale for each channel of the keys. Values have one for each
    /// token and head.
    #[default(32)]
    #[schemars(range(min = 1, max = 65_536))]
    pub cache_group: i64,
    /// Newest text tokens that stay in full precision, these many at least. Meta tokens always do, and so does all that
    /// a window no wider than this looks at.
    #[default(128)]
    #[schemars(range(min = 0, max = 1_073_741_824))]
    pub cache_recent: i64,
}

/// Forms of the cache.
#[component_config]
pub enum Cache {
    /// Keys and values in the type of the activations.
    Full,
    /// Codes of eight bits.
    Int8,
    /// Codes of four bits, two in a byte.
    Int4,
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
conformance!(sequence_mixer "attention": { n_heads: 4, n_kv_heads: 2, position: rope, cache: int8, cache_group: 2, cache_recent: 3 });
conformance!(sequence_mixer "attention": { n_heads: 2, head_dim: 6, window: 7, position: rope, cache: int4, cache_group: 3, cache_recent: 1 });
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
            let memory = self.memory(heads);
            memory.plan(plan);
            if memory.has_codes() {
                self.check_codes(plan, heads);
            }
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
        let (seen, after) = if let KvRole::Consumer { producer } = parts.plan.context.kv {
            let name = &parts.plan.name;
            let view = call.shared.ok_or_else(|| {
                Error::other(format!("{name} reads keys of layer {producer}, which shares none"))
            })?;
            (Seen::from_view(view, &["k", "v"])?, State::empty())
        } else {
            let k = self.turned(parts, x.get("k")?, "k_norm", heads.kv, heads.dim, span)?;
            let v = x.get("v")?.f_view([span.batch, span.time, heads.kv, heads.v_dim])?;
            // On a GPU attention reads meta tokens and codes where they lie.
            let apart = k.device().is_cuda();
            self.memory(heads).apart(apart).extend(state, &[k, v.f_transpose(1, 2)?], span)?
        };
        let visibility = seen.visibility(self.window, span);
        let dropout = if span.training { self.dropout } else { 0.0 };
        let y = if span.time == 0 {
            Tensor::f_zeros([span.batch, heads.q, 0, heads.v_dim], (q.kind(), q.device()))?
        } else {
            attention(&Operands {
                query: &q,
                key: &seen.tensors[0],
                value: &seen.tensors[1],
                meta: seen.apart_meta(),
                codes: seen.apart_codes(),
                visibility: &visibility,
                scale: None,
                dropout,
            })?
        };
        let y = y.f_transpose(1, 2)?.f_reshape([span.batch, span.time, heads.q * heads.v_dim])?;
        let view = (parts.plan.context.kv == KvRole::Producer).then(|| seen.view(&["k", "v"]));
        Ok(MixerOutput { y, state: after, view })
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

    /// Keys and values of this many heads.
    fn memory(&self, heads: Heads) -> TokenMemory {
        let codes = |bits| Codes { bits, group: self.cache_group, recent: self.cache_recent };
        let codes = match self.cache {
            Cache::Full => None,
            Cache::Int8 => Some(codes(Bits::Eight)),
            Cache::Int4 => Some(codes(Bits::Four)),
        };
        TokenMemory::new(self.window, codes).with("k", &[heads.kv, heads.dim], Shared::ByChannel).with(
            "v",
            &[heads.kv, heads.v_dim],
            Shared::ByToken,
        )
    }

    fn check_codes(&self, plan: &mut ModulePlan, heads: Heads) {
        for (key, width) in [("head_dim", heads.dim), ("v_head_dim", heads.v_dim)] {
            if self.cache == Cache::Int4 && width % 2 != 0 {
                let message = format!("int4 packs two channels in a byte, and `{key}` is {width}");
                let mut finding =
                    plan.finding("cache", message, "under `cache: int4` heads have an even width");
                finding.help = Some(format!("use `cache: int8`, or {key} {}", width + 1));
                plan.refuse(finding);
            }
        }
        let seen = format!(
            "tokens of earlier calls, but for the newest {}, are seen as codes of {} bits, a call's own as they are",
            self.cache_recent,
            if self.cache == Cache::Int4 { "four" } else { "eight" }
        );
        for law in [Law::SplitInvariance, Law::PackedDocuments, Law::MetaPrefix] {
            plan.exempt(law, &format!("in several calls: {seen}"));
        }
        plan.exempt(Law::Gradients, "in several calls: no gradient flows into codes");
    }
}
