//! Multi-head latent attention: keys and values of all heads from one small vector per token.

use hymba_plus::prelude::*;
use kernels::{
    attention::{Attention as Operands, Visibility, attention},
    kv_quant::Shared,
};

use crate::kv_cache::TokenMemory;

/// Multi-head latent attention (DeepSeek-AI 2024, arXiv 2405.04434, section 2.1): `[c | r] = kv_a`, `c = norm(c)`,
/// `[k_nope | v] = kv_b c` for each head, and a key `[k_nope | rope(r)]` whose second part all heads share. The cache
/// holds `c` and `rope(r)` only. Queries `[q_nope | rope(q_rope)]` come from the layer or, with `q_lora_rank`, from a
/// latent of their own. The scale is `1 / sqrt(qk_nope_head_dim + qk_rope_head_dim)`, times the square of the position
/// encoding's attention factor where it has one (YaRN's mscale): on both parts, though only one is turned.
///
/// The rotary part is turned in the half-split layout, like everything here. DeepSeek's weights are of the interleaved
/// layout: of each head's rotary rows of `q` (`q_b`), and of those of `kv_a`, take the even ones, then the odd ones.
#[component_config]
pub struct Mla {
    /// Heads.
    #[schemars(range(min = 1, max = 65_536))]
    pub n_heads: i64,
    /// Width of the queries' latent; left out, queries come straight from the layer.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub q_lora_rank: Option<i64>,
    /// Width of the latent of keys and values.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub kv_lora_rank: i64,
    /// Width of a query's and a key's part without position, per head.
    #[schemars(range(min = 1, max = 65_536))]
    pub qk_nope_head_dim: i64,
    /// Width of their part with position.
    #[schemars(range(min = 1, max = 65_536))]
    pub qk_rope_head_dim: i64,
    /// Width of a value, per head.
    #[schemars(range(min = 1, max = 65_536))]
    pub v_head_dim: i64,
    /// Norm of both latents.
    pub latent_norm: Component<norm>,
    /// Text tokens a token sees, itself among them, in training and in decoding alike; left out, all.
    #[schemars(range(min = 1, max = 1_073_741_824))]
    pub window: Option<i64>,
    /// Tells the second parts of queries and keys where they stand.
    pub position: Component<position>,
    /// Probability with which a weight is dropped in training.
    #[default(0.0)]
    #[schemars(range(min = 0.0, max = 0.99))]
    pub dropout: f64,
}

register!(sequence_mixer "mla" => Mla);
conformance!(sequence_mixer "mla": { n_heads: 3, kv_lora_rank: 6, qk_nope_head_dim: 4, qk_rope_head_dim: 4, v_head_dim: 5, latent_norm: rms_norm, position: rope });
conformance!(sequence_mixer "mla": { n_heads: 2, q_lora_rank: 7, kv_lora_rank: 20, qk_nope_head_dim: 4, qk_rope_head_dim: 6, v_head_dim: 3, latent_norm: rms_norm, window: 5, position: { kind: rope_yarn, factor: 4, original_max_positions: 8 } });
conformance!(sequence_mixer "mla": { n_heads: 1, kv_lora_rank: 2, qk_nope_head_dim: 9, qk_rope_head_dim: 2, v_head_dim: 8, latent_norm: none, window: 1, position: none });

impl Mla {
    fn query_dim(&self) -> i64 {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    fn memory(&self) -> TokenMemory {
        TokenMemory::new(self.window, None).with("latent", &[self.kv_lora_rank], Shared::ByToken).with(
            "k_rope",
            &[self.qk_rope_head_dim],
            Shared::ByChannel,
        )
    }
}

impl SequenceMixer for Mla {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        let (n, per_key) = (self.n_heads, self.qk_nope_head_dim + self.v_head_dim);
        let queries = n * self.query_dim();
        match self.q_lora_rank {
            Some(rank) => {
                plan.input("q_a", rank);
                plan.norm("q_norm", &self.latent_norm, rank);
                plan.linear("q_b.weight", queries, rank);
                plan.saved_per_token += queries;
            }
            None => plan.input("q", queries),
        }
        plan.input("kv_a", self.kv_lora_rank + self.qk_rope_head_dim);
        plan.norm("kv_norm", &self.latent_norm, self.kv_lora_rank);
        plan.linear("kv_b.weight", n * per_key, self.kv_lora_rank);
        plan.saved_per_token += n * per_key;
        self.memory().plan(plan);
        plan.position("position", &self.position, self.qk_rope_head_dim);
        plan.output(n * self.v_head_dim);
        plan.flops.per_key = 2.0 * (n * (self.query_dim() + self.v_head_dim)) as f64;
        plan.flops.window = self.window;
        Ok(())
    }

