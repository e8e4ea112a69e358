//! Feed-forward channel mixers.

use hymba_plus::prelude::*;
use kernels::swiglu::swiglu;

/// Gated feed-forward network: `down(silu(gate x) * up x)` (Shazeer 2020).
#[component_config]
pub struct SwiGlu {
    /// Width between the matrices.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub d_hidden: i64,
}

/// Feed-forward network with a squared ReLU: `down(relu(up x)^2)` (So et al. 2021).
#[component_config]
pub struct Relu2 {
    /// Width between the matrices.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub d_hidden: i64,
}

/// Feed-forward network with a GELU: `down(gelu(up x))`, biases optional as GPT-2 has them.
#[component_config]
pub struct Gelu {
    /// Width between the matrices.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub d_hidden: i64,
    /// Whether both matrices have a bias.
    #[default(false)]
    pub bias: bool,
    /// The form of the GELU.
    #[default(GeluForm::Exact)]
    pub form: GeluForm,
}

/// Forms of the GELU.
#[component_config]
pub enum GeluForm {
    /// By the error function.
    Exact,
    /// By the tanh approximation.
    Tanh,
}

register!(channel_mixer "swiglu" => SwiGlu);
register!(channel_mixer "relu2" => Relu2);
register!(channel_mixer "gelu" => Gelu);

fn plan_up_down(plan: &mut ModulePlan, d_hidden: i64, gated: bool) {
    let d_model = plan.context.d_model;
    if gated {
        plan.linear("gate", d_hidden, d_model);
        plan.saved_per_token += 2 * d_hidden;
    }
    plan.linear("up", d_hidden, d_model);
    plan.linear("down", d_model, d_hidden);
    plan.saved_per_token += 2 * d_hidden;
    plan.output(d_model);
}

fn linear(parts: &Parts, name: &str, x: &Tensor) -> Result<Tensor> {
    let bias = parts.optional_parameter(&format!("{name}_bias"));
    match bias {
        Some(bias) => Ok(x.f_linear(parts.parameter(name)?, Some(bias))?),
        None => kernels::weight_only_linear::linear(x, parts.parameter(name)?),
    }
}

impl ChannelMixer for SwiGlu {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        plan_up_down(plan, self.d_hidden, true);
        Ok(())
    }

    fn forward(&self, parts: &Parts, x: &Tensor, _call: &Call<'_>) -> Result<Tensor> {
        linear(parts, "down", &swiglu(&linear(parts, "gate", x)?, &linear(parts, "up", x)?)?)
    }
}

impl ChannelMixer for Relu2 {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        plan_up_down(plan, self.d_hidden, false);
        Ok(())
    }

    fn forward(&self, parts: &Parts, x: &Tensor, _call: &Call<'_>) -> Result<Tensor> {
        linear(parts, "down", &linear(parts, "up", x)?.f_relu()?.f_square()?)
    }
}

impl ChannelMixer for Gelu {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        plan_up_down(plan, self.d_hidden, false);
        if self.bias {
            plan.parameter("up_bias", &[self.d_hidden], Init::ZEROS).without_weight_decay();
            plan.parameter("down_bias", &[plan.context.d_model], Init::ZEROS).without_weight_decay();
        }
        Ok(())
    }

    fn forward(&self, parts: &Parts, x: &Tensor, _call: &Call<'_>) -> Result<Tensor> {
        let form = match self.form {
            GeluForm::Exact => "none",
            GeluForm::Tanh => "tanh",
        };
        linear(parts, "down", &linear(parts, "up", x)?.f_gelu(form)?)
    }
}
