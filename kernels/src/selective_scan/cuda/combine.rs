//! Joining the segments of a scan.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::kernels::{Kernels, Sizes, small};

/// Turns what each segment makes of a state of zero into the state before it, or with `reverse` the gradient of the state
/// after it, in place.
pub(super) fn combine(
    kernels: &Kernels,
    sizes: &Sizes,
    a: &Tensor,
    local: &Tensor,
    delta_sum: &Tensor,
    start: Option<&Tensor>,
    reverse: bool,
) -> Result<()> {
    let launch = kernels
        .combine
        .kernel("selective_scan_combine")?
        .tensor(local, Kind::Float)
        .tensor(delta_sum, Kind::Float)
        .tensor(a, Kind::Float)
        .state(start)
        .tensor(local, Kind::Float)
        .i64(sizes.segments)
        .i64(sizes.d_inner)
        .i64(sizes.states)
        .i32(reverse.into());
    // SAFETY: the kernel's parameters in its order; all shapes are as documented there.
    unsafe { launch.run(small(sizes.state(), sizes.batch)?) }
}
