//! Recipes at work: stages, registered components that run in order.

pub mod model;

pub use model::plan_model;
