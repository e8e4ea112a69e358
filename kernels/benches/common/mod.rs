//! A stopwatch and a table.

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
    println!("{title}; {} threads", tch::get_num_threads());
    println!("{:<48}{:>10}{:>14}{:>9}", "", "ours ms", "definition ms", "ratio");
}

/// One line of the table, in milliseconds.
pub struct Row {
    pub ours: f64,
    pub definition: f64,
}

impl Row {
    pub fn print(&self, what: &str) {
        let ratio = self.definition / self.ours;
        println!("{what:<48}{:>10.3}{:>14.2}{:>8.1}x", self.ours, self.definition, ratio);
    }
}
