//! Weights of which each element is a number.

use half::{bf16, f16};
use tch::Tensor;
use torch_bridge::Result;
use torch_bridge::tensors::{self, Element};

use super::{LANES, Product, Rows, Vector, ask_for, spread};
use crate::simd::Isa;

/// What a weight is stored as.
pub(super) trait Stored: Element + Send + Sync {
    fn widen(self) -> f32;
}

impl Stored for i8 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Stored for f16 {
    /// The bits of the exponent are moved to where f32 has them, and a product sets right what they count from; that is exact
    /// for subnormal numbers too. Infinities and what is no number have an exponent of their own in both.
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let size = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
        let special = 0x7f80_0000 | (bits & 0x03ff) << 13;
        let size = if bits & 0x7c00 == 0x7c00 { special } else { size.to_bits() };
        f32::from_bits(size | (bits & 0x8000) << 16)
    }
}

/// `[rows, out]` for a `weight [out, width]` with a factor for each of its rows.
pub(super) fn product<W: Stored>(x: &Rows, weight: &Tensor, scale: Option<&Tensor>) -> Result<Vec<f32>> {
    let weight = tensors::slice::<W>(weight)?;
    let scale = scale.map(tensors::slice::<f32>).transpose()?;
    let out = weight.len() / x.width;
    let mut y = vec![0.0; x.count * out];
    let from = Plain { x: &x.values, weight: &weight, scale: scale.as_deref(), width: x.width };
    spread(from, out, x.count, &mut y);
    Ok(y)
}

/// A weight of which each element is a number.
#[derive(Clone, Copy)]
struct Plain<'a, W> {
    x: &'a [f32],
    weight: &'a [W],
    scale: Option<&'a [f32]>,
    width: usize,
}

impl<W: Stored> Product for Plain<'_, W> {
    fn steps(&self) -> usize {
        self.width
    }

    #[inline(always)]
    fn outputs<I: Isa, const N: usize, const R: usize>(self, first: usize, row: usize) -> [[f32; R]; N] {
        let width = self.width;
        let mut weights: [&[W]; N] = [&[]; N];
        let mut xs: [&[f32]; R] = [&[]; R];
        for n in 0..N {
            weights[n] = &self.weight[(first + n) * width..][..width];
        }
        for r in 0..R {
            xs[r] = &self.x[(row + r) * width..][..width];
        }
        let mut sums = [[Vector::ZERO; R]; N];
        let whole = width / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            let mut x = [Vector::ZERO; R];
            for r in 0..R {
                x[r] = Vector::load(&xs[r][at..at + LANES]);
            }
            for n in 0..N {
                let mut w = Vector::ZERO;
                ask_for(weights[n], at, N * width);
                let from = &weights[n][at..at + LANES];
                for l in 0..LANES {
                    w.0[l] = from[l].widen();
                }
                for r in 0..R {
                    sums[n][r] = w.mul_add::<I>(x[r], sums[n][r]);
                }
            }
        }
        let mut out = [[0.0; R]; N];
        for n in 0..N {
            let scale = self.scale.map_or(1.0, |scale| scale[first + n]);
            for r in 0..R {
                let mut sum = sums[n][r].sum();
                for at in whole..width {
                    sum = I::mul_add(weights[n][at].widen(), xs[r][at], sum);
                }
                out[n][r] = sum * scale;
            }
        }
        out
    }
}
