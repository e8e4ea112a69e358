//! The registry: every component this binary knows, by slot and kind.
//!
//! Components register themselves with [`register!`](crate::register) before `main`; the order in which the linker
//! brings them is not defined, so the registry sorts them by name and refuses two of one name.

mod component;
mod entry;
mod field;
mod section;
mod slot;

use std::{collections::BTreeMap, sync::OnceLock};

use serde_json::Value;

pub use component::Component;
pub use entry::{ConfigError, Entry, parse_config};
pub use field::{Field, FieldDefault};
pub use section::{Check, Finding, Section, SectionEntry};
pub use slot::{Slot, SlotInfo};

/// Why the registry could not give a component.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// Two registrations claim one name of a slot.
    #[error("two components claim `{kind}` in slot `{slot}`: {first} and {second}; rename one of them")]
    Duplicate {
        /// Slot of both.
        slot: &'static str,
        /// The name they share (a kind or an alias).
        kind: String,
        /// Crate and place of the one.
        first: String,
        /// Crate and place of the other.
        second: String,
    },
    /// No component of that name is linked into this binary.
    #[error("no {slot} named `{kind}` in this binary; it has: {}", known.join(", "))]
    Unknown {
        /// Slot that was asked.
        slot: &'static str,
        /// Name that was asked for.
        kind: String,
        /// Kinds that exist, sorted.
        known: Vec<&'static str>,
    },
    /// The configuration does not fit the component.
    #[error("{slot} `{kind}`: {error}")]
    Config {
        /// Slot of the component.
        slot: &'static str,
        /// Kind of the component.
        kind: String,
        /// What did not fit, and where.
        error: ConfigError,
    },
}

/// All components, sorted by slot and kind.
#[derive(Debug)]
pub struct Registry {
    entries: BTreeMap<(&'static str, &'static str), &'static Entry>,
    aliases: BTreeMap<(&'static str, &'static str), &'static str>,
}

impl Registry {
    /// Everything that is linked into this binary.
    ///
    /// # Errors
    /// When two components share a name; the error names both crates.
    pub fn global() -> Result<&'static Self, RegistryError> {
        static GLOBAL: OnceLock<Result<Registry, RegistryError>> = OnceLock::new();
        GLOBAL.get_or_init(|| Self::from_entries(inventory::iter::<Entry>)).as_ref().map_err(Clone::clone)
    }

    /// A registry of the given entries, in any order.
    ///
    /// # Errors
    /// When two of them share a name in a slot.
    pub fn from_entries(entries: impl IntoIterator<Item = &'static Entry>) -> Result<Self, RegistryError> {
        let mut sorted: Vec<_> = entries.into_iter().collect();
        sorted.sort_by_key(|entry| (entry.slot, entry.kind, entry.crate_name, entry.file, entry.line));
        let mut registry = Self { entries: BTreeMap::new(), aliases: BTreeMap::new() };
        for entry in sorted {
            for name in std::iter::once(&entry.kind).chain(entry.aliases) {
                if let Some(other) = registry.get(entry.slot, name) {
                    let place = |e: &Entry| format!("crate `{}` ({}:{})", e.crate_name, e.file, e.line);
                    return Err(RegistryError::Duplicate {
                        slot: entry.slot,
                        kind: (*name).to_owned(),
                        first: place(other),
                        second: place(entry),
                    });
                }
                registry.aliases.insert((entry.slot, name), entry.kind);
            }
            registry.entries.insert((entry.slot, entry.kind), entry);
        }
        Ok(registry)
    }

    /// The entry of that kind or alias.
    pub fn get(&self, slot: &str, kind: &str) -> Option<&'static Entry> {
        let canonical = self.aliases.get(&(slot, kind))?;
        self.entries.get(&(slot, *canonical)).copied()
    }

    /// Every entry, sorted by slot and kind.
    pub fn entries(&self) -> impl Iterator<Item = &'static Entry> + '_ {
        self.entries.values().copied()
    }

    /// Entries of one slot, sorted by kind.
    pub fn in_slot<'a>(&'a self, slot: &'a str) -> impl Iterator<Item = &'static Entry> + 'a {
        self.entries().filter(move |entry| entry.slot == slot)
    }

    /// Declared slots, sorted by name.
    pub fn slots() -> Vec<SlotInfo> {
        let mut slots: Vec<_> = inventory::iter::<SlotInfo>.into_iter().copied().collect();
        slots.sort_by_key(|slot| slot.name);
        slots
    }

    /// The object of a component of slot `S`, from its configuration without `kind`.
    ///
    /// # Errors
    /// When the kind is unknown or the configuration does not fit.
    pub fn make<S: Slot>(&self, kind: &str, config: Value) -> Result<Box<S::Object>, RegistryError> {
        let unknown = || RegistryError::Unknown {
            slot: S::NAME,
            kind: kind.to_owned(),
            known: self.in_slot(S::NAME).map(|entry| entry.kind).collect(),
        };
        let entry = self.get(S::NAME, kind).ok_or_else(unknown)?;
        let object = entry.make(config).map_err(|error| RegistryError::Config {
            slot: S::NAME,
            kind: kind.to_owned(),
            error,
        })?;
        // `register!` boxes exactly `Box<S::Object>`, so the cast fails only for two slots of one name.
        object.downcast::<Box<S::Object>>().map(|object| *object).map_err(|_| unknown())
    }
}
