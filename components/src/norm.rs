//! Norms over the last dimension, computed in 32 bits whatever the input's type.

use hymba_plus::prelude::*;

/// Root-mean-square norm: `x / sqrt(mean(x^2) + eps) * weight` (Zhang & Sennrich 2019).
#[component_config]
pub struct RmsNorm {
    /// Added to the mean square.
    #[default(1e-6)]
    #[schemars(range(min = 0.0))]
    pub eps: f64,
}

/// Layer norm: `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` (Ba et al. 2016).
#[component_config]
pub struct LayerNorm {
    /// Added to the variance.
    #[default(1e-5)]
    #[schemars(range(min = 0.0))]
    pub eps: f64,
    /// Whether there is a bias.
    #[default(true)]
    pub bias: bool,
}

register!(norm "rms_norm" | "rms" => RmsNorm);
register!(norm "layer_norm" => LayerNorm);

impl Norm for RmsNorm {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        plan.parameter("weight", &[plan.input_width], Init::ONES).without_weight_decay();
        plan.output(plan.input_width);
        Ok(())
    }

    fn forward(&self, parts: &Parts, x: &Tensor) -> Result<Tensor> {
        let wide = widen(x)?;
        let mean_square = wide.f_square()?.f_mean_dim([-1].as_slice(), true, None)?;
        let normed = wide * (mean_square + self.eps).f_rsqrt()?;
        Ok(normed.f_to_kind(x.kind())? * parts.parameter("weight")?)
    }
}

impl Norm for LayerNorm {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        plan.parameter("weight", &[plan.input_width], Init::ONES).without_weight_decay();
        if self.bias {
            plan.parameter("bias", &[plan.input_width], Init::ZEROS).without_weight_decay();
        }
        plan.output(plan.input_width);
        Ok(())
    }

    fn forward(&self, parts: &Parts, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (parts.parameter("weight")?, parts.optional_parameter("bias"));
        let wide = widen(x)?;
        let (weight, bias) =
            (weight.f_to_kind(wide.kind())?, bias.map(|b| b.f_to_kind(wide.kind())).transpose()?);
        let y = wide.f_layer_norm(weight.size(), Some(&weight), bias.as_ref(), self.eps, false)?;
        Ok(y.f_to_kind(x.kind())?)
    }
}

fn widen(x: &Tensor) -> Result<Tensor> {
    Ok(if x.kind() == Kind::Double { x.shallow_clone() } else { x.f_to_kind(Kind::Float)? })
}
