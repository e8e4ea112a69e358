//! Recipes: error texts, layers, determinism, and random damage.

mod api;
mod determinism;
mod golden;
mod layers;
mod mutation;
mod support;
