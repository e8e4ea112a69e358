//! Top-level sections of a recipe (`model`, `trainer`, ...) and the checks that look across them.

use schemars::{JsonSchema, Schema};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{ConfigError, parse_config};
use crate::config::Recipe;

/// The typed content of a top-level key of a recipe.
///
/// A crate that owns a section implements this and calls [`register_section!`](crate::register_section), so that
/// the recipe reader knows every key without knowing the crates above it.
pub trait Section: Serialize + DeserializeOwned + JsonSchema + 'static {
    /// The top-level key.
    const KEY: &'static str;
}

/// A registered section: key, schema and normaliser.
pub struct SectionEntry {
    /// The top-level key.
    pub key: &'static str,
    /// The crate that owns it.
    pub crate_name: &'static str,
    schema: fn() -> Schema,
    normalise: fn(Value) -> Result<Value, ConfigError>,
}

inventory::collect!(SectionEntry);

impl SectionEntry {
    /// Used by [`register_section!`](crate::register_section).
    #[must_use]
    pub const fn new<T: Section>(crate_name: &'static str) -> Self {
        Self { key: T::KEY, crate_name, schema: schema::<T>, normalise: normalise::<T> }
    }

    /// JSON schema of the section.
    pub fn schema(&self) -> Schema {
        (self.schema)()
    }

    /// The section read as its type and written again: every default filled in.
    ///
    /// # Errors
    /// When it does not fit the type.
    pub fn normalise(&self, value: Value) -> Result<Value, ConfigError> {
        (self.normalise)(value)
    }
}

fn schema<T: Section>() -> Schema {
    schemars::SchemaGenerator::default().into_root_schema_for::<T>()
}

fn normalise<T: Section>(value: Value) -> Result<Value, ConfigError> {
    let typed: T = parse_config(value)?;
    serde_json::to_value(typed).map_err(|error| ConfigError { path: ".".into(), message: error.to_string() })
}

/// Something wrong in a recipe that its keys and types alone do not show: a shape rule, a pair of sections that
/// contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Finding {
    /// Dotted path of the key to blame, as `model.block_pattern.mixers[0].n_heads`.
    pub path: String,
    /// What is wrong, with the values.
    pub message: String,
    /// The rule that was broken.
    pub rule: String,
    /// What would be right, best the nearest right value.
    pub help: Option<String>,
}

/// A check over a whole, typed-correct recipe; all checks run, all findings are reported together.
pub struct Check {
    /// Short name, for `--json`.
    pub name: &'static str,
    /// The check: what it finds, nothing when all is well.
    pub run: fn(&Recipe) -> Vec<Finding>,
}

inventory::collect!(Check);

/// Makes a type the owner of a top-level key: `register_section!(TrainerConfig);`
#[macro_export]
macro_rules! register_section {
    ($section:ty) => {
        $crate::inventory::submit! {
            $crate::registry::SectionEntry::new::<$section>(env!("CARGO_PKG_NAME"))
        }
    };
}

/// Adds a check that `hymba validate` and every run make: `register_check!("vocabulary", vocabulary_fits);`
#[macro_export]
macro_rules! register_check {
    ($name:literal, $run:path) => {
        $crate::inventory::submit! {
            $crate::registry::Check { name: $name, run: $run }
        }
    };
}
