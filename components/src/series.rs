//! Patch embedding of time series (Nie et al. 2023, PatchTST) with reversible instance normalisation (Kim et al. 2022).

use hymba_plus::prelude::*;

/// Windows of a series `[batch, input_length, channels]` to a token for each stretch of `patch_length` steps.
///
/// With `instance_norm` every channel of every window is brought to mean 0 and variance 1, `(x - mean) / sqrt(var +
/// eps)`, and forecasts are brought back to the window's own mean and scale.
#[component_config]
pub struct SeriesPatchEmbedding {
    /// Steps of a window.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub input_length: i64,
    /// Channels of the series.
    #[default(1)]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub channels: i64,
    /// Steps of a patch.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub patch_length: i64,
    /// Steps from patch to patch; left out, `patch_length`. The last patch must end with the window.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub stride: Option<i64>,
    /// What a row of tokens stands for.
    #[default(Rows::Channel)]
    pub rows: Rows,
    /// Whether windows are normalised, and forecasts brought back.
    #[default(true)]
    pub instance_norm: bool,
    /// Whether the normalised channels have a learned scale and shift, which forecasts undo.
    #[default(false)]
    pub affine: bool,
    /// Added to the variance.
    #[default(1e-5)]
    #[schemars(range(min = 1e-30))]
    pub eps: f64,
    /// Whether there is a learned vector for each place.
    #[default(true)]
    pub learned_positions: bool,
}

/// What a row of tokens stands for.
#[component_config]
pub enum Rows {
    /// One channel: all are forecast by the same weights, each from its own past.
    Channel,
    /// All channels: each patch holds them side by side.
    Window,
}

register!(embedding "series_patch" => SeriesPatchEmbedding);

impl SeriesPatchEmbedding {
    fn stride(&self) -> i64 {
        self.stride.unwrap_or(self.patch_length)
    }

    /// Channels that a row stands for.
    fn channels_of_row(&self) -> i64 {
        match self.rows {
            Rows::Channel => 1,
            Rows::Window => self.channels,
        }
    }

    fn check(&self, series: &Tensor) -> Result<()> {
        let (length, channels) = (self.input_length, self.channels);
        match *series.size().as_slice() {
            [_, got, width] if got == length && width == channels => Ok(()),
            ref got => Err(Error::other(format!("windows are [batch, {length}, {channels}], got {got:?}"))),
        }
    }

    /// Mean and scale of every channel of every window, each `[batch, 1, channels]`, in at least `Float`.
    fn statistics(&self, series: &Tensor) -> Result<(Tensor, Tensor)> {
        let mean = series.f_mean_dim([1].as_slice(), true, None)?;
        let variance = series.f_sub(&mean)?.f_square()?.f_mean_dim([1].as_slice(), true, None)?;
        Ok((mean, variance.f_add_scalar(self.eps)?.f_sqrt()?))
    }
}

/// In at least 32 bits.
fn widen(x: &Tensor) -> Result<Tensor> {
    Ok(if x.kind() == Kind::Double { x.shallow_clone() } else { x.f_to_kind(Kind::Float)? })
}

