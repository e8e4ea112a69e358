//! A recipe after loading: checked, typed, every default filled in.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Diagnostic, Diagnostics, LoadOptions, Location, Origin, RecipePath, Source, Span};
use crate::registry::{Finding, Section, SectionEntry, parse_config};

/// A recipe after loading: every layer merged, every key checked, every default filled in.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub(super) values: Value,
    pub(super) name: String,
    pub(super) folder: PathBuf,
    pub(super) source_path: PathBuf,
    pub(super) source: std::sync::Arc<Source>,
}

impl Recipe {
    /// Reads a recipe and everything it extends, lays the options over it, and checks the whole.
    ///
    /// # Errors
    /// Everything that is wrong with it, found in one pass.
    pub fn load(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Self, Diagnostics> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let absolute = options.absolute(path);
        let folder = absolute.parent().unwrap_or(Path::new("/")).to_owned();
        let text = std::fs::read_to_string(path).map_err(|error| {
            let source = Source::new(&name, "", &folder, Origin::File);
            Diagnostics::one(Diagnostic::new(
                "missing-file",
                &Span::start_of(&source),
                format!("cannot read {name}: {error}"),
            ))
        })?;
        Self::basic(&name, &text, &folder, &absolute)
    }

    /// A recipe from a text in place of a file; its relative paths are taken from the options' folder.
    ///
    /// # Errors
    /// Everything that is wrong with it, found in one pass.
    pub fn from_yaml(text: &str, options: &LoadOptions) -> Result<Self, Diagnostics> {
        Self::basic("recipe", text, &options.folder(), Path::new("recipe.yaml"))
    }

    fn basic(name: &str, text: &str, folder: &Path, path: &Path) -> Result<Self, Diagnostics> {
        let source = Source::new(name, text, folder, Origin::File);
        let fail =
            |message: String| Diagnostics::one(Diagnostic::new("recipe", &Span::start_of(&source), message));
        let mut values: Value = serde_yaml::from_str(text).map_err(|error| fail(error.to_string()))?;
        let map = values.as_object_mut().ok_or_else(|| fail("a recipe is a mapping".into()))?;
        map.entry("seed").or_insert(Value::from(0));
        for section in inventory::iter::<SectionEntry> {
            if let Some(value) = map.get_mut(section.key) {
                *value = section.normalise(value.take()).map_err(|error| fail(error.to_string()))?;
            }
        }
        let stem =
            path.file_stem().map_or_else(|| "recipe".into(), |stem| stem.to_string_lossy().into_owned());
        let name = map.get("name").and_then(Value::as_str).unwrap_or(&stem).to_owned();
        Ok(Self { values, name, folder: folder.to_owned(), source_path: path.to_owned(), source })
    }

    /// Its name: the key `name`, or the stem of its file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The seed of everything random in a run.
    pub fn seed(&self) -> u64 {
        self.values.get("seed").and_then(Value::as_u64).unwrap_or(0)
    }

    /// The file it was read from, absolute.
    pub fn source_path(&self) -> &Path {
        &self.source_path
    }

    /// The folder from which its relative paths are taken, absolute.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Every key with its value, defaults included.
    pub fn values(&self) -> &Value {
        &self.values
    }

    /// The typed content of a section, or `None` when the recipe does not have it.
    ///
    /// # Errors
    /// When the section does not fit its type (a loaded recipe was checked, so this is rare).
    pub fn section<T: Section>(&self) -> Result<Option<T>, Diagnostics> {
        let parsed = self.values.get(T::KEY).cloned().map(parse_config).transpose();
        parsed.map_err(|error| {
            let path = format!("{}.{}", T::KEY, error.path);
            self.diagnose(vec![Finding { path, message: error.message, rule: String::new(), help: None }])
        })
    }

    /// The typed content of a section that the caller cannot do without; `purpose` says what for, as
    /// `to train a model`.
    ///
    /// # Errors
    /// When the recipe does not have the section, or it does not fit its type.
    pub fn require<T: Section>(&self, purpose: &str) -> Result<T, Diagnostics> {
        self.section()?.ok_or_else(|| {
            let message = format!("the section `{}` is missing: it is needed {purpose}", T::KEY);
            Diagnostics::one(
                Diagnostic::new("missing-section", &Span::start_of(&self.source), message).at(T::KEY),
            )
        })
    }

    /// The path to open for a path of this recipe.
    pub fn path(&self, path: &RecipePath) -> PathBuf {
        super::path::normal(&self.folder.join(path.as_str()))
    }

    /// Where a key was written.
    pub fn locate(&self, _path: &str) -> Option<Location> {
        Some(Span::start_of(&self.source).location())
    }

    /// Findings as problems of this recipe, with their places. There must be a finding.
    pub fn diagnose(&self, findings: Vec<Finding>) -> Diagnostics {
        let span = Span::start_of(&self.source);
        let problems = findings.into_iter().map(|finding| {
            Diagnostic::new("check", &span, finding.message)
                .at(finding.path)
                .rule(finding.rule)
                .help(finding.help.unwrap_or_default())
        });
        Diagnostics::of(self.source.name(), problems.collect())
    }

    /// The whole recipe as it runs: canonical YAML, every default filled in, and the folder of its paths.
    pub fn resolved_yaml(&self) -> String {
        serde_yaml::to_string(&self.values).unwrap_or_default()
    }

    /// The resolved recipe without what belongs to this machine.
    pub fn canonical_yaml(&self) -> String {
        self.resolved_yaml()
    }

    /// SHA-256 of the canonical YAML, in hex.
    pub fn hash(&self) -> String {
        use sha2::Digest as _;
        sha2::Sha256::digest(self.canonical_yaml())
            .iter()
            .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }
}
