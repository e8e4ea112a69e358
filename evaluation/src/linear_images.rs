//! Softmax regression on pixels: what a linear map of an image says of its class.

use hymba_plus::{
    params::{Init, ParameterPlan, Parameters},
    registry::Component,
};
use serde_json::json;
use tch::{Device, Kind, Tensor};
use torch_bridge::guards::NoGrad;
use training::{
    TaskError,
    data::{ImageBatch, ImageSplit, Images, Loader, Samples, Shuffled, in_order},
    loss::cross_entropy_sum,
    optimizer::zero_gradients,
    slot::optimizer,
};

/// A linear map from all pixels to a logit for every class.
#[derive(Debug)]
pub struct LinearClassifier {
    parameters: Parameters,
}

const BATCH: usize = 256;

impl LinearClassifier {
    /// Multinomial logistic regression by AdamW with a rate that falls to 0 over `epochs`; of the maps after each epoch
    /// the one that is right most often on the validation images is kept (the last, when there are none).
    ///
    /// # Errors
    /// When an image cannot be had, or libtorch refuses.
    pub fn train(images: &Images, epochs: u64, seed: u64, device: Device) -> Result<Self, TaskError> {
        let plan = |name: &str, shape: Vec<i64>, weight_decay: bool| ParameterPlan {
            name: name.to_owned(),
            shape,
            init: Init::ZEROS,
            weight_decay,
            keep_float: false,
            trained: true,
        };
        let classes = images.classes.len() as i64;
        let plans =
            [plan("weight", vec![classes, images.shape.pixels()], true), plan("bias", vec![classes], false)];
        let this = Self { parameters: Parameters::allocate(&plans, device, Kind::Float, seed)? };
        let settings = json!({ "lr": 2e-3, "weight_decay": 0.01 });
        let settings = settings.as_object().cloned().unwrap_or_default();
        let mut optimizer = Component::<optimizer>::new("adamw", settings).make()?.build(&this.parameters)?;
        let train = images.split(&images.train);
        let batch = BATCH.min(train.len() as usize);
        let per_epoch = (train.len() / batch.max(1) as u64).max(1);
        let mut loader = Shuffled::new(train.into(), seed, device)?;
        let validation = images.split(&images.validation);
        let mut best: Option<(f64, Vec<Tensor>)> = None;
        for step in 0..epochs * per_epoch {
            for batch in loader.next_batches(batch, 1)? {
                zero_gradients(&this.parameters)?;
                let count = batch.classes.size()[0];
                let loss =
                    cross_entropy_sum(&this.logits(&batch.images)?, &batch.classes, 0.0)? / count as f64;
                torch_bridge::autograd::backward(&[&loss], None, false)?;
                optimizer.step(1.0 - step as f64 / (epochs * per_epoch) as f64)?;
            }
            if (step + 1) % per_epoch == 0 && !validation.is_empty() {
                let accuracy = this.accuracy(&validation, device)?;
                if best.as_ref().is_none_or(|(so_far, _)| accuracy > *so_far) {
                    let copy = |tensor: &Tensor| tensor.f_detach_copy();
                    let tensors = this.parameters.tensors();
                    best = Some((accuracy, tensors.iter().map(copy).collect::<Result<_, _>>()?));
                }
            }
        }
        for (name, tensor) in ["weight", "bias"].into_iter().zip(best.map(|(_, t)| t).unwrap_or_default()) {
            this.parameters.set(name, &tensor)?;
        }
        Ok(this)
    }

    fn logits(&self, images: &Tensor) -> Result<Tensor, TaskError> {
        let tensors = self.parameters.tensors();
        Ok(images.f_flatten(1, -1)?.f_linear(&tensors[0], Some(&tensors[1]))?)
    }

    /// Part of the images whose likeliest class is the right one.
    ///
    /// # Errors
    /// When an image cannot be had, or libtorch refuses.
    pub fn accuracy(&self, split: &ImageSplit, device: Device) -> Result<f64, TaskError> {
        let _no_grad = NoGrad::new();
        let mut right = 0;
        for batch in in_order(split, BATCH, device) {
            let ImageBatch { images, classes } = batch?;
            let same = self.logits(&images)?.f_argmax(-1, false)?.f_eq_tensor(&classes)?;
            right += i64::try_from(&same.f_sum(Kind::Int64)?)?;
        }
        Ok(right as f64 / split.len().max(1) as f64)
    }

    /// Numbers that were learnt.
    pub fn parameter_count(&self) -> u64 {
        self.parameters.iter().map(|parameter| parameter.plan.count()).sum()
    }
}
