//! The sLSTM on the CPU: a few rows of one head go through time together, so that a row of the recurrent matrix is read
//! once for all of them; units are in the lanes of vectors, heads and groups of rows over the threads.
//!
//! The forward keeps each token's pre-activations and the state before it; the gradient of the recurrent matrix is one
//! product over all tokens after the loop. Results do not depend on the number of threads.

#![allow(clippy::inline_always)] // see `simd`

mod backward;
mod cell;
mod forward;
mod product;

use tch::{Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::tensors::{self, Slice};
use torch_bridge::{Error, Result};

use super::{Slstm, SlstmState, reference};
use crate::operands::compute_kind;
use crate::second;
use crate::simd::Float;

/// Lanes of a vector: one AVX-512 register, two of AVX2.
const LANES_F32: usize = 16;
const LANES_F64: usize = 8;

/// Rows that go through time together.
const ROWS: usize = 4;

/// As [`slstm`](super::slstm), for CPU tensors that are not empty.
pub(super) fn slstm(args: &Slstm<'_>) -> Result<(Tensor, SlstmState)> {
    let kind = compute_kind(args.gates);
    let batch = args.gates.size()[0];
    let gates = args.gates.f_to_kind(kind)?;
    let gates = match args.bias {
        Some(bias) => gates + bias.f_to_kind(kind)?,
        None => gates,
    };
    let mut inputs = vec![
        gates.f_permute([3, 0, 1, 2, 4])?.f_contiguous()?,
        args.recurrent.f_to_kind(kind)?.f_transpose(0, 1)?.f_contiguous()?,
        pack(args.initial_state, batch, kind)?,
    ];
    let reset = args.reset_state.filter(|_| args.resets.is_some());
    inputs.extend(reset.map(|state| pack(state, batch, kind)).transpose()?);
    let given = Given { resets: reset.is_some(), valid: args.valid.is_some() };
    let resets = args.resets.filter(|_| given.resets);
    inputs.extend([resets, args.valid].into_iter().flatten().map(Tensor::contiguous));
    let node = Node { given, kind };
    let outputs = autograd::apply("slstm", node, &inputs.iter().collect::<Vec<_>>())?;
    let [h, last] = outputs.as_slice() else { return Err(Error::other("slstm: not two outputs")) };
    let h = h.f_permute([1, 2, 0, 3])?.f_to_kind(args.gates.kind())?;
    Ok((h, unpack(last, args.initial_state)?))
}

/// A state as `[heads, batch, 4, head_dim]`.
fn pack(state: &SlstmState, batch: i64, kind: Kind) -> Result<Tensor> {
    let part = |x: &Tensor| -> Result<Tensor> {
        let mut size = x.size();
        size[0] = batch;
        Ok(x.f_to_kind(kind)?.f_expand(size, false)?.f_transpose(0, 1)?)
    };
    let parts = state.parts().into_iter().map(part).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_stack(&parts, 2)?)
}

fn unpack(packed: &Tensor, like: &SlstmState) -> Result<SlstmState> {
    let part = |index: i64, like: &Tensor| -> Result<Tensor> {
        Ok(packed.f_select(2, index)?.f_transpose(0, 1)?.f_contiguous()?.f_to_kind(like.kind())?)
    };
    Ok(SlstmState { h: part(0, &like.h)?, c: part(1, &like.c)?, n: part(2, &like.n)?, m: part(3, &like.m)? })
}

/// Which of the optional operands follow the others in the list of inputs: reset state, resets, valid.
#[derive(Clone, Copy)]
struct Given {
    resets: bool,
    valid: bool,
}

/// The operands as they are computed with: heads in front, then rows.
struct Packed<'a> {
    /// `[heads, batch, time, 4, head_dim]`
    gates: &'a Tensor,
    /// `[heads, 4, head_dim, head_dim]`
    recurrent: &'a Tensor,
    /// `[heads, batch, 4, head_dim]`
    initial: &'a Tensor,
    reset: Option<&'a Tensor>,
    /// `[batch, time]`
    resets: Option<&'a Tensor>,
    valid: Option<&'a Tensor>,
}

