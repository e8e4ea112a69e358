//! Several vectors times one matrix.

use crate::simd::{Float, Isa, Lanes};

/// `out[r] += x[r] matrix` for each of the `R` rows: `x [R, K]`, `matrix [K, N]`, `out [R, N]`, all contiguous.
#[inline(always)]
pub(super) fn add_product<I: Isa, F: Float, const L: usize, const R: usize>(
    x: &[F],
    matrix: &[F],
    width: usize,
    out: &mut [F],
) {
    let depth = x.len() / R;
    let mut column = 0;
    while column < width {
        let count = (width - column).min(2 * L);
        let (first, second) = (count.min(L), count.saturating_sub(L));
        let mut sums = [[Lanes::<F, L>::ZERO; 2]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            let out = &out[r * width + column..][..count];
            *sums = [Lanes::load(&out[..first]), Lanes::load(&out[first..])];
        }
        for k in 0..depth {
            let row = &matrix[k * width + column..][..count];
            let row = [Lanes::load(&row[..first]), Lanes::load(&row[first..])];
            for (r, sums) in sums.iter_mut().enumerate() {
                let factor = Lanes::splat(x[r * depth + k]);
                sums[0] = row[0].mul_add::<I>(factor, sums[0]);
                if second > 0 {
                    sums[1] = row[1].mul_add::<I>(factor, sums[1]);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            let out = &mut out[r * width + column..][..count];
            let (low, high) = out.split_at_mut(first);
            sums[0].store(low);
            sums[1].store(high);
        }
        column += count;
    }
}

/// As [`add_product`] for a number of rows that is known only when it runs, at most 4.
#[inline(always)]
pub(super) fn add_products<I: Isa, F: Float, const L: usize>(
    rows: usize,
    x: &[F],
    matrix: &[F],
    width: usize,
    out: &mut [F],
) {
    match rows {
        1 => add_product::<I, F, L, 1>(x, matrix, width, out),
        2 => add_product::<I, F, L, 2>(x, matrix, width, out),
        3 => add_product::<I, F, L, 3>(x, matrix, width, out),
        _ => add_product::<I, F, L, 4>(x, matrix, width, out),
    }
}
