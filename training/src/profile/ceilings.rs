//! The two rates that no operation exceeds, measured where the profile is taken.

use std::time::Instant;

use tch::{Device, Kind, Tensor};
use torch_bridge::device;

/// What the device reaches at its best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Bytes read and written per second by a copy.
    pub bytes_per_second: f64,
    /// Floating-point operations per second of a product of square matrices, in bfloat16 on a GPU, float32 on the CPU.
    pub flops_per_second: f64,
}

impl Ceilings {
    /// Measures them: a second or less.
    ///
    /// # Errors
    /// When there is not enough memory, or the device has failed.
    pub fn measure(on: Device) -> Result<Self, torch_bridge::Error> {
        let gpu = matches!(on, Device::Cuda(_));
        let bytes: i64 = if gpu { 1 << 30 } else { 1 << 26 };
        let from = Tensor::f_zeros([bytes / 4], (Kind::Float, on))?;
        let mut to = Tensor::f_empty_like(&from)?;
        let copy = best_of(on, if gpu { 10 } else { 5 }, || Ok(to.f_copy_(&from)?))?;
        let (side, kind) = if gpu { (8192, Kind::BFloat16) } else { (1024, Kind::Float) };
        let matrix = Tensor::f_ones([side, side], (kind, on))?;
        let product = Tensor::f_empty_like(&matrix)?;
        let multiply = best_of(on, 5, || Ok(matrix.f_mm_out(&product, &matrix)?))?;
        Ok(Self {
            bytes_per_second: 2.0 * bytes as f64 / copy,
            flops_per_second: 2.0 * (side as f64).powi(3) / multiply,
        })
    }

    /// The least time for so much, in seconds.
    pub fn floor(&self, bytes: f64, flops: f64) -> f64 {
        (bytes / self.bytes_per_second).max(flops / self.flops_per_second)
    }
}

fn best_of<T>(
    on: Device,
    times: u32,
    mut work: impl FnMut() -> Result<T, torch_bridge::Error>,
) -> Result<f64, torch_bridge::Error> {
    work()?;
    let mut best = f64::INFINITY;
    for _ in 0..times {
        device::synchronize(on)?;
        let start = Instant::now();
        work()?;
        device::synchronize(on)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}
