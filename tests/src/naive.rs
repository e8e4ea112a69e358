//! Hymba as its equations say it, one document at a time with its meta tokens in front: slow, without states, kernels
//! or masks shared with the product. What the product does cleverly must equal this.

use std::collections::BTreeMap;

use hymba_plus::model::Model;
use tch::{Device, Kind, Tensor};

/// The shape of the model, read off [`official::model_section`](crate::official::model_section) by hand.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Query heads, heads of keys and values, their width, the width of values.
    pub heads: [i64; 4],
    /// Text keys a token sees in a layer that is not global.
    pub window: i64,
    /// Layers that see everything.
    pub global: Vec<usize>,
    /// Producer of each consumer.
    pub producers: BTreeMap<usize, usize>,
    /// State of an inner channel, and the rank of the step sizes.
    pub state_and_rank: [i64; 2],
    /// Base of the rotary embedding.
    pub theta: f64,
}

fn rms(x: &Tensor, weight: &Tensor) -> Tensor {
    x / (x.square().mean_dim([-1].as_slice(), true, None) + 1e-6).sqrt() * weight
}

/// `[time, heads, dim]` turned by position.
fn turn(x: &Tensor, theta: f64) -> Tensor {
    let [time, _, dim] = x.size()[..] else { panic!("three dimensions") };
    let options = (Kind::Double, Device::Cpu);
    let frequencies = (Tensor::arange(dim / 2, options) * (-2.0 / dim as f64 * theta.ln())).exp();
    let angles = (Tensor::arange(time, options).unsqueeze(1) * frequencies).unsqueeze(1);
    let (a, b) = (x.narrow(2, 0, dim / 2), x.narrow(2, dim / 2, dim / 2));
    Tensor::cat(&[&a * angles.cos() - &b * angles.sin(), &b * angles.cos() + &a * angles.sin()], 2)
}

/// Hidden vectors `[time, d_model]` of one document after the final norm, meta tokens not among them.
///
/// # Panics
/// When the model is not of this shape.
pub fn forward(model: &Model, shape: &Shape, ids: &[i64]) -> Tensor {
    let p =
        |name: &str| model.parameters().get(name).unwrap_or_else(|| panic!("{name}")).tensor.shallow_clone();
    let meta = p("meta_tokens");
    let n_meta = meta.size()[0];
    let words = Tensor::embedding(&p("embedding.weight"), &Tensor::from_slice(ids), -1, false, false);
    let mut x = Tensor::cat(&[meta, words], 0);
    let time = x.size()[0];
    let mut made = BTreeMap::new();
    for layer in 0..model.plan().layers.len() {
        let q = |name: &str| p(&format!("layers.{layer}.{name}"));
        let y = mixer(&q, shape, layer, &rms(&x, &q("norm.weight")), time, n_meta, &mut made);
        x = &x + y;
        let y = rms(&x, &q("channel_norm.weight"));
        let gate = y.matmul(&q("channel_mixer.gate").tr());
        let hidden = &gate * gate.sigmoid() * y.matmul(&q("channel_mixer.up").tr());
        x = &x + hidden.matmul(&q("channel_mixer.down").tr());
    }
    rms(&x, &p("final_norm.weight")).narrow(0, n_meta, time - n_meta)
}

fn mixer(
    q: &dyn Fn(&str) -> Tensor,
    shape: &Shape,
    layer: usize,
    x: &Tensor,
    time: i64,
    n_meta: i64,
    made: &mut BTreeMap<usize, (Tensor, Tensor)>,
) -> Tensor {
    let [n, g, dim, v_dim] = shape.heads;
    let producer = shape.producers.get(&layer);
    let projected = x.matmul(&q("in_proj.weight").tr());
    let inner = n * v_dim;
    let mut widths = vec![n * dim, inner, inner];
    if producer.is_none() {
        widths.splice(1..1, [g * dim, g * v_dim]);
    }
    let parts = projected.split_with_sizes(&widths, -1);
    let query = turn(&parts[0].view([time, n, dim]), shape.theta);
    if producer.is_none() {
        let key = turn(&parts[1].view([time, g, dim]), shape.theta);
        made.insert(layer, (key, parts[2].view([time, g, v_dim])));
    }
    let (key, value) = &made[producer.unwrap_or(&layer)];
    let mut heads = Vec::new();
    for head in 0..n {
        let (k, v) = (key.select(1, head / (n / g)), value.select(1, head / (n / g)));
        let scores = query.select(1, head).matmul(&k.tr()) / (dim as f64).sqrt();
        let mut hide = vec![0.0_f64; (time * time) as usize];
        for i in 0..time {
            for j in 0..time {
                let near = shape.global.contains(&layer) || i - j < shape.window || j < n_meta;
                if j > i || !near {
                    hide[(i * time + j) as usize] = f64::NEG_INFINITY;
                }
            }
        }
        let hide = Tensor::from_slice(&hide).view([time, time]);
        heads.push((scores + hide).softmax(-1, Kind::Double).matmul(&v));
    }
    let attention = Tensor::cat(&heads, 1);
    let (u, z) = (&parts[parts.len() - 2], &parts[parts.len() - 1]);
    let ssm = mamba(q, shape, u, time, inner) * (z * z.sigmoid());
    let fused = (rms(&attention, &q("fusion.norm_0.weight")) + rms(&ssm, &q("fusion.norm_1.weight"))) / 2.0;
    fused.matmul(&q("out_proj.weight").tr())
}

fn mamba(q: &dyn Fn(&str) -> Tensor, shape: &Shape, x: &Tensor, time: i64, inner: i64) -> Tensor {
    let m = |name: &str| q(&format!("mixers.mamba.{name}"));
    let [state, rank] = shape.state_and_rank;
    let weight = m("conv.weight");
    let width = weight.size()[1];
    let padded =
        Tensor::cat(&[Tensor::zeros([width - 1, inner], (Kind::Double, Device::Cpu)), x.shallow_clone()], 0);
    let mut u = Tensor::zeros([time, inner], (Kind::Double, Device::Cpu)) + m("conv.bias");
    for k in 0..width {
        u += padded.narrow(0, k, time) * weight.select(1, k);
    }
    let u = &u * u.sigmoid();
    let parts = u.matmul(&m("x_proj.weight").tr()).split_with_sizes([rank, state, state], -1);
    let dt = rms(&parts[0], &m("dt_norm.weight"));
    let (b, c) = (rms(&parts[1], &m("b_norm.weight")), rms(&parts[2], &m("c_norm.weight")));
    let delta = (dt.matmul(&m("dt_proj.weight").tr()) + m("dt_proj.bias")).exp().log1p();
    let a = -m("A_log").exp();
    let mut h = Tensor::zeros([inner, state], (Kind::Double, Device::Cpu));
    let mut ys = Vec::new();
    for t in 0..time {
        let d = delta.get(t).unsqueeze(1);
        h = (&d * &a).exp() * h + &d * b.get(t).unsqueeze(0) * u.get(t).unsqueeze(1);
        ys.push((&h * c.get(t).unsqueeze(0)).sum_dim_intlist(1, false, Kind::Double));
    }
    Tensor::stack(&ys, 0) + u * m("D")
}
