//! `cargo xtask bench linear_cross_entropy`: the head with its loss against libtorch's `linear` and
//! `cross_entropy`, in milliseconds.

mod common;

use common::{Row, best_of, normal};
use kernels::linear_cross_entropy::{LinearCrossEntropy, Settings, linear_cross_entropy};
use tch::{Device, Kind, Reduction, Tensor, no_grad};
use torch_bridge::Result;

fn main() -> Result<()> {
    common::header("linear cross-entropy, f32 (rows x d x vocab)");
    for [rows, d, vocab] in [[2048, 128, 1024], [2048, 512, 8192], [1024, 512, 32_000]] {
        let hidden = normal([rows, d]).set_requires_grad(true);
        let weight = (normal([vocab, d]) * 0.02).set_requires_grad(true);
        let targets = Tensor::randint(vocab, [rows], (Kind::Int64, Device::Cpu));
        let args = LinearCrossEntropy {
            hidden: &hidden,
            weight: &weight,
            targets: &targets,
            settings: Settings::PLAIN,
        };
        let ours = || Ok(linear_cross_entropy(&args)?.0);
        let theirs = || -> Result<Tensor> {
            let logits = hidden.f_linear(&weight, None::<&Tensor>)?;
            Ok(logits.f_cross_entropy_loss(&targets, None::<Tensor>, Reduction::Sum, -100, 0.0)?)
        };
        let shape = format!("{rows} x {d} x {vocab}");
        let forward = |loss: &dyn Fn() -> Result<Tensor>| best_of(5, || no_grad(loss).map(drop));
        let both = |loss: &dyn Fn() -> Result<Tensor>| {
            best_of(5, || {
                loss()?.backward();
                Ok(())
            })
        };
        let row = Row::new("linear_cross_entropy", forward(&ours)?, forward(&theirs)?);
        row.print(&format!("{shape}, forward"));
        let row = Row::new("linear_cross_entropy", both(&ours)?, both(&theirs)?);
        row.print(&format!("{shape}, forward and backward"));
    }
    Ok(())
}
