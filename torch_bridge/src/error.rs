//! The one error type of the crate.

use std::fmt::Display;

use tch::TchError;

/// What can go wrong between Rust and libtorch. No message carries a C++ backtrace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch refused or failed.
    #[error("{operation}: {message}")]
    Torch {
        /// The operator or service that was called, as `namespace::name.overload` for operators.
        operation: String,
        /// libtorch's own message.
        message: String,
    },

    /// A value, a tensor or a result is not what the call needs.
    #[error("{operation}: expected {expected}, got {got}")]
    Mismatch {
        /// What was asked for.
        operation: String,
        /// What would have been right.
        expected: String,
        /// What came.
        got: String,
    },

    /// A call through tch failed; tch does not say which operator it was.
    #[error("{0}")]
    Tch(String),

    /// A file of the operating system that the call reads could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },

    /// An error of the caller's own, for instance from inside an [`autograd::Function`](crate::autograd::Function).
    #[error("{0}")]
    Other(String),
}

/// A result whose error is [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a text of the caller's own.
    pub fn other(message: impl Display) -> Self {
        Self::Other(without_backtrace(&message.to_string()))
    }

    pub(crate) fn torch(operation: impl Into<String>, message: &str) -> Self {
        Self::Torch { operation: operation.into(), message: without_backtrace(message) }
    }

    pub(crate) fn mismatch(
        operation: impl Into<String>,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Self {
        Self::Mismatch { operation: operation.into(), expected: expected.into(), got: got.into() }
    }
}

impl From<TchError> for Error {
    fn from(error: TchError) -> Self {
        Self::Tch(match error {
            TchError::Torch(message) => without_backtrace(&message),
            other => without_backtrace(&other.to_string()),
        })
    }
}

/// `message` up to where libtorch starts to list C++ frames.
///
/// The escaped form appears when a tch call panics: its payload is the `Debug` text of the error.
pub(crate) fn without_backtrace(message: &str) -> String {
    const STARTS: [&str; 4] =
        ["\nException raised from", "\\nException raised from", "\nC++ CapturedTraceback:", "\nframe #0:"];
    let end = STARTS.iter().filter_map(|start| message.find(start)).min().unwrap_or(message.len());
    message[..end].trim_end().to_owned()
}
