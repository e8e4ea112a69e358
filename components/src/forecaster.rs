//! A forecaster head: quantiles of the next steps, all at once.

use hymba_plus::prelude::*;

/// Hidden vectors `[rows, time, d_model]` to forecasts `[rows, horizon, channels, quantiles]`: one linear map from the
/// last token or from all tokens side by side. `channels` are those that the embedding puts into a row.
#[component_config]
pub struct Forecaster {
    /// Steps to forecast.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub horizon: i64,
    /// Levels of the quantiles, rising, 0.5 among them: it is the forecast where one number is asked for.
    #[default(vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])]
    #[schemars(length(min = 1))]
    pub quantiles: Vec<f64>,
    /// What the map reads.
    #[default(Read::All)]
    pub read: Read,
    /// Dropout on what the map reads.
    #[default(0.0)]
    #[schemars(range(min = 0.0, max = 0.99))]
    pub dropout: f64,
}

/// What a forecaster reads.
#[component_config]
pub enum Read {
    /// The last token, which has seen all others.
    Last,
    /// All tokens side by side.
    All,
}

register!(head "forecaster" => Forecaster);

impl Forecaster {
    fn check_quantiles(&self, plan: &ModulePlan) -> Result<(), Finding> {
        let quantiles = &self.quantiles;
        let inside = quantiles.iter().all(|level| *level > 0.0 && *level < 1.0);
        let rising = quantiles.windows(2).all(|pair| pair[0] < pair[1]);
        if inside && rising && quantiles.contains(&0.5) {
            return Ok(());
        }
        let mut finding = plan.finding(
            "quantiles",
            format!("{quantiles:?} are no levels of quantiles with a median"),
            "levels rise, lie between 0 and 1, and 0.5 is one of them",
        );
        let mut right: Vec<f64> =
            quantiles.iter().copied().filter(|level| *level > 0.0 && *level < 1.0).collect();
        right.push(0.5);
        right.sort_by(f64::total_cmp);
        right.dedup();
        finding.help = Some(format!("write {right:?}"));
        Err(finding)
    }
}

impl Head for Forecaster {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        if let Err(finding) = self.check_quantiles(plan) {
            plan.refuse(finding);
        }
        let Some(embedded) = plan.context.embedded else {
            let message = "the embedding does not say how many tokens and channels it makes of an input";
            let mut finding = plan.finding("", message, "a forecaster follows an embedding of series");
            finding.help = Some("use `embedding: series_patch`".to_owned());
            return Err(finding);
        };
        let (d_model, std) = (plan.context.d_model, plan.context.initializer_range);
        let tokens = if self.read == Read::All { embedded.tokens } else { 1 };
        let sizes = [self.horizon, embedded.channels, self.quantiles.len() as i64, tokens, d_model];
        if sizes.iter().try_fold(1_i64, |product, size| product.checked_mul(*size)).is_none() {
            let message = format!("{sizes:?} make more weights than can be counted");
            return Err(plan.finding("horizon", message, "the map's size is a number"));
        }
        let outputs = self.horizon * embedded.channels * self.quantiles.len() as i64;
        // Once for each row: no arithmetic per token to speak of.
        plan.parameter("weight", &[outputs, tokens * d_model], Init::Normal { std });
        plan.parameter("bias", &[outputs], Init::ZEROS).without_weight_decay();
        plan.gives("horizon", self.horizon);
        plan.gives("channel", embedded.channels);
        plan.gives_values("quantile", &self.quantiles);
        plan.output(outputs);
        Ok(())
    }

    fn forward(&self, parts: &Parts, hidden: &Tensor, call: HeadCall<'_>) -> Result<Tensor> {
        let weight = parts.parameter("weight")?;
        let read = match self.read {
            Read::Last if hidden.size().get(1).is_some_and(|time| *time > 0) => hidden.f_select(1, -1)?,
            Read::Last => return Err(Error::other("there is no token to forecast from")),
            Read::All => hidden.f_flatten(1, 2)?,
        };
        if read.size()[1] != weight.size()[1] {
            let (got, want) = (read.size()[1], weight.size()[1]);
            return Err(Error::other(format!(
                "the forecaster was planned for {want} numbers of a row, got {got}"
            )));
        }
        let read =
            if self.dropout > 0.0 && call.training { read.f_dropout(self.dropout, true)? } else { read };
        let y = read.f_linear(weight, Some(parts.parameter("bias")?))?;
        let channels = parts.plan.context.embedded.map_or(1, |embedded| embedded.channels);
        Ok(y.f_view([-1, self.horizon, channels, self.quantiles.len() as i64])?)
    }
}
