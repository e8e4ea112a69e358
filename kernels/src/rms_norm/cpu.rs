//! The norm on the CPU: rows over the threads, channels in the lanes.

#![allow(clippy::inline_always)] // see `simd`

use tch::{Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::guards::is_grad_enabled;
use torch_bridge::{Error, Result, tensors};

use super::{RmsNorm, reference};
use crate::parallel;
use crate::second;
use crate::simd::{self, Float, Isa, Kernel, Lanes};

/// Rows that a thread takes at a time: a partial sum of the weight's gradient each, so that it does not depend on the
/// number of threads.
const TILE: usize = 64;

/// Whether [`rms_norm`] takes these operands: all of one type, f32 or f64.
pub(super) fn takes(args: &RmsNorm<'_>) -> bool {
    let kind = args.x.kind();
    matches!(kind, Kind::Float | Kind::Double)
        && args.weight.kind() == kind
        && args.residual.is_none_or(|residual| residual.kind() == kind)
        && args.output.is_none_or(|output| output == kind)
}

/// As [`rms_norm`](super::rms_norm), for tensors of the CPU that are not empty.
pub(super) fn rms_norm(args: &RmsNorm<'_>) -> Result<(Tensor, Tensor)> {
    let shape = args.x.size();
    let d = shape.last().copied().unwrap_or(1);
    let rows = |x: &Tensor| -> Result<Tensor> { Ok(x.f_contiguous()?.f_view([-1, d])?) };
    let (x, weight) = (rows(args.x)?, args.weight.f_contiguous()?);
    let residual = args.residual.map(rows).transpose()?;
    let mut inputs = vec![&x, &weight];
    inputs.extend(&residual);
    let mut node = Norm { eps: args.eps };
    let wants_graph = is_grad_enabled() && inputs.iter().any(|x| x.requires_grad());
    let outputs = if wants_graph {
        autograd::apply("rms_norm", node, &inputs)?
    } else {
        let inputs: Vec<Tensor> = inputs.iter().map(|x| x.shallow_clone()).collect();
        let (outputs, _) = node.run(&inputs)?;
        outputs
    };
    match outputs.as_slice() {
        [y, sum] => Ok((y.f_view(shape.as_slice())?, sum.f_view(shape.as_slice())?)),
        [y] => Ok((y.f_view(shape.as_slice())?, args.x.shallow_clone())),
        _ => Err(Error::other("rms_norm: not one or two outputs")),
    }
}

/// The node of the graph. It saves what was normed, the rows' factors and its inputs.
struct Norm {
    eps: f64,
}

impl Norm {
    /// `y`, the sum if there is a residual; and the rows' factors.
    fn run(&mut self, inputs: &[Tensor]) -> Result<(Vec<Tensor>, Tensor)> {
        let (x, ..) = operands(inputs)?;
        if x.kind() == Kind::Double {
            forward::<f64, 8>(inputs, self.eps)
        } else {
            forward::<f32, 16>(inputs, self.eps)
        }
    }
}

impl Function for Norm {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (outputs, inverse) = self.run(inputs)?;
        saved.save(outputs.get(1).unwrap_or(&inputs[0]));
        saved.save(&inverse);
        for input in inputs {
            saved.save(input);
        }
        Ok(outputs)
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let [h, inverse, inputs @ ..] = saved else {
            return Err(Error::other("rms_norm: nothing was saved"));
        };
        let definition = || {
            let (x, weight, residual) = operands(inputs)?;
            reference::rms_norm(&RmsNorm { x, residual, weight, eps: self.eps, output: None })
        };
        if let Some(gradients) = second::differentiable(inputs, grads, definition) {
            return gradients;
        }
        let (_, weight, residual) = operands(inputs)?;
        let upstream = |i: usize| -> Result<Option<Tensor>> {
            Ok(grads.get(i).and_then(Option::as_ref).map(Tensor::f_contiguous).transpose()?)
        };
        let (dy, dsum) = (upstream(0)?, upstream(1)?);
        let dy = dy.map_or_else(|| h.f_zeros_like(), Ok)?;
        let (dh, dweight) = if h.kind() == Kind::Double {
            backward::<f64, 8>([h, weight, inverse, &dy], dsum.as_ref())?
        } else {
            backward::<f32, 16>([h, weight, inverse, &dy], dsum.as_ref())?
        };
        let mut gradients = vec![Some(dh.shallow_clone()), Some(dweight)];
        gradients.extend(residual.map(|_| Some(dh)));
        Ok(gradients)
    }
}

