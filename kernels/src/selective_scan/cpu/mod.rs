//! The selective scan on the CPU: channels in the lanes of vectors, blocks of channels over the threads, time in
//! order; the state never leaves the registers for longer than a tile.
//!
//! The forward keeps the state at the start of every tile (`1 / 32` of all states); the backward goes through
//! each tile again from there. Results do not depend on the number of threads.

#![allow(clippy::inline_always)] // see `simd`

mod backward;
mod channel_grads;
mod forward;
mod problem;

use tch::{Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::tensors::{self, Slice};
use torch_bridge::{Error, Result};

use self::backward::{TokenGrads, Upstream};
use self::problem::Problem;
use super::given::Given;
use super::{SelectiveScan, reference};
use crate::operands::compute_kind;
use crate::second;
use crate::simd::Float;

/// Lanes of a block: one AVX-512 register, two of AVX2.
const LANES_F32: usize = 16;
const LANES_F64: usize = 8;

/// As [`selective_scan`](super::selective_scan), for CPU tensors that are not empty.
pub(super) fn selective_scan(args: &SelectiveScan<'_>) -> Result<(Tensor, Tensor)> {
    let kind = compute_kind(args.u);
    let plain = |x: &Tensor| x.to_kind(kind).contiguous();
    let scan = Scan { given: Given::of(args), kind };
    let mut inputs: Vec<Tensor> =
        [args.u, args.delta, args.a, args.b, args.c, args.initial_state].map(plain).into();
    inputs.extend([args.delta_bias, args.d, args.z, args.reset_state].into_iter().flatten().map(plain));
    inputs.extend([args.resets, args.valid].into_iter().flatten().map(Tensor::contiguous));
    let outputs = autograd::apply("selective_scan", scan, &inputs.iter().collect::<Vec<_>>())?;
    let [y, last] = two(outputs)?;
    Ok((y.to_kind(args.u.kind()), last.to_kind(args.initial_state.kind())))
}

fn two(outputs: Vec<Tensor>) -> Result<[Tensor; 2]> {
    outputs.try_into().map_err(|_| Error::other("selective_scan: not two outputs"))
}

/// The node of the graph. It saves the checkpoints and then its inputs.
struct Scan {
    given: Given,
    kind: Kind,
}

impl Function for Scan {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let args = self.given.operands(inputs)?;
        let keep = saved.needs_any_grad();
        let (outputs, checkpoints) = if self.kind == Kind::Double {
            forward::<f64, LANES_F64>(&args, keep)?
        } else {
            forward::<f32, LANES_F32>(&args, keep)?
        };
        if keep {
            saved.save(&checkpoints);
            for input in inputs {
                saved.save(input);
            }
        }
        Ok(outputs)
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let [checkpoints, inputs @ ..] = saved else {
            return Err(Error::other("selective_scan: nothing was saved"));
        };
        let args = self.given.operands(inputs)?;
        if let Some(gradients) =
            second::differentiable(inputs, grads, || Ok(reference::selective_scan(&args)))
        {
            return gradients;
        }
        let [y, last] = [0, 1].map(|index| grads.get(index).and_then(Option::as_ref).map(Tensor::contiguous));
        let upstream = [y.as_ref(), last.as_ref()];
        if self.kind == Kind::Double {
            backward::<f64, LANES_F64>(&args, checkpoints, upstream)
        } else {
            backward::<f32, LANES_F32>(&args, checkpoints, upstream)
        }
    }
}

/// `y`, the last state, and the checkpoints, which are empty unless they are to be kept.
fn forward<F: Float, const L: usize>(args: &SelectiveScan<'_>, keep: bool) -> Result<(Vec<Tensor>, Tensor)> {
    let operands = Operands::<F>::of(args)?;
    let problem = operands.problem(args);
    let kept =
        if keep { problem.batch * problem.blocks::<L>() * problem.tiles() * problem.d_state * L } else { 0 };
    let like = (F::KIND, args.u.device());
    let mut y = args.u.empty_like();
    let mut last = Tensor::empty([problem.batch as i64, args.a.size()[0], args.a.size()[1]], like);
    let mut checkpoints = Tensor::empty([kept as i64], like);
    {
        let mut y = tensors::slice_mut::<F>(&mut y)?;
        let mut last = tensors::slice_mut::<F>(&mut last)?;
        let mut checkpoints = tensors::slice_mut::<F>(&mut checkpoints)?;
        forward::scan::<F, L>(&problem, &mut y, &mut last, &mut checkpoints);
    }
    Ok((vec![y, last], checkpoints))
}

