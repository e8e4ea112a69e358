//! The stage `forecast`: learns to forecast a time series.

use hymba_plus::{
    component_config,
    config::Recipe,
    model::{Model, Observers, Statistics},
    params::Parameters,
    plan::ModelPlan,
    prelude::register,
    registry::Finding,
};
use tch::{Device, Kind, Tensor};
use training::{
    Loss, Task, TaskError,
    data::{Description, Modality, Series, SeriesBatch, Shuffled, Weighted, Windows, in_order},
    loss::{pinball_sum, squared_error_sum},
    train,
};

use crate::{
    auxiliary::with_auxiliary,
    chosen_weights::Weights,
    context::{Stage, StageContext, StageError, stage},
    fit::{Fit, description},
};

training::loop_settings! {
    /// Trains the model to forecast the recipe's series. How far it looks back is the embedding's `length`, how far ahead
    /// the head's `horizon`.
    pub struct Forecast {
        /// What is made small.
        #[default(ForecastLoss::Pinball)]
        pub loss: ForecastLoss,
        /// Which weights the stages after this one get.
        #[default(Weights::Best)]
        pub weights: Weights,
    }
}

/// Losses of forecasts.
#[component_config]
pub enum ForecastLoss {
    /// Twice the mean pinball loss over all quantiles; of the median alone, the absolute error.
    Pinball,
    /// The squared error of a single forecast: the head has the quantile 0.5 only, which then learns the mean.
    Mse,
}

register!(stage "forecast" => Forecast);

impl Stage for Forecast {
    fn makes_model(&self) -> bool {
        true
    }

    fn reads(&self) -> Modality {
        Modality::Series
    }

    fn check(&self, recipe: &Recipe, plan: Option<&ModelPlan>, path: &str) -> Vec<Finding> {
        let mut findings = check_forecaster("forecast", recipe, plan);
        let quantiles = plan.and_then(|plan| plan.head.module.output_axis("quantile"));
        if let Some(quantiles) = quantiles
            && self.loss == ForecastLoss::Mse
            && quantiles.size > 1
        {
            findings.push(Finding {
                path: format!("{path}.loss"),
                message: format!(
                    "the squared error trains one forecast, and the head gives {}",
                    quantiles.size
                ),
                rule: "`loss: mse` needs a head with the quantile 0.5 only".to_owned(),
                help: Some("set `quantiles: [0.5]` in the head, or use `loss: pinball`".to_owned()),
            });
        }
        findings.extend(self.weights.check(recipe, path));
        findings.extend(self.loop_config().check(path));
        findings
    }

    fn run(&self, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let (seed, device) = (context.run.seed(), context.run.device());
        let model = context.take_model()?;
        let shape = ForecastShape::of(model.plan())?;
        let [train_rows, validation_rows, _] = context.data.series()?.rows.ranges();
        let windows = |split, rows| shape.windows(context.data.series()?, split, rows);
        let validation =
            if validation_rows.is_empty() { None } else { Some(windows("validation", &validation_rows)?) };
        let mut loader = Shuffled::new(windows("training", &train_rows)?.into(), seed, device)?;
        let batch_size = (self.batch_size / self.accumulation).max(1);
        let mut task = SeriesForecaster { model, shape, loss: self.loss, validation, batch_size };
        let stage = context.stage.clone();
        let outcome = train(&mut context.run, &stage, &self.loop_config(), &mut task, &mut loader)?;
        context.report(&outcome, self.weights.choose(&outcome, &task.model)?, SeriesBatch::TARGETS);
        context.model = Some(task.model);
        Ok(())
    }
}

/// What a stage that forecasts asks of data and model.
pub fn check_forecaster(stage: &str, recipe: &Recipe, plan: Option<&ModelPlan>) -> Vec<Finding> {
    let (Some(plan), Some(Description::Series { channels, rows })) = (plan, description(recipe)) else {
        return Vec::new();
    };
    let mut fit = Fit::new(stage, plan);
    fit.input("channel", channels, "channels of the series");
    let length = plan.embedding.module.input_axis("length");
    let horizon = fit.output("horizon", None, "steps to forecast");
    fit.output("quantile", None, "quantiles of the forecast");
    let (Some(length), Some(horizon)) = (length, horizon) else {
        if length.is_none() {
            let kind = &plan.embedding.component.kind;
            let message = format!(
                "stage `{stage}` needs windows of a series, and `{kind}` takes no dimension `length`"
            );
            let rule = format!("stage `{stage}` follows an embedding of series");
            fit.push("embedding", message, rule, "use `embedding: series_patch`".to_owned());
        }
        return fit.findings();
    };
    let mut before = 0;
    for (split, count) in [("training", rows.train), ("validation", rows.validation), ("test", rows.test)] {
        let visible = count as i64 + length.size.min(before);
        before += count as i64;
        if count > 0 && visible < length.size + horizon.size {
            let message = format!(
                "the {split} split has {visible} rows (what may be looked at before it included), and a window needs {} + {}",
                length.size, horizon.size
            );
            let rule = "every split has room for a window and what comes after it".to_owned();
            let help = "shorten the window or the horizon, or give the split more rows".to_owned();
            fit.push("embedding", message, rule, help);
        }
    }
    fit.tokens();
    fit.findings()
}

/// What a forecaster looks at and what it gives, as its plan says it.
#[derive(Debug, Clone, PartialEq)]
pub struct ForecastShape {
    /// Steps of a window.
    pub input_length: usize,
    /// Steps of a forecast.
    pub horizon: usize,
    /// Levels of its quantiles.
    pub levels: Vec<f64>,
    /// Which of them is the median.
    pub median: i64,
}

