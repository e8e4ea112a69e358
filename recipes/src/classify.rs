//! The stage `classify`: learns the classes of images.

use hymba_plus::{
    config::Recipe,
    model::{Model, Observers, Statistics},
    params::Parameters,
    plan::ModelPlan,
    prelude::register,
    registry::Finding,
};
use tch::{Device, Kind};
use training::{
    Loss, Task, TaskError,
    data::{Description, ImageBatch, ImageSplit, Modality, Samples, Shuffled, Weighted, in_order},
    loss::cross_entropy_sum,
    train,
};

use crate::{
    auxiliary::with_auxiliary,
    chosen_weights::Weights,
    context::{Stage, StageContext, StageError, stage},
    fit::{Fit, description},
};

training::loop_settings! {
    /// Trains the model to tell the classes of the recipe's images.
    pub struct Classify {
        /// Share of the target distribution that is spread over all classes.
        #[default(0.0)]
        #[schemars(range(min = 0.0, max = 0.99))]
        pub label_smoothing: f64,
        /// Which weights the stages after this one get.
        #[default(Weights::Best)]
        pub weights: Weights,
    }
}

register!(stage "classify" => Classify);

impl Stage for Classify {
    fn makes_model(&self) -> bool {
        true
    }

    fn reads(&self) -> Modality {
        Modality::Images
    }

    fn check(&self, recipe: &Recipe, plan: Option<&ModelPlan>, path: &str) -> Vec<Finding> {
        let mut findings = check_classifier("classify", recipe, plan);
        findings.extend(self.weights.check(recipe, path));
        findings.extend(self.loop_config().check(path));
        findings
    }

    fn run(&self, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let images = context.data.images()?.clone();
        let (seed, device) = (context.run.seed(), context.run.device());
        let mut loader = Shuffled::new(images.split(&images.train).into(), seed, device)?;
        let validation = images.split(&images.validation);
        let mut task = ImageClassifier {
            model: context.take_model()?,
            label_smoothing: self.label_smoothing,
            validation: (!validation.is_empty()).then_some(validation),
            batch_size: (self.batch_size / self.accumulation).max(1),
        };
        let stage = context.stage.clone();
        let outcome = train(&mut context.run, &stage, &self.loop_config(), &mut task, &mut loader)?;
        context.report(&outcome, self.weights.choose(&outcome, &task.model)?, ImageBatch::TARGETS);
        context.model = Some(task.model);
        Ok(())
    }
}

/// What a stage that classifies images asks of data and model.
pub fn check_classifier(stage: &str, recipe: &Recipe, plan: Option<&ModelPlan>) -> Vec<Finding> {
    let (Some(plan), Some(Description::Images { shape, classes, .. })) = (plan, description(recipe)) else {
        return Vec::new();
    };
    let mut fit = Fit::new(stage, plan);
    fit.input("channel", shape.channels, "channels of the images");
    fit.input("height", shape.height, "rows of pixels");
    fit.input("width", shape.width, "pixels of a row");
    fit.output("class", Some(classes), "classes of the images");
    fit.tokens();
    fit.findings()
}

/// A model that tells classes, and what it is validated on.
#[derive(Debug)]
pub struct ImageClassifier {
    /// The model; its head gives a logit for every class.
    pub model: Model,
    /// Share of the target distribution that is spread over all classes.
    pub label_smoothing: f64,
    /// Held-out images.
    pub validation: Option<ImageSplit>,
    /// Held-out images at a time.
    pub batch_size: usize,
}

/// What a classifier achieves on images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassifierResult {
    /// Mean cross-entropy in nats.
    pub loss: f64,
    /// Part of the images whose likeliest class is the right one.
    pub accuracy: f64,
    /// Images.
    pub images: u64,
}

/// Measures a classifier on images, in order.
///
/// # Errors
/// When an image cannot be had, or libtorch refuses.
pub fn classifier_result(
    model: &Model,
    split: &ImageSplit,
    batch_size: usize,
    device: Device,
) -> Result<ClassifierResult, TaskError> {
    let (mut loss, mut right) = (0.0, 0);
    for batch in in_order(split, batch_size, device) {
        let ImageBatch { images, classes } = batch?;
        let logits = model.outputs(&images, false)?;
        loss += f64::try_from(&cross_entropy_sum(&logits, &classes, 0.0)?.f_to_kind(Kind::Double)?)?;
        let same = logits.f_argmax(-1, false)?.f_eq_tensor(&classes)?;
        right += i64::try_from(&same.f_sum(Kind::Int64)?)?;
    }
    let images = split.len();
    let count = images.max(1) as f64;
    Ok(ClassifierResult { loss: loss / count, accuracy: right as f64 / count, images })
}

impl Task for ImageClassifier {
    type Batch = ImageBatch;

    fn parameters(&self) -> &Parameters {
        self.model.parameters()
    }

    fn loss(&self, batch: &ImageBatch) -> Result<Loss, TaskError> {
        let statistics = Statistics::default();
        let logits = self.model.outputs_observed(&batch.images, true, Observers::statistics(&statistics))?;
        let loss = cross_entropy_sum(&logits, &batch.classes, self.label_smoothing)?;
        let auxiliary = self.model.auxiliary_losses(&statistics)?;
        let count = loss.f_detach()?.f_full_like(batch.target_tokens())?;
        Ok(with_auxiliary(loss, "cross_entropy", &count, &auxiliary, &statistics)?)
    }

    fn after_step(&mut self, statistics: &Statistics) -> Result<(), TaskError> {
        Ok(self.model.rebalance(statistics)?)
    }

    fn evaluate(&mut self) -> Result<Vec<(String, f64)>, TaskError> {
        let Some(validation) = &self.validation else { return Ok(Vec::new()) };
        let device = self.model.options().device;
        let result = classifier_result(&self.model, validation, self.batch_size, device)?;
        Ok(vec![
            ("validation_loss".to_owned(), result.loss),
            ("validation_accuracy".to_owned(), result.accuracy),
        ])
    }
}
