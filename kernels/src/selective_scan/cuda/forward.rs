//! The forward's launches.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::SelectiveScan;
use super::combine::combine;
use super::kernels::{Kernels, Sizes};

/// `y` and the last state, and the kept states if they are asked for.
pub(super) fn forward(
    args: &SelectiveScan<'_>,
    kernels: &Kernels,
    keep: bool,
) -> Result<(Vec<Tensor>, Option<Tensor>)> {
    let (element, pass) = (kernels.element, kernels.forward);
    let sizes = Sizes::of(args, kernels, pass);
    let float = (Kind::Float, args.u.device());
    let y = Tensor::f_empty([sizes.batch, sizes.time, sizes.d_inner], (element, args.u.device()))?;
    let last = Tensor::f_empty(sizes.states_of_rows(), float)?;
    let kept = (sizes.time + kernels.checkpoint - 1).div_euclid(kernels.checkpoint);
    let checkpoints =
        keep.then(|| Tensor::f_empty([sizes.batch, kept, sizes.states, sizes.d_inner], float)).transpose()?;
    let starts = if sizes.segments > 1 {
        let local = Tensor::f_empty(sizes.states_of_segments(), float)?;
        let delta_sum = Tensor::f_empty([sizes.batch, sizes.segments, sizes.d_inner], float)?;
        let launch = pass
            .loaded
            .kernel("selective_scan_local")?
            .rows(args.u, element)
            .rows(args.delta, element)
            .rows(args.b, element)
            .tensor(args.a, Kind::Float)
            .optional(args.delta_bias, Kind::Float)
            .state(args.reset_state)
            .optional(args.resets, Kind::Bool)
            .optional(args.valid, Kind::Bool)
            .tensor(&local, Kind::Float)
            .tensor(&delta_sum, Kind::Float)
            .i64(sizes.time)
            .i64(sizes.d_inner)
            .i64(sizes.segment);
        // SAFETY: the kernel's parameters in its order; `check` has seen to the operands' shapes, the rest was made to
        // the documented ones here.
        unsafe { launch.run(sizes.shape(pass, 0)?) }?;
        combine(kernels, &sizes, args.a, &local, &delta_sum, Some(args.initial_state), false)?;
        Some(local)
    } else {
        None
    };
    let launch = pass
        .loaded
        .kernel("selective_scan_forward")?
        .rows(args.u, element)
        .rows(args.delta, element)
        .rows(args.b, element)
        .rows(args.c, element)
        .optional_rows(args.z, element)
        .tensor(args.a, Kind::Float)
        .optional(args.delta_bias, Kind::Float)
        .optional(args.d, Kind::Float);
    let launch = match &starts {
        Some(starts) => launch.state(Some(starts)).i64(sizes.state()),
        None => launch.state(Some(args.initial_state)).i64(0),
    };
    let launch = launch
        .state(args.reset_state)
        .optional(args.resets, Kind::Bool)
        .optional(args.valid, Kind::Bool)
        .tensor(&y, element)
        .tensor(&last, Kind::Float)
        .optional(checkpoints.as_ref(), Kind::Float)
        .i64(sizes.time)
        .i64(sizes.d_inner)
        .i64(sizes.segment);
    // SAFETY: as above.
    unsafe { launch.run(sizes.shape(pass, 0)?) }?;
    Ok((vec![y, last], checkpoints))
}
