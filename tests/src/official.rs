//! The released Hymba: its fixtures as a folder that the importer reads.

use std::path::{Path, PathBuf};

use hymba_plus::weights::{Foreign, ImportOptions, plan_of};
use serde_json::{Map, Value};

/// Folder of the fixtures made with the official code.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/hymba-official")
}

/// Lays a fixture out as its users have it: `config.json` and `model.safetensors`.
///
/// # Panics
/// When a file of the fixture is not there.
pub fn lay_out(name: &str, to: &Path) {
    for (from, file) in [("config.json", "config.json"), ("weights.safetensors", "model.safetensors")] {
        std::fs::copy(folder().join(format!("{name}.{from}")), to.join(file)).expect("the fixture is there");
    }
}

/// The model section that says the same as an official configuration, its window as the official cache keeps it.
///
/// # Panics
/// When it is refused.
pub fn model_section(name: &str) -> Value {
    let config = folder().join(format!("{name}.config.json"));
    plan_of(&config, &options("cache")).unwrap_or_else(|error| panic!("{error}")).0
}

fn options(reading: &str) -> ImportOptions {
    let settings = Map::from_iter([("window_reading".to_owned(), Value::from(reading))]);
    ImportOptions { settings, ..ImportOptions::default() }
}

/// A fixture as the importer understands it, with the reading of its window: `prefill` or `cache`.
///
/// # Panics
/// When it is refused.
pub fn foreign(name: &str, reading: &str) -> Foreign {
    let folder = tempfile::tempdir().expect("a temporary folder");
    lay_out(name, folder.path());
    Foreign::open(folder.path(), &options(reading)).unwrap_or_else(|error| panic!("{error}"))
}
