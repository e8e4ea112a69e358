//! Recipes: nested YAML, layered, checked and resolved.
//!
//! [`Recipe::load`] reads a file and what it extends, lays the environment and the command line over it, checks every
//! key against the registered sections and components, and gives back a recipe with every default filled in, or
//! [`Diagnostics`]: everything that is wrong with it, each problem with its place, its rule and the nearest right
//! answer.
//!
//! From the lowest layer to the highest: defaults, files (what is extended before what extends it), `HYMBA__...`
//! variables, group choices (`--model NAME`), `--set`. Mappings merge, everything else is replaced; a component that
//! gets another kind is replaced as a whole.
//!
//! The way of a recipe through the modules: `files`, `groups` and `overrides` read layers into trees (`yaml`), `layers`
//! lays them over each other, `check` holds the result against the schemas, `normalise` makes it typed, `dump` writes it.

mod check;
mod diagnostic;
mod dump;
mod editor;
mod explain;
mod files;
mod groups;
mod layers;
mod load;
mod normalise;
mod options;
mod overrides;
mod path;
mod recipe;
mod render;
mod schema;
mod source;
mod yaml;

pub use diagnostic::{Diagnostic, Diagnostics};
pub use editor::json_schema;
pub use explain::{Explanation, Setting};
pub use options::LoadOptions;
pub use path::RecipePath;
pub use recipe::Recipe;
pub use source::{Location, Origin, Source, Span};

/// The version of the recipe language that this library reads and writes.
pub const SCHEMA: u64 = 1;

/// What the names of variables begin with that set a key: `HYMBA__TRAINER__DEVICE=cpu`.
pub const ENVIRONMENT_PREFIX: &str = "HYMBA__";
