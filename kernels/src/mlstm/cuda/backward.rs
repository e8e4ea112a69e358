//! The mLSTM's backward: queries, gradients of the states after the chunks, keys and values, gates.

use tch::{Kind, Tensor};
use torch_bridge::{Error, Result};

use super::forward::Found;
use super::kernels::{Kernels, aligned, floats, halves, rounded_state, tokens};
use crate::cuda::launch::{Launch, Shape, blocks};
use crate::mlstm::{Mlstm, MlstmState};

/// Gradients of q, k, v, the gates, the initial state and the reset state if there is one.
pub(super) fn backward(
    args: &Mlstm<'_>,
    kernels: &Kernels,
    found: &Found,
    last: [&Tensor; 2],
    grads: &[Option<Tensor>],
) -> Result<Vec<Option<Tensor>>> {
    let sizes = kernels.sizes;
    let loaded = kernels.backward.ok_or_else(|| Error::other("mlstm: no backward was loaded"))?;
    let device = args.q.device();
    let (rows, padded, chunks) = (sizes.rows(), sizes.padded(), sizes.chunks);
    let [batch, time, heads, d_qk, d_v] = [sizes.batch, sizes.time, sizes.heads, sizes.d_qk, sizes.d_v];
    let given = |index: usize| grads.get(index).and_then(Option::as_ref);
    let dh = match given(0) {
        Some(dh) => aligned(dh)?,
        None => Tensor::f_zeros([batch, time, heads, d_v], (Kind::BFloat16, device))?,
    };
    let wide = |index: usize| given(index).map(Tensor::f_contiguous).transpose();
    let (dc, dn, dm) = (wide(1)?, wide(2)?, wide(3)?);
    let scale = scale_of_the_last([dc.as_ref(), dn.as_ref()], last)?;
    let grid = |count: i64| -> Result<[u32; 3]> { Ok([blocks(count, 1)?, 1, 1]) };
    let items = rows * chunks;
    let n_fresh = args.reset_state.map(|state| &state.n);

    let query = floats(&[rows, padded, 4], device)?;
    let (weight_c, weight_n) = (floats(&[rows, padded], device)?, floats(&[rows, padded], device)?);
    let dq = halves(&[batch, time, heads, d_qk], device)?;
    let launch = operands(loaded.queries.kernel("mlstm_queries")?, args, &dh)
        .tensor(&found.row, Kind::Float)
        .tensor(&found.column, Kind::Float)
        .tensor(&found.before, Kind::Float)
        .tensor(&found.bound, Kind::Float)
        .tensor(&found.first, Kind::Int)
        .tensor(&found.c, Kind::BFloat16)
        .tensor(&found.n, Kind::Float);
    let launch = rounded_state(launch, found.fresh.as_ref())
        .state(n_fresh)
        .tensor(&found.q_n, Kind::Float)
        .tensor(&dq, Kind::BFloat16)
        .tensor(&query, Kind::Float)
        .tensor(&weight_c, Kind::Float)
        .tensor(&weight_n, Kind::Float)
        .i64(time)
        .i64(heads)
        .i64(chunks)
        .i64(items)
        .i64(d_qk)
        .i64(d_v)
        .f32(sizes.scale())
        .f32(args.eps as f32);
    let shape = |bytes: i64| -> Result<Shape> {
        let blocks = items.min(loaded.queries.multiprocessors());
        Ok(Shape { grid: grid(blocks)?, block: [2 * sizes.chunk as u32, 1, 1], shared: bytes as u32 })
    };
    // SAFETY: the kernel's parameters in its order; operands and what the forward found have their shapes, gradients those
    // of the outputs, results those made above.
    unsafe { launch.run(shape(sizes.queries_bytes())?) }?;

    let rounded = halves(&[rows, chunks, d_qk, d_v], device)?;
    let normaliser = floats(&[rows, chunks, d_qk], device)?;
    let parts = 8 * sizes.state_tiles();
    let along = floats(&[rows, chunks, parts], device)?;
    let (of_c, of_n) = ([batch, heads, d_qk, d_v], [batch, heads, d_qk]);
    let (dc0, dn0) = (floats(&of_c, device)?, floats(&of_n, device)?);
    let zeros = |shape: &[i64]| Tensor::f_zeros(shape, (Kind::Float, device));
    let fresh = match args.reset_state {
        Some(_) => Some((zeros(&of_c)?, zeros(&of_n)?)),
        None => None,
    };
    let (fresh_c, fresh_n) = (fresh.as_ref().map(|(c, _)| c), fresh.as_ref().map(|(_, n)| n));
    let every = |x: Option<&Tensor>| x.map_or(0, |x| x.stride()[0]);
    let launch = tokens(loaded.states.kernel("mlstm_states")?, args.q, Kind::BFloat16);
    let launch = tokens(launch, &dh, Kind::BFloat16)
        .optional(args.valid, Kind::Bool)
        .tensor(&weight_c, Kind::Float)
        .tensor(&weight_n, Kind::Float)
        .tensor(&found.first, Kind::Int)
        .tensor(&found.kept, Kind::Float)
        .optional(dc.as_ref(), Kind::Float)
        .i64(every(dc.as_ref()))
        .optional(dn.as_ref(), Kind::Float)
        .i64(every(dn.as_ref()))
        .optional(fresh_c, Kind::Float)
        .i64(every(fresh_c))
        .optional(fresh_n, Kind::Float)
        .i64(every(fresh_n))
        .tensor(&found.c, Kind::BFloat16);
    let launch = rounded_state(launch, found.fresh.as_ref())
        .tensor(&rounded, Kind::BFloat16)
        .tensor(&normaliser, Kind::Float)
        .tensor(&along, Kind::Float)
        .tensor(&dc0, Kind::Float)
        .tensor(&dn0, Kind::Float)
        .i64(time)
        .i64(heads)
        .i64(chunks)
        .i64(d_qk)
        .i64(d_v);
    let states = Shape {
        grid: grid(rows * sizes.state_tiles())?,
        block: [256, 1, 1],
        shared: sizes.states_backward_bytes() as u32,
    };
    // SAFETY: as above.
    unsafe { launch.run(states) }?;

    let (dk, dv) =
        (halves(&[batch, time, heads, d_qk], device)?, halves(&[batch, time, heads, d_v], device)?);
    let key = floats(&[rows, padded, 2], device)?;
    let launch = operands(loaded.keys.kernel("mlstm_keys")?, args, &dh)
        .tensor(&found.row, Kind::Float)
        .tensor(&found.column, Kind::Float)
        .tensor(&found.written, Kind::Float)
        .tensor(&found.first, Kind::Int)
        .tensor(&query, Kind::Float)
        .tensor(&rounded, Kind::BFloat16)
        .tensor(&normaliser, Kind::Float)
        .tensor(&dk, Kind::BFloat16)
        .tensor(&dv, Kind::BFloat16)
        .tensor(&key, Kind::Float)
        .i64(time)
        .i64(heads)
        .i64(chunks)
        .i64(items)
        .i64(d_qk)
        .i64(d_v)
        .f32(sizes.scale());
    // SAFETY: as above.
    unsafe { launch.run(shape(sizes.keys_bytes())?) }?;

    let gate = || floats(&[batch, time, heads], device);
    let (dinput, dforget) = (gate()?, gate()?);
    let (dm0, dm_fresh) = (floats(&[batch, heads], device)?, floats(&[batch, heads], device)?);
    let launch = tokens(loaded.gates.kernel("mlstm_gates_backward")?, args.forget_gate, Kind::Float)
        .optional(args.resets, Kind::Bool)
        .optional(args.valid, Kind::Bool)
        .tensor(&query, Kind::Float)
        .tensor(&key, Kind::Float)
        .tensor(&found.first, Kind::Int)
        .tensor(&found.source, Kind::Uint8)
        .tensor(&found.kept, Kind::Float)
        .tensor(&along, Kind::Float)
        .tensor(&normaliser, Kind::Float)
        .tensor(&found.n, Kind::Float)
        .state(n_fresh)
        .optional(dm.as_ref(), Kind::Float)
        .optional(scale.as_ref(), Kind::Float)
        .tensor(&dinput, Kind::Float)
        .tensor(&dforget, Kind::Float)
        .tensor(&dm0, Kind::Float)
        .tensor(&dm_fresh, Kind::Float)
        .i64(time)
        .i64(heads)
        .i64(chunks)
        .i64(parts)
        .i64(d_qk);
    // SAFETY: as above.
    unsafe { launch.run(Shape { grid: grid(rows)?, block: [1024, 1, 1], shared: 0 }) }?;

    let mut gradients: Vec<_> = [dq, dk, dv, dinput, dforget].map(Some).into();
    gradients.extend(of_state([dc0, dn0, dm0], args.initial_state)?);
    if let (Some((c, n)), Some(state)) = (fresh, args.reset_state) {
        gradients.extend(of_state([c, n, dm_fresh], state)?);
    }
    Ok(gradients)
}