    fn forward(&self, parts: &Parts, x: &Inputs, state: &State, call: &Call<'_>) -> Result<MixerOutput> {
        let span = call.span;
        let (n, nope, rope, rank) =
            (self.n_heads, self.qk_nope_head_dim, self.qk_rope_head_dim, self.kv_lora_rank);
        let q = match self.q_lora_rank {
            Some(_) => {
                let latent = parts.norm("q_norm")?.forward(x.get("q_a")?)?;
                latent.f_linear(parts.parameter("q_b.weight")?, None::<&Tensor>)?
            }
            None => x.get("q")?.shallow_clone(),
        };
        let q = q.f_view([span.batch, span.time, n, nope + rope])?.f_transpose(1, 2)?;
        let position = parts.position("position")?;
        let kv_a = x.get("kv_a")?;
        let latent = parts.norm("kv_norm")?.forward(&kv_a.f_narrow(2, 0, rank)?)?;
        let k_rope = kv_a.f_narrow(2, rank, rope)?.f_unsqueeze(1)?;
        let k_rope = position.forward(&k_rope, &span.positions)?.f_squeeze_dim(1)?;
        let (seen, after) = self.memory().extend(state, &[latent, k_rope], span)?;
        if span.time == 0 {
            let y = Tensor::f_zeros([span.batch, 0, n * self.v_head_dim], (q.kind(), q.device()))?;
            return Ok((y, after).into());
        }
        // The factor of turned queries and keys, for the part that is not turned.
        let factor = parts.plan.children.get("position").map_or(1.0, |child| child.plan.attention_factor);
        let latents = Latents {
            q_nope: q.f_narrow(3, 0, nope)? * (factor * factor),
            q_rope: position.forward(&q.f_narrow(3, nope, rope)?, &span.positions)?,
            latent: &seen.tensors[0],
            k_rope: &seen.tensors[1],
            kv_b: parts.parameter("kv_b.weight")?.f_view([n, nope + self.v_head_dim, rank])?,
            visibility: &seen.visibility(self.window, span),
            scale: 1.0 / (self.query_dim() as f64).sqrt(),
            dropout: if span.training { self.dropout } else { 0.0 },
        };
        let y = if self.absorbs(span.time, seen.len()) { latents.absorbed() } else { latents.expanded() }?;
        let y = y.f_transpose(1, 2)?.f_reshape([span.batch, span.time, n * self.v_head_dim])?;
        Ok((y, after).into())
    }
}

impl Mla {
    /// Whether fewer multiplications take queries to the latents than all latents to keys and values.
    fn absorbs(&self, queries: i64, keys: i64) -> bool {
        let maps = self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim);
        let expanded = keys * maps + queries * keys * (self.query_dim() + self.v_head_dim);
        let absorbed = queries * maps + queries * keys * (2 * self.kv_lora_rank + self.qk_rope_head_dim);
        absorbed < expanded
    }
}

/// Queries of a call, and what is remembered of every token that they may see.
struct Latents<'a> {
    /// `[batch, n_heads, time, qk_nope_head_dim]`.
    q_nope: Tensor,
    /// `[batch, n_heads, time, qk_rope_head_dim]`, turned.
    q_rope: Tensor,
    /// `[batch, keys, kv_lora_rank]`.
    latent: &'a Tensor,
    /// `[batch, keys, qk_rope_head_dim]`, turned.
    k_rope: &'a Tensor,
    /// `[n_heads, qk_nope_head_dim + v_head_dim, kv_lora_rank]`.
    kv_b: Tensor,
    visibility: &'a Visibility<'a>,
    scale: f64,
    dropout: f64,
}

impl Latents<'_> {
    /// Keys and values of every head are made: `[batch, n_heads, time, v_head_dim]`.
    fn expanded(&self) -> Result<Tensor> {
        let nope = self.q_nope.size()[3];
        let &[heads, width, rank] = self.kv_b.size().as_slice() else {
            return Err(Error::other(format!("`kv_b` {:?} has no heads", self.kv_b.size())));
        };
        let [batch, keys] = [0, 1].map(|dim| self.latent.size()[dim]);
        let kv = self.latent.f_linear(&self.kv_b.f_view([heads * width, rank])?, None::<&Tensor>)?;
        let kv = kv.f_view([batch, keys, heads, width])?.f_transpose(1, 2)?;
        let k_nope = kv.f_narrow(3, 0, nope)?;
        let k_rope = self.k_rope.f_unsqueeze(1)?.f_expand([batch, heads, keys, -1], false)?;
        self.attend(
            &Tensor::f_cat(&[&self.q_nope, &self.q_rope], 3)?,
            &Tensor::f_cat(&[k_nope, k_rope], 3)?,
            &kv.f_narrow(3, nope, width - nope)?,
        )
    }

    /// Queries go to the latents, and what they find there becomes values: `q (W c) = (q W) c`. One head of keys serves
    /// all: `[batch, n_heads, time, v_head_dim]`.
    fn absorbed(&self) -> Result<Tensor> {
        let (nope, width) = (self.q_nope.size()[3], self.kv_b.size()[1]);
        let q = by_head(&self.q_nope, &self.kv_b.f_narrow(1, 0, nope)?)?;
        let found = self.attend(
            &Tensor::f_cat(&[&q, &self.q_rope], 3)?,
            &Tensor::f_cat(&[self.latent, self.k_rope], 2)?.f_unsqueeze(1)?,
            &self.latent.f_unsqueeze(1)?,
        )?;
        by_head(&found, &self.kv_b.f_narrow(1, nope, width - nope)?.f_transpose(1, 2)?)
    }

    fn attend(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
        let (visibility, dropout) = (self.visibility, self.dropout);
        attention(&Operands {
            query,
            key,
            value,
            meta: None,
            codes: None,
            visibility,
            scale: Some(self.scale),
            dropout,
        })
    }
}

