//! Recipes: nested YAML, layered, checked and resolved.
//!
//! [`Recipe::load`] reads a file and what it extends, lays the environment and the command line over it, checks every
//! key against the registered sections and components, and gives back a recipe with every default filled in, or
//! [`Diagnostics`]: everything that is wrong with it, each problem with its place, its rule and the nearest right
//! answer.

mod diagnostic;
mod options;
mod path;
mod recipe;
mod render;
mod source;

pub use diagnostic::{Diagnostic, Diagnostics};
pub use options::LoadOptions;
pub use path::RecipePath;
pub use recipe::Recipe;
pub use source::{Location, Origin, Source, Span};

/// The version of the recipe language that this library reads and writes.
pub const SCHEMA: u64 = 1;

/// What the names of variables begin with that set a key: `HYMBA__TRAINER__DEVICE=cpu`.
pub const ENVIRONMENT_PREFIX: &str = "HYMBA__";
