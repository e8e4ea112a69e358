//! Rows of channels on CUDA devices, as `rms_norm.cuh` has them in registers: how many threads a row gets, how many blocks
//! there are, and how their partial sums become one. What every kernel over such rows shares.

use tch::Tensor;
use torch_bridge::Result;

use crate::cuda::launch::{Shape, blocks};
use crate::cuda::sums::Sums;
use crate::cuda::{Define, Header, Value};

pub(crate) static ROWS: Header = Header { name: "rms_norm.cuh", text: include_str!("rms_norm.cuh") };

const BLOCK: i64 = 256;
/// Channels that a thread has side by side.
const EIGHT: i64 = 8;
/// Up to here a row belongs to a warp.
const NARROW: i64 = 1024;
/// The widest row: as many channels as leave a thread its registers.
pub(crate) const WIDEST: i64 = 4 * BLOCK * EIGHT;
/// Blocks of a backward, which each leave a partial sum: a product of two numbers that are summed over one after the other.
const PARTS: [i64; 2] = [16, 33];
/// Blocks of a forward.
const FORWARD_BLOCKS: i64 = 132 * 6;

/// The macros of a kind of row, in this order: threads of a row, vectors of a thread, whether vectors are read whole.
pub(crate) const fn defines([threads, vectors, whole]: [i64; 3]) -> [Define; 3] {
    [("THREADS", Value::Int(threads)), ("VECTORS", Value::Int(vectors)), ("WHOLE", Value::Int(whole))]
}

/// How rows of one width are shared out.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    threads: i64,
    vectors: i64,
    whole: bool,
}

impl Rows {
    /// Rows of `d` channels, at most [`WIDEST`], of contiguous tensors.
    pub(crate) fn of<'a>(d: i64, mut tensors: impl Iterator<Item = &'a Tensor>) -> Self {
        let threads = if d <= NARROW { 32 } else { BLOCK };
        let vectors = ((d + threads * EIGHT - 1) / (threads * EIGHT)).max(1);
        Self { threads, vectors, whole: d % EIGHT == 0 && tensors.all(begins_where_a_vector_may) }
    }

    /// What [`defines`] takes.
    pub(crate) fn kind(self) -> [i64; 3] {
        [self.threads, self.vectors, self.whole.into()]
    }

    /// A forward over so many rows.
    pub(crate) fn forward(self, rows: i64) -> Result<Shape> {
        self.shape(rows, FORWARD_BLOCKS)
    }

    /// A backward over so many rows; its blocks each leave a partial sum.
    pub(crate) fn backward(self, rows: i64) -> Result<Shape> {
        self.shape(rows, PARTS[0] * PARTS[1])
    }

    fn shape(self, rows: i64, most: i64) -> Result<Shape> {
        let grid = blocks(rows, BLOCK / self.threads)?.min(blocks(most, 1)?);
        Ok(Shape { grid: [grid, 1, 1], block: [BLOCK as u32, 1, 1], shared: 0 })
    }
}

/// The sum `[1, columns]` of a backward's partial sums `[blocks, columns]`.
pub(crate) fn total(sums: Sums, partial: &Tensor) -> Result<Tensor> {
    let (parts, columns) = partial.size2()?;
    if parts == PARTS[0] * PARTS[1] {
        let halfway = sums.of(partial, [PARTS[0], PARTS[1], columns])?;
        return sums.of(&halfway, [1, PARTS[0], columns]);
    }
    sums.of(partial, [1, parts, columns])
}

/// A gradient as kernels read it: contiguous, and where a vector may begin, as fresh memory does.
pub(crate) fn dense(gradient: &Tensor) -> Result<Tensor> {
    let gradient = gradient.f_contiguous()?;
    Ok(if begins_where_a_vector_may(&gradient) { gradient } else { gradient.f_detach_copy()? })
}

fn begins_where_a_vector_may(x: &Tensor) -> bool {
    x.data_ptr().addr().is_multiple_of(16)
}