impl Embedding for SeriesPatchEmbedding {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        plan.takes("length", self.input_length);
        plan.takes("channel", self.channels);
        let (length, patch, stride) = (self.input_length, self.patch_length, self.stride());
        let tokens = (length - patch).max(0) / stride + 1;
        // Said first, so that a head does not complain of what is this module's fault.
        plan.embedded = Some(Embedded { tokens, channels: self.channels_of_row() });
        if patch > length {
            let message = format!("a patch of {patch} steps does not fit into a window of {length}");
            return Err(plan.finding("patch_length", message, "`patch_length` is at most `input_length`"));
        }
        let rest = (length - patch) % stride;
        if rest != 0 {
            let message = format!(
                "patches of {patch} steps, {stride} apart, end {rest} steps before the window of {length} does"
            );
            let mut finding = plan.finding(
                if self.stride.is_some() { "stride" } else { "patch_length" },
                message,
                "`stride` divides `input_length - patch_length`, so that the last step is in a patch",
            );
            let (shorter, longer) = (length - rest, length + stride - rest);
            finding.help = Some(format!("an input_length of {shorter} or {longer} would fit"));
            return Err(finding);
        }
        if self.affine && !self.instance_norm {
            let message = "`affine` scales what `instance_norm` has normalised, and that is off";
            plan.refuse(plan.finding("affine", message, "`affine` needs `instance_norm`"));
        }
        let d_model = plan.context.d_model;
        let values = patch * self.channels_of_row();
        // As for images: a patch has few inputs, which a small std would drown.
        plan.parameter("weight", &[d_model, values], Init::Uniform { bound: 1.0 / (values as f64).sqrt() });
        plan.flops_per_token(2 * d_model * values);
        plan.parameter("bias", &[d_model], Init::ZEROS).without_weight_decay();
        if self.learned_positions {
            let init = Init::Normal { std: plan.context.initializer_range };
            plan.parameter("position", &[tokens, d_model], init).without_weight_decay();
        }
        if self.affine {
            plan.parameter("affine_weight", &[self.channels], Init::ONES).without_weight_decay();
            plan.parameter("affine_bias", &[self.channels], Init::ZEROS).without_weight_decay();
        }
        plan.output(d_model);
        Ok(())
    }

    fn forward(&self, parts: &Parts, series: &Tensor) -> Result<Tensor> {
        self.check(series)?;
        let weight = parts.parameter("weight")?;
        let (batch, mut x) = (series.size()[0], widen(series)?);
        if self.instance_norm {
            let (mean, scale) = self.statistics(&x)?;
            x = x.f_sub(&mean)?.f_div(&scale)?;
        }
        if let Some(weight) = parts.optional_parameter("affine_weight") {
            x = x.f_mul(weight)?.f_add(parts.parameter("affine_bias")?)?;
        }
        let patches = x.f_to_kind(weight.kind())?.f_unfold(1, self.patch_length, self.stride())?;
        // [batch, tokens, channels, patch_length]
        let patches = match self.rows {
            Rows::Channel => patches.f_transpose(1, 2)?.f_flatten(0, 1)?,
            Rows::Window => patches.f_flatten(2, 3)?,
        };
        let rows = batch * self.channels / self.channels_of_row();
        let y = patches.f_linear(weight, Some(parts.parameter("bias")?))?;
        let y = y.f_view([rows, -1, parts.plan.context.d_model])?;
        Ok(match parts.optional_parameter("position") {
            Some(position) => y.f_add(position)?,
            None => y,
        })
    }

    /// Forecasts `[rows, horizon, channels of a row, ...]` to `[batch, horizon, channels, ...]` in the units of the windows.
    /// Other outputs stay as they are when a row is a window, and are refused when it is a channel.
    fn restore(&self, parts: &Parts, outputs: &Tensor, series: &Tensor) -> Result<Tensor> {
        self.check(series)?;
        let (batch, size) = (series.size()[0], outputs.size());
        let is_forecast = size.len() >= 3 && size[2] == self.channels_of_row();
        let y = match self.rows {
            Rows::Window if is_forecast => outputs.shallow_clone(),
            Rows::Window => return Ok(outputs.shallow_clone()),
            Rows::Channel if is_forecast => {
                let split = [&[batch, self.channels], &size[1..]].concat();
                outputs.f_view(split.as_slice())?.f_select(3, 0)?.f_transpose(1, 2)?
            }
            Rows::Channel => {
                return Err(Error::other(format!(
                    "outputs {size:?} of single channels are no forecasts; other heads need `rows: window`"
                )));
            }
        };
        // [batch, horizon, channels, ...]; channels first where they are scaled, last where they are broadcast
        let mut y = widen(&y)?.f_movedim_int(2, -1)?;
        let dimensions = y.dim();
        let place = |of_channels: &Tensor| -> Result<Tensor> {
            let mut shape = vec![of_channels.size()[0]];
            shape.resize(dimensions - 1, 1);
            shape.push(self.channels);
            Ok(of_channels.f_reshape(shape.as_slice())?)
        };
        if let Some(weight) = parts.optional_parameter("affine_weight") {
            let (weight, bias) = (weight.f_unsqueeze(0)?, parts.parameter("affine_bias")?.f_unsqueeze(0)?);
            y = y.f_sub(&place(&bias)?)?.f_div(&place(&weight)?)?;
        }
        if self.instance_norm {
            let (mean, scale) = self.statistics(&widen(series)?)?;
            y = y.f_mul(&place(&scale.f_squeeze_dim(1)?)?)?.f_add(&place(&mean.f_squeeze_dim(1)?)?)?;
        }
        Ok(y.f_movedim_int(-1, 2)?)
    }
}
