//! The rotary embedding on the CPU: tokens over the threads, a sine for all heads of a token.

use tch::{Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::guards::is_grad_enabled;
use torch_bridge::{Error, Result, tensors};

use super::{Rotary, reference};
use crate::operands::compute_kind;
use crate::parallel;
use crate::second;
use crate::simd::Float;

/// Tokens that a thread takes at a time.
const TILE: usize = 32;

/// As [`rotary`](super::rotary), for tensors of the CPU that are not empty; 16 bits through f32.
pub(super) fn rotary(args: &Rotary<'_>) -> Result<Tensor> {
    let tokens_first = args.x.f_transpose(1, 2)?.f_to_kind(compute_kind(args.x))?;
    let turn = Turn {
        positions: args.positions.f_contiguous()?,
        frequencies: args.frequencies.to_vec(),
        scale: args.scale,
    };
    let y = if is_grad_enabled() && tokens_first.requires_grad() {
        let mut outputs = autograd::apply("rotary", turn, &[&tokens_first])?;
        outputs.pop().ok_or_else(|| Error::other("rotary: no output"))?
    } else {
        turn.run(&tokens_first, 1.0)?
    };
    Ok(y.f_transpose(1, 2)?.f_to_kind(args.x.kind())?)
}

/// The node of the graph, on `[batch, time, heads, d]`.
struct Turn {
    positions: Tensor,
    frequencies: Vec<f64>,
    scale: f64,
}

impl Turn {
    fn run(&self, x: &Tensor, direction: f64) -> Result<Tensor> {
        if x.kind() == Kind::Double {
            self.turned::<f64>(x, direction)
        } else {
            self.turned::<f32>(x, direction)
        }
    }

    fn turned<F: Float>(&self, x: &Tensor, direction: f64) -> Result<Tensor> {
        let x = x.f_contiguous()?;
        let (_, time, heads, d) = x.size4()?;
        let (time, width, half) = (time as usize, (heads * d) as usize, self.frequencies.len());
        let mut y = x.f_empty_like()?;
        {
            let (x, positions) = (tensors::slice::<F>(&x)?, tensors::slice::<i64>(&self.positions)?);
            let (positions, scale) = (&positions[..], self.scale);
            let shared = positions.len() == time;
            let frequencies: Vec<F> = self.frequencies.iter().map(|&frequency| F::of(frequency)).collect();
            let mut y = tensors::slice_mut::<F>(&mut y)?;
            let tiles: Vec<_> = y.chunks_mut(TILE * width).zip(x.chunks(TILE * width)).enumerate().collect();
            parallel::each(
                tiles,
                x.len() * 4,
                || vec![[F::ZERO; 2]; half],
                |turns, (tile, (y, x))| {
                    for (i, (y, x)) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
                        let token = tile * TILE + i;
                        let position = positions[if shared { token % time } else { token }];
                        for (turn, &frequency) in turns.iter_mut().zip(&frequencies) {
                            // The angle as the definition rounds it.
                            let (sine, cosine) = (F::of(position as f64) * frequency).widen().sin_cos();
                            *turn = [F::of(cosine * scale), F::of(sine * scale * direction)];
                        }
                        for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
                            let ((first, second), (x1, x2)) = (y.split_at_mut(half), x.split_at(half));
                            for (i, &[cosine, sine]) in turns.iter().enumerate() {
                                first[i] = x1[i] * cosine - x2[i] * sine;
                                second[i] = x2[i] * cosine + x1[i] * sine;
                            }
                        }
                    }
                },
            );
        }
        Ok(y)
    }
}

impl Function for Turn {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let x = inputs.first().ok_or_else(|| Error::other("rotary: no input"))?;
        saved.save(x);
        Ok(vec![self.run(x, 1.0)?])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let definition = || {
            let x = saved.first().ok_or_else(|| Error::other("rotary: nothing was saved"))?;
            let (x, positions) = (x.f_transpose(1, 2)?, &self.positions);
            let args = Rotary { x: &x, positions, frequencies: &self.frequencies, scale: self.scale };
            let y = reference::rotary(&args)?.f_transpose(1, 2)?;
            Ok((y.shallow_clone(), y))
        };
        if let Some(gradients) = second::differentiable(saved, grads, definition) {
            return gradients;
        }
        let dy = grads.first().and_then(Option::as_ref);
        Ok(vec![dy.map(|dy| self.run(dy, -1.0)).transpose()?])
    }
}
