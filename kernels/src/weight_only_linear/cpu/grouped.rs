//! Weights in codes of four bits.

use tch::Tensor;
use torch_bridge::{Result, tensors};

#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{BYTES, LANES, Product, Rows, Vector, spread};
use crate::simd::{self, Isa, Kernel};

/// `[rows, out]` for `codes [out, width / 2]`, `scale` and `zero [out, groups]`.
pub(super) fn four_bits(x: &Rows, codes: &Tensor, scale: &Tensor, zero: Option<&Tensor>) -> Result<Vec<f32>> {
    let [out, groups] = [0, 1].map(|dimension| scale.size()[dimension] as usize);
    let (codes, scale) = (tensors::slice::<u8>(codes)?, tensors::slice::<f32>(scale)?);
    let zero = zero.map(tensors::slice::<f32>).transpose()?;
    let sums = simd::run(Sums { x: &x.values, group: x.width / groups });
    let from = Grouped {
        x: &x.values,
        sums: &sums,
        codes: &codes,
        scale: &scale,
        zero: zero.as_deref(),
        width: x.width,
        groups,
    };
    let mut y = vec![0.0; x.count * out];
    #[cfg(target_arch = "x86_64")]
    if x86::available() {
        x86::spread(from, out, x.count, &mut y);
        return Ok(y);
    }
    spread(from, out, x.count, &mut y);
    Ok(y)
}

/// Sums over groups: what the 8 of the codes and the zeros are multiplied with.
struct Sums<'a> {
    x: &'a [f32],
    group: usize,
}

impl Kernel for Sums<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn call<I: Isa>(self) -> Vec<f32> {
        let sum = |x: &[f32]| {
            let mut sum = Vector::ZERO;
            for x in x.chunks_exact(LANES) {
                sum = sum + Vector::load(x);
            }
            sum.sum()
        };
        self.x.chunks_exact(self.group).map(sum).collect()
    }
}

/// Codes of four bits.
#[derive(Clone, Copy)]
pub(super) struct Grouped<'a> {
    pub(super) x: &'a [f32],
    /// Sums of `x` over the groups.
    pub(super) sums: &'a [f32],
    pub(super) codes: &'a [u8],
    pub(super) scale: &'a [f32],
    pub(super) zero: Option<&'a [f32]>,
    pub(super) width: usize,
    pub(super) groups: usize,
}

impl Product for Grouped<'_> {
    fn steps(&self) -> usize {
        self.width
    }

    #[inline(always)]
    fn outputs<I: Isa, const N: usize, const R: usize>(self, first: usize, row: usize) -> [[f32; R]; N] {
        let Self { width, groups, .. } = self;
        let group = width / groups;
        let mut sums = [[Vector::ZERO; R]; N];
        let mut out = [[0.0; R]; N];
        for g in 0..groups {
            let mut parts = [[Vector::ZERO; R]; N];
            for at in (g * group..(g + 1) * group).step_by(2 * LANES) {
                let mut x = [[Vector::ZERO; 2]; R];
                for r in 0..R {
                    let from = &self.x[(row + r) * width + at..][..2 * LANES];
                    x[r] = [Vector::load(from), Vector::load(&from[LANES..])];
                }
                for n in 0..N {
                    let codes = &self.codes[(first + n) * (width / 2) + at / 2..][..BYTES];
                    let (mut low, mut high) = (Vector::ZERO, Vector::ZERO);
                    for l in 0..LANES {
                        low.0[l] = (i32::from(codes[l]) & 15) as f32;
                        high.0[l] = (i32::from(codes[l]) >> 4) as f32;
                    }
                    for r in 0..R {
                        parts[n][r] = low.mul_add::<I>(x[r][0], parts[n][r]);
                        parts[n][r] = high.mul_add::<I>(x[r][1], parts[n][r]);
                    }
                }
            }
            for n in 0..N {
                let at = (first + n) * groups + g;
                let scale = self.scale[at];
                let shift = self.zero.map_or(0.0, |zero| zero[at]) - 8.0 * scale;
                for r in 0..R {
                    sums[n][r] = parts[n][r].mul_add::<I>(Vector::splat(scale), sums[n][r]);
                    out[n][r] = I::mul_add(shift, self.sums[(row + r) * groups + g], out[n][r]);
                }
            }
        }
        for n in 0..N {
            for r in 0..R {
                out[n][r] += sums[n][r].sum();
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in -1..1 that bf16 has, or has not.
    fn values(count: usize, step: f32) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + i / 7) % 255) as f32 * step - 1.0).collect()
    }

    #[test]
    fn all_ways_give_the_sum() {
        for (out, width, group, rows, step) in [
            (1, 32, 32, 1, 1.0 / 128.0),
            (7, 96, 32, 2, 1.0 / 128.0),
            (9, 128, 128, 5, 0.007_77),
            (37, 320, 64, 8, 0.007_77),
            (40, 2432, 64, 1, 0.007_77),
        ] {
            let groups = width / group;
            let x = values(rows * width, step);
            let codes: Vec<u8> = (0..out * width / 2).map(|i| (i * 131 % 251) as u8).collect();
            let (scale, zero) = (values(out * groups, 0.01), values(out * groups, 0.005));
            let sums: Vec<f32> = x.chunks(group).map(|x| x.iter().sum()).collect();
            let weight = |o: usize, k: usize| {
                let byte = codes[o * (width / 2) + k / 32 * 16 + k % 16];
                let code = if k % 32 < 16 { byte & 15 } else { byte >> 4 };
                let at = o * groups + k / group;
                (f64::from(code) - 8.0) * f64::from(scale[at]) + f64::from(zero[at])
            };
            for zero in [Some(zero.as_slice()), None] {
                let shift = |o: usize, k: usize| {
                    zero.map_or(f64::from(values(out * groups, 0.005)[o * groups + k / group]), |_| 0.0)
                };
                let from = Grouped { x: &x, sums: &sums, codes: &codes, scale: &scale, zero, width, groups };
                let mut ways = vec![("portable", vec![f32::NAN; rows * out])];
                spread(from, out, rows, &mut ways[0].1);
                #[cfg(target_arch = "x86_64")]
                if x86::available() {
                    let mut y = vec![f32::NAN; rows * out];
                    x86::spread(from, out, rows, &mut y);
                    ways.push(("x86", y));
                }
                for (name, y) in ways {
                    for r in 0..rows {
                        for o in 0..out {
                            let terms = (0..width)
                                .map(|k| (weight(o, k) - shift(o, k)) * f64::from(x[r * width + k]));
                            let (sum, size) =
                                terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                            let off = (f64::from(y[r * out + o]) - sum).abs() / size;
                            assert!(off < 1e-6, "{name}: {out} x {width}, groups of {group}: off by {off:e}");
                        }
                    }
                }
            }
        }
    }
}
