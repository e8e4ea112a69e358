//! A stopwatch and a table.
#![allow(dead_code)] // each bench uses a part

use std::time::Instant;

use tch::{Tensor, kind::FLOAT_CPU};

/// Standard normal values.
pub fn normal<const N: usize>(shape: [i64; N]) -> Tensor {
    Tensor::randn(shape, FLOAT_CPU)
}

/// The shortest of several runs, in milliseconds; one more before them warms caches and threads.
pub fn best_of(
    times: usize,
    mut body: impl FnMut() -> torch_bridge::Result<()>,
) -> torch_bridge::Result<f64> {
    body()?;
    let mut best = f64::INFINITY;
    for _ in 0..times {
        let start = Instant::now();
        body()?;
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(best)
}

pub fn header(title: &str) {
    eprintln!("{title}; {} threads", tch::get_num_threads());
}

/// A case in milliseconds, ours beside its rival.
pub struct Row {
    pub op: &'static str,
    pub ours: f64,
    pub against: &'static str,
    pub theirs: f64,
    /// The least time that the device allows, where it is known.
    pub floor: Option<f64>,
}

impl Row {
    /// Against the definition in tensor operations.
    pub fn new(op: &'static str, ours: f64, definition: f64) -> Self {
        Self { op, ours, against: "definition", theirs: definition, floor: None }
    }

    /// One JSON line, as `cargo xtask bench` reads it.
    pub fn print(&self, case: &str) {
        let Self { op, ours, against, theirs, .. } = self;
        let floor =
            self.floor.map_or(String::new(), |floor| format!(r#","floor_share":{:.3}"#, floor / ours));
        println!(
            r#"{{"op":"{op}","device":"cpu","case":"{case}","ours_ms":{ours:.4},"against":"{against}","against_ms":{theirs:.4},"ratio":{:.3}{floor}}}"#,
            theirs / ours
        );
    }
}
