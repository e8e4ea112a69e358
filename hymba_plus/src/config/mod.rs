//! Recipes: nested YAML, layered, checked and resolved.

/// A recipe after loading.
#[derive(Debug, Clone)]
pub struct Recipe {
    values: serde_json::Value,
}

impl Recipe {
    /// The typed content of a section, or `None` when the recipe does not have it.
    ///
    /// # Errors
    /// When the section does not fit its type (a loaded recipe was checked, so this is rare).
    pub fn section<T: crate::registry::Section>(&self) -> Result<Option<T>, crate::registry::ConfigError> {
        self.values.get(T::KEY).cloned().map(crate::registry::parse_config).transpose()
    }
}
