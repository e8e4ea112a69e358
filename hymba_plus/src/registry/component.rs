//! A component as a recipe names it: a kind and its configuration, checked but not yet built.

use std::{borrow::Cow, fmt, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::SerializeMap};
use serde_json::{Map, Value};

use super::{Registry, RegistryError, Slot};

/// `{ kind: NAME, ...fields }` in a recipe; `NAME` alone is short for `{ kind: NAME }`.
///
/// The JSON schema of the field says `x-slot`, by which the recipe checker finds the component's own schema.
pub struct Component<S: Slot> {
    /// The component's name in its slot, or an alias.
    pub kind: String,
    /// The other keys.
    pub config: Map<String, Value>,
    slot: PhantomData<fn() -> S>,
}

impl<S: Slot> Component<S> {
    /// A component without any key besides its kind.
    pub fn of(kind: &str) -> Self {
        Self::new(kind, Map::new())
    }

    /// A component from its kind and its other keys.
    pub fn new(kind: &str, config: Map<String, Value>) -> Self {
        Self { kind: kind.to_owned(), config, slot: PhantomData }
    }

    /// Whether this is the empty stub, which every slot of the model has under the kind `none`.
    pub fn is_none(&self) -> bool {
        self.kind == "none"
    }

    /// The object that the configuration stands for.
    ///
    /// # Errors
    /// When no such kind is registered in this binary, or its configuration does not fit.
    pub fn make(&self) -> Result<Box<S::Object>, RegistryError> {
        Registry::global()?.make::<S>(&self.kind, Value::Object(self.config.clone()))
    }
}

impl<S: Slot> Clone for Component<S> {
    fn clone(&self) -> Self {
        Self::new(&self.kind, self.config.clone())
    }
}

impl<S: Slot> PartialEq for Component<S> {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.config == other.config
    }
}

impl<S: Slot> fmt::Debug for Component<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", S::NAME, self.kind, self.config)
    }
}

impl<S: Slot> Serialize for Component<S> {
    fn serialize<W: Serializer>(&self, serializer: W) -> Result<W::Ok, W::Error> {
        let mut map = serializer.serialize_map(Some(self.config.len() + 1))?;
        map.serialize_entry("kind", &self.kind)?;
        for (key, value) in &self.config {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de, S: Slot> Deserialize<'de> for Component<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(kind) => Ok(Self::of(&kind)),
            Value::Object(mut config) => match config.remove("kind") {
                Some(Value::String(kind)) => Ok(Self::new(&kind, config)),
                Some(other) => Err(D::Error::custom(format!("`kind` must be a name, not {other}"))),
                None => Err(D::Error::missing_field("kind")),
            },
            other => {
                Err(D::Error::custom(format!("expected a {} (a mapping with `kind`), got {other}", S::NAME)))
            }
        }
    }
}

impl<S: Slot> JsonSchema for Component<S> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        S::NAME.into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "object"], "x-slot": S::NAME })
    }
}
