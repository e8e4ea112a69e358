//! How a command ends badly: one sentence for what happened, one for what to do.

use std::fmt;

/// What every step of this program returns.
pub type Result<T> = std::result::Result<T, Failure>;

/// Why a command stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Something the reader has to know and can act on.
    Told {
        /// What happened, in one sentence.
        what: String,
        /// What to do about it, in one sentence; may be empty.
        help: String,
    },
    /// A program that we ran failed and has said why itself; its exit code is passed on.
    Exit(u8),
}

impl Failure {
    /// A failure with what happened and what to do.
    pub fn new(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Told { what: what.into(), help: help.into() }
    }

    /// The exit code of this program.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Told { .. } => 1,
            Self::Exit(code) => *code,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Told { what, help } if help.is_empty() => write!(f, "error: {what}"),
            Self::Told { what, help } => write!(f, "error: {what}\n help: {help}"),
            Self::Exit(code) => write!(f, "error: exit code {code}"),
        }
    }
}

/// Turns an error of the operating system into a [`Failure`] that names what was being done.
pub trait Doing<T> {
    /// `doing` completes "could not ...".
    ///
    /// # Errors
    /// The error of `self`, told; a full disk gets its own help.
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| {
            let help = match error.kind() {
                std::io::ErrorKind::StorageFull => "free some space on that disk and run the command again",
                std::io::ErrorKind::PermissionDenied => {
                    "make the folder writable for this user and run again"
                }
                _ => "",
            };
            Failure::new(format!("could not {}: {error}", doing()), help)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_and_how() {
        let failure = Failure::new("the disk is full", "free 2 GB");
        assert_eq!(failure.to_string(), "error: the disk is full\n help: free 2 GB");
        assert_eq!(failure.exit_code(), 1);
        assert_eq!(Failure::Exit(101).exit_code(), 101);
    }

    #[test]
    fn a_full_disk_gets_help() {
        let result: std::io::Result<()> = Err(std::io::ErrorKind::StorageFull.into());
        let Err(Failure::Told { what, help }) = result.doing(|| "write x".into()) else { panic!() };
        assert!(what.starts_with("could not write x: "), "{what}");
        assert!(help.starts_with("free some space"), "{help}");
    }
}