impl Given {
    fn operands(self, inputs: &[Tensor]) -> Result<Packed<'_>> {
        let [gates, recurrent, initial, rest @ ..] = inputs else {
            return Err(Error::other("slstm: operands are missing"));
        };
        let mut rest = rest.iter();
        let mut next = |given: bool| if given { rest.next() } else { None };
        let (reset, resets) = (next(self.resets), next(self.resets));
        Ok(Packed { gates, recurrent, initial, reset, resets, valid: next(self.valid) })
    }
}

/// The definition's results in the packed layout.
fn definition(packed: &Packed<'_>) -> Result<(Tensor, Tensor)> {
    let state = |x: &Tensor| -> Result<SlstmState> {
        let part = |index: i64| -> Result<Tensor> { Ok(x.f_select(2, index)?.f_transpose(0, 1)?) };
        Ok(SlstmState { h: part(0)?, c: part(1)?, n: part(2)?, m: part(3)? })
    };
    let reset = packed.reset.map(state).transpose()?;
    let (h, last) = reference::slstm(&Slstm {
        gates: &packed.gates.f_permute([1, 2, 3, 0, 4])?,
        bias: None,
        recurrent: &packed.recurrent.f_transpose(0, 1)?,
        initial_state: &state(packed.initial)?,
        reset_state: reset.as_ref(),
        resets: packed.resets,
        valid: packed.valid,
    })?;
    let batch = packed.gates.size()[1];
    Ok((h.f_permute([2, 0, 1, 3])?, pack(&last, batch, packed.gates.kind())?))
}

/// The node of the graph. It saves the trace, the last state and then its inputs.
struct Node {
    given: Given,
    kind: Kind,
}

impl Function for Node {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let packed = self.given.operands(inputs)?;
        let keep = saved.needs_any_grad();
        let [h, last, trace] = if self.kind == Kind::Double {
            forward::<f64, LANES_F64>(&packed, keep)?
        } else {
            forward::<f32, LANES_F32>(&packed, keep)?
        };
        if keep {
            saved.save(&trace);
            saved.save(&last);
            for input in inputs {
                saved.save(input);
            }
        }
        Ok(vec![h, last])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let [trace, last, inputs @ ..] = saved else {
            return Err(Error::other("slstm: nothing was saved"));
        };
        let packed = self.given.operands(inputs)?;
        if let Some(gradients) = second::differentiable(inputs, grads, || definition(&packed)) {
            return gradients;
        }
        let [h, state] =
            [0, 1].map(|index| grads.get(index).and_then(Option::as_ref).map(Tensor::contiguous));
        let upstream = [h.as_ref(), state.as_ref()];
        if self.kind == Kind::Double {
            backward::<f64, LANES_F64>(&packed, [trace, last], upstream)
        } else {
            backward::<f32, LANES_F32>(&packed, [trace, last], upstream)
        }
    }
}

/// `h [heads, batch, time, head_dim]`, the last state `[heads, batch, 4, head_dim]`, and the trace, which is empty
/// unless it is to be kept.
fn forward<F: Float, const L: usize>(packed: &Packed<'_>, keep: bool) -> Result<[Tensor; 3]> {
    let sizes = Sizes::of(packed);
    // Columns in a row for each input: [heads, inputs, 4 head_dim].
    let recurrent = packed.recurrent.f_flatten(1, 2)?.f_transpose(1, 2)?.f_contiguous()?;
    let like = (F::KIND, packed.gates.device());
    let mut h = packed.gates.f_select(3, 0)?.f_empty_like()?.f_contiguous()?;
    let mut last = packed.initial.f_empty_like()?;
    let kept = if keep { packed.gates.numel() as i64 * 2 } else { 0 };
    let mut trace = Tensor::f_empty([kept], like)?;
    {
        let [gates, recurrent, initial] = [
            tensors::slice::<F>(packed.gates)?,
            tensors::slice(&recurrent)?,
            tensors::slice(packed.initial)?,
        ];
        let reset = optional::<F>(packed.reset)?;
        let [resets, valid] = [optional::<bool>(packed.resets)?, optional::<bool>(packed.valid)?];
        let tokens = Tokens { resets: resets.as_deref(), valid: valid.as_deref() };
        let mut h = tensors::slice_mut::<F>(&mut h)?;
        let mut last = tensors::slice_mut::<F>(&mut last)?;
        let mut trace = tensors::slice_mut::<F>(&mut trace)?;
        let from = forward::Operands {
            gates: &gates,
            recurrent: &recurrent,
            initial: &initial,
            reset: reset.as_deref(),
            tokens,
        };
        forward::run::<F, L>(sizes, from, forward::Results { h: &mut h, last: &mut last, trace: &mut trace });
    }
    Ok([h, last, trace])
}

