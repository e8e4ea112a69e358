//! What a run says while it runs: `metrics.jsonl` is the truth, TensorBoard is drawn from it, the terminal shows it.

mod board;
mod console;
mod metrics;
mod progress;

pub use console::Console;
pub use metrics::{MetricRecord, MetricsFile};
pub use progress::{Progress, Reading};

pub(crate) use board::Board;

use std::path::PathBuf;

/// Why telemetry could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line is not a record.
    #[error("{path}, line {line}: {message}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why.
        message: String,
    },
}
