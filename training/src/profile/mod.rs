//! What a training step costs, operation by operation.
//!
//! A [`Window`] of steps is watched by libtorch's profiler, which leaves a Chrome trace; [`Table`] adds it up. Steps run
//! operation by operation for that: a recorded CUDA graph does not tell which operation a kernel belongs to.

mod ceilings;
mod table;
mod trace;
mod work;

use std::path::PathBuf;

pub use ceilings::Ceilings;
pub use table::{Row, Table};
pub use trace::TraceError;

/// Which steps of a stage are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Steps before, in which kernels are compiled and memory is found.
    pub warm_up: u64,
    /// Steps that are watched.
    pub steps: u64,
    /// The trace that is written.
    pub trace: PathBuf,
}

/// What a window came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Profiled {
    /// The stage.
    pub stage: String,
    /// Steps that were watched.
    pub steps: u64,
    /// Targets that they learnt from.
    pub tokens: u64,
    /// Seconds per step of the same steps before, without a profiler: means over the warm-up's second half.
    pub step_seconds: f64,
    /// Most bytes that were allocated on the device at once; none on the CPU.
    pub peak_bytes: Option<u64>,
    /// The trace.
    pub trace: PathBuf,
}
