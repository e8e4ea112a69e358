//! What can go wrong with a checkpoint.

use std::path::PathBuf;

use super::Which;

/// Why a checkpoint could not be written, found or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Writing failed; whatever was there before is untouched.
    #[error(
        "could not write checkpoint {path}: {source}; earlier checkpoints are untouched{}",
        advice(source)
    )]
    Write {
        /// The checkpoint that was to be.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Reading failed.
    #[error("could not read {path}: {source}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Files of a checkpoint are missing, torn or altered.
    #[error("checkpoint {path} is damaged: {}", findings.join("; "))]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with which file.
        findings: Vec<String>,
    },
    /// There are checkpoints, but not the one that is wanted.
    #[error("{path} has no {}; its steps are {}", name_of(*wanted), list(&steps.iter().map(u64::to_string).collect::<Vec<_>>()))]
    NotThere {
        /// The directory of the stage.
        path: PathBuf,
        /// Which one is wanted.
        wanted: Which,
        /// Steps that have one.
        steps: Vec<u64>,
    },
    /// A file does not hold what its name says.
    #[error("{path} cannot be understood: {message}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// The checkpoint is of another version of the format.
    #[error("{path} has checkpoint format {found}; this program reads {known}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u32,
        /// Version that is read.
        known: u32,
    },
    /// The tensors in a file are not those that are needed.
    #[error("{path} does not fit: {}", list_mismatches(missing, unexpected, mismatched))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Names that are needed and absent.
        missing: Vec<String>,
        /// Names that are there and not needed.
        unexpected: Vec<String>,
        /// Names whose shape or type differs, with both.
        mismatched: Vec<String>,
    },
    /// A tensor of a type that safetensors does not have.
    #[error("tensor `{name}` is {kind:?}, which safetensors cannot hold")]
    Kind {
        /// The tensor.
        name: String,
        /// Its type.
        kind: tch::Kind,
    },
    /// libtorch failed.
    #[error("tensor `{name}`: {source}")]
    Torch {
        /// The tensor.
        name: String,
        /// What libtorch says.
        source: tch::TchError,
    },
}

fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "; free some space, or keep fewer with `trainer.checkpoint.keep_last`, and continue with --resume"
        }
        _ => "",
    }
}

fn list_mismatches(missing: &[String], unexpected: &[String], mismatched: &[String]) -> String {
    [("missing", missing), ("unexpected", unexpected), ("different", mismatched)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(word, names)| format!("{} {word}: {}", names.len(), list(names)))
        .collect::<Vec<_>>()
        .join("; ")
}

/// The first few, and how many there are besides.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

fn name_of(wanted: Which) -> String {
    match wanted {
        Which::Last => "checkpoint".to_owned(),
        Which::Best => {
            "best checkpoint: nothing was evaluated, or `trainer.checkpoint.keep_best` is 0".to_owned()
        }
        Which::Step(step) => format!("checkpoint of step {step}"),
    }
}
