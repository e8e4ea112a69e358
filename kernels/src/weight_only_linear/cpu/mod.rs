//! The products on the CPU: rows of the weight are spread over the threads, inputs lie in the lanes of vectors, and several
//! rows of the weight go along at once, so that the memory always has something to fetch.

#![allow(clippy::inline_always)] // see `simd`
#![allow(clippy::needless_range_loop)] // rows, outputs and lanes are counted through several arrays at once

mod grouped;
mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::{bf16, f16};
use tch::{Kind, Tensor};
use torch_bridge::{Result, tensors};

use self::grouped::four_bits;
use self::plain::{Stored, product};
use super::{BLOCK, QuantisedWeight};
use crate::parallel::{self, Columns};
use crate::simd::{self, Isa, Kernel, Lanes};

const LANES: usize = 16;
type Vector = Lanes<f32, LANES>;

/// More rows than this are a product of matrices, which libtorch does better.
const ROWS: i64 = 8;
/// Rows of the weight that go along at once.
const OUTPUTS: usize = 4;
/// Rows of the weight that a thread takes at a time.
const PIECE: usize = 32;
/// Bytes of a block of four-bit codes.
const BYTES: usize = BLOCK as usize / 2;

/// Rows of `x`, in f32.
struct Rows {
    values: Vec<f32>,
    count: usize,
    width: usize,
}

/// The rows of `x [.., width]` if they are few.
fn few(x: &Tensor, width: i64) -> Result<Option<Rows>> {
    let count = x.numel() as i64 / width.max(1);
    if count == 0 || count > ROWS {
        return Ok(None);
    }
    let x = if x.is_contiguous() { x.shallow_clone() } else { x.f_contiguous()? };
    let values = match x.kind() {
        Kind::Float => tensors::slice::<f32>(&x)?.to_vec(),
        Kind::BFloat16 => tensors::slice::<bf16>(&x)?.iter().map(|x| x.widen()).collect(),
        // (What is not finite would not come through `widen`.)
        Kind::Half => tensors::slice::<f32>(&x.f_to_kind(Kind::Float)?)?.to_vec(),
        _ => return Ok(None),
    };
    Ok(Some(Rows { values, count: count as usize, width: width as usize }))
}

/// `y [rows, out]` in the shape and dtype of the result.
fn shaped(y: &[f32], x: &Tensor, out: i64) -> Result<Tensor> {
    let mut size = x.size();
    if let Some(last) = size.last_mut() {
        *last = out;
    }
    let mut result = Tensor::f_empty(size.as_slice(), (Kind::Float, x.device()))?;
    tensors::slice_mut::<f32>(&mut result)?.copy_from_slice(y);
    Ok(if x.kind() == Kind::Float { result } else { result.f_to_kind(x.kind())? })
}

/// As [`linear`](super::linear); nothing where libtorch is to do it.
pub(super) fn dense(x: &Tensor, weight: &Tensor) -> Result<Option<Tensor>> {
    let (size, width) = (weight.size(), x.size().last().copied().unwrap_or(0));
    let fits = size.len() == 2 && size[1] == width && weight.is_contiguous() && weight.numel() > 0;
    if !fits || weight.device() != x.device() || weight.kind() != x.kind() {
        return Ok(None);
    }
    // In f32 libtorch's product is at the memory's speed.
    let product = match weight.kind() {
        Kind::BFloat16 => product::<bf16>,
        Kind::Half => product::<f16>,
        _ => return Ok(None),
    };
    let Some(rows) = few(x, width)? else { return Ok(None) };
    let y = product(&rows, weight, None)?;
    shaped(&y, x, size[0]).map(Some)
}

/// As [`weight_only_linear`](super::weight_only_linear); nothing where the weight is to be read back.
pub(super) fn quantised(x: &Tensor, weight: &QuantisedWeight) -> Result<Option<Tensor>> {
    let Some(rows) = few(x, weight.in_features())? else { return Ok(None) };
    let y = match weight {
        QuantisedWeight::Int8 { codes, scale } => product::<i8>(&rows, codes, Some(scale)),
        QuantisedWeight::Int4 { codes, scale, zero } => four_bits(&rows, codes, scale, zero.as_ref()),
    }?;
    shaped(&y, x, weight.out_features()).map(Some)
}

/// Asks the memory for what stands `ahead` elements after `from[at]`, which may be beyond the end: rows that go along at once
/// are too short for the processor to foresee what comes, so each asks for the row that will take its place.
#[inline(always)]
fn ask_for<T>(from: &[T], at: usize, ahead: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing, so any address will do.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_add(at).wrapping_add(ahead).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, at, ahead);
}

/// A weight and the rows that it is multiplied with.
trait Product: Copy + Send + Sync {
    /// Multiplications of an output.
    fn steps(&self) -> usize;

    /// The outputs `first..first + N` of the rows `row..row + R`.
    fn outputs<I: Isa, const N: usize, const R: usize>(self, first: usize, row: usize) -> [[f32; R]; N];
}

/// All outputs, over the threads.
fn spread<P: Product>(from: P, out: usize, rows: usize, y: &mut [f32]) {
    let y = Columns::new(y);
    let pieces: Vec<usize> = (0..out).step_by(PIECE).collect();
    parallel::each(
        pieces,
        out * rows * from.steps(),
        || (),
        |(), first| {
            simd::run(Piece { from, first, count: PIECE.min(out - first), out, rows, y: &y });
        },
    );
}

/// Some rows of the weight.
struct Piece<'a, P> {
    from: P,
    first: usize,
    count: usize,
    out: usize,
    rows: usize,
    y: &'a Columns<'a, f32>,
}

impl<P: Product> Kernel for Piece<'_, P> {
    type Output = ();

    #[inline(always)]
    fn call<I: Isa>(self) {
        let mut row = 0;
        while row < self.rows {
            // The second pass over the piece finds it in the cache.
            row += match self.rows - row {
                1 => self.pass::<I, 1>(row),
                2 | 3 => self.pass::<I, 2>(row),
                _ => self.pass::<I, 4>(row),
            };
        }
    }
}

impl<P: Product> Piece<'_, P> {
    #[inline(always)]
    fn pass<I: Isa, const R: usize>(&self, row: usize) -> usize {
        let end = self.first + self.count;
        let mut at = self.first;
        while at + OUTPUTS <= end {
            self.store(at, row, self.from.outputs::<I, OUTPUTS, R>(at, row));
            at += OUTPUTS;
        }
        while at < end {
            self.store(at, row, self.from.outputs::<I, 1, R>(at, row));
            at += 1;
        }
        R
    }

    #[inline(always)]
    fn store<const N: usize, const R: usize>(&self, at: usize, row: usize, values: [[f32; R]; N]) {
        for r in 0..R {
            // SAFETY: pieces share no outputs, and each is one thread's.
            let to = unsafe { self.y.range((row + r) * self.out + at, N) };
            for n in 0..N {
                to[n] = values[n][r];
            }
        }
    }
}
