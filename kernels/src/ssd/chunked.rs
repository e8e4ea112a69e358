//! The chunked form in bounded memory: a sequence is a row of runs, each as long as its matrices may be.
//!
//! One run is differentiated by autograd as it is. Of several, only the states between them are kept; the backward
//! goes through them from the last to the first and makes each run's matrices again.

use tch::{Kind, Tensor};
use torch_bridge::autograd::{self, Function, GradOptions, Saved};
use torch_bridge::guards::EnableGrad;
use torch_bridge::{Error, Result};

use super::{Ssd, chunk};
use crate::{operands::compute_kind, second};

/// Tokens of a chunk when the caller does not say.
const CHUNK: i64 = 64;

/// Elements of the matrices `[batch, chunks, heads, length, length]` of one run when the caller does not say.
pub(super) const RUN_ELEMENTS: i64 = 1 << 24;

/// As [`chunked_within`](super::chunked_within), for operands that were checked, without padding and not empty.
pub(super) fn ssd(args: &Ssd<'_>, run_elements: i64) -> Result<(Tensor, Tensor)> {
    let kind = compute_kind(args.x);
    let wide = |x: &Tensor| x.f_to_kind(kind);
    let (size, state_size, state_kind) =
        (args.x.size(), args.initial_state.size(), args.initial_state.kind());
    let (batch, time, heads) = (size[0], size[1], size[2]);
    let length = args.chunk_size.unwrap_or(CHUNK).min(time);
    let run = (run_elements / (batch * heads * length * length)).max(1) * length;
    // What every run reads is widened once; what belongs to tokens, run by run.
    let (a, d) = (wide(args.a)?, args.d.map(wide).transpose()?);
    let reset_state = args.reset_state.filter(|_| args.resets.is_some()).map(wide).transpose()?;
    let start = wide(args.initial_state)?.f_expand([batch, heads, state_size[2], state_size[3]], false)?;
    let args =
        Ssd { a: &a, d: d.as_ref(), initial_state: &start, reset_state: reset_state.as_ref(), ..*args };
    let (inputs, runs) = (Given::inputs(&args), Runs { given: Given::of(&args), length, run, kind });
    let outputs = if run < time {
        autograd::apply("ssd", runs, &inputs)?
    } else {
        let (y, last) = chunk::run(&args, &start, length, kind)?;
        vec![y.f_to_kind(args.x.kind())?, last]
    };
    let [y, last] = outputs.try_into().map_err(|_| Error::other("ssd: not two outputs"))?;
    Ok((y, last.f_to_kind(state_kind)?))
}

/// Which of the optional operands follow the others in the list of inputs, in this order.
#[derive(Clone, Copy)]
struct Given {
    d: bool,
    reset_state: bool,
    resets: bool,
}

/// Inputs of the list that have a dimension of time: `x`, `dt`, `b`, `c`.
const OF_TOKENS: usize = 4;

impl Given {
    fn of(args: &Ssd<'_>) -> Self {
        Self { d: args.d.is_some(), reset_state: args.reset_state.is_some(), resets: args.resets.is_some() }
    }

    fn inputs<'a>(args: &Ssd<'a>) -> Vec<&'a Tensor> {
        let mut inputs = vec![args.x, args.dt, args.b, args.c, args.initial_state, args.a];
        inputs.extend([args.d, args.reset_state, args.resets].into_iter().flatten());
        inputs
    }

    /// The operands again, from a list that starts with the inputs.
    fn operands(self, inputs: &[Tensor]) -> Result<Ssd<'_>> {
        let [x, dt, b, c, initial_state, a, rest @ ..] = inputs else {
            return Err(Error::other("ssd: operands are missing"));
        };
        let mut rest = rest.iter();
        let mut next = |given: bool| if given { rest.next() } else { None };
        Ok(Ssd {
            x,
            dt,
            a,
            b,
            c,
            initial_state,
            d: next(self.d),
            reset_state: next(self.reset_state),
            resets: next(self.resets),
            valid: None,
            chunk_size: None,
        })
    }
}

/// The node of the graph. It saves its inputs and then the state before each run.
struct Runs {
    given: Given,
    length: i64,
    run: i64,
    kind: Kind,
}

impl Runs {
    /// The inputs of the run that starts at token `from`, its state left out.
    fn cut(&self, inputs: &[Tensor], from: i64) -> Result<Vec<Tensor>> {
        let count = self.run.min(inputs[0].size()[1] - from);
        let of_time = |index: usize| index < OF_TOKENS || (self.given.resets && index == inputs.len() - 1);
        let cut = inputs.iter().enumerate().map(|(index, input)| {
            Ok(if of_time(index) { input.f_narrow(1, from, count)? } else { input.shallow_clone() })
        });
        cut.collect()
    }

