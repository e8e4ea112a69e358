//! Several vectors times one matrix.

use crate::simd::{Float, Isa, Lanes};

/// `out[r] += x[r] matrix` for each of `rows` rows, at most 4: `x [rows, K]`, `matrix [K, width]`, `out [rows, width]`,
/// all contiguous.
#[inline(always)]
pub(super) fn add_product<I: Isa, F: Float, const L: usize>(
    rows: usize,
    x: &[F],
    matrix: &[F],
    width: usize,
    out: &mut [F],
) {
    match rows {
        1 => in_blocks::<I, F, L, 1>(x, matrix, width, out),
        2 => in_blocks::<I, F, L, 2>(x, matrix, width, out),
        3 => in_blocks::<I, F, L, 3>(x, matrix, width, out),
        _ => in_blocks::<I, F, L, 4>(x, matrix, width, out),
    }
}

/// Two vectors of columns at a time, as their sums and a row of the matrix fit into the registers.
#[inline(always)]
fn in_blocks<I: Isa, F: Float, const L: usize, const R: usize>(
    x: &[F],
    matrix: &[F],
    width: usize,
    out: &mut [F],
) {
    let mut column = 0;
    while width - column >= 2 * L {
        block::<I, F, L, R, 2>(x, matrix, width, column, 2 * L, out);
        column += 2 * L;
    }
    while column < width {
        let count = L.min(width - column);
        block::<I, F, L, R, 1>(x, matrix, width, column, count, out);
        column += count;
    }
}

/// `count` columns, which are `N` full vectors or a part of a single one.
#[inline(always)]
fn block<I: Isa, F: Float, const L: usize, const R: usize, const N: usize>(
    x: &[F],
    matrix: &[F],
    width: usize,
    column: usize,
    count: usize,
    out: &mut [F],
) {
    let depth = x.len() / R;
    let mut sums = [[Lanes::<F, L>::ZERO; N]; R];
    for (k, row) in matrix[column..].chunks(width).enumerate().take(depth) {
        let mut lanes = [Lanes::<F, L>::ZERO; N];
        for (n, lanes) in lanes.iter_mut().enumerate() {
            *lanes = Lanes::load(&row[n * L..count.min((n + 1) * L)]);
        }
        for r in 0..R {
            let factor = Lanes::splat(x[r * depth + k]);
            for n in 0..N {
                sums[r][n] = lanes[n].mul_add::<I>(factor, sums[r][n]);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        let out = &mut out[r * width + column..][..count];
        for (sum, out) in sums.into_iter().zip(out.chunks_mut(L)) {
            (Lanes::load(out) + sum).store(out);
        }
    }
}
