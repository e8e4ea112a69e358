//! Mamba-2: a state-space model with one decay per head, behind a short convolution (Dao & Gu 2024, arXiv 2405.21060).

use hymba_plus::prelude::*;
use kernels::ssd::{Ssd, ssd};

use crate::convolution::convolved;

/// Mamba-2 (Dao & Gu 2024, arXiv 2405.21060): `[x | B | C] = silu(conv(xbc))`, `delta = softplus(dt + dt_bias)`, and
/// for each head `h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t^T`, `y_t = h_t C_t + D x_t`; the output is
/// `norm(y * silu(z))`.
///
/// The rows of its slices, `z`, `xbc`, `dt` in this order, are those of the released models' `in_proj`.
#[component_config]
pub struct Mamba2 {
    /// Inner width as a multiple of `d_model`; `d_inner` overrules it.
    #[default(2.0)]
    #[schemars(range(min = 0.0, max = 1024.0))]
    pub expand: f64,
    /// Inner width: that of all heads together.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub d_inner: Option<i64>,
    /// Heads; left out, as many as `head_dim` makes of the inner width.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub n_heads: Option<i64>,
    /// Width of a head; left out, what `n_heads` makes of the inner width, or 64.
    #[schemars(range(min = 1, max = 65_536))]
    pub head_dim: Option<i64>,
    /// State per channel.
    #[default(128)]
    #[schemars(range(min = 1, max = 4096))]
    pub d_state: i64,
    /// Groups of heads, each with a `B` and a `C` of its own; also the groups of the norm.
    #[default(1)]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub n_groups: i64,
    /// Width of the convolution.
    #[default(4)]
    #[schemars(range(min = 1, max = 8))]
    pub d_conv: i64,
    /// Whether the convolution has a bias.
    #[default(true)]
    pub conv_bias: bool,
    /// Smallest starting step.
    #[default(1e-3)]
    pub dt_min: f64,
    /// Largest starting step.
    #[default(1e-1)]
    pub dt_max: f64,
    /// Below this no step goes, whatever was learnt.
    #[default(0.0)]
    #[schemars(range(min = 0.0))]
    pub dt_limit_min: f64,
    /// Above this no step goes; left out, there is no limit.
    #[schemars(range(min = 0.0))]
    pub dt_limit_max: Option<f64>,
    /// Where the root-mean-square norm of the output stands.
    #[default(GatedNorm::AfterGate)]
    pub gated_norm: GatedNorm,
    /// Added to the norm's mean square.
    #[default(1e-5)]
    #[schemars(range(min = 0.0))]
    pub norm_eps: f64,
    /// Tokens that the chunked form takes at a time; left out, chosen for speed. It changes rounding only.
    #[schemars(range(min = 1, max = 4096))]
    pub chunk_size: Option<i64>,
}

/// Places of the norm.
#[component_config]
pub enum GatedNorm {
    /// `norm(y * silu(z))`, as in the released models.
    AfterGate,
    /// `norm(y) * silu(z)`.
    BeforeGate,
    /// `y * silu(z)` without a norm.
    None,
}

register!(sequence_mixer "mamba2" => Mamba2);

conformance!(sequence_mixer "mamba2": { n_heads: 4, d_state: 6 });
conformance!(sequence_mixer "mamba2": { d_inner: 24, head_dim: 4, n_groups: 3, d_state: 5, d_conv: 3, conv_bias: false, gated_norm: before_gate });
conformance!(sequence_mixer "mamba2": { expand: 1.0, n_heads: 2, n_groups: 2, d_state: 3, d_conv: 1, dt_limit_min: 0.01, dt_limit_max: 0.05, gated_norm: none, chunk_size: 3 });

/// The sizes that follow from the configuration.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    inner: i64,
    heads: i64,
    head_dim: i64,
    /// Width of `x`, `B` and `C` together.
    conv: i64,
}

impl Mamba2 {
    fn sizes(&self, plan: &ModulePlan) -> Result<Sizes, Finding> {
        let d_model = plan.context.d_model;
        let inner = self.d_inner.unwrap_or((self.expand * d_model as f64).round() as i64);
        if inner < 1 {
            let message = format!("expand {} times d_model {d_model} leaves no inner channel", self.expand);
            return Err(plan.finding("expand", message, "`expand * d_model` is at least 1"));
        }
        let what = "the heads share the inner width evenly";
        let (heads, head_dim) = match (self.n_heads, self.head_dim) {
            (Some(heads), None) => (heads, plan.divide(inner, heads, "n_heads", what)?),
            (None, head_dim) => {
                let head_dim = head_dim.unwrap_or(64);
                (plan.divide(inner, head_dim, "head_dim", what)?, head_dim)
            }
            (Some(heads), Some(head_dim)) if heads * head_dim == inner => (heads, head_dim),
            (Some(heads), Some(head_dim)) => {
                let message = format!("{heads} heads of {head_dim} are not the inner width {inner}");
                let mut finding = plan.finding("n_heads", message, "`n_heads * head_dim` is the inner width");
                finding.help =
                    Some(format!("use `d_inner: {}`, or leave out one of the two", heads * head_dim));
                return Err(finding);
            }
        };
        plan.divide(heads, self.n_groups, "n_groups", "every group has as many heads")?;
        Ok(Sizes { inner, heads, head_dim, conv: inner + 2 * self.n_groups * self.d_state })
    }

