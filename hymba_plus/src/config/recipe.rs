//! A recipe after loading: checked, typed, every default filled in.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;
use sha2::Digest as _;

use super::{
    Diagnostic, Diagnostics, Explanation, LoadOptions, Location, Origin, RecipePath, Source, Span, dump,
    explain,
    layers::Layer,
    load, normalise,
    yaml::{Node, Step, Yaml, parse_path},
};
use crate::registry::{ConfigError, Finding, Section, parse_config};

/// A recipe after loading: every layer merged, every key checked, every default filled in.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub(super) values: Value,
    pub(super) tree: Node,
    pub(super) layers: Vec<Layer>,
    pub(super) source: Arc<Source>,
    pub(super) source_path: PathBuf,
    pub(super) folder: PathBuf,
}

impl Recipe {
    /// Reads a recipe and everything it extends, lays the options over it, and checks the whole.
    ///
    /// # Errors
    /// Everything that is wrong with it, found in one pass.
    pub fn load(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Self, Diagnostics> {
        load::file(path.as_ref(), options)
    }

    /// A recipe from a text in place of a file; its relative paths are taken from the options' folder.
    ///
    /// # Errors
    /// Everything that is wrong with it, found in one pass.
    pub fn from_yaml(text: &str, options: &LoadOptions) -> Result<Self, Diagnostics> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        load::text(&Source::new("recipe", text, &options.folder(), Origin::File), options)
    }

    /// Its name: the key `name`, or the stem of its file.
    pub fn name(&self) -> &str {
        self.values.get("name").and_then(Value::as_str).unwrap_or("recipe")
    }

    /// The seed of everything random in a run.
    pub fn seed(&self) -> u64 {
        self.values.get("seed").and_then(Value::as_u64).unwrap_or(0)
    }

    /// What the recipe says it is for.
    pub fn description(&self) -> Option<&str> {
        self.values.get("description").and_then(Value::as_str)
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
        let value = self.values.get(T::KEY).filter(|value| !value.is_null());
        let parsed = value.cloned().map(parse_config).transpose();
        parsed.map_err(|error| self.diagnose(vec![self.finding(T::KEY, &error)]))
    }

    /// The typed content of a section that the caller cannot do without; `purpose` says what for, as
    /// `to train a model`.
    ///
    /// # Errors
    /// When the recipe does not have the section, or it does not fit its type.
    pub fn require<T: Section>(&self, purpose: &str) -> Result<T, Diagnostics> {
        self.section()?.ok_or_else(|| {
            let message = format!("this recipe has no section `{}`, which is needed {purpose}", T::KEY);
            let first_line = Span::new(&self.source, 0, self.source.line(1).len());
            let problem = Diagnostic::new("missing-section", &first_line, message).at(T::KEY);
            Diagnostics::one(problem.help(format!("add `{}:` to it, or extend a file that has it", T::KEY)))
        })
    }

    /// The path to open for a path of this recipe.
    pub fn path(&self, path: &RecipePath) -> PathBuf {
        super::path::normal(&self.folder.join(path.as_str()))
    }

    /// The recipe as it runs: every default filled in, and the folder of its paths, so that it runs from any folder.
    pub fn resolved_yaml(&self) -> String {
        let mut values = self.values.clone();
        if let Some(object) = values.as_object_mut() {
            object.insert("base".into(), Value::from(super::path::portable(&self.folder)));
        }
        dump::yaml(&values)
    }

    /// The resolved recipe without what belongs to this machine: no folder, and of an absolute path only its last part.
    pub fn canonical_yaml(&self) -> String {
        dump::yaml(&dump::portable(&self.values))
    }

    /// SHA-256 of [`canonical_yaml`](Self::canonical_yaml), in hex.
    pub fn hash(&self) -> String {
        sha2::Sha256::digest(self.canonical_yaml()).iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }

    /// Where a key was written, as `model.mixers[0].n_heads`; nothing for a key that has its default.
    pub fn locate(&self, path: &str) -> Option<Location> {
        let steps = steps(path)?;
        self.tree.find(&steps).map(|(_, key)| key.location())
    }

    /// A key's value, every place where it was set, and what its owner says of it.
    ///
    /// # Errors
    /// When there is no such key; with the nearest one.
    pub fn explain(&self, key: &str) -> Result<Explanation, Diagnostics> {
        explain::explain(self, key)
    }

    /// Findings as problems of this recipe, each at the place of its key or, where that has its default, of the nearest
    /// key above. There must be a finding: none at all makes an error without a problem.
    pub fn diagnose(&self, findings: Vec<Finding>) -> Diagnostics {
        let problems = findings.into_iter().map(|finding| {
            let (span, label) = self.place(&finding.path);
            Diagnostic::new("check", &span, finding.message)
                .at(finding.path)
                .label(label)
                .rule(finding.rule)
                .help(finding.help.unwrap_or_default())
        });
        Diagnostics::of(self.source.name(), problems.collect())
    }

    /// `Ok` without findings, the problems otherwise.
    ///
    /// # Errors
    /// When there is a finding.
    pub fn refuse(&self, findings: Vec<Finding>) -> Result<(), Diagnostics> {
        if findings.is_empty() { Ok(()) } else { Err(self.diagnose(findings)) }
    }

    /// What a typed reader refused, as a finding.
    pub(super) fn finding(&self, section: &str, error: &ConfigError) -> Finding {
        let path = match error.path.as_str() {
            "." | "" => section.to_owned(),
            inner if inner.starts_with('[') => format!("{section}{inner}"),
            inner => format!("{section}.{inner}"),
        };
        let message = normalise::plain_words(&error.message);
        let rule = self.explain(&path).map(|known| known.rule).unwrap_or_default();
        Finding { path, message, rule, help: None }
    }

    /// What to mark for a key: its value, or what stands for it, and words if that is not the key itself.
    fn place(&self, path: &str) -> (Span, String) {
        let steps = steps(path).unwrap_or_default();
        for length in (1..=steps.len()).rev() {
            let Some((node, key)) = self.tree.find(&steps[..length]) else { continue };
            let nested = matches!(node.yaml, Yaml::Map(_) | Yaml::List(_));
            let long = nested && node.span.text().contains('\n');
            let span = if long || node.span.text().is_empty() { key } else { &node.span };
            let missing = steps
                .get(length)
                .map(|step| format!("`{}` is not written here: it has its default", step.key()));
            return (span.clone(), missing.unwrap_or_default());
        }
        (Span::new(&self.source, 0, self.source.line(1).len()), String::new())
    }
}

fn steps(path: &str) -> Option<Vec<Step>> {
    parse_path(path).ok().map(|steps| steps.into_iter().map(|(step, _)| step).collect())
}
