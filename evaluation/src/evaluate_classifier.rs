//! The stage `evaluate_classifier`: how often the model is right on the test images, beside a linear map of the pixels.

use hymba_plus::{
    component_config,
    config::Recipe,
    plan::{ModelPlan, grouped},
    prelude::register,
    registry::Finding,
};
use recipes::{Stage, StageContext, StageError, check_classifier, classifier_result, description, stage};
use serde_json::json;
use torch_bridge::guards::NoGrad;
use training::{
    data::{Description, ImageBatch, ImageSplit, Modality, Samples, in_order},
    telemetry::MetricRecord,
};

use crate::{
    linear_images::LinearClassifier,
    splits::no_test_split,
    table::{Table, report},
};

/// Measures the model on the test images: accuracy and loss, beside softmax regression on the pixels, trained here on the
/// same images, and the most frequent class. The numbers are kept in the run directory as
/// `stages/NAME/evaluation.json`.
#[component_config]
pub struct EvaluateClassifier {
    /// Images at a time.
    #[default(64)]
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// How often the linear map sees the training images; 0 leaves it out.
    #[default(20)]
    pub linear_epochs: u64,
}

register!(stage "evaluate_classifier" => EvaluateClassifier);

impl Stage for EvaluateClassifier {
    fn reads(&self) -> Modality {
        Modality::Images
    }

    fn check(&self, recipe: &Recipe, plan: Option<&ModelPlan>, path: &str) -> Vec<Finding> {
        let mut findings = check_classifier("evaluate_classifier", recipe, plan);
        if let Some(Description::Images { test: 0, .. }) = description(recipe) {
            findings.push(no_test_split(path, "images"));
        }
        findings
    }

    fn run(&self, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let stage = context.stage.clone();
        context.run.start_stage(&stage)?;
        let (images, device) = (context.data.images()?.clone(), context.run.device());
        let test = images.split(&images.test);
        if test.is_empty() {
            return Err(StageError::Other("there are no test images to measure on".to_owned()));
        }
        let result = {
            let _no_grad = NoGrad::new();
            let _autocast = context.run.autocast();
            classifier_result(context.trained_model()?, &test, self.batch_size, device)?
        };
        let mut table = Table::new(&["parameters", "accuracy", "loss"]);
        let percent = |accuracy: f64| format!("{:.2} %", 100.0 * accuracy);
        let count = context.plan.parameter_count();
        let loss = format!("{:.4}", result.loss);
        table.row(context.recipe.name(), vec![grouped(count), percent(result.accuracy), loss]);
        let mut results = vec![json!({
            "name": context.recipe.name(), "parameters": count,
            "accuracy": result.accuracy, "loss": result.loss,
        })];
        if self.linear_epochs > 0 {
            let linear = LinearClassifier::train(&images, self.linear_epochs, context.run.seed(), device)?;
            let (accuracy, count) = (linear.accuracy(&test, device)?, linear.parameter_count());
            let name = "softmax regression on pixels";
            table.row(name, vec![grouped(count), percent(accuracy), "-".to_owned()]);
            results.push(json!({ "name": name, "parameters": count, "accuracy": accuracy }));
        }
        let (name, accuracy) = most_frequent(&test, &images.classes)?;
        table.row(&name, vec!["0".to_owned(), percent(accuracy), "-".to_owned()]);
        results.push(json!({ "name": name, "parameters": 0, "accuracy": accuracy }));
        let line = format!("test: {} images of {} classes", grouped(result.images), images.classes.len());
        report(context, &line, &table, &json!({ "images": result.images, "results": results }))?;
        let record = MetricRecord::new("result", &stage, 0, result.images)
            .with("test_accuracy", result.accuracy)
            .with("test_loss", result.loss);
        context.run.log(&record)?;
        context.run.finish_stage(&stage)?;
        Ok(())
    }
}

/// What always saying the class that is most frequent would achieve.
fn most_frequent(split: &ImageSplit, classes: &[String]) -> Result<(String, f64), StageError> {
    let mut counts = vec![0_u64; classes.len()];
    for batch in in_order(split, 256, tch::Device::Cpu) {
        let ImageBatch { classes, .. } = batch?;
        for class in Vec::<i64>::try_from(&classes).map_err(torch_bridge::Error::from)? {
            if let Some(count) = counts.get_mut(class as usize) {
                *count += 1;
            }
        }
    }
    let most = counts.iter().enumerate().max_by_key(|(_, count)| **count);
    let (class, count) = most.map_or((0, 0), |(class, count)| (class, *count));
    let name = classes.get(class).map_or("", String::as_str);
    Ok((format!("always `{name}`"), count as f64 / split.len().max(1) as f64))
}