/// `x`, `weight` and `residual`.
fn operands(inputs: &[Tensor]) -> Result<(&Tensor, &Tensor, Option<&Tensor>)> {
    match inputs {
        [x, weight] => Ok((x, weight, None)),
        [x, weight, residual] => Ok((x, weight, Some(residual))),
        _ => Err(Error::other("rms_norm: operands are missing")),
    }
}

fn forward<F: Float, const L: usize>(inputs: &[Tensor], eps: f64) -> Result<(Vec<Tensor>, Tensor)> {
    let (x, weight, residual) = operands(inputs)?;
    let (rows, d) = x.size2()?;
    let width = d as usize;
    let (mut y, mut sum) = (x.f_empty_like()?, residual.map(Tensor::f_empty_like).transpose()?);
    let mut inverse = Tensor::f_empty([rows], (F::KIND, x.device()))?;
    {
        let (x, weight) = (tensors::slice::<F>(x)?, tensors::slice::<F>(weight)?);
        let residual = residual.map(tensors::slice::<F>).transpose()?;
        let (mut y, mut inverse) = (tensors::slice_mut::<F>(&mut y)?, tensors::slice_mut::<F>(&mut inverse)?);
        let mut sum = sum.as_mut().map(tensors::slice_mut::<F>).transpose()?;
        let mut sums = sum.as_deref_mut().map(|sum| sum.chunks_mut(TILE * width));
        let tiles = y.chunks_mut(TILE * width).zip(inverse.chunks_mut(TILE)).enumerate();
        let tiles: Vec<_> = tiles
            .map(|(tile, (y, inverse))| {
                let here = tile * TILE * width..tile * TILE * width + y.len();
                let sum = sums.as_mut().and_then(Iterator::next);
                (&x[here.clone()], residual.as_deref().map(|residual| &residual[here]), y, sum, inverse)
            })
            .collect();
        let (weight, eps) = (&weight[..], F::of(eps));
        parallel::each(
            tiles,
            rows as usize * width,
            || (),
            |(), (x, residual, y, sum, inverse)| {
                simd::run(Forward::<F, L> { x, residual, weight, y, sum, inverse, eps });
            },
        );
    }
    Ok((std::iter::once(y).chain(sum).collect(), inverse))
}

struct Forward<'a, F, const L: usize> {
    x: &'a [F],
    residual: Option<&'a [F]>,
    weight: &'a [F],
    y: &'a mut [F],
    sum: Option<&'a mut [F]>,
    inverse: &'a mut [F],
    eps: F,
}

impl<F: Float, const L: usize> Kernel for Forward<'_, F, L> {
    type Output = ();

    #[inline(always)]
    fn call<I: Isa>(mut self) {
        let d = self.weight.len();
        for row in 0..self.inverse.len() {
            let here = row * d..(row + 1) * d;
            let mut h = &self.x[here.clone()];
            if let (Some(residual), Some(sum)) = (self.residual, self.sum.as_deref_mut()) {
                let sum = &mut sum[here.clone()];
                for (to, (a, b)) in sum.chunks_mut(L).zip(h.chunks(L).zip(residual[here.clone()].chunks(L))) {
                    (Lanes::<F, L>::load(a) + Lanes::load(b)).store(to);
                }
                h = sum;
            }
            let square = product_sum::<I, F, L>(h, h);
            let factor = F::of(1.0 / (square.widen() / d as f64 + self.eps.widen()).sqrt());
            self.inverse[row] = factor;
            let factor = Lanes::splat(factor);
            for ((to, h), weight) in self.y[here].chunks_mut(L).zip(h.chunks(L)).zip(self.weight.chunks(L)) {
                (Lanes::<F, L>::load(h) * factor * Lanes::load(weight)).store(to);
            }
        }
    }
}

/// The sum of the products of two rows.
#[inline(always)]
fn product_sum<I: Isa, F: Float, const L: usize>(a: &[F], b: &[F]) -> F {
    let mut sums = [Lanes::<F, L>::ZERO; 2];
    for (a, b) in a.chunks(2 * L).zip(b.chunks(2 * L)) {
        sums[0] = Lanes::load(a).mul_add::<I>(Lanes::load(b), sums[0]);
        if a.len() > L {
            sums[1] = Lanes::load(&a[L..]).mul_add::<I>(Lanes::load(&b[L..]), sums[1]);
        }
    }
    (sums[0] + sums[1]).sum()
}

