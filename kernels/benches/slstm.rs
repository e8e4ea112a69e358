//! `cargo xtask bench slstm`: the fast path against the definition, in milliseconds.

mod common;

use common::{Row, best_of, normal};
use kernels::slstm::{Slstm, SlstmState, reference, slstm};
use tch::{Kind, Tensor, no_grad};
use torch_bridge::Result;

type Operation = fn(&Slstm<'_>) -> Result<(Tensor, SlstmState)>;

fn main() -> Result<()> {
    common::header("slstm, f32 (batch x time x heads x head_dim)");
    for [batch, time, heads, head_dim] in
        [[16, 128, 4, 64], [4, 256, 4, 128], [16, 128, 8, 16], [1, 1, 4, 64]]
    {
        let gates = normal([batch, time, 4, heads, head_dim]).set_requires_grad(true);
        let recurrent = (normal([4, heads, head_dim, head_dim]) * 0.1).set_requires_grad(true);
        let part = || Tensor::zeros([1, heads, head_dim], (Kind::Float, tch::Device::Cpu));
        let state = SlstmState { h: part(), c: part(), n: part(), m: part() };
        let args = Slstm {
            gates: &gates,
            bias: None,
            recurrent: &recurrent,
            initial_state: &state,
            reset_state: None,
            resets: None,
            valid: None,
        };
        let forward = |operation: Operation, times| best_of(times, || no_grad(|| operation(&args)).map(drop));
        let both = |operation: Operation, times| {
            best_of(times, || {
                let (h, _) = operation(&args)?;
                h.sum(Kind::Float).backward();
                Ok(())
            })
        };
        let shape = format!("{batch} x {time} x {heads} x {head_dim}");
        let row = Row::new("slstm", forward(slstm, 20)?, forward(reference, 3)?);
        row.print(&format!("{shape}, forward"));
        let row = Row::new("slstm", both(slstm, 20)?, both(reference, 3)?);
        row.print(&format!("{shape}, forward and backward"));
    }
    Ok(())
}
