//! `cargo xtask bench ssd`: the chunked form against the definition, in milliseconds.

mod common;

use common::{Row, best_of, normal};
use kernels::ssd::{Ssd, chunked, reference};
use tch::{Kind, Tensor, no_grad};
use torch_bridge::Result;

fn main() -> Result<()> {
    common::header("ssd, f32 (batch x time x heads x head_dim x d_state)");
    for [batch, time, heads, head_dim, d_state] in [
        [4, 256, 8, 64, 64],
        [2, 512, 16, 64, 128],
        [1, 1, 16, 64, 128],
        [8, 1, 16, 64, 128],
        [8, 4, 16, 64, 128],
    ] {
        let x = normal([batch, time, heads, head_dim]).set_requires_grad(true);
        let dt = (normal([batch, time, heads]) - 3.0).softplus().set_requires_grad(true);
        let [b, c] = [(); 2].map(|()| normal([batch, time, 1, d_state]).set_requires_grad(true));
        let a = (-(normal([heads]).abs() * 8.0 + 1.0)).set_requires_grad(true);
        let d = normal([heads]).set_requires_grad(true);
        let state = normal([1, heads, head_dim, d_state]).set_requires_grad(true);
        let shape = format!("{batch} x {time} x {heads} x {head_dim} x {d_state}");
        let definition = Timing::of(3, reference, &x, &dt, &a, &b, &c, &d, &state, None)?;
        for chunk_size in [16, 32, 64, 128, 256].into_iter().filter(|&size| size == 16 || size <= time) {
            let ours = Timing::of(10, chunked, &x, &dt, &a, &b, &c, &d, &state, Some(chunk_size))?;
            let row = Row::new("ssd", ours.forward, definition.forward);
            row.print(&format!("{shape}, chunks of {chunk_size}, forward"));
            let row = Row::new("ssd", ours.both, definition.both);
            row.print(&format!("{shape}, chunks of {chunk_size}, both"));
        }
    }
    Ok(())
}

struct Timing {
    forward: f64,
    both: f64,
}

impl Timing {
    #[allow(clippy::too_many_arguments)]
    fn of(
        times: usize,
        operation: impl Fn(&Ssd<'_>) -> Result<(Tensor, Tensor)>,
        x: &Tensor,
        dt: &Tensor,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        d: &Tensor,
        initial_state: &Tensor,
        chunk_size: Option<i64>,
    ) -> Result<Self> {
        let args = Ssd {
            x,
            dt,
            a,
            b,
            c,
            d: Some(d),
            initial_state,
            reset_state: None,
            resets: None,
            valid: None,
            chunk_size,
        };
        let forward = best_of(times, || no_grad(|| operation(&args)).map(drop))?;
        let both = best_of(times, || {
            let (y, last) = operation(&args)?;
            (y.sum(Kind::Float) + last.sum(Kind::Float)).backward();
            Ok(())
        })?;
        Ok(Self { forward, both })
    }
}
