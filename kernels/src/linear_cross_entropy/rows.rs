//! Rows of logits into their losses and, in place, into their gradients: on the CPU a row's two passes run in the cache.

#![allow(clippy::inline_always)] // see `simd`

use tch::{Device, Kind, Tensor};
use torch_bridge::{Error, Result, tensors};

use super::{IGNORE_INDEX, Settings, cuda};
use crate::{
    operands::compute_kind,
    parallel,
    simd::{self, Float, Isa, Kernel, Lanes},
};

const LANES_F32: usize = 16;
const LANES_F64: usize = 8;

/// Losses of rows, `[rows, 2]` in at least f32: the loss and the square of the logarithm of the sum; and the gradients of
/// the losses by the logits, in the type of the logits and in their place where that is possible. `logits [rows, vocab or
/// more]` are contiguous, and what is more is 0 and stays 0. Without `gradient` the second result means nothing.
#[allow(clippy::needless_pass_by_value)] // it is used up
pub(super) fn losses(
    logits: Tensor,
    targets: &Tensor,
    vocab: i64,
    settings: Settings,
    gradient: bool,
) -> Result<(Tensor, Tensor)> {
    let kind = logits.kind();
    if logits.device().is_cuda()
        && let Some(losses) = cuda::losses(&logits, targets, vocab, settings, gradient)?
    {
        return Ok((losses, logits));
    }
    let mut logits = logits.f_to_kind(compute_kind(&logits))?;
    let losses = match (logits.device(), kind) {
        (Device::Cpu, Kind::Double) => on_cpu::<f64, LANES_F64>(&mut logits, targets, settings, gradient),
        (Device::Cpu, _) => on_cpu::<f32, LANES_F32>(&mut logits, targets, settings, gradient),
        _ => anywhere(&mut logits.f_narrow(1, 0, vocab)?, targets, settings, gradient),
    }?;
    Ok((losses, logits.f_to_kind(kind)?))
}

/// In tensor operations.
fn anywhere(logits: &mut Tensor, targets: &Tensor, settings: Settings, gradient: bool) -> Result<Tensor> {
    let smoothing = settings.label_smoothing;
    if let Some(cap) = settings.soft_cap {
        let _ = logits.f_div_scalar_(cap)?.f_tanh_()?.f_mul_scalar_(cap)?;
    }
    let counts = targets.f_ne(IGNORE_INDEX)?.f_unsqueeze(-1)?;
    let place = targets.f_clamp_min(0)?.f_unsqueeze(-1)?;
    let log_sum = logits.f_logsumexp([-1_i64], true)?;
    let mean = logits.f_mean_dim([-1_i64].as_slice(), true, None::<Kind>)?;
    let square = log_sum.f_square()?;
    let loss = &log_sum - logits.f_gather(-1, &place, false)? * (1.0 - smoothing) - mean * smoothing
        + &square * settings.z_loss;
    let both = Tensor::f_cat(&[loss, square], -1)?.f_to_kind(Kind::Double)?;
    let both = both.f_where_self(&counts, &both.f_zeros_like()?)?;
    if gradient {
        let slope = match settings.soft_cap {
            Some(cap) => Some(1.0 - (logits.f_div_scalar(cap)?).f_square()?),
            None => None,
        };
        let vocab = logits.size()[1] as f64;
        let scale: Tensor = &log_sum * (2.0 * settings.z_loss) + 1.0;
        let _ = logits.f_sub_(&log_sum)?.f_exp_()?.f_mul_(&scale)?.f_sub_scalar_(smoothing / vocab)?;
        let at_target = place.f_ones_like()?.f_to_kind(logits.kind())? * (smoothing - 1.0);
        let _ = logits.f_scatter_add_(-1, &place, &at_target)?;
        if let Some(slope) = slope {
            let _ = logits.f_mul_(&slope)?;
        }
        let _ = logits.f_masked_fill_(&counts.f_logical_not()?, 0.0)?;
    }
    Ok(both)
}

/// Every target is none or an index of the vocabulary.
pub(super) fn check_targets(targets: &[i64], vocab: i64) -> Result<()> {
    let wrong = targets.iter().find(|&&target| target != IGNORE_INDEX && !(0..vocab).contains(&target));
    wrong.map_or(Ok(()), |wrong| {
        Err(Error::other(format!(
            "linear_cross_entropy: a target is {wrong}, and the vocabulary has {vocab} tokens"
        )))
    })
}

fn on_cpu<F: Float, const L: usize>(
    logits: &mut Tensor,
    targets: &Tensor,
    settings: Settings,
    gradient: bool,
) -> Result<Tensor> {
    let [rows, vocab] = logits.size()[..] else { return Err(Error::other("logits are not [rows, vocab]")) };
    let targets = targets.f_contiguous()?;
    let targets = tensors::slice::<i64>(&targets)?;
    check_targets(&targets, vocab)?;
    let mut losses = vec![0.0; 2 * rows as usize];
    {
        let mut logits = tensors::slice_mut::<F>(logits)?;
        let rows: Vec<_> =
            logits.chunks_mut(vocab as usize).zip(losses.chunks_mut(2)).zip(targets.iter()).collect();
        let steps = rows.len() * vocab as usize;
        parallel::each(
            rows,
            steps,
            || (),
            |(), ((logits, losses), &target)| {
                simd::run(Row::<F, L> { logits, losses, target, settings, gradient });
            },
        );
    }
    Ok(Tensor::f_from_slice(&losses)?.f_view([rows, 2])?)
}

