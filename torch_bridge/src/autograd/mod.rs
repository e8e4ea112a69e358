//! Differentiable functions written in Rust, and the gradients of graphs.

mod function;
mod gradient;

pub use function::{Function, Saved, apply};
pub use gradient::{GradOptions, backward, grad};