impl ForecastShape {
    /// The shape of a model's forecasts.
    ///
    /// # Errors
    /// When the model does not forecast series.
    pub fn of(plan: &ModelPlan) -> Result<Self, StageError> {
        let (embedding, head) = (&plan.embedding.module, &plan.head.module);
        let all = (embedding.input_axis("length"), head.output_axis("horizon"), head.output_axis("quantile"));
        let (Some(length), Some(horizon), Some(quantile)) = all else {
            return Err(StageError::Other("the model does not forecast series".to_owned()));
        };
        let median = quantile.values.iter().position(|&level| (level - 0.5).abs() < 1e-9);
        let median = median.ok_or_else(|| StageError::Other("the head has no quantile 0.5".to_owned()))?;
        Ok(Self {
            input_length: length.size as usize,
            horizon: horizon.size as usize,
            levels: quantile.values.clone(),
            median: median as i64,
        })
    }

    /// Windows of some rows of a series for this shape.
    ///
    /// # Errors
    /// When there are none.
    pub fn windows(
        &self,
        series: &Series,
        split: &'static str,
        rows: &std::ops::Range<usize>,
    ) -> Result<Windows, StageError> {
        Ok(series.windows(split, rows, self.input_length, self.horizon)?)
    }
}

/// A model that forecasts, how its loss is taken, and what it is validated on.
#[derive(Debug)]
pub struct SeriesForecaster {
    /// The model.
    pub model: Model,
    /// What it looks at and gives.
    pub shape: ForecastShape,
    /// What is made small.
    pub loss: ForecastLoss,
    /// Held-out windows.
    pub validation: Option<Windows>,
    /// Held-out windows at a time.
    pub batch_size: usize,
}

/// What a forecaster achieves: means over all windows, steps and channels, in the units of the series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ForecastResult {
    /// Squared error of the median.
    pub mse: f64,
    /// Absolute error of the median.
    pub mae: f64,
    /// Twice the mean pinball loss over all quantiles.
    pub pinball: f64,
    /// Forecast values.
    pub values: u64,
}

/// Measures a forecaster on windows, in order.
///
/// # Errors
/// When libtorch refuses.
pub fn forecast_result(
    model: &Model,
    shape: &ForecastShape,
    windows: &Windows,
    batch_size: usize,
    device: Device,
) -> Result<ForecastResult, TaskError> {
    let (mut squared, mut absolute, mut pinball, mut values) = (0.0, 0.0, 0.0, 0);
    let number =
        |tensor: &Tensor| -> Result<f64, TaskError> { Ok(f64::try_from(&tensor.f_to_kind(Kind::Double)?)?) };
    for batch in in_order(windows, batch_size, device) {
        let batch = batch?;
        // In the precision of the targets: a sum over millions of values loses digits in fewer bits.
        let outputs = outputs(model, &batch, false, Observers::default())?.f_to_kind(Kind::Double)?;
        let error = outputs.f_select(-1, shape.median)?.f_sub(&batch.targets)?;
        squared += number(&error.f_square()?.f_sum(Kind::Double)?)?;
        absolute += number(&error.f_abs()?.f_sum(Kind::Double)?)?;
        pinball += number(&pinball_sum(&outputs, &batch.targets, &shape.levels)?)?;
        values += batch.target_tokens() as u64;
    }
    let count = values.max(1) as f64;
    Ok(ForecastResult { mse: squared / count, mae: absolute / count, pinball: pinball / count, values })
}

/// Forecasts `[batch, horizon, channels, quantiles]`.
fn outputs(
    model: &Model,
    batch: &SeriesBatch,
    training: bool,
    observers: Observers<'_>,
) -> Result<Tensor, TaskError> {
    let inputs = batch.inputs.f_to_kind(model.options().kind)?;
    Ok(model.outputs_observed(&inputs, training, observers)?)
}

impl Task for SeriesForecaster {
    type Batch = SeriesBatch;

    fn parameters(&self) -> &Parameters {
        self.model.parameters()
    }

    fn loss(&self, batch: &SeriesBatch) -> Result<Loss, TaskError> {
        let statistics = Statistics::default();
        let outputs = outputs(&self.model, batch, true, Observers::statistics(&statistics))?;
        let targets = batch.targets.f_to_kind(outputs.kind())?;
        let (name, loss) = match self.loss {
            ForecastLoss::Pinball => ("pinball", pinball_sum(&outputs, &targets, &self.shape.levels)?),
            ForecastLoss::Mse => {
                ("mse", squared_error_sum(&outputs.f_select(-1, self.shape.median)?, &targets)?)
            }
        };
        let auxiliary = self.model.auxiliary_losses(&statistics)?;
        let count = loss.f_detach()?.f_full_like(batch.target_tokens())?;
        Ok(with_auxiliary(loss, name, &count, &auxiliary, &statistics)?)
    }

    fn after_step(&mut self, statistics: &Statistics) -> Result<(), TaskError> {
        Ok(self.model.rebalance(statistics)?)
    }

    fn evaluate(&mut self) -> Result<Vec<(String, f64)>, TaskError> {
        let Some(windows) = &self.validation else { return Ok(Vec::new()) };
        let device = self.model.options().device;
        let result = forecast_result(&self.model, &self.shape, windows, self.batch_size, device)?;
        let loss = match self.loss {
            ForecastLoss::Pinball => result.pinball,
            ForecastLoss::Mse => result.mse,
        };
        let named = [("loss", loss), ("mse", result.mse), ("mae", result.mae)];
        Ok(named.map(|(name, value)| (format!("validation_{name}"), value)).into())
    }
}