/// `dh` and `dweight`.
fn backward<F: Float, const L: usize>(
    [h, weight, inverse, dy]: [&Tensor; 4],
    dsum: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    let (rows, d) = h.size2()?;
    let width = d as usize;
    let mut dh = h.f_empty_like()?;
    let mut dweight = Tensor::f_empty([d], (F::KIND, h.device()))?;
    {
        let [h, weight, inverse, dy] = [
            tensors::slice::<F>(h)?,
            tensors::slice::<F>(weight)?,
            tensors::slice::<F>(inverse)?,
            tensors::slice::<F>(dy)?,
        ];
        let dsum = dsum.map(tensors::slice::<F>).transpose()?;
        let mut dh = tensors::slice_mut::<F>(&mut dh)?;
        let mut partial = vec![F::ZERO; (rows as usize).div_ceil(TILE) * width];
        let tiles: Vec<_> = dh
            .chunks_mut(TILE * width)
            .zip(partial.chunks_mut(width))
            .enumerate()
            .map(|(tile, (dh, dweight))| {
                let here = tile * TILE * width..tile * TILE * width + dh.len();
                let inverse = &inverse[tile * TILE..tile * TILE + dh.len() / width];
                let dsum = dsum.as_deref().map(|dsum| &dsum[here.clone()]);
                (&h[here.clone()], inverse, &dy[here], dsum, dh, dweight)
            })
            .collect();
        let weight = &weight[..];
        parallel::each(
            tiles,
            2 * rows as usize * width,
            || (),
            |(), (h, inverse, dy, dsum, dh, dweight)| {
                simd::run(Backward::<F, L> { h, weight, inverse, dy, dsum, dh, dweight });
            },
        );
        let mut total = tensors::slice_mut::<F>(&mut dweight)?;
        total.fill(F::ZERO);
        for partial in partial.chunks(width) {
            for (total, part) in total.iter_mut().zip(partial) {
                *total = *total + *part;
            }
        }
    }
    Ok((dh, dweight))
}

struct Backward<'a, F, const L: usize> {
    h: &'a [F],
    weight: &'a [F],
    inverse: &'a [F],
    dy: &'a [F],
    dsum: Option<&'a [F]>,
    dh: &'a mut [F],
    dweight: &'a mut [F],
}

impl<F: Float, const L: usize> Kernel for Backward<'_, F, L> {
    type Output = ();

    /// With `n = h inverse` and `g = dy weight`: `dh = inverse (g - n mean(g n)) + dsum`, `dweight = sum of dy n`.
    #[inline(always)]
    fn call<I: Isa>(self) {
        let d = self.weight.len();
        for (row, &inverse) in self.inverse.iter().enumerate() {
            let here = row * d..(row + 1) * d;
            let (h, dy) = (&self.h[here.clone()], &self.dy[here.clone()]);
            let factor = Lanes::<F, L>::splat(inverse);
            let mut along = Lanes::<F, L>::ZERO;
            let channels =
                h.chunks(L).zip(dy.chunks(L)).zip(self.weight.chunks(L)).zip(self.dweight.chunks_mut(L));
            for (((h, dy), weight), dweight) in channels {
                let (n, dy) = (Lanes::load(h) * factor, Lanes::load(dy));
                along = (dy * Lanes::load(weight)).mul_add::<I>(n, along);
                dy.mul_add::<I>(n, Lanes::load(dweight)).store(dweight);
            }
            let along = Lanes::<F, L>::splat(F::of(along.sum().widen() / d as f64));
            let dsum = self.dsum.map(|dsum| &dsum[here.clone()]);
            let dh = self.dh[here].chunks_mut(L).enumerate();
            for ((i, to), ((h, dy), weight)) in
                dh.zip(h.chunks(L).zip(dy.chunks(L)).zip(self.weight.chunks(L)))
            {
                let n = Lanes::load(h) * factor;
                let g = Lanes::load(dy) * Lanes::load(weight);
                let more = dsum.map_or(Lanes::ZERO, |dsum| Lanes::load(&dsum[i * L..]));
                (factor * (g - n * along) + more).store(to);
            }
        }
    }
}
