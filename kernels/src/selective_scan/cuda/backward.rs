//! The backward's launches.

use tch::{Kind, Tensor};
use torch_bridge::{Error, Result};

use super::SelectiveScan;
use super::combine::combine;
use super::kernels::{Kernels, Sizes, shared_bytes, small};

/// One gradient per input, in order.
pub(super) fn backward(
    args: &SelectiveScan<'_>,
    kernels: &Kernels,
    checkpoints: &Tensor,
    dy: Option<&Tensor>,
    dlast: Option<&Tensor>,
) -> Result<Vec<Option<Tensor>>> {
    let pass = kernels.backward.ok_or_else(|| Error::other("selective_scan: no backward was loaded"))?;
    let (element, sizes) = (kernels.element, Sizes::of(args, kernels, pass));
    let (batch, time, d_inner, states) = (sizes.batch, sizes.time, sizes.d_inner, sizes.states);
    let float = (Kind::Float, args.u.device());
    let dy = match dy {
        Some(dy) if dy.stride()[2] == 1 => dy.shallow_clone(),
        Some(dy) => dy.f_contiguous()?,
        None => Tensor::f_zeros(args.u.size(), (element, args.u.device()))?,
    };
    let dlast = dlast.map(Tensor::contiguous);

    let carry = if sizes.segments > 1 {
        let local = Tensor::f_empty(sizes.states_of_segments(), float)?;
        let delta_sum = Tensor::f_empty([batch, sizes.segments, d_inner], float)?;
        let launch = pass
            .loaded
            .kernel("selective_scan_local_backward")?
            .rows(args.delta, element)
            .rows(args.c, element)
            .optional_rows(args.z, element)
            .rows(&dy, element)
            .tensor(args.a, Kind::Float)
            .optional(args.delta_bias, Kind::Float)
            .optional(args.resets, Kind::Bool)
            .optional(args.valid, Kind::Bool)
            .tensor(&local, Kind::Float)
            .tensor(&delta_sum, Kind::Float)
            .i64(time)
            .i64(d_inner)
            .i64(sizes.segment);
        // SAFETY: the kernel's parameters in its order; `check` has seen to the operands' shapes, the gradients have
        // those of the outputs, and the rest was made to the documented ones here.
        unsafe { launch.run(sizes.shape(pass, 0)?) }?;
        combine(kernels, &sizes, args.a, &local, &delta_sum, dlast.as_ref(), true)?;
        Some(local)
    } else {
        dlast
    };

    let like = |x: &Tensor| Tensor::f_empty(x.size(), (element, x.device()));
    let (du, ddelta) = (like(args.u)?, like(args.delta)?);
    let dz = args.z.map(like).transpose()?;
    let grid = sizes.shape(pass, shared_bytes(pass.loaded)?)?;
    let channel_blocks = i64::from(grid.grid[0]);
    let projections = Tensor::f_empty([channel_blocks, batch, time, 2, states], float)?;
    let columns = sizes.state() + 2 * d_inner;
    let parameters = Tensor::f_empty([batch * sizes.segments, columns], float)?;
    let dstart = Tensor::f_empty(sizes.states_of_rows(), float)?;
    let masks = args.resets.is_some() || args.valid.is_some();
    let dreset = masks.then(|| Tensor::f_empty(sizes.states_of_segments(), float)).transpose()?;
    let launch = pass
        .loaded
        .kernel("selective_scan_backward")?
        .rows(args.u, element)
        .rows(args.delta, element)
        .rows(args.b, element)
        .rows(args.c, element)
        .optional_rows(args.z, element)
        .rows(&dy, element)
        .tensor(args.a, Kind::Float)
        .optional(args.delta_bias, Kind::Float)
        .optional(args.d, Kind::Float)
        .state(args.reset_state)
        .optional(args.resets, Kind::Bool)
        .optional(args.valid, Kind::Bool)
        .tensor(checkpoints, Kind::Float)
        .optional(carry.as_ref(), Kind::Float)
        .i64(sizes.segments * sizes.state())
        .i64(sizes.state())
        .tensor(&du, element)
        .tensor(&ddelta, element)
        .optional(dz.as_ref(), element)
        .tensor(&projections, Kind::Float)
        .tensor(&parameters, Kind::Float)
        .tensor(&dstart, Kind::Float)
        .optional(dreset.as_ref(), Kind::Float)
        .i64(time)
        .i64(d_inner)
        .i64(sizes.segment);
    // SAFETY: as above.
    unsafe { launch.run(grid) }?;

    let like = |x: &Tensor| Tensor::f_empty(x.size(), (element, x.device()));
    let (db, dc) = (like(args.b)?, like(args.c)?);
    let tokens = batch * time;
    let launch = kernels
        .combine
        .kernel("selective_scan_sum_projections")?
        .tensor(&projections, Kind::Float)
        .tensor(&db, element)
        .tensor(&dc, element)
        .i64(channel_blocks)
        .i64(tokens)
        .i64(states);
    // SAFETY: as above.
    unsafe { launch.run(small(tokens * 2 * states / 4, 1)?) }?;

    let sums = kernels.sums.of(&parameters, [1, batch * sizes.segments, columns])?.view([columns]);
    let da = sums.narrow(0, 0, sizes.state()).view([d_inner, states]);
    let [dd, dbias] = [0, 1].map(|index| sums.narrow(0, sizes.state() + index * d_inner, d_inner));
    let dinitial = kernels.sums.state(&dstart, [batch, 1], args.initial_state)?;

    let mut grads = vec![Some(du), Some(ddelta), Some(da), Some(db), Some(dc), Some(dinitial)];
    // What is optional has a place in the list only if it was given.
    grads.extend(args.delta_bias.map(|_| Some(dbias)));
    grads.extend(args.d.map(|_| Some(dd)));
    grads.extend(args.z.map(|_| dz));
    if let Some(reset_state) = args.reset_state {
        let sum = dreset
            .map(|dreset| kernels.sums.state(&dreset, [batch, sizes.segments], reset_state))
            .transpose()?;
        grads.push(sum);
    }
    grads.extend([args.resets, args.valid].into_iter().flatten().map(|_| None));
    Ok(grads)
}