/// One gradient per input, in order.
fn backward<F: Float, const L: usize>(
    packed: &Packed<'_>,
    [trace, last]: [&Tensor; 2],
    [h, state]: [Option<&Tensor>; 2],
) -> Result<Vec<Option<Tensor>>> {
    let sizes = Sizes::of(packed);
    let mut gates = packed.gates.f_empty_like()?;
    let mut initial = packed.initial.f_empty_like()?;
    let mut reset = match packed.reset {
        Some(reset) => reset.f_zeros_like()?,
        None => Tensor::f_empty([0], (F::KIND, packed.gates.device()))?,
    };
    {
        let [recurrent, states, last] =
            [tensors::slice::<F>(packed.recurrent)?, tensors::slice(trace)?, tensors::slice(last)?];
        let [h, state] = [optional::<F>(h)?, optional::<F>(state)?];
        let [resets, valid] = [optional::<bool>(packed.resets)?, optional::<bool>(packed.valid)?];
        let tokens = Tokens { resets: resets.as_deref(), valid: valid.as_deref() };
        let mut gates = tensors::slice_mut::<F>(&mut gates)?;
        let mut initial = tensors::slice_mut::<F>(&mut initial)?;
        let mut reset = tensors::slice_mut::<F>(&mut reset)?;
        let from = backward::Operands {
            recurrent: &recurrent,
            trace: &states,
            last: &last,
            upstream_h: h.as_deref(),
            upstream_last: state.as_deref(),
            tokens,
        };
        let to = backward::Gradients { gates: &mut gates, initial: &mut initial, reset: &mut reset };
        backward::run::<F, L>(sizes, from, to);
    }
    // dR = sum over tokens of dgates h_before^T, for each head.
    let [heads, batch, time, dim] = [sizes.heads, sizes.batch, sizes.time, sizes.head_dim].map(|x| x as i64);
    let before = trace.f_view([heads, batch * time, 8, dim])?.f_select(2, 4)?;
    let flat = gates.f_view([heads, batch * time, 4 * dim])?;
    let recurrent = flat.f_transpose(1, 2)?.f_matmul(&before)?.f_view([heads, 4, dim, dim])?;
    let mut grads = vec![Some(gates), Some(recurrent), Some(initial)];
    if packed.reset.is_some() {
        grads.push(Some(reset));
    }
    grads.extend([packed.resets, packed.valid].into_iter().flatten().map(|_| None));
    Ok(grads)
}

fn optional<T: tensors::Element>(x: Option<&Tensor>) -> Result<Option<Slice<'_, T>>> {
    x.map(tensors::slice).transpose()
}

#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    batch: usize,
    time: usize,
    head_dim: usize,
}

impl Sizes {
    fn of(packed: &Packed<'_>) -> Self {
        let [heads, batch, time, head_dim] = [0, 1, 2, 4].map(|i| packed.gates.size()[i] as usize);
        Self { heads, batch, time, head_dim }
    }

    /// Multiplications of the recurrence.
    fn steps(self) -> usize {
        self.heads * self.batch * self.time * 4 * self.head_dim * self.head_dim
    }
}

/// Which tokens start a document and which count, `[batch, time]`.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    resets: Option<&'a [bool]>,
    valid: Option<&'a [bool]>,
}

impl Tokens<'_> {
    #[inline(always)]
    fn is_valid(&self, at: usize) -> bool {
        self.valid.is_none_or(|valid| valid[at])
    }

    #[inline(always)]
    fn is_reset(&self, at: usize) -> bool {
        self.resets.is_some_and(|resets| resets[at])
    }
}
