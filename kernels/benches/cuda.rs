//! `cargo bench -p kernels --bench cuda [OP]`: kernels on a GPU against libtorch's own operations in the same run, a JSON
//! line per case: `ratio` is theirs over ours, `floor_share` the part of the time that memory traffic alone would take at
//! 3.0 TB/s (or the arithmetic at 790 TFLOP/s, whichever is more).

use std::time::Instant;

use kernels::attention::{Attention, Visibility, attention, definition};
use kernels::linear_cross_entropy::{LinearCrossEntropy, Settings, linear_cross_entropy};
use kernels::policy::{self, Policy};
use kernels::rms_norm::{RmsNorm, rms_norm};
use tch::{Cuda, Device, Kind, Reduction, Tensor, no_grad};
use torch_bridge::autograd::{self, GradOptions};
use torch_bridge::ops::{self, Value};
use torch_bridge::{Result, cuda, memory};

const GPU: Device = Device::Cuda(0);
const BYTES_PER_MS: f64 = 3.0e9;
const FLOP_PER_MS: f64 = 790e9;

fn main() -> Result<()> {
    let status = cuda::open();
    if !status.opened || !Cuda::is_available() {
        println!("no GPU: {}", status.reason.unwrap_or_default());
        return Ok(());
    }
    policy::set(Policy::Require);
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let is_wanted = |name: &str| wanted.as_ref().is_none_or(|wanted| name.contains(wanted.as_str()));
    if is_wanted("attention") {
        attentions()?;
    }
    if is_wanted("rms_norm") {
        norms()?;
    }
    if is_wanted("linear_cross_entropy") {
        losses()?;
    }
    Ok(())
}

/// Median of several runs in milliseconds, each of as many calls as take some milliseconds.
fn time(mut body: impl FnMut() -> Result<()>) -> Result<f64> {
    for _ in 0..3 {
        body()?;
    }
    let mut run = |calls: u32| -> Result<f64> {
        Cuda::synchronize(0);
        let start = Instant::now();
        for _ in 0..calls {
            body()?;
        }
        Cuda::synchronize(0);
        Ok(start.elapsed().as_secs_f64() * 1e3 / f64::from(calls))
    };
    let calls = (20.0 / run(3)?).clamp(1.0, 200.0) as u32;
    let mut times = (0..9).map(|_| run(calls)).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[4])
}

fn print(op: &str, case: &str, ours: f64, against: &str, theirs: f64, floor: f64) {
    let (ratio, share) = (theirs / ours, floor / ours);
    println!(
        r#"{{"op":"{op}","device":"cuda","case":"{case}","ours_ms":{ours:.4},"against":"{against}","against_ms":{theirs:.4},"ratio":{ratio:.3},"floor_share":{share:.3}}}"#
    );
}

fn norms() -> Result<()> {
    for (rows, d) in [(16_384, 1600), (4096, 8192), (16_384, 3200), (16_384, 1024), (262_144, 64)] {
        for residual in [false, true] {
            let normal = || Tensor::randn([rows, d], (Kind::Float, GPU)).to_kind(Kind::BFloat16);
            let x = normal().set_requires_grad(true);
            let weight = Tensor::ones([d], (Kind::BFloat16, GPU)).set_requires_grad(true);
            let more = residual.then(|| normal().set_requires_grad(true));
            let ours = || {
                rms_norm(&RmsNorm {
                    x: &x,
                    weight: &weight,
                    residual: more.as_ref(),
                    eps: 1e-6,
                    output: None,
                })
            };
            let theirs = || -> Result<(Tensor, Tensor)> {
                let sum = more.as_ref().map_or_else(|| x.shallow_clone(), |more| &x + more);
                let arguments: [Value; 4] =
                    [Value::from(&sum), vec![d].into(), Value::from(&weight), 1e-6.into()];
                Ok((ops::call_tensor("aten::rms_norm", "", &arguments)?, sum))
            };
            let bytes = (rows * d * 2) as f64;
            let case = format!("{rows}x{d}{}", if residual { " with residual" } else { "" });
            let forward = |f: &dyn Fn() -> Result<(Tensor, Tensor)>| time(|| no_grad(f).map(drop));
            let (mine, other) = (forward(&ours)?, forward(&theirs)?);
            let floor = bytes * if residual { 4.0 } else { 2.0 } / BYTES_PER_MS;
            print("rms_norm", &format!("forward {case}"), mine, "torch rms_norm", other, floor);
            let (dy, dsum) = (normal(), normal());
            let backward = |f: &dyn Fn() -> Result<(Tensor, Tensor)>| -> Result<f64> {
                let (y, sum) = f()?;
                let (outputs, grads) = if residual {
                    (vec![y, sum], vec![Some(dy.shallow_clone()), Some(dsum.shallow_clone())])
                } else {
                    (vec![y], vec![Some(dy.shallow_clone())])
                };
                let mut inputs = vec![&x, &weight];
                inputs.extend(&more);
                let options = GradOptions { retain_graph: true, ..GradOptions::default() };
                time(|| autograd::grad(&outputs, Some(&grads), &inputs, options).map(drop))
            };
            let (mine, other) = (backward(&ours)?, backward(&theirs)?);
            let floor = bytes * if residual { 4.0 } else { 3.0 } / BYTES_PER_MS;
            print("rms_norm", &format!("backward {case}"), mine, "torch rms_norm", other, floor);
        }
    }
    Ok(())
}

