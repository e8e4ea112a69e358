//! Mamba-1: a selective state-space model behind a short convolution (Gu & Dao 2023, arXiv 2312.00752).

use hymba_plus::prelude::*;
use kernels::{
    selective_scan::{SelectiveScan, selective_scan},
    weight_only_linear::linear,
};

use crate::convolution::convolved;

/// Mamba, a selective state-space model (Gu & Dao 2023): `u = silu(conv(x))`, `[dt | B | C] = x_proj(u)`,
/// `delta = softplus(dt_proj(dt))`, `h_t = exp(delta A) h_{t-1} + delta B u`, `y = (C h + D u) * silu(z)`.
#[component_config]
pub struct Mamba {
    /// Inner width as a multiple of `d_model`; `d_inner` overrules it.
    #[default(2.0)]
    #[schemars(range(min = 0.0, max = 1024.0))]
    pub expand: f64,
    /// Inner width.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub d_inner: Option<i64>,
    /// State per inner channel.
    #[default(16)]
    #[schemars(range(min = 1, max = 256))]
    pub d_state: i64,
    /// Width of the convolution.
    #[default(4)]
    #[schemars(range(min = 1, max = 8))]
    pub d_conv: i64,
    /// Rank of the step sizes; left out, `d_model / 16` rounded up.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub dt_rank: Option<i64>,
    /// Whether the convolution has a bias.
    #[default(true)]
    pub conv_bias: bool,
    /// Norm of `dt`, `B` and `C` before they are used, as Jamba and Hymba have it; `none` as in the paper.
    #[default(Component::of("none"))]
    pub inner_norm: Component<norm>,
    /// How the step sizes start.
    #[default(DtInit::Mamba)]
    pub dt_init: DtInit,
    /// Smallest starting step of `dt_init: mamba`.
    #[default(1e-3)]
    pub dt_min: f64,
    /// Largest starting step of `dt_init: mamba`.
    #[default(1e-1)]
    pub dt_max: f64,
}

/// Initialisations of the step sizes.
#[component_config]
pub enum DtInit {
    /// The paper's: a bias whose softplus is log-uniform in `[dt_min, dt_max]`, weights uniform in `+-dt_rank^-1/2`.
    Mamba,
    /// The released Hymba's: weights normal like every other matrix, bias 0.
    Normal,
}

register!(sequence_mixer "mamba" | "mamba1" => Mamba);

conformance!(sequence_mixer "mamba": {});
conformance!(sequence_mixer "mamba": { d_inner: 10, d_state: 3, d_conv: 3, inner_norm: rms_norm, dt_init: normal });
conformance!(sequence_mixer "mamba": { expand: 1.0, d_state: 5, d_conv: 1, conv_bias: false, dt_rank: 3 });

impl Mamba {
    /// Inner channels in a model of that width.
    pub(crate) fn inner(&self, d_model: i64) -> i64 {
        self.d_inner.unwrap_or((self.expand * d_model as f64).round() as i64)
    }

    /// Rank of the step sizes in a model of that width.
    pub(crate) fn rank(&self, d_model: i64) -> i64 {
        self.dt_rank.unwrap_or((d_model + 15) / 16)
    }
}

impl SequenceMixer for Mamba {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        let d_model = plan.context.d_model;
        let (inner, rank, state) = (self.inner(d_model), self.rank(d_model), self.d_state);
        if inner < 1 {
            let message = format!("expand {} times d_model {d_model} leaves no inner channel", self.expand);
            return Err(plan.finding("expand", message, "`expand * d_model` is at least 1"));
        }
        if self.dt_min > self.dt_max || self.dt_min <= 0.0 {
            let message = format!("dt_min {} and dt_max {} are no range", self.dt_min, self.dt_max);
            plan.refuse(plan.finding("dt_min", message, "0 < dt_min <= dt_max"));
        }
        plan.input("x", inner);
        plan.input("z", inner);
        let conv_bound = 1.0 / (self.d_conv as f64).sqrt();
        let conv_init = match self.dt_init {
            DtInit::Mamba => Init::Uniform { bound: conv_bound },
            DtInit::Normal => Init::Normal { std: plan.context.initializer_range },
        };
        plan.parameter("conv.weight", &[inner, self.d_conv], conv_init.clone());
        if self.conv_bias {
            let init = if self.dt_init == DtInit::Mamba { conv_init } else { Init::ZEROS };
            plan.parameter("conv.bias", &[inner], init).without_weight_decay();
        }
        plan.linear("x_proj.weight", rank + 2 * state, inner);
        for (name, width) in [("dt_norm", rank), ("b_norm", state), ("c_norm", state)] {
            plan.norm(name, &self.inner_norm, width);
        }
        let (dt_weight, dt_bias) = match self.dt_init {
            DtInit::Mamba => (
                Init::Uniform { bound: 1.0 / (rank as f64).sqrt() },
                Init::InverseSoftplusLogUniform { min: self.dt_min, max: self.dt_max, floor: 1e-4 },
            ),
            DtInit::Normal => (Init::Normal { std: plan.context.initializer_range }, Init::ZEROS),
        };
        plan.flops_per_token(2 * inner * rank);
        plan.parameter("dt_proj.weight", &[inner, rank], dt_weight);
        plan.parameter("dt_proj.bias", &[inner], dt_bias).without_weight_decay().keep_float();
        plan.parameter("A_log", &[inner, state], Init::LogArange).without_weight_decay().keep_float();
        plan.parameter("D", &[inner], Init::ONES).without_weight_decay().keep_float();
        plan.state("conv_tail", &[self.d_conv - 1, inner], StateKind::Compute);
        plan.state("ssm", &[inner, state], StateKind::Float);
        // Per state: exp, two products for h, one for B u, a multiply-add for y.
        plan.flops_per_token(inner * state * 7 + inner * (2 * self.d_conv + 6));
        plan.saved_per_token += 3 * inner + rank + 2 * state;
        plan.output(inner);
        Ok(())
    }

    fn forward(&self, parts: &Parts, x: &Inputs, state: &State, call: &Call<'_>) -> Result<MixerOutput> {
        let span = call.span;
        let (u, tail) = convolved(parts, x.get("x")?, state, call)?;
        let rank = self.rank(parts.plan.context.d_model);
        let low = linear(&u, parts.parameter("x_proj.weight")?)?;
        let low = low.f_split_with_sizes([rank, self.d_state, self.d_state], -1)?;
        let dt = parts.norm("dt_norm")?.forward(&low[0])?;
        let (b, c) = (parts.norm("b_norm")?.forward(&low[1])?, parts.norm("c_norm")?.forward(&low[2])?);
        let delta = linear(&dt, parts.parameter("dt_proj.weight")?)?;
        let (y, ssm) = selective_scan(&SelectiveScan {
            u: &u,
            delta: &delta,
            delta_bias: Some(parts.parameter("dt_proj.bias")?),
            delta_softplus: true,
            a: &parts.parameter("A_log")?.f_exp()?.f_neg()?,
            b: &b,
            c: &c,
            d: Some(parts.parameter("D")?),
            z: Some(x.get("z")?),
            initial_state: state.get("ssm")?,
            reset_state: span.resets.is_some().then(|| call.initial.get("ssm")).transpose()?,
            resets: span.resets.as_ref(),
            valid: span.valid.as_ref(),
        })?;
        Ok((y, state.with("conv_tail", tail).with("ssm", ssm)).into())
    }
}
