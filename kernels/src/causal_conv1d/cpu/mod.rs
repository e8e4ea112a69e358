//! The causal convolution on the CPU: channels in the lanes of vectors, tiles of tokens over the threads. Results
//! do not depend on the number of threads.

#![allow(clippy::inline_always)] // see `simd`

mod backward;
mod forward;
mod problem;

use tch::{Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::tensors::{self, Slice};
use torch_bridge::{Error, Result};

use self::backward::Upstream;
use self::problem::Problem;
use super::given::Given;
use super::{CausalConv1d, reference};
use crate::operands::compute_kind;
use crate::second;
use crate::simd::Float;

const LANES_F32: usize = 16;
const LANES_F64: usize = 8;

/// As [`causal_conv1d`](super::causal_conv1d), for CPU tensors that are not empty.
pub(super) fn causal_conv1d(args: &CausalConv1d<'_>) -> Result<(Tensor, Tensor)> {
    let kind = compute_kind(args.x);
    let plain = |x: &Tensor| x.to_kind(kind).contiguous();
    let given = Given::of(args);
    let mut inputs: Vec<Tensor> = [args.x, args.weight, args.tail].map(plain).into();
    inputs.extend([args.bias, args.reset_tail].into_iter().flatten().map(plain));
    inputs.extend([args.resets, args.lengths].into_iter().flatten().map(Tensor::contiguous));
    let outputs =
        autograd::apply("causal_conv1d", Convolution { given, kind }, &inputs.iter().collect::<Vec<_>>())?;
    let [y, tail]: [Tensor; 2] =
        outputs.try_into().map_err(|_| Error::other("causal_conv1d: not two outputs"))?;
    Ok((y.to_kind(args.x.kind()), tail.to_kind(args.tail.kind())))
}

/// The node of the graph. It saves its inputs.
struct Convolution {
    given: Given,
    kind: Kind,
}

impl Function for Convolution {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let args = self.given.operands(inputs)?;
        if saved.needs_any_grad() {
            for input in inputs {
                saved.save(input);
            }
        }
        if self.kind == Kind::Double {
            forward::<f64, LANES_F64>(&args)
        } else {
            forward::<f32, LANES_F32>(&args)
        }
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let args = self.given.operands(saved)?;
        if let Some(gradients) = second::differentiable(saved, grads, || Ok(reference::causal_conv1d(&args)))
        {
            return gradients;
        }
        let [y, tail] = [0, 1].map(|index| grads.get(index).and_then(Option::as_ref).map(Tensor::contiguous));
        let upstream = [y.as_ref(), tail.as_ref()];
        if self.kind == Kind::Double {
            backward::<f64, LANES_F64>(&args, upstream)
        } else {
            backward::<f32, LANES_F32>(&args, upstream)
        }
    }
}

fn forward<F: Float, const L: usize>(args: &CausalConv1d<'_>) -> Result<Vec<Tensor>> {
    let operands = Operands::<F>::of(args)?;
    let problem = operands.problem(args);
    let mut y = args.x.empty_like();
    let shape = [problem.batch, problem.history(), problem.d].map(|size| size as i64);
    let mut new_tail = Tensor::empty(shape, (F::KIND, args.x.device()));
    {
        let mut y = tensors::slice_mut::<F>(&mut y)?;
        let mut new_tail = tensors::slice_mut::<F>(&mut new_tail)?;
        forward::convolve::<F, L>(&problem, &mut y, &mut new_tail);
    }
    Ok(vec![y, new_tail])
}

/// One gradient per input, in order.
fn backward<F: Float, const L: usize>(
    args: &CausalConv1d<'_>,
    [y, new_tail]: [Option<&Tensor>; 2],
) -> Result<Vec<Option<Tensor>>> {
    let operands = Operands::<F>::of(args)?;
    let problem = operands.problem(args);
    let [y, new_tail] = [optional(y)?, optional(new_tail)?];
    let upstream = Upstream { y: y.as_deref(), new_tail: new_tail.as_deref() };
    let mut x = args.x.empty_like();
    let shared =
        tensors::with_slice_mut(&mut x, |x: &mut [F]| backward::gradients::<F, L>(&problem, upstream, x))?;

    let (d, width) = (problem.d as i64, problem.width as i64);
    let rows = |values: &[F], like: &Tensor| -> Result<Tensor> {
        let all = copied(values, &[problem.batch as i64, width - 1, d])?;
        // One row at a time, in order: a sum of torch may depend on the number of threads.
        let shared = like.size()[0] == 1 && problem.batch > 1;
        if !shared {
            return Ok(all);
        }
        let mut sum = all.narrow(0, 0, 1).copy();
        for row in 1..problem.batch as i64 {
            sum += all.narrow(0, row, 1);
        }
        Ok(sum)
    };
    let weight = copied(&shared.taps, &[width, d])?.transpose(0, 1).contiguous();
    let mut grads = vec![Some(x), Some(weight), Some(rows(&shared.tail, args.tail)?)];
    if args.bias.is_some() {
        grads.push(Some(copied(&shared.bias, &[d])?));
    }
    if let Some(reset_tail) = args.reset_tail {
        grads.push(Some(rows(&shared.reset_tail, reset_tail)?));
    }
    grads.extend([args.resets, args.lengths].into_iter().flatten().map(|_| None));
    Ok(grads)
}

fn copied<F: Float>(values: &[F], shape: &[i64]) -> Result<Tensor> {
    let mut tensor = Tensor::empty(shape, (F::KIND, tch::Device::Cpu));
    tensors::with_slice_mut(&mut tensor, |to: &mut [F]| to.copy_from_slice(values))?;
    Ok(tensor)
}

fn optional<T: tensors::Element>(x: Option<&Tensor>) -> Result<Option<Slice<'_, T>>> {
    x.map(tensors::slice).transpose()
}

/// The operands' memory, borrowed for a call.
struct Operands<'a, F> {
    x: Slice<'a, F>,
    weight: Slice<'a, F>,
    bias: Option<Slice<'a, F>>,
    tail: Slice<'a, F>,
    reset_tail: Option<Slice<'a, F>>,
    resets: Option<Slice<'a, bool>>,
    lengths: Option<Slice<'a, i64>>,
}

impl<'a, F: Float> Operands<'a, F> {
    fn of(args: &CausalConv1d<'a>) -> Result<Self> {
        Ok(Self {
            x: tensors::slice(args.x)?,
            weight: tensors::slice(args.weight)?,
            bias: optional(args.bias)?,
            tail: tensors::slice(args.tail)?,
            reset_tail: optional(args.reset_tail)?,
            resets: optional(args.resets)?,
            lengths: optional(args.lengths)?,
        })
    }

    fn problem(&self, args: &CausalConv1d<'_>) -> Problem<'_, F> {
        let (x, weight) = (args.x.size(), args.weight.size());
        Problem::new(
            [x[0], x[1], x[2], weight[1]].map(|size| size as usize),
            args.silu,
            &self.x,
            &self.weight,
            self.bias.as_deref(),
            [Some(&self.tail), self.reset_tail.as_deref()],
            self.resets.as_deref(),
            self.lengths.as_deref(),
        )
    }
}
