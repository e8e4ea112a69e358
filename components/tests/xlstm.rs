//! The mixers of xLSTM against their equations, written out token by token without chunks, maxima or states; and how
//! their parameters start.

#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use components as _;
use hymba_plus::{
    model::{BuildOptions, Model, ModelConfig},
    plan::ModelPlan,
    registry::parse_config,
    serde_json::{Value, json},
    state::SpanInput,
};
use tch::{Device, Kind, Tensor};
use torch_bridge::guards::NoGrad;

const D_MODEL: i64 = 12;
const TIME: i64 = 9;

/// A model whose layers are one mixer each, whose hidden vectors are `x + projected mixer(x)`.
fn model(mixer: &Value, n_layers: i64, out_projection: &str) -> Model {
    let config = json!({
        "d_model": D_MODEL, "n_layers": n_layers, "vocab_size": 40, "embedding": "token", "norm": "none",
        "head": "language",
        "block_pattern": { "kind": "parallel", "layer": {
            "mixers": [mixer], "in_projection": "separate", "out_projection": out_projection, "fusion": "none",
            "channel_mixer": "none",
        } },
    });
    let config: ModelConfig = parse_config(config).unwrap();
    let plan = ModelPlan::resolve(&config, None).unwrap_or_else(|findings| panic!("{findings:#?}"));
    Model::build(&plan, BuildOptions { device: Device::Cpu, kind: Kind::Double, seed: 3 }).unwrap()
}

/// Every parameter drawn at random, and what the layer reads and writes: `x`, `y [time, d_model]`.
fn run(model: &Model) -> (Tensor, Tensor) {
    let _guard = NoGrad::new();
    for parameter in model.parameters() {
        let scale = if parameter.plan.name.contains("embedding") { 1.5 } else { 0.5 };
        let _ = parameter.tensor.shallow_clone().normal_(0.0, scale);
    }
    let ids = (Tensor::arange(TIME, (Kind::Int64, Device::Cpu)) * 7).remainder(40).unsqueeze(0);
    let initial = model.initial_state(false).unwrap();
    let (hidden, _) = model.forward(&ids, &initial, &initial, SpanInput::default()).unwrap();
    let x = parameter(model, "embedding.weight").index_select(0, &ids.squeeze_dim(0));
    (x.shallow_clone(), hidden.squeeze_dim(0) - x)
}

fn parameter(model: &Model, name: &str) -> Tensor {
    let found = model.parameters().get(name).unwrap_or_else(|| panic!("no parameter {name}"));
    found.tensor.detach()
}

fn assert_near(got: &Tensor, expected: &Tensor) {
    assert_eq!(got.size(), expected.size());
    let error = (got - expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[]);
    assert!(error < 1e-12, "{error:e}");
}

/// `silu(bias + sum_k weight[k] x[t - (width - 1) + k])` of `x [time, d]`, zeros before the first token.
fn convolution(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    let width = weight.size()[1];
    let padded = Tensor::cat(
        &[Tensor::zeros([width - 1, x.size()[1]], (Kind::Double, Device::Cpu)), x.shallow_clone()],
        0,
    );
    let sum: Tensor = (0..width).map(|k| padded.narrow(0, k, TIME) * weight.select(1, k)).sum();
    (sum + bias).silu()
}

/// `x [time, d]` through blocks `[n, width, width]`.
fn blocks(x: &Tensor, weight: &Tensor) -> Tensor {
    let width = weight.size()[1];
    let each = (0..weight.size()[0]).map(|b| x.narrow(1, b * width, width).matmul(&weight.get(b).tr()));
    Tensor::cat(&each.collect::<Vec<_>>(), 1)
}

/// Mean 0 and variance 1 in each of `n` groups of `x [d]`.
fn grouped(x: &Tensor, n: i64, eps: f64) -> Tensor {
    let groups = x.view([n, -1]);
    let centred = &groups - groups.mean_dim(-1, true, None);
    let variance = centred.square().mean_dim(-1, true, None);
    (centred / (variance + eps).sqrt()).flatten(0, -1)
}

/// The memory as the paper has it, in units of its own: `q, k, v [time, heads * d]`, gates `[time, heads]`, and the
/// heads' outputs `[time, heads * d_v]`.
fn memory(q: &Tensor, k: &Tensor, v: &Tensor, log_i: &Tensor, f: &Tensor) -> Vec<Tensor> {
    let heads = f.size()[1];
    let [d_qk, d_v] = [q.size()[1] / heads, v.size()[1] / heads];
    let options = (Kind::Double, Device::Cpu);
    let mut states: Vec<(Tensor, Tensor)> =
        (0..heads).map(|_| (Tensor::zeros([d_qk, d_v], options), Tensor::zeros([d_qk], options))).collect();
    (0..TIME)
        .map(|t| {
            let of_head = |(head, (c, n)): (usize, &mut (Tensor, Tensor))| {
                let head = head as i64;
                let [q, k] = [q, k].map(|x| x.get(t).narrow(0, head * d_qk, d_qk));
                let v = v.get(t).narrow(0, head * d_v, d_v);
                let keep = f.double_value(&[t, head]);
                let keep = 1.0 / (1.0 + (-keep).exp());
                let write = log_i.double_value(&[t, head]).exp();
                *c = &*c * keep + k.outer(&v) * write;
                *n = &*n * keep + &k * write;
                let q = q / (d_qk as f64).sqrt();
                let bound = q.dot(n).double_value(&[]).abs().max(1.0);
                c.tr().matmul(&q) / bound
            };
            Tensor::cat(&states.iter_mut().enumerate().map(of_head).collect::<Vec<_>>(), 0)
        })
        .collect()
}

