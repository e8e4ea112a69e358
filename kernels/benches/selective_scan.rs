//! `cargo xtask bench selective_scan`: the fast path against the definition, in milliseconds.

mod common;

use common::{Row, best_of, normal};
use kernels::selective_scan::{SelectiveScan, reference, selective_scan};
use tch::{Kind, Tensor, no_grad};
use torch_bridge::Result;

type Operation = fn(&SelectiveScan<'_>) -> Result<(Tensor, Tensor)>;

fn main() -> Result<()> {
    common::header("selective_scan, f32 (batch x time x d_inner x d_state)");
    for [batch, time, d_inner, d_state] in
        [[16, 128, 256, 16], [2, 128, 3200, 16], [4, 256, 256, 16], [1, 1, 256, 16]]
    {
        let token = |width| normal([batch, time, width]).set_requires_grad(true);
        let [u, delta, z] = [d_inner; 3].map(token);
        let [b, c] = [d_state; 2].map(token);
        let a = (-(normal([d_inner, d_state]).abs() + 0.1)).set_requires_grad(true);
        let [bias, d] = [(); 2].map(|()| normal([d_inner]).set_requires_grad(true));
        let state = normal([1, d_inner, d_state]).set_requires_grad(true);
        let args = SelectiveScan {
            u: &u,
            delta: &delta,
            delta_bias: Some(&bias),
            delta_softplus: true,
            a: &a,
            b: &b,
            c: &c,
            d: Some(&d),
            z: Some(&z),
            initial_state: &state,
            reset_state: None,
            resets: None,
            valid: None,
        };
        let forward = |operation: Operation, times| best_of(times, || no_grad(|| operation(&args)).map(drop));
        let both = |operation: Operation, times| {
            best_of(times, || {
                let (y, last) = operation(&args)?;
                (y.sum(Kind::Float) + last.sum(Kind::Float)).backward();
                Ok(())
            })
        };
        let shape = format!("{batch} x {time} x {d_inner} x {d_state}");
        let row = Row::new("selective_scan", forward(selective_scan, 30)?, forward(reference, 1)?);
        row.print(&format!("{shape}, forward"));
        let row = Row::new("selective_scan", both(selective_scan, 30)?, both(reference, 1)?);
        row.print(&format!("{shape}, forward and backward"));
    }
    Ok(())
}