/// q, k, v and dh with their strides, then which tokens count.
fn operands<'a>(launch: Launch<'a>, args: &Mlstm<'a>, dh: &'a Tensor) -> Launch<'a> {
    let all = [args.q, args.k, args.v, dh];
    all.into_iter()
        .fold(launch, |launch, x| tokens(launch, x, Kind::BFloat16))
        .optional(args.valid, Kind::Bool)
}

/// What the gradient of the last state says of its scale, `dC C + dn n`.
fn scale_of_the_last(grads: [Option<&Tensor>; 2], last: [&Tensor; 2]) -> Result<Option<Tensor>> {
    let mut scale: Option<Tensor> = None;
    for (grad, last) in grads.into_iter().zip(last) {
        let Some(grad) = grad else { continue };
        let part = over_entries(&grad.f_mul(last)?)?;
        scale = Some(match scale {
            Some(scale) => scale.f_add(&part)?,
            None => part,
        });
    }
    Ok(scale)
}

/// `[batch, heads, ..]` summed over all but batch and heads.
fn over_entries(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_flatten(2, -1)?.f_sum_dim_intlist([2_i64].as_slice(), false, None)?)
}

/// Gradients of a state, summed over the rows that share it. `C e^m` is what is meant, so that of `m` has what those of `C`
/// and `n` say of their scale.
fn of_state([dc, dn, dm]: [Tensor; 3], state: &MlstmState) -> Result<Vec<Option<Tensor>>> {
    let of_c = over_entries(&dc.f_mul(&state.c)?)?;
    let dm = dm.f_add(&of_c)?.f_add(&over_entries(&dn.f_mul(&state.n)?)?)?;
    let mut gradients = Vec::new();
    for (grad, like) in [(dc, &state.c), (dn, &state.n), (dm, &state.m)] {
        let shared = like.size()[0] == 1 && grad.size()[0] > 1;
        let summed = shared.then(|| grad.f_sum_dim_intlist([0_i64].as_slice(), true, None)).transpose()?;
        gradients.push(Some(summed.unwrap_or(grad)));
    }
    Ok(gradients)
}