fn losses() -> Result<()> {
    for (rows, d, vocab) in [(16_384, 1600, 32_001), (16_384, 1600, 32_064), (16_384, 1024, 128_256)] {
        let hidden =
            Tensor::randn([rows, d], (Kind::Float, GPU)).to_kind(Kind::BFloat16).set_requires_grad(true);
        let weight = (Tensor::randn([vocab, d], (Kind::Float, GPU)) * 0.02)
            .to_kind(Kind::BFloat16)
            .set_requires_grad(true);
        let targets = Tensor::randint(vocab, [rows], (Kind::Int64, GPU));
        let args = LinearCrossEntropy {
            hidden: &hidden,
            weight: &weight,
            targets: &targets,
            settings: Settings::PLAIN,
        };
        let ours = || Ok(linear_cross_entropy(&args)?.0);
        let theirs = || -> Result<Tensor> {
            let logits = hidden.f_linear(&weight, None::<&Tensor>)?.f_to_kind(Kind::Float)?;
            Ok(logits.f_cross_entropy_loss(&targets, None::<Tensor>, Reduction::Sum, -100, 0.0)?)
        };
        let both = |loss: &dyn Fn() -> Result<Tensor>| -> Result<(f64, f64)> {
            let mut body =
                || autograd::grad(&[loss()?], None, &[&hidden, &weight], GradOptions::default()).map(drop);
            let ms = time(&mut body)?;
            memory::reset_peak(GPU)?;
            let before = memory::stats(GPU)?.allocated;
            body()?;
            let peak = memory::stats(GPU)?.allocated_peak.saturating_sub(before);
            Ok((ms, peak as f64 / 1e9))
        };
        let ((mine, mine_gb), (other, other_gb)) = (both(&ours)?, both(&theirs)?);
        let case = format!("forward+backward {rows}x{d}x{vocab}, {mine_gb:.2} GB against {other_gb:.2} GB");
        let floor = 6.0 * (rows * d * vocab) as f64 / FLOP_PER_MS;
        print("linear_cross_entropy", &case, mine, "torch linear, cross_entropy", other, floor);
    }
    Ok(())
}

/// Hymba-1.5B's windowed layers, in training and in decoding.
fn attentions() -> Result<()> {
    let [heads, kv_heads, width, value, meta, window] = [25, 5, 64, 128, 128, 1024];
    for (batch, time_, cached) in [(8, 2048, 0), (1, 16_384, 0), (1, 1, 1024), (64, 1, 1024)] {
        let decoding = time_ == 1;
        let normal = |shape: &[i64]| {
            Tensor::randn(shape, (Kind::Float, GPU)).to_kind(Kind::BFloat16).set_requires_grad(!decoding)
        };
        let query = normal(&[batch, heads, time_, width]);
        let keys = cached + time_;
        let (key, v) = (normal(&[batch, kv_heads, keys, width]), normal(&[batch, kv_heads, keys, value]));
        let metas = [normal(&[1, kv_heads, meta, width]), normal(&[1, kv_heads, meta, value])];
        let int = (Kind::Int64, GPU);
        let (positions, cached_positions) =
            (Tensor::arange(time_, int).unsqueeze(0) + cached, Tensor::arange(cached, int).unsqueeze(0));
        let visibility = Visibility {
            meta,
            cached,
            window: Some(window),
            cached_positions: &cached_positions,
            positions: &positions,
            valid: None,
            document: None,
            uniform: true,
        };
        let args = Attention {
            query: &query,
            key: &key,
            value: &v,
            meta: Some([&metas[0], &metas[1]]),
            codes: None,
            visibility: &visibility,
            scale: None,
            dropout: 0.0,
        };
        let seen: i64 = (0..time_).map(|i| (cached + i + 1).min(window) + meta).sum();
        let flop = (2 * batch * heads * seen * (width + value)) as f64;
        let bytes = (2 * batch * kv_heads * keys * (width + value)) as f64;
        let (mine, other) = (time(|| attention(&args).map(drop))?, time(|| definition(&args).map(drop))?);
        let case = format!("{batch}x{time_} {heads}/{kv_heads} {width}/{value} W{window} M{meta}");
        let floor = (flop / FLOP_PER_MS).max(bytes / BYTES_PER_MS);
        print("attention", &format!("forward {case}"), mine, "libtorch with a mask", other, floor);
        if decoding {
            continue;
        }
        let inputs = [&query, &key, &v, &metas[0], &metas[1]];
        let dy = Tensor::randn([batch, heads, time_, value], (Kind::Float, GPU)).to_kind(Kind::BFloat16);
        let both = |operation: fn(&Attention<'_>) -> Result<Tensor>| {
            let dy = dy.shallow_clone();
            time(move || {
                let grads = [Some(dy.shallow_clone())];
                autograd::grad(&[operation(&args)?], Some(&grads), &inputs, GradOptions::default()).map(drop)
            })
        };
        let (mine, other) = (both(attention)?, both(definition)?);
        let (case, floor) = (format!("forward+backward {case}"), flop * 10.0 / 3.0 / FLOP_PER_MS);
        print("attention", &case, mine, "libtorch with a mask", other, floor);
    }
    Ok(())
}
