//! `cargo xtask bench causal_conv1d`: the fast path against the definition, in milliseconds.

mod common;

use common::{Row, best_of, normal};
use kernels::causal_conv1d::{CausalConv1d, causal_conv1d, reference};
use tch::{Kind, Tensor, no_grad};
use torch_bridge::Result;

type Operation = fn(&CausalConv1d<'_>) -> Result<(Tensor, Tensor)>;

fn main() -> Result<()> {
    common::header("causal_conv1d, f32, silu (batch x time x d x width)");
    for [batch, time, d, width] in [[16, 128, 256, 4], [2, 128, 3200, 4], [4, 256, 256, 4], [1, 1, 256, 4]] {
        let x = normal([batch, time, d]).set_requires_grad(true);
        let weight = normal([d, width]).set_requires_grad(true);
        let bias = normal([d]).set_requires_grad(true);
        let tail = normal([1, width - 1, d]).set_requires_grad(true);
        let args = CausalConv1d {
            x: &x,
            weight: &weight,
            bias: Some(&bias),
            tail: &tail,
            reset_tail: None,
            resets: None,
            lengths: None,
            silu: true,
        };
        let forward = |operation: Operation, times| best_of(times, || no_grad(|| operation(&args)).map(drop));
        let both = |operation: Operation, times| {
            best_of(times, || {
                let (y, last) = operation(&args)?;
                (y.sum(Kind::Float) + last.sum(Kind::Float)).backward();
                Ok(())
            })
        };
        let shape = format!("{batch} x {time} x {d} x {width}");
        let row = Row::new("causal_conv1d", forward(causal_conv1d, 30)?, forward(reference, 1)?);
        row.print(&format!("{shape}, forward"));
        let row = Row::new("causal_conv1d", both(causal_conv1d, 30)?, both(reference, 1)?);
        row.print(&format!("{shape}, forward and backward"));
    }
    Ok(())
}
