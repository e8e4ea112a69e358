//! `cargo xtask bench mlstm`: chunks against the definition, in milliseconds.

mod common;

use common::{Row, best_of, normal};
use kernels::mlstm::{Mlstm, MlstmState, mlstm, reference};
use tch::{Device, Kind, Tensor, no_grad};
use torch_bridge::Result;

type Operation = fn(&Mlstm<'_>) -> Result<(Tensor, MlstmState)>;

fn main() -> Result<()> {
    common::header("mlstm, f32 (batch x time x heads x d_qk x d_v, tokens in a chunk)");
    for ([batch, time, heads, d_qk, d_v], chunk_sizes) in [
        ([8, 256, 4, 32, 64], &[32, 64, 128][..]),
        ([2, 512, 4, 64, 128], &[32, 64, 128, 256]),
        ([1, 1, 4, 64, 128], &[64]),
    ] {
        let token = |width| normal([batch, time, heads, width]).set_requires_grad(true);
        let [q, k, v] = [token(d_qk), token(d_qk), token(d_v)];
        let [input_gate, forget_gate] =
            [-2.0, 4.0].map(|mean| (normal([batch, time, heads]) + mean).set_requires_grad(true));
        let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
        let state = MlstmState {
            c: zeros(&[1, heads, d_qk, d_v]),
            n: zeros(&[1, heads, d_qk]),
            m: zeros(&[1, heads]),
        };
        for &chunk_size in chunk_sizes {
            let args = Mlstm {
                q: &q,
                k: &k,
                v: &v,
                input_gate: &input_gate,
                forget_gate: &forget_gate,
                eps: 1e-6,
                initial_state: &state,
                reset_state: None,
                resets: None,
                valid: None,
                chunk_size,
            };
            let forward =
                |operation: Operation, times| best_of(times, || no_grad(|| operation(&args)).map(drop));
            let both = |operation: Operation, times| {
                best_of(times, || {
                    let (h, _) = operation(&args)?;
                    h.sum(Kind::Float).backward();
                    Ok(())
                })
            };
            let shape = format!("{batch} x {time} x {heads} x {d_qk} x {d_v}, {chunk_size}");
            let row = Row::new("mlstm", forward(mlstm, 10)?, forward(reference, 1)?);
            row.print(&format!("{shape}, forward"));
            let row = Row::new("mlstm", both(mlstm, 10)?, both(reference, 1)?);
            row.print(&format!("{shape}, forward and backward"));
        }
    }
    Ok(())
}