/// One gradient per input, in order.
fn backward<F: Float, const L: usize>(
    args: &SelectiveScan<'_>,
    checkpoints: &Tensor,
    [y, last]: [Option<&Tensor>; 2],
) -> Result<Vec<Option<Tensor>>> {
    let operands = Operands::<F>::of(args)?;
    let problem = operands.problem(args);
    let [y, last] = [optional(y)?, optional(last)?];
    let checkpoints = tensors::slice::<F>(checkpoints)?;
    let upstream = Upstream { checkpoints: &checkpoints, y: y.as_deref(), last: last.as_deref() };

    let [mut u, mut delta] = [args.u, args.delta].map(Tensor::empty_like);
    let [mut b, mut c] = [args.b, args.c].map(Tensor::zeros_like);
    let mut z = args.z.map_or_else(|| Tensor::empty([0], (F::KIND, args.u.device())), Tensor::empty_like);
    let shared = {
        let mut u = tensors::slice_mut::<F>(&mut u)?;
        let mut delta = tensors::slice_mut::<F>(&mut delta)?;
        let mut b = tensors::slice_mut::<F>(&mut b)?;
        let mut c = tensors::slice_mut::<F>(&mut c)?;
        let mut z = tensors::slice_mut::<F>(&mut z)?;
        let to = TokenGrads { u: &mut u, delta: &mut delta, b: &mut b, c: &mut c, z: &mut z };
        backward::gradients::<F, L>(&problem, upstream, to)
    };
    let filled = |like: Option<&Tensor>, fill: &dyn Fn(&mut [F])| -> Result<Option<Tensor>> {
        let Some(mut grad) = like.map(Tensor::zeros_like) else { return Ok(None) };
        tensors::with_slice_mut(&mut grad, fill)?;
        Ok(Some(grad))
    };

    let a = filled(Some(args.a), &|to| shared.a(to))?;
    let initial_state = filled(Some(args.initial_state), &|to| shared.initial_state(to))?;
    let mut grads = vec![Some(u), Some(delta), a, Some(b), Some(c), initial_state];
    // What is optional has a place in the list only if it was given.
    if args.delta_bias.is_some() {
        grads.push(filled(args.delta_bias, &|to| shared.delta_bias(to))?);
    }
    if args.d.is_some() {
        grads.push(filled(args.d, &|to| shared.d(to))?);
    }
    if args.z.is_some() {
        grads.push(Some(z));
    }
    if args.reset_state.is_some() {
        grads.push(filled(args.reset_state, &|to| shared.reset_state(to))?);
    }
    grads.extend([args.resets, args.valid].into_iter().flatten().map(|_| None));
    Ok(grads)
}

fn optional<T: tensors::Element>(x: Option<&Tensor>) -> Result<Option<Slice<'_, T>>> {
    x.map(tensors::slice).transpose()
}

/// The operands' memory, borrowed for a call.
struct Operands<'a, F> {
    u: Slice<'a, F>,
    delta: Slice<'a, F>,
    delta_bias: Option<Slice<'a, F>>,
    a: Slice<'a, F>,
    b: Slice<'a, F>,
    c: Slice<'a, F>,
    d: Option<Slice<'a, F>>,
    z: Option<Slice<'a, F>>,
    initial_state: Slice<'a, F>,
    reset_state: Option<Slice<'a, F>>,
    resets: Option<Slice<'a, bool>>,
    valid: Option<Slice<'a, bool>>,
}

impl<'a, F: Float> Operands<'a, F> {
    fn of(args: &SelectiveScan<'a>) -> Result<Self> {
        Ok(Self {
            u: tensors::slice(args.u)?,
            delta: tensors::slice(args.delta)?,
            delta_bias: optional(args.delta_bias)?,
            a: tensors::slice(args.a)?,
            b: tensors::slice(args.b)?,
            c: tensors::slice(args.c)?,
            d: optional(args.d)?,
            z: optional(args.z)?,
            initial_state: tensors::slice(args.initial_state)?,
            reset_state: optional(args.reset_state)?,
            resets: optional(args.resets)?,
            valid: optional(args.valid)?,
        })
    }

    fn problem(&self, args: &SelectiveScan<'_>) -> Problem<'_, F> {
        let (u, a) = (args.u.size(), args.a.size());
        Problem {
            batch: u[0] as usize,
            time: u[1] as usize,
            d_inner: u[2] as usize,
            d_state: a[1] as usize,
            u: &self.u,
            delta: &self.delta,
            delta_bias: self.delta_bias.as_deref(),
            delta_softplus: args.delta_softplus,
            a: &self.a,
            b: &self.b,
            c: &self.c,
            d: self.d.as_deref(),
            z: self.z.as_deref(),
            initial_state: &self.initial_state,
            reset_state: self.reset_state.as_deref(),
            resets: self.resets.as_deref(),
            valid: self.valid.as_deref(),
        }
    }
}