    /// `y` in `x`'s dtype and the state after one run.
    fn forward_run(&self, inputs: &[Tensor]) -> Result<(Tensor, Tensor)> {
        let args = self.given.operands(inputs)?;
        let (y, last) = chunk::run(&args, args.initial_state, self.length, self.kind)?;
        Ok((y.f_to_kind(args.x.kind())?, last))
    }

    fn backward_run(&self, inputs: &[Tensor], grads: [Option<Tensor>; 2]) -> Result<Vec<Option<Tensor>>> {
        let _guard = EnableGrad::new();
        let leaf = |x: &Tensor| -> Result<Tensor> {
            Ok(if x.is_floating_point() {
                x.f_detach()?.f_set_requires_grad(true)?
            } else {
                x.shallow_clone()
            })
        };
        let leaves = inputs.iter().map(leaf).collect::<Result<Vec<_>>>()?;
        let (y, last) = self.forward_run(&leaves)?;
        let given = [y, last].into_iter().zip(grads).filter(|(_, grad)| grad.is_some());
        let (outputs, grads): (Vec<_>, Vec<_>) = given.unzip();
        if outputs.is_empty() {
            return Ok(inputs.iter().map(|_| None).collect());
        }
        let wanted: Vec<&Tensor> = leaves.iter().filter(|leaf| leaf.requires_grad()).collect();
        let options = GradOptions { allow_unused: true, ..GradOptions::default() };
        let mut found = autograd::grad(&outputs, Some(&grads), &wanted, options)?.into_iter();
        Ok(leaves
            .iter()
            .map(|leaf| if leaf.requires_grad() { found.next().flatten() } else { None })
            .collect())
    }
}

/// Index of the state in the list of inputs.
const STATE: usize = OF_TOKENS;

impl Function for Runs {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let time = inputs[0].size()[1];
        let keep = saved.needs_any_grad();
        if keep {
            for input in inputs {
                saved.save(input);
            }
        }
        let (mut h, mut ys, mut from) = (inputs[STATE].shallow_clone(), Vec::new(), 0);
        while from < time {
            let mut cut = self.cut(inputs, from)?;
            if keep {
                saved.save(&h);
            }
            cut[STATE] = h;
            let (y, last) = self.forward_run(&cut)?;
            ys.push(y);
            h = last;
            from += self.run;
        }
        Ok(vec![Tensor::f_cat(&ys, 1)?, h])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let time = saved[0].size()[1];
        let runs = (time + self.run - 1) / self.run;
        let (inputs, states) = saved.split_at(saved.len() - runs as usize);
        // For gradients of gradients, all runs as one.
        if let Some(gradients) = second::differentiable(inputs, grads, || self.forward_run(inputs)) {
            return gradients;
        }
        let of_y = grads.first().and_then(Option::as_ref);
        let mut of_state = grads.get(1).and_then(Option::as_ref).map(Tensor::shallow_clone);
        let mut of_tokens: Vec<Vec<Tensor>> = (0..OF_TOKENS).map(|_| Vec::new()).collect();
        let mut shared: Vec<Option<Tensor>> = inputs.iter().map(|_| None).collect();
        for run in (0..runs).rev() {
            let mut cut = self.cut(inputs, run * self.run)?;
            cut[STATE] = states[run as usize].shallow_clone();
            let count = cut[0].size()[1];
            let of_y = of_y.map(|grad| grad.f_narrow(1, run * self.run, count)).transpose()?;
            let found = self.backward_run(&cut, [of_y, of_state.take()])?;
            for (index, grad) in found.into_iter().enumerate() {
                if index < OF_TOKENS {
                    of_tokens[index].push(grad.map_or_else(|| cut[index].f_zeros_like(), Ok)?);
                } else if index == STATE {
                    of_state = grad;
                } else if let Some(grad) = grad {
                    let sum = &mut shared[index];
                    *sum = Some(match sum.take() {
                        Some(sum) => sum.f_add(&grad)?,
                        None => grad,
                    });
                }
            }
        }
        for (index, mut parts) in of_tokens.into_iter().enumerate() {
            parts.reverse();
            shared[index] = Some(Tensor::f_cat(&parts, 1)?);
        }
        shared[STATE] = of_state;
        Ok(shared)
    }
}