#[test]
fn mlstm_is_its_equations() {
    let mixer = json!({ "kind": "mlstm", "n_heads": 3, "head_dim": 5, "v_head_dim": 4, "gate_soft_cap": 2.0, "eps": 0.0 });
    let model = model(&mixer, 1, "shared");
    let (x, y) = run(&model);
    let slice =
        |name: &str| x.matmul(&parameter(&model, &format!("layers.0.in_proj.mlstm.{name}.weight")).tr());
    let own = |name: &str| parameter(&model, &format!("layers.0.mixers.mlstm.{name}"));
    let gate = |name: &str| ((slice(name) + own(&format!("{name}_bias"))) / 2.0).tanh() * 2.0;
    let hs = memory(&slice("q"), &slice("k"), &slice("v"), &gate("i"), &gate("f"));
    let o = slice("o").sigmoid();
    let each = hs.iter().enumerate().map(|(t, h)| grouped(h, 3, 1e-6) * own("norm.weight") * o.get(t as i64));
    let expected = Tensor::stack(&each.collect::<Vec<_>>(), 0)
        .matmul(&parameter(&model, "layers.0.out_proj.weight").tr());
    assert_near(&y, &expected);
}

#[test]
fn mlstm_block_is_its_equations() {
    let mixer =
        json!({ "kind": "mlstm_block", "n_heads": 2, "expand": 1.5, "qkv_block_size": 3, "eps": 0.0 });
    let model = model(&mixer, 1, "shared");
    let (x, y) = run(&model);
    let slice = |name: &str| {
        x.matmul(&parameter(&model, &format!("layers.0.in_proj.mlstm_block.{name}.weight")).tr())
    };
    let own = |name: &str| parameter(&model, &format!("layers.0.mixers.mlstm_block.{name}"));
    let (inner, z) = (slice("x"), slice("z"));
    let u = convolution(&inner, &own("conv.weight"), &own("conv.bias"));
    let [q, k, v] =
        [blocks(&u, &own("q.weight")), blocks(&u, &own("k.weight")), blocks(&inner, &own("v.weight"))];
    let all = Tensor::cat(&[&q, &k, &v], 1);
    let gate = |name: &str| all.matmul(&own(&format!("{name}.weight")).tr()) + own(&format!("{name}.bias"));
    let hs = memory(&q, &k, &v, &gate("i"), &gate("f"));
    let each = hs.iter().enumerate().map(|(t, h)| {
        let t = t as i64;
        (grouped(h, 2, 1e-5) * own("norm.weight") + own("skip") * u.get(t)) * z.get(t).silu()
    });
    let expected = Tensor::stack(&each.collect::<Vec<_>>(), 0)
        .matmul(&parameter(&model, "layers.0.out_proj.weight").tr());
    assert_near(&y, &expected);
}

#[test]
fn slstm_is_its_equations() {
    for d_conv in [4, 0] {
        let model = model(&json!({ "kind": "slstm", "n_heads": 3, "d_conv": d_conv }), 1, "none");
        let (x, y) = run(&model);
        let own = |name: &str| parameter(&model, &format!("layers.0.mixers.slstm.{name}"));
        let u = if d_conv == 0 {
            x.shallow_clone()
        } else {
            convolution(&x, &own("conv.weight"), &own("conv.bias"))
        };
        let options = (Kind::Double, Device::Cpu);
        let [mut h, mut c, mut n] = [0, 1, 2].map(|_| Tensor::zeros([1, D_MODEL], options));
        let outputs: Vec<Tensor> = (0..TIME)
            .map(|t| {
                let gate = |name: &str| {
                    let from = if name == "i" || name == "f" { &u } else { &x };
                    let own = |part: &str| own(&format!("{name}.{part}"));
                    let token = blocks(&from.narrow(0, t, 1), &own("weight"));
                    token + blocks(&h, &own("recurrent")) + own("bias").flatten(0, -1)
                };
                let (i, f) = (gate("i").exp(), gate("f").sigmoid());
                c = &f * &c + &i * gate("z").tanh();
                n = f * &n + i;
                h = gate("o").sigmoid() * &c / &n;
                grouped(&h.get(0), 3, 1e-5) * own("norm.weight")
            })
            .collect();
        assert_near(&y, &Tensor::stack(&outputs, 0));
    }
}

#[test]
fn gates_start_as_published() {
    let values =
        |model: &Model, name: &str| Vec::<f64>::try_from(parameter(model, name).flatten(0, -1)).unwrap();
    let close = |got: &[f64], expected: &[f64]| {
        assert_eq!(got.len(), expected.len());
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{got:?}, not {expected:?}");
    };
    let seven_b = model(&json!({ "kind": "mlstm", "n_heads": 4, "head_dim": 2 }), 1, "shared");
    close(&values(&seven_b, "layers.0.mixers.mlstm.i_bias"), &[-10.0; 4]);
    close(&values(&seven_b, "layers.0.mixers.mlstm.f_bias"), &[3.0, 4.0, 5.0, 6.0]);
    close(&values(&seven_b, "layers.0.in_proj.mlstm.i.weight"), &[0.0; 48]);
    let paper = model(&json!({ "kind": "slstm", "n_heads": 4 }), 3, "none");
    let falling = |exponent: f64| [0.0, 0.5_f64, 1.0].map(|unit| 5.0 - 12.0 * unit.powf(exponent));
    for (layer, exponent) in [(0, 0.3), (1, 0.95), (2, 1.6)] {
        let bias = values(&paper, &format!("layers.{layer}.mixers.slstm.f.bias"));
        close(&bias, &[falling(exponent); 4].concat());
    }
}
