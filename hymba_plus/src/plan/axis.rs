//! What an embedding takes and what a head gives, so that stages can see whether data, model and task fit each other.

use serde::Serialize;

use super::ModulePlan;

/// A dimension of one input or one output; the batch is none of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Axis {
    /// What lies along it: `channel`, `height`, `width`, `length`, `class`, `horizon`, `quantile`.
    pub name: &'static str,
    /// Its size.
    pub size: i64,
    /// What each place of it stands for, when that is a number: the levels of quantiles.
    pub values: Vec<f64>,
}

/// What an embedding makes of one input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Embedded {
    /// Tokens of a row.
    pub tokens: i64,
    /// Channels that the vectors of a row stand for: all of the input's, or one when every channel has its own row.
    pub channels: i64,
}

impl ModulePlan {
    /// For an embedding: its input has such a dimension; they are named in order, the batch left out.
    pub fn takes(&mut self, name: &'static str, size: i64) {
        self.input_axes.push(Axis { name, size, values: Vec::new() });
    }

    /// For a head: its output has such a dimension; they are named in order, the batch left out.
    pub fn gives(&mut self, name: &'static str, size: i64) {
        self.output_axes.push(Axis { name, size, values: Vec::new() });
    }

    /// For a head: its output has a dimension whose places stand for these numbers.
    pub fn gives_values(&mut self, name: &'static str, values: &[f64]) {
        self.output_axes.push(Axis { name, size: values.len() as i64, values: values.to_vec() });
    }

    /// The dimension of that name of what an embedding takes.
    pub fn input_axis(&self, name: &str) -> Option<&Axis> {
        self.input_axes.iter().find(|axis| axis.name == name)
    }

    /// The dimension of that name of what a head gives.
    pub fn output_axis(&self, name: &str) -> Option<&Axis> {
        self.output_axes.iter().find(|axis| axis.name == name)
    }
}
