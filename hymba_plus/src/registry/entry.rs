//! A registered component: its name, its typed configuration, and how to make it.

use std::any::Any;

use schemars::{JsonSchema, Schema};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::Slot;

/// What was wrong when a configuration was turned into its type: the dotted path inside it, and why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{path}: {message}")]
pub struct ConfigError {
    /// Path inside the component's own configuration, `.` at its root.
    pub path: String,
    /// The reason, in words.
    pub message: String,
}

/// One component as it was registered, whatever its slot.
pub struct Entry {
    /// Name of the slot it fills.
    pub slot: &'static str,
    /// The name that recipes write as `kind`.
    pub kind: &'static str,
    /// Other names that are accepted; the resolved recipe holds `kind`.
    pub aliases: &'static [&'static str],
    /// The crate that registered it.
    pub crate_name: &'static str,
    /// Source file of the registration, for messages.
    pub file: &'static str,
    /// Line in `file`.
    pub line: u32,
    schema: fn() -> Schema,
    normalise: fn(Value) -> Result<Value, ConfigError>,
    make: fn(Value) -> Result<Box<dyn Any>, ConfigError>,
}

inventory::collect!(Entry);

impl Entry {
    /// Used by [`register!`](crate::register); `make` must return a boxed `Box<S::Object>`.
    #[must_use]
    pub const fn new<S: Slot, C: Serialize + DeserializeOwned + JsonSchema>(
        kind: &'static str,
        aliases: &'static [&'static str],
        origin: (&'static str, &'static str, u32),
        make: fn(Value) -> Result<Box<dyn Any>, ConfigError>,
    ) -> Self {
        let (crate_name, file, line) = origin;
        Self {
            slot: S::NAME,
            kind,
            aliases,
            crate_name,
            file,
            line,
            schema: schema_of::<C>,
            normalise: normalise::<C>,
            make,
        }
    }

    /// JSON schema of the configuration, without `kind`.
    pub fn schema(&self) -> Schema {
        (self.schema)()
    }

    /// First paragraph of the configuration's doc comment, on one line.
    pub fn doc(&self) -> String {
        let schema = self.schema();
        let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        text.split("\n\n").next().unwrap_or_default().replace('\n', " ")
    }

    /// The configuration (without `kind`) read as its type and written again: every default filled in.
    ///
    /// # Errors
    /// When it does not fit the type.
    pub fn normalise(&self, config: Value) -> Result<Value, ConfigError> {
        (self.normalise)(config)
    }

    /// The component's object for its slot, from a configuration without `kind`.
    ///
    /// # Errors
    /// When the configuration does not fit the type.
    pub(super) fn make(&self, config: Value) -> Result<Box<dyn Any>, ConfigError> {
        (self.make)(config)
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} ({} {}:{})", self.slot, self.kind, self.crate_name, self.file, self.line)
    }
}

/// Reads a configuration as its type; the error names the path inside it.
///
/// # Errors
/// When the value does not fit `C`.
pub fn parse_config<C: DeserializeOwned>(config: Value) -> Result<C, ConfigError> {
    serde_path_to_error::deserialize(config)
        .map_err(|error| ConfigError { path: error.path().to_string(), message: error.inner().to_string() })
}

fn normalise<C: Serialize + DeserializeOwned>(config: Value) -> Result<Value, ConfigError> {
    let typed: C = parse_config(config)?;
    serde_json::to_value(typed).map_err(|error| ConfigError { path: ".".into(), message: error.to_string() })
}

fn schema_of<C: JsonSchema>() -> Schema {
    schemars::SchemaGenerator::default().into_root_schema_for::<C>()
}

/// Registers a component: `register!(sequence_mixer "mamba" | "mamba1" => Mamba);`
///
/// The slot's marker type must be in scope (`use hymba_plus::prelude::*`), the configuration must be a
/// [`component_config`](crate::component_config) that implements the slot's trait. Names after `|` are aliases.
#[macro_export]
macro_rules! register {
    ($slot:ident $kind:literal $(| $alias:literal)* => $config:ty) => {
        $crate::inventory::submit! {
            $crate::registry::Entry::new::<$slot, $config>(
                $kind,
                &[$($alias),*],
                (env!("CARGO_PKG_NAME"), file!(), line!()),
                |value| {
                    let config: $config = $crate::registry::parse_config(value)?;
                    let object: ::std::boxed::Box<<$slot as $crate::registry::Slot>::Object> =
                        ::std::boxed::Box::new(config);
                    ::std::result::Result::Ok(::std::boxed::Box::new(object))
                },
            )
        }
    };
}