/// `x [batch, n_heads, time, in]` times a matrix for each head, `[n_heads, in, out]`: `[batch, n_heads, time, out]`.
fn by_head(x: &Tensor, matrices: &Tensor) -> Result<Tensor> {
    let &[batch, heads, time, width] = x.size().as_slice() else {
        return Err(Error::other(format!("{:?} is not [batch, n_heads, time, in]", x.size())));
    };
    // The rows of a head together, so that its matrix is read once.
    let rows = x.f_transpose(0, 1)?.f_reshape([heads, batch * time, width])?;
    Ok(rows.f_bmm(matrices)?.f_view([heads, batch, time, -1])?.f_transpose(0, 1)?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// Both forms on the same operands: values and gradients, one query and several, plain and with rows that differ.
    #[test]
    fn absorbed_equals_expanded() {
        tch::manual_seed(5);
        let (heads, nope, rope, rank, v) = (3, 4, 2, 5, 6);
        let options = (Kind::Double, Device::Cpu);
        for (time, cached, meta, valid) in
            [(1, 6, 0, false), (1, 6, 2, true), (4, 0, 0, false), (4, 3, 2, false), (5, 3, 2, true)]
        {
            let keys = meta + cached + time;
            let random = |shape: &[i64]| Tensor::randn(shape, options).set_requires_grad(true);
            let leaves = [
                random(&[2, heads, time, nope]),
                random(&[2, heads, time, rope]),
                random(&[2, keys, rank]),
                random(&[2, keys, rope]),
                random(&[heads, nope + v, rank]),
            ];
            let weights = Tensor::randn([2, heads, time, v], options);
            let cached_positions = Tensor::arange(cached, (Kind::Int64, Device::Cpu)).unsqueeze(0) + meta;
            let positions = Tensor::arange(time, (Kind::Int64, Device::Cpu)).unsqueeze(0) + meta + cached;
            let mask = Tensor::ones([2, time], (Kind::Bool, Device::Cpu));
            let visibility = Visibility {
                meta,
                cached,
                window: (cached > 0).then_some(4),
                cached_positions: &cached_positions,
                positions: &positions,
                valid: valid.then_some(&mask),
                document: None,
                uniform: !valid,
            };
            let outcome = |absorbed: bool| {
                let latents = Latents {
                    q_nope: leaves[0].shallow_clone(),
                    q_rope: leaves[1].shallow_clone(),
                    latent: &leaves[2],
                    k_rope: &leaves[3],
                    kv_b: leaves[4].shallow_clone(),
                    visibility: &visibility,
                    scale: 0.4,
                    dropout: 0.0,
                };
                let y = if absorbed { latents.absorbed() } else { latents.expanded() }.unwrap();
                let loss = (&y * &weights).sum(Kind::Double);
                let mut all = Tensor::run_backward(&[loss], &leaves, false, false);
                all.push(y.detach());
                all
            };
            for (i, (a, b)) in outcome(true).iter().zip(&outcome(false)).enumerate() {
                let error = (a - b).abs().max().double_value(&[]);
                assert!(error < 1e-12, "{time} {cached} {meta} {valid}, tensor {i}: {error:e}");
            }
        }
    }

    #[test]
    fn the_cheaper_form_is_taken() {
        let mla = Mla {
            n_heads: 16,
            q_lora_rank: None,
            kv_lora_rank: 512,
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
            latent_norm: Component::of("rms_norm"),
            window: None,
            position: Component::of("rope"),
            dropout: 0.0,
        };
        assert!(mla.absorbs(1, 100) && mla.absorbs(8, 4096));
        assert!(!mla.absorbs(1, 1) && !mla.absorbs(100, 100) && !mla.absorbs(1024, 4096));
    }
}
