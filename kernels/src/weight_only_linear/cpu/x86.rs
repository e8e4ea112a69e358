//! Codes of four bits by AVX-512, where a register is a table of 16 numbers: one instruction turns 16 codes into them.

use std::arch::x86_64::{
    __m128i, __m512, __mmask16, _mm_loadu_si128, _mm512_add_ps, _mm512_cvtepu8_epi32, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_maskz_loadu_ps, _mm512_permutexvar_ps, _mm512_reduce_add_ps, _mm512_set1_ps,
    _mm512_setr_ps, _mm512_setzero_ps, _mm512_srli_epi32,
};

use super::grouped::Grouped;
use super::{BYTES, Columns, LANES, OUTPUTS, PIECE, ask_for};
use crate::parallel;

/// Codes of a block.
const WIDE: usize = 2 * BYTES;

/// Whether this machine has the instructions.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
}

/// All outputs `y [rows, out]`, over the threads.
pub(super) fn spread(from: Grouped<'_>, out: usize, rows: usize, y: &mut [f32]) {
    let y = Columns::new(y);
    let pieces: Vec<usize> = (0..out).step_by(PIECE).collect();
    let piece = |first: usize| {
        let end = out.min(first + PIECE);
        let mut row = 0;
        while row < rows {
            let taken = if rows - row >= 2 { 2 } else { 1 };
            let mut at = first;
            while at < end {
                let count = if end - at >= OUTPUTS { OUTPUTS } else { 1 };
                let mut values = [[0.0; 2]; OUTPUTS];
                // SAFETY: `available` has found the instructions before this was called.
                unsafe {
                    match (count, taken) {
                        (OUTPUTS, 2) => outputs::<OUTPUTS, 2>(from, at, row, &mut values),
                        (OUTPUTS, _) => outputs::<OUTPUTS, 1>(from, at, row, &mut values),
                        (_, 2) => outputs::<1, 2>(from, at, row, &mut values),
                        _ => outputs::<1, 1>(from, at, row, &mut values),
                    }
                }
                for r in 0..taken {
                    // SAFETY: pieces share no outputs, and each is one thread's.
                    let to = unsafe { y.range((row + r) * out + at, count) };
                    for (to, values) in to.iter_mut().zip(&values) {
                        *to = values[r];
                    }
                }
                at += count;
            }
            row += taken;
        }
    };
    parallel::each(pieces, out * rows * from.width, || (), |(), first| piece(first));
}

/// The outputs `first..first + N` of the rows `row..row + R`.
#[allow(clippy::cast_ptr_alignment)] // of loads that need none
#[target_feature(enable = "avx512f")]
fn outputs<const N: usize, const R: usize>(
    from: Grouped<'_>,
    first: usize,
    row: usize,
    to: &mut [[f32; 2]; OUTPUTS],
) {
    let Grouped { width, groups, .. } = from;
    let blocks = width / groups / WIDE;
    // The lengths that the pointers below rely on.
    let codes = &from.codes[first * width / 2..][..N * width / 2];
    let scale = &from.scale[first * groups..][..N * groups];
    let x = &from.x[row * width..][..R * width];
    #[rustfmt::skip]
    let table = _mm512_setr_ps(-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0);
    let zero = _mm512_setzero_ps();
    let mut sums = [[zero; R]; N];
    for g in 0..groups {
        let mut parts = [[[zero; 2]; R]; N];
        for block in g * blocks..(g + 1) * blocks {
            let mut numbers = [[zero; 2]; R];
            for r in 0..R {
                // SAFETY: `block` is below `width / 32`, and `x` has R rows of `width` numbers.
                unsafe {
                    let at = x.as_ptr().add(r * width + block * WIDE);
                    numbers[r] = [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(LANES))];
                }
            }
            for n in 0..N {
                ask_for(codes, n * width / 2 + block * BYTES, N * width / 2);
                // SAFETY: as above; a block has 16 bytes, and `codes` has N rows of `width / 2`.
                let bytes = unsafe {
                    _mm_loadu_si128(codes.as_ptr().add(n * width / 2 + block * BYTES).cast::<__m128i>())
                };
                let wide = _mm512_cvtepu8_epi32(bytes);
                // Of an index four bits count.
                let low = _mm512_permutexvar_ps(wide, table);
                let high = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(wide), table);
                for r in 0..R {
                    parts[n][r][0] = _mm512_fmadd_ps(low, numbers[r][0], parts[n][r][0]);
                    parts[n][r][1] = _mm512_fmadd_ps(high, numbers[r][1], parts[n][r][1]);
                }
            }
        }
        for n in 0..N {
            let scale = _mm512_set1_ps(scale[n * groups + g]);
            for r in 0..R {
                sums[n][r] =
                    _mm512_fmadd_ps(_mm512_add_ps(parts[n][r][0], parts[n][r][1]), scale, sums[n][r]);
            }
        }
    }
    for n in 0..N {
        for r in 0..R {
            if let Some(zero) = from.zero {
                let zero = &zero[(first + n) * groups..][..groups];
                sums[n][r] = add_products(sums[n][r], zero, &from.sums[(row + r) * groups..][..groups]);
            }
            to[n][r] = _mm512_reduce_add_ps(sums[n][r]);
        }
    }
}

/// The lanes of `sum` with the products of two equally long slices added to them.
#[target_feature(enable = "avx512f")]
fn add_products(mut sum: __m512, x: &[f32], y: &[f32]) -> __m512 {
    for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
        let mask = __mmask16::MAX >> (LANES - x.len().min(y.len()));
        // SAFETY: the mask leaves out what is not in the slices.
        let (x, y) =
            unsafe { (_mm512_maskz_loadu_ps(mask, x.as_ptr()), _mm512_maskz_loadu_ps(mask, y.as_ptr())) };
        sum = _mm512_fmadd_ps(x, y, sum);
    }
    sum
}
