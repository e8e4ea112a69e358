//! The stage `evaluate_forecaster`: the model's errors on the test windows, beside a linear map and repeating.

use hymba_plus::{
    component_config,
    config::Recipe,
    plan::{ModelPlan, grouped},
    prelude::register,
    registry::Finding,
};
use recipes::{
    ForecastShape, Stage, StageContext, StageError, check_forecaster, description, forecast_result, stage,
};
use serde_json::json;
use torch_bridge::guards::NoGrad;
use training::{
    data::{Description, Modality, Samples},
    telemetry::MetricRecord,
};

use crate::{
    linear_series::{Errors, LinearForecaster, errors, repeat_last},
    splits::no_test_split,
    table::{Table, report},
};

/// Measures the model on every window of the test rows: mean squared and absolute error of its medians over all windows,
/// steps and channels, in the units of the data (standardised, where the data is), beside a linear map that is fitted
/// here to the same windows and the last value repeated. The numbers are kept in the run directory as
/// `stages/NAME/evaluation.json`.
#[component_config]
pub struct EvaluateForecaster {
    /// Windows at a time.
    #[default(64)]
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// Whether the simpler forecasts are made for comparison.
    #[default(true)]
    pub baselines: bool,
}

register!(stage "evaluate_forecaster" => EvaluateForecaster);

impl Stage for EvaluateForecaster {
    fn reads(&self) -> Modality {
        Modality::Series
    }

    fn check(&self, recipe: &Recipe, plan: Option<&ModelPlan>, path: &str) -> Vec<Finding> {
        let mut findings = check_forecaster("evaluate_forecaster", recipe, plan);
        if let Some(Description::Series { rows, .. }) = description(recipe)
            && rows.test == 0
        {
            findings.push(no_test_split(path, "rows"));
        }
        findings
    }

    fn run(&self, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let stage = context.stage.clone();
        context.run.start_stage(&stage)?;
        let shape = ForecastShape::of(&context.plan)?;
        let series = context.data.series()?.clone();
        let [train, validation, test] = series.rows.ranges();
        let test = shape.windows(&series, "test", &test)?;
        let result = {
            let _no_grad = NoGrad::new();
            let _autocast = context.run.autocast();
            let (model, device) = (context.trained_model()?, context.run.device());
            forecast_result(model, &shape, &test, self.batch_size, device)?
        };
        let (mut table, mut results) = (Table::new(&["parameters", "MSE", "MAE"]), Vec::new());
        let mut row = |name: &str, parameters: u64, errors: Errors| {
            let number = |value: f64| format!("{value:.4}");
            table.row(name, vec![grouped(parameters), number(errors.mse), number(errors.mae)]);
            results.push(json!({
                "name": name, "parameters": parameters, "mse": errors.mse, "mae": errors.mae,
            }));
        };
        let ours = Errors { mse: result.mse, mae: result.mae };
        row(context.recipe.name(), context.plan.parameter_count(), ours);
        if self.baselines {
            let train = shape.windows(&series, "training", &train)?;
            let validation = if validation.is_empty() {
                None
            } else {
                Some(shape.windows(&series, "validation", &validation)?)
            };
            let linear = LinearForecaster::fit(&train, validation.as_ref())?;
            let measured = errors(&test, |inputs| linear.forecast(inputs))?;
            let name = format!("linear map (NLinear by least squares, ridge {:e})", linear.ridge);
            row(&name, linear.parameter_count(), measured);
            row("last value repeated", 0, errors(&test, |inputs| repeat_last(inputs, shape.horizon as i64))?);
        }
        let line = format!(
            "test: {} windows of {} steps, {} steps ahead, {} channels",
            grouped(test.len()),
            shape.input_length,
            shape.horizon,
            series.channels.len()
        );
        let report_json = json!({
            "windows": test.len(), "input_length": shape.input_length, "horizon": shape.horizon,
            "channels": series.channels, "pinball": result.pinball, "results": results,
        });
        report(context, &line, &table, &report_json)?;
        let record = MetricRecord::new("result", &stage, 0, result.values)
            .with("test_mse", result.mse)
            .with("test_mae", result.mae);
        context.run.log(&record)?;
        context.run.finish_stage(&stage)?;
        Ok(())
    }
}
