//! `cargo bench -p kernels --bench weight_only_linear`: products of one row with weights of 1 GB in all, in GB/s of the
//! weights' bytes and as a share of what a copy moves (reads and writes) in the same run.

mod common;

use common::best_of;
use kernels::weight_only_linear::{QuantisedWeight, Zero, linear, weight_only_linear};
use tch::{Device, Kind, Tensor, no_grad};
use torch_bridge::Result;

/// Bytes of all weights of a case: more than any cache has.
const TOTAL: usize = 1 << 30;

fn copy_of(weight: &QuantisedWeight) -> QuantisedWeight {
    match weight {
        QuantisedWeight::Int8 { codes, scale } => {
            QuantisedWeight::Int8 { codes: codes.copy(), scale: scale.copy() }
        }
        QuantisedWeight::Int4 { codes, scale, zero } => QuantisedWeight::Int4 {
            codes: codes.copy(),
            scale: scale.copy(),
            zero: zero.as_ref().map(Tensor::copy),
        },
    }
}

/// What the arithmetic alone takes: a weight that the cache has, one thread.
fn in_cache() -> Result<()> {
    let threads = tch::get_num_threads();
    tch::set_num_threads(1);
    for [out, width] in [[256, 768], [1024, 768]] {
        let weight = Tensor::rand([out, width], (Kind::Float, Device::Cpu)) - 0.5;
        let x = Tensor::ones([1, width], (Kind::BFloat16, Device::Cpu));
        let show = |name: &str, bytes: usize, ms: f64| {
            println!(
                "{:<44}{ms:>9.4}{:>9.1}",
                format!("{name} {out} x {width}, in the cache"),
                bytes as f64 / ms / 1e6
            );
        };
        println!("one thread");
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let (weight, x) = (weight.to_kind(kind), x.to_kind(kind));
            let ms = best_of(5000, || linear(&x, &weight).map(drop))?;
            show(&format!("{kind:?}"), weight.numel() * kind.elt_size_in_bytes(), ms);
        }
        let weights = [
            ("int8", QuantisedWeight::int8(&weight)?),
            ("int4, groups of 128, zeros", QuantisedWeight::int4(&weight, 128, Zero::Free)?),
            ("int4, groups of 32", QuantisedWeight::int4(&weight, 32, Zero::Fixed)?),
        ];
        for (name, weight) in &weights {
            show(name, weight.bytes(), best_of(5000, || weight_only_linear(&x, weight).map(drop))?);
        }
    }
    tch::set_num_threads(threads);
    Ok(())
}

fn main() -> Result<()> {
    let _guard = tch::no_grad_guard();
    in_cache()?;
    if std::env::args().any(|argument| argument == "--in-cache") {
        return Ok(());
    }
    let cpu = |kind| (kind, Device::Cpu);
    let from = Tensor::ones([1 << 27], cpu(Kind::Float));
    let mut to = from.zeros_like();
    let copy = best_of(8, || {
        to.copy_(&from);
        Ok(())
    })?;
    let copied = 8.0 * from.numel() as f64 / copy / 1e6;
    drop((from, to));
    println!("{} threads; a copy moves {copied:.1} GB/s", tch::get_num_threads());
    println!("{:<44}{:>9}{:>9}{:>9}{:>12}", "one row", "ms", "GB/s", "share", "libtorch ms");
    let short = std::env::args().any(|argument| argument == "--short");
    let shapes = [[4096, 4096], [768, 768], [32_001, 768], [3072, 768], [768, 3072]];
    for [out, width] in shapes.into_iter().take(if short { 3 } else { 5 }) {
        let row = |name: &str, bytes: usize, ours: f64, theirs: Option<f64>| {
            let speed = bytes as f64 / ours / 1e6;
            let theirs = theirs.map_or(String::new(), |ms| format!("{ms:.3}"));
            let case = format!("{name} {out} x {width}");
            println!("{case:<44}{ours:>9.4}{speed:>9.1}{:>8.0}%{theirs:>12}", 100.0 * speed / copied);
        };
        for kind in [Kind::Float, Kind::BFloat16] {
            let bytes = (out * width) as usize * kind.elt_size_in_bytes();
            let count = TOTAL.div_ceil(bytes);
            let weights: Vec<Tensor> = (0..count).map(|_| Tensor::ones([out, width], cpu(kind))).collect();
            let x = Tensor::ones([1, width], cpu(kind));
            let all = |product: &dyn Fn(&Tensor) -> Result<Tensor>| {
                best_of(3, || weights.iter().try_for_each(|weight| product(weight).map(drop)))
            };
            let ours = all(&|weight| linear(&x, weight))?;
            let theirs = all(&|weight| Ok(x.f_linear(weight, None::<&Tensor>)?))?;
            let each = |ms: f64| ms / count as f64;
            row(&format!("{kind:?}"), bytes, each(ours), Some(each(theirs)));
        }
        let weight = Tensor::rand([out, width], cpu(Kind::Float)) - 0.5;
        let x = Tensor::ones([1, width], cpu(Kind::BFloat16));
        let cases = [
            ("int8", QuantisedWeight::int8(&weight)?),
            ("int4, groups of 128, zeros", QuantisedWeight::int4(&weight, 128, Zero::Free)?),
            ("int4, groups of 32", QuantisedWeight::int4(&weight, 32, Zero::Fixed)?),
        ];
        for (name, weight) in &cases {
            let bytes = weight.bytes();
            let count = TOTAL.div_ceil(bytes);
            let weights: Vec<QuantisedWeight> = (0..count).map(|_| copy_of(weight)).collect();
            let ours = best_of(3, || {
                weights.iter().try_for_each(|weight| no_grad(|| weight_only_linear(&x, weight)).map(drop))
            })?;
            row(name, bytes, ours / count as f64, None);
        }
    }
    Ok(())
}
