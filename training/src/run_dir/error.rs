//! What can go wrong with a run directory.

use std::path::PathBuf;

/// Why a run directory could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunDirError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("{path} is in use by {holder}; wait for it to end, stop it, or choose another --run-dir")]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process.
        holder: String,
    },
    /// Something is in it already.
    #[error(
        "{path} exists and is not empty; continue the run in it with --resume, choose another --run-dir, or remove that run with --overwrite"
    )]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// It is to be overwritten, but no run has made it.
    #[error(
        "{path} is not empty and holds no run (no run.json), so it is not overwritten; choose another --run-dir"
    )]
    NotARun {
        /// The directory.
        path: PathBuf,
    },
    /// A file in it is not what it should be.
    #[error("{path} cannot be understood: {message}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
}
