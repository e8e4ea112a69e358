//! Norms over the last dimension, computed in 32 bits whatever the input's type.

use hymba_plus::{prelude::*, serde_json};
use kernels::rms_norm::rms_norm;
use torch_bridge::guards::Autocast;

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

/// Group norm (Wu & He 2018): each group of neighbouring channels is normed by itself, then every channel has a weight
/// of its own. With a group for each head it is the multi-head norm of xLSTM and RetNet.
#[component_config]
pub struct GroupNorm {
    /// Number of groups; left out, a group for each head of the mixer that the norm is in.
    #[schemars(range(min = 1, max = 65_536))]
    pub n_groups: Option<i64>,
    /// Divide by the root mean square, as `rms_norm` does, without subtracting the mean first.
    #[default(false)]
    pub rms: bool,
    /// Added to the variance or the mean square.
    #[default(1e-5)]
    #[schemars(range(min = 0.0))]
    pub eps: f64,
    /// Whether there is a bias.
    #[default(false)]
    pub bias: bool,
}

register!(norm "rms_norm" | "rms" => RmsNorm);
register!(norm "layer_norm" => LayerNorm);
register!(norm "group_norm" => GroupNorm);

/// The norm of a mixer's heads side by side: a `group_norm` that names no groups gets one for each head.
pub(crate) fn per_head(norm: &Component<norm>, n_heads: i64) -> Component<norm> {
    let mut norm = norm.clone();
    let unset = norm.config.get("n_groups").is_none_or(serde_json::Value::is_null);
    if norm.kind == "group_norm" && unset {
        norm.config.insert("n_groups".to_owned(), n_heads.into());
    }
    norm
}

impl Norm for RmsNorm {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        plan.parameter("weight", &[plan.input_width], Init::ONES).without_weight_decay();
        plan.output(plan.input_width);
        Ok(())
    }

    fn forward(&self, parts: &Parts, x: &Tensor) -> Result<Tensor> {
        let weight = parts.parameter("weight")?;
        let output = Autocast::current(x.device());
        Ok(rms_norm(&kernels::rms_norm::RmsNorm { x, residual: None, weight, eps: self.eps, output })?.0)
    }

    fn root_mean_square(&self, parts: &Parts) -> Result<Option<(Tensor, f64)>> {
        Ok(Some((parts.parameter("weight")?.shallow_clone(), self.eps)))
    }

    fn forward_after_addition(
        &self,
        parts: &Parts,
        x: &Tensor,
        residual: &Tensor,
    ) -> Result<Option<(Tensor, Tensor)>> {
        let (weight, output) = (parts.parameter("weight")?, Autocast::current(x.device()));
        let args = kernels::rms_norm::RmsNorm { x, residual: Some(residual), weight, eps: self.eps, output };
        Ok(Some(rms_norm(&args)?))
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

impl Norm for GroupNorm {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        let Some(n_groups) = self.n_groups else {
            let message = "the number of groups is not given, and no mixer with heads is around the norm";
            return Err(plan.finding("n_groups", message, "`n_groups` is given outside a mixer with heads"));
        };
        plan.divide(plan.input_width, n_groups, "n_groups", "channels of a group")?;
        plan.parameter("weight", &[plan.input_width], Init::ONES).without_weight_decay();
        if self.bias {
            plan.parameter("bias", &[plan.input_width], Init::ZEROS).without_weight_decay();
        }
        plan.output(plan.input_width);
        Ok(())
    }

    fn forward(&self, parts: &Parts, x: &Tensor) -> Result<Tensor> {
        let width = parts.plan.input_width / self.n_groups.unwrap_or(1);
        let mut shape = x.size();
        shape.splice(x.dim() - 1.., [parts.plan.input_width / width, width]);
        let groups = widen(x)?.f_reshape(&shape)?;
        let normed = if self.rms {
            by_root_mean_square(&groups, self.eps)?
        } else {
            groups.f_layer_norm([width], None::<&Tensor>, None::<&Tensor>, self.eps, false)?
        };
        let scaled = normed.f_reshape(x.size())?.f_to_kind(x.kind())? * parts.parameter("weight")?;
        Ok(match parts.optional_parameter("bias") {
            Some(bias) => scaled + bias,
            None => scaled,
        })
    }
}

/// `x / sqrt(mean(x^2) + eps)` over the last dimension.
fn by_root_mean_square(x: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = x.f_square()?.f_mean_dim([-1].as_slice(), true, None)?;
    Ok(x * (mean_square + eps).f_rsqrt()?)
}

fn widen(x: &Tensor) -> Result<Tensor> {
    Ok(if x.kind() == Kind::Double { x.shallow_clone() } else { x.f_to_kind(Kind::Float)? })
}