    /// Step sizes `[batch, time, heads]` in at least 32 bits.
    fn steps(&self, parts: &Parts, dt: &Tensor) -> Result<Tensor> {
        let steps = (widen(dt)? + parts.parameter("dt_bias")?).f_softplus()?;
        Ok(match self.dt_limit_max {
            Some(max) => steps.f_clamp(self.dt_limit_min, max)?,
            None if self.dt_limit_min > 0.0 => steps.f_clamp_min(self.dt_limit_min)?,
            None => steps,
        })
    }

    /// `y, z [batch, time, inner]` to the output, in 32 bits inside.
    fn gate(&self, parts: &Parts, y: &Tensor, z: &Tensor) -> Result<Tensor> {
        let (wide, gate) = (widen(y)?, widen(z)?.f_silu()?);
        let norm = |x: Tensor| -> Result<Tensor> {
            let size = x.size();
            let grouped = x.f_reshape([size[0], size[1], self.n_groups, size[2] / self.n_groups])?;
            let mean_square = grouped.f_square()?.f_mean_dim([-1].as_slice(), true, None)?;
            let normed = (grouped * (mean_square + self.norm_eps).f_rsqrt()?).f_reshape(&size)?;
            Ok(normed * parts.parameter("norm.weight")?)
        };
        let output = match self.gated_norm {
            GatedNorm::AfterGate => norm(wide * gate)?,
            GatedNorm::BeforeGate => norm(wide)? * gate,
            GatedNorm::None => wide * gate,
        };
        Ok(output.f_to_kind(y.kind())?)
    }
}

impl SequenceMixer for Mamba2 {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        if self.dt_min > self.dt_max || self.dt_min <= 0.0 {
            let message = format!("dt_min {} and dt_max {} are no range", self.dt_min, self.dt_max);
            plan.refuse(plan.finding("dt_min", message, "0 < dt_min <= dt_max"));
        }
        if let Some(max) = self.dt_limit_max.filter(|&max| max < self.dt_limit_min) {
            let message = format!("dt_limit_min {} and dt_limit_max {max} are no range", self.dt_limit_min);
            plan.refuse(plan.finding("dt_limit_min", message, "dt_limit_min <= dt_limit_max"));
        }
        let Sizes { inner, heads, head_dim, conv } = self.sizes(plan)?;
        plan.input("z", inner);
        plan.input("xbc", conv);
        plan.input("dt", heads);
        let conv_init = Init::Uniform { bound: 1.0 / (self.d_conv as f64).sqrt() };
        plan.parameter("conv.weight", &[conv, self.d_conv], conv_init.clone());
        if self.conv_bias {
            plan.parameter("conv.bias", &[conv], conv_init).without_weight_decay();
        }
        let dt_init = Init::InverseSoftplusLogUniform { min: self.dt_min, max: self.dt_max, floor: 1e-4 };
        plan.parameter("dt_bias", &[heads], dt_init).without_weight_decay().keep_float();
        let a_init = Init::LogOfUniform { min: 1.0, max: 16.0 };
        plan.parameter("A_log", &[heads], a_init).without_weight_decay().keep_float();
        plan.parameter("D", &[heads], Init::ONES).without_weight_decay().keep_float();
        if self.gated_norm != GatedNorm::None {
            plan.parameter("norm.weight", &[inner], Init::ONES).without_weight_decay();
        }
        plan.state("conv_tail", &[self.d_conv - 1, conv], StateKind::Compute);
        plan.state("ssm", &[heads, head_dim, self.d_state], StateKind::Float);
        // Per state: a product with the decay, a multiply-add for what is written, one for what is read. Per channel:
        // step, skip, gate and norm.
        plan.flops_per_token(5 * inner * self.d_state + conv * (2 * self.d_conv + 1) + 9 * inner);
        plan.saved_per_token += conv + 3 * inner + 2 * heads;
        plan.output(inner);
        Ok(())
    }

    fn forward(&self, parts: &Parts, x: &Inputs, state: &State, call: &Call<'_>) -> Result<MixerOutput> {
        let span = call.span;
        let (xbc, tail) = convolved(parts, x.get("xbc")?, state, call)?;
        let a_log = parts.parameter("A_log")?;
        let (inner, heads, written) =
            (parts.plan.output_width, a_log.size()[0], self.n_groups * self.d_state);
        let slices = xbc.f_split_with_sizes([inner, written, written], -1)?;
        let cut = |x: &Tensor, parts: i64| -> Result<Tensor> {
            Ok(x.f_reshape([span.batch, span.time, parts, x.size()[2] / parts])?)
        };
        let (u, b, c) =
            (cut(&slices[0], heads)?, cut(&slices[1], self.n_groups)?, cut(&slices[2], self.n_groups)?);
        let (y, ssm) = ssd(&Ssd {
            x: &u,
            dt: &self.steps(parts, x.get("dt")?)?,
            a: &a_log.f_exp()?.f_neg()?,
            b: &b,
            c: &c,
            d: Some(parts.parameter("D")?),
            initial_state: state.get("ssm")?,
            reset_state: span.resets.is_some().then(|| call.initial.get("ssm")).transpose()?,
            resets: span.resets.as_ref(),
            valid: span.valid.as_ref(),
            chunk_size: self.chunk_size,
        })?;
        let y = self.gate(parts, &y.f_reshape([span.batch, span.time, inner])?, x.get("z")?)?;
        Ok((y, state.with("conv_tail", tail).with("ssm", ssm)).into())
    }
}

fn widen(x: &Tensor) -> Result<Tensor> {
    Ok(if x.kind() == Kind::Double { x.shallow_clone() } else { x.f_to_kind(Kind::Float)? })
}
