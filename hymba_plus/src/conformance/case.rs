//! Cases: components with a small configuration, registered by a line in the component's own file.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::harness::Spec;
use crate::{
    model::slot::sequence_mixer,
    registry::{Component, Registry, Slot},
};

/// A case as [`conformance!`](crate::conformance!) registers it.
#[derive(Debug)]
pub struct CaseEntry {
    /// Slot of the component.
    pub slot: &'static str,
    /// Kind of the component.
    pub kind: &'static str,
    /// Its configuration without `kind`, in YAML.
    pub config: &'static str,
    /// [`Settings`] in YAML.
    pub settings: &'static str,
    /// The crate, source file and line of the registration.
    pub origin: (&'static str, &'static str, u32),
}

inventory::collect!(CaseEntry);

/// What surrounds the component in a case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Width of the residual stream.
    pub d_model: i64,
    /// Whether it claims to add nothing, as `none` does of itself.
    pub neutral: bool,
    /// Configuration of a consumer of this mixer's keys and values; left out, the same as the mixer's.
    pub consumer: Option<Map<String, Value>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { d_model: 16, neutral: false, consumer: None }
    }
}

/// A component with a configuration, of which the laws are proved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Case {
    /// Slot of the component.
    pub slot: String,
    /// Kind of the component.
    pub kind: String,
    /// Its configuration without `kind`.
    pub config: Map<String, Value>,
    /// The same as it was written.
    pub written: String,
    /// What surrounds it.
    pub settings: Settings,
    /// The crate that registered it, and the place of the line.
    pub origin: Option<(String, String)>,
}

/// Why a case could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("conformance!({slot} {kind:?} ..) at {place}: {message}")]
pub struct CaseError {
    slot: String,
    kind: String,
    place: String,
    message: String,
}

impl Case {
    /// A sequence mixer with a configuration (a mapping in YAML, without `kind`), at the default width.
    ///
    /// # Errors
    /// When the text is no mapping.
    pub fn mixer(kind: &str, config: &str) -> Result<Self, CaseError> {
        Self::parse(sequence_mixer::NAME, kind, config, "{}", None)
    }

    fn parse(
        slot: &str,
        kind: &str,
        config: &str,
        settings: &str,
        origin: Option<&(String, String)>,
    ) -> Result<Self, CaseError> {
        let error = |message: String| CaseError {
            slot: slot.to_owned(),
            kind: kind.to_owned(),
            place: origin.map_or_else(|| "run time".to_owned(), |(_, place)| place.clone()),
            message,
        };
        Ok(Self {
            slot: slot.to_owned(),
            kind: kind.to_owned(),
            config: serde_yaml::from_str(config)
                .map_err(|e| error(format!("the configuration {config}: {e}")))?,
            settings: serde_yaml::from_str(settings)
                .map_err(|e| error(format!("the settings {settings}: {e}")))?,
            written: config.split_whitespace().collect::<Vec<_>>().join(" "),
            origin: origin.cloned(),
        })
    }

    /// The component and its configuration, as a recipe would have it.
    pub fn title(&self) -> String {
        let slot = if self.slot == sequence_mixer::NAME { "" } else { self.slot.as_str() };
        let mut title = format!("{slot} {} {}", self.kind, self.written).trim().to_owned();
        if let Some(consumer) = &self.settings.consumer {
            let fields: Vec<_> = consumer.iter().map(|(key, value)| format!("{key}: {value}")).collect();
            let _ = write!(title, " with a consumer {{ {} }}", fields.join(", ").replace('"', ""));
        }
        title
    }

    /// Whether this is the stub of its slot, or claims to be.
    pub(super) fn is_none(&self) -> bool {
        self.settings.neutral || Component::<sequence_mixer>::of(&self.kind).is_none()
    }

    pub(super) fn spec(&self) -> Spec {
        let consumer = self.settings.consumer.as_ref().unwrap_or(&self.config);
        Spec {
            component: Component::new(&self.kind, self.config.clone()),
            consumer: Component::new(&self.kind, consumer.clone()),
            d_model: self.settings.d_model,
            seed: 1,
        }
    }
}

/// Every registered case of this binary, by slot, kind and place.
///
/// # Errors
/// When a registration cannot be read.
pub fn cases() -> Result<Vec<Case>, CaseError> {
    let mut entries: Vec<&CaseEntry> = inventory::iter::<CaseEntry>.into_iter().collect();
    entries.sort_by_key(|entry| (entry.slot, entry.kind, entry.origin));
    let case = |entry: &CaseEntry| {
        let (crate_name, file, line) = entry.origin;
        let origin = (crate_name.to_owned(), format!("{file}:{line}"));
        Case::parse(entry.slot, entry.kind, entry.config, entry.settings, Some(&origin))
    };
    entries.into_iter().map(case).collect()
}

/// Sequence mixers of this binary without a case: nothing is known of them.
pub fn uncovered(cases: &[Case]) -> Vec<&'static str> {
    let Ok(registry) = Registry::global() else { return Vec::new() };
    let covered = |kind: &str| {
        cases.iter().any(|case| {
            case.slot == sequence_mixer::NAME
                && registry.get(&case.slot, &case.kind).is_some_and(|entry| entry.kind == kind)
        })
    };
    registry.in_slot(sequence_mixer::NAME).map(|entry| entry.kind).filter(|kind| !covered(kind)).collect()
}

/// Registers a case of the conformance suite, in the component's own file:
///
/// ```ignore
/// conformance!(sequence_mixer "attention": { n_heads: 4, n_kv_heads: 2, window: 5, position: rope });
/// conformance!(sequence_mixer "attention": { n_heads: 2, position: rope }, consumer: { n_heads: 2, window: 3, position: rope });
/// ```
///
/// The configuration is that of a recipe, kept small: a width of 16 ([`Settings::d_model`]), a window below 8, chunks
/// of a few tokens. [`Settings`] may follow it.
#[macro_export]
macro_rules! conformance {
    ($slot:ident $kind:literal: { $($config:tt)* } $(, $key:ident: $value:tt)* $(,)?) => {
        $crate::inventory::submit! {
            $crate::conformance::CaseEntry {
                slot: <$slot as $crate::registry::Slot>::NAME,
                kind: $kind,
                config: stringify!({ $($config)* }),
                settings: concat!("{", $(stringify!($key), ": ", stringify!($value), ", ",)* "}"),
                origin: (env!("CARGO_PKG_NAME"), file!(), line!()),
            }
        }
    };
}

/// Makes one test of all cases of this crate: `#[cfg(test)] hymba_plus::conformance_test!();` in its `lib.rs`.
#[macro_export]
macro_rules! conformance_test {
    () => {
        #[test]
        fn conformance() {
            $crate::conformance::assert_crate(env!("CARGO_PKG_NAME"));
        }
    };
}
