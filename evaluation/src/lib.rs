//! Measurements of trained models, beside what simpler means achieve on the same data.

mod evaluate;
mod evaluate_classifier;
mod evaluate_forecaster;
pub mod linear_images;
pub mod linear_series;
pub mod ngram;
mod saved;
mod splits;
mod table;

pub use saved::{Evaluation, Measurement, evaluate_run};
