//! What can go wrong with foreign weights. Whatever is wrong with one folder is listed in one error.

use std::{fmt, path::PathBuf};

use crate::registry::RegistryError;

/// Why weights could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{path}: {message}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// No format of this binary reads such a configuration.
    #[error("{path}: {message}; this binary reads: {}", known.join(", "))]
    Unknown {
        /// The configuration.
        path: PathBuf,
        /// What it says of itself.
        message: String,
        /// Formats that there are, with the `model_type` of each.
        known: Vec<String>,
    },
    /// A configuration says something that cannot be reproduced here.
    #[error("{path} does not become a model here (format {format}):{}", bullets(problems))]
    Config {
        /// The configuration.
        path: PathBuf,
        /// The format.
        format: String,
        /// Everything that is wrong with it.
        problems: Vec<String>,
    },
    /// Files of tensors are missing, cut short or contradict their index.
    #[error("the weights in {path} are damaged:{}", bullets(problems))]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What is wrong with which file.
        problems: Vec<String>,
    },
    /// The tensors are not those of the model that the configuration describes.
    #[error("the weights in {path} are not those of its config.json:{problems}")]
    Tensors {
        /// The folder.
        path: PathBuf,
        /// Everything that differs.
        problems: Box<TensorProblems>,
    },
    /// A model cannot be said in the words of a format.
    #[error("this model cannot be written as {format}:{}", bullets(reasons))]
    Inexpressible {
        /// The format.
        format: String,
        /// What it has no words for.
        reasons: Vec<String>,
    },
    /// No format can say a model.
    #[error("no format of this binary can express this model:{}", each_format(formats))]
    NoFormat {
        /// Each format, with what it has no words for.
        formats: Vec<(String, Vec<String>)>,
    },
    /// Something is there already.
    #[error("{path} exists and is not empty; remove it or name another folder")]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A format's table does not fit its own model: a mistake of the format.
    #[error(
        "format {format} has a wrong table (a mistake of the format, not of the weights):{}",
        bullets(problems)
    )]
    Table {
        /// The format.
        format: String,
        /// What does not fit.
        problems: Vec<String>,
    },
    /// A component could not be made.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// libtorch failed.
    #[error(transparent)]
    Torch(#[from] torch_bridge::Error),
}

/// Tensors that are not as they should be, by what is wrong with them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct TensorProblems {
    /// Names that are needed and absent.
    pub missing: Vec<String>,
    /// Names that are there and mean nothing to the model.
    pub unexpected: Vec<String>,
    /// Shapes that differ, with both.
    pub shapes: Vec<String>,
    /// Types that are no weights.
    pub kinds: Vec<String>,
    /// Copies that differ from what they should be copies of.
    pub copies: Vec<String>,
}

impl TensorProblems {
    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }
}

impl fmt::Display for TensorProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [
            ("missing", &self.missing),
            ("unexpected", &self.unexpected),
            ("of another shape", &self.shapes),
            ("of another type", &self.kinds),
            ("no copies", &self.copies),
        ];
        for (what, names) in lists.into_iter().filter(|(_, names)| !names.is_empty()) {
            write!(f, "\n  {} {what}:{}", names.len(), indented(names, "    "))?;
        }
        Ok(())
    }
}

/// Lines below a heading; of very many, the first.
fn bullets(lines: &[String]) -> String {
    indented(lines, "  ")
}

fn indented(lines: &[String], indent: &str) -> String {
    const SHOWN: usize = 40;
    let mut shown: Vec<String> = lines.iter().take(SHOWN).cloned().collect();
    if lines.len() > SHOWN {
        shown.push(format!("and {} more", lines.len() - SHOWN));
    }
    let start = format!("\n{indent}");
    format!("{start}{}", shown.join(&start))
}

fn each_format(formats: &[(String, Vec<String>)]) -> String {
    let blocks =
        formats.iter().map(|(format, reasons)| format!("\n  {format}:{}", indented(reasons, "    ")));
    blocks.collect::<Vec<_>>().concat()
}