/// Elements that are summed in their own type.
const STRETCH: usize = 1024;

#[inline(always)]
fn sum_of<F: Float, const L: usize>(values: &[F]) -> f64 {
    let mut lanes = Lanes::<F, L>::ZERO;
    for x in values.chunks(L) {
        lanes = lanes + Lanes::load(x);
    }
    lanes.sum().widen()
}

struct Row<'a, F, const L: usize> {
    logits: &'a mut [F],
    losses: &'a mut [f64],
    target: i64,
    settings: Settings,
    gradient: bool,
}

impl<F: Float, const L: usize> Kernel for Row<'_, F, L> {
    type Output = ();

    #[inline(always)]
    fn call<I: Isa>(self) {
        let Self { logits, losses, target, settings, gradient } = self;
        if target == IGNORE_INDEX {
            logits.fill(F::ZERO);
            return;
        }
        if let Some(cap) = settings.soft_cap {
            let (cap, over) = (F::of(cap), F::of(1.0 / cap));
            for x in logits.chunks_mut(L) {
                let capped = (Lanes::<F, L>::load(x) * Lanes::splat(over)).tanh::<I>() * Lanes::splat(cap);
                capped.store(x);
            }
        }
        let (target, vocab) = (target as usize, logits.len());
        let of_target = logits[target].widen();
        let larger = |a: F, b: F| if b > a { b } else { a };
        let mut greatest = Lanes::<F, L>::splat(logits[0]);
        let whole = logits.chunks_exact(L);
        let rest = whole.remainder();
        for x in whole {
            greatest = greatest.zip(Lanes::load(x), larger);
        }
        let greatest = greatest.0.iter().chain(rest).fold(logits[0], |a, &b| larger(a, b));
        // Sums in f32 over thousands of tokens lose digits: each stretch of the row is added in f64. The exponentials go
        // through a buffer because LLVM takes a loop that computes and sums them apart into single numbers.
        let (mut sum, mut total) = (0.0_f64, 0.0_f64);
        let mut buffer = [F::ZERO; STRETCH];
        for stretch in logits.chunks(STRETCH) {
            let exps = &mut buffer[..stretch.len()];
            for (x, exp) in stretch.chunks(L).zip(exps.chunks_mut(L)) {
                (Lanes::<F, L>::load(x) - Lanes::splat(greatest)).exp::<I>().store(exp);
            }
            sum += sum_of::<F, L>(exps);
            if settings.label_smoothing > 0.0 {
                total += sum_of::<F, L>(stretch);
            }
        }
        let smoothing = settings.label_smoothing;
        let log_sum = greatest.widen() + sum.ln();
        losses[1] = log_sum * log_sum;
        losses[0] = log_sum - (1.0 - smoothing) * of_target - smoothing * total / vocab as f64
            + settings.z_loss * losses[1];
        if !gradient {
            return;
        }
        let scale = Lanes::<F, L>::splat(F::of((1.0 + 2.0 * settings.z_loss * log_sum) / sum));
        let everywhere = Lanes::<F, L>::splat(F::of(-smoothing / vocab as f64));
        let over = settings.soft_cap.map(|cap| F::of(1.0 / cap));
        let capped = logits[target];
        let slope = |x: Lanes<F, L>, over: F| {
            let x = x * Lanes::splat(over);
            Lanes::splat(F::ONE) - x * x
        };
        for x in logits.chunks_mut(L) {
            let value = Lanes::<F, L>::load(x);
            let mut d = (value - Lanes::splat(greatest)).exp::<I>().mul_add::<I>(scale, everywhere);
            if let Some(over) = over {
                d = d * slope(value, over);
            }
            d.store(x);
        }
        let mut at_target = F::of(smoothing - 1.0);
        if let Some(over) = over {
            at_target = at_target * slope(Lanes::splat(capped), over).0[0];
        }
        logits[target] = logits[target] + at_target;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_operations_give_what_the_rows_give() {
        for settings in [
            Settings::PLAIN,
            Settings { label_smoothing: 0.2, z_loss: 0.01, soft_cap: None },
            Settings { label_smoothing: 0.1, z_loss: 0.02, soft_cap: Some(3.0) },
        ] {
            let logits = Tensor::arange(7 * 45, (Kind::Double, Device::Cpu)).sin().view([7, 45]) * 4.0;
            let targets = Tensor::from_slice(&[0, 44, IGNORE_INDEX, 3, 17, 17, 1]);
            let run = |rows: fn(&mut Tensor, &Tensor, Settings, bool) -> Result<Tensor>| {
                let mut logits = logits.copy();
                (rows(&mut logits, &targets, settings, true).unwrap(), logits)
            };
            let (ours, theirs) = (run(on_cpu::<f64, LANES_F64>), run(anywhere));
            for (x, y) in [(ours.0, theirs.0), (ours.1, theirs.1)] {
                assert!((x - y).abs().max().double_value(&[]) < 1e-12, "{settings:?}");
            }
        }
    }
}
