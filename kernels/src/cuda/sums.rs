//! Sums of partial results, for gradients of what rows or tokens share.

use tch::{Device, Kind, Tensor};
use torch_bridge::Result;

use super::launch::{Shape, blocks};
use super::loaded::{Loaded, Unavailable};
use super::program;

program!(SUM_ROWS = "cuda/sum_rows.cu");

const THREADS: i64 = 256;

/// Adds partial results up in a fixed order.
#[derive(Clone, Copy)]
pub(crate) struct Sums(&'static Loaded);

impl Sums {
    /// For tensors on this device.
    pub(crate) fn on(device: Device) -> Result<Self, Unavailable> {
        SUM_ROWS.on(device, &[]).map(Self)
    }

    /// `[outer, columns]`, the sums over the rows of a contiguous float tensor that is taken for `[outer, rows, columns]`.
    ///
    /// # Errors
    /// The tensor has another number of elements.
    pub(crate) fn of(self, x: &Tensor, [outer, rows, columns]: [i64; 3]) -> Result<Tensor> {
        let x = x.f_view([outer, rows, columns])?;
        if rows == 1 {
            return Ok(x.f_view([outer, columns])?);
        }
        let sums = Tensor::f_empty([outer, columns], (Kind::Float, x.device()))?;
        let launch = self
            .0
            .kernel("sum_rows")?
            .tensor(&x, Kind::Float)
            .tensor(&sums, Kind::Float)
            .i64(rows)
            .i64(columns);
        let grid = [blocks(columns, THREADS)?, blocks(outer, 1)?, 1];
        // SAFETY: the kernel's parameters in its order, and both tensors were given the documented shapes above.
        unsafe { launch.run(Shape { grid, block: [THREADS as u32, 1, 1], shared: 0 }) }?;
        Ok(sums)
    }

    /// The gradient of a state `like`, `[batch or 1, ..]`, from the contiguous partial sums `[batch, parts, ..]`.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub(crate) fn state(self, partial: &Tensor, [batch, parts]: [i64; 2], like: &Tensor) -> Result<Tensor> {
        let [outer, rows] = if like.size()[0] == 1 { [1, batch * parts] } else { [batch, parts] };
        let columns = partial.numel() as i64 / (batch * parts);
        Ok(self.of(partial, [outer, rows, columns])?.f_view(like.size().as_slice())?)
    }
}
