//! Multi-head latent attention against its equations, against transformers' DeepSeek, and what it remembers.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use std::{collections::BTreeMap, path::Path};

use hymba_plus::{model::Model, state::SpanInput};
use hymba_tests::{max_difference, read_safetensors};
use tch::{Device, Kind, Tensor};
use torch_bridge::guards::NoGrad;

fn section(mixer: &str, ends: &str, channel: &str) -> String {
    format!(
        "
embedding: token
norm: {{ kind: rms_norm, eps: 1.0e-6 }}
head: language
{ends}
block_pattern:
  kind: parallel
  layer:
    in_projection: separate
    mixers: [{{ kind: mla, {mixer} }}]
    {channel}
"
    )
}

fn row(ids: &[i64]) -> Tensor {
    Tensor::from_slice(ids).unsqueeze(0)
}

fn set(model: &Model, name: &str, value: &Tensor) {
    let parameter = model.parameters().get(name).unwrap_or_else(|| panic!("{name}"));
    assert_eq!(parameter.tensor.size(), value.size(), "{name}");
    parameter.tensor.shallow_clone().copy_(value);
}

/// Rows of interleaved pairs as two halves: in each block of `width` rows, of which the first `still` stay, the even of
/// the others come first, then the odd.
fn halves(weight: &Tensor, width: i64, still: i64) -> Tensor {
    let order = (0..weight.size()[0]).map(|row| {
        let (block, at) = (row / width * width, row % width);
        let (pairs, turned) = ((width - still) / 2, at - still);
        if turned < 0 {
            row
        } else {
            block + still + if turned < pairs { 2 * turned } else { 2 * (turned - pairs) + 1 }
        }
    });
    weight.index_select(0, &Tensor::from_slice(&order.collect::<Vec<_>>()))
}

/// Logits of a full forward and of decoding, in our model with the weights of transformers' fixture.
#[test]
fn logits_are_those_of_transformers() {
    let _guard = NoGrad::new();
    let common = "n_heads: 3, kv_lora_rank: 10, qk_nope_head_dim: 6, qk_rope_head_dim: 8, v_head_dim: 5, latent_norm: rms_norm";
    let yarn = "q_lora_rank: 12, position: { kind: rope_yarn, theta: 100, factor: 8, original_max_positions: 32, beta_fast: 4, beta_slow: 1 }";
    for (name, more) in [("deepseek_v3", yarn), ("deepseek_v2", "position: rope")] {
        let ends = "d_model: 24\nn_layers: 2\nvocab_size: 48\ntie_embeddings: false";
        let yaml =
            section(&format!("{common}, {more}"), ends, "channel_mixer: { kind: swiglu, d_hidden: 32 }");
        let model = hymba_tests::model(&yaml, Kind::Float, 1);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/mla/{name}.safetensors"));
        let fixture = read_safetensors(&path);
        for (theirs, ours) in
            [("model.embed_tokens", "embedding"), ("model.norm", "final_norm"), ("lm_head", "head")]
        {
            set(&model, &format!("{ours}.weight"), &fixture[&format!("{theirs}.weight")]);
        }
        for layer in 0..2 {
            let mut names = BTreeMap::from([
                ("input_layernorm", "norm.weight"),
                ("post_attention_layernorm", "channel_norm.weight"),
                ("mlp.gate_proj", "channel_mixer.gate"),
                ("mlp.up_proj", "channel_mixer.up"),
                ("mlp.down_proj", "channel_mixer.down"),
                ("self_attn.kv_a_proj_with_mqa", "in_proj.mla.kv_a.weight"),
                ("self_attn.kv_a_layernorm", "mixers.mla.kv_norm.weight"),
                ("self_attn.kv_b_proj", "mixers.mla.kv_b.weight"),
                ("self_attn.o_proj", "out_proj.weight"),
            ]);
            if name == "deepseek_v3" {
                names.insert("self_attn.q_a_proj", "in_proj.mla.q_a.weight");
                names.insert("self_attn.q_a_layernorm", "mixers.mla.q_norm.weight");
                names.insert("self_attn.q_b_proj", "mixers.mla.q_b.weight");
            } else {
                names.insert("self_attn.q_proj", "in_proj.mla.q.weight");
            }
            for (theirs, ours) in names {
                let weight = &fixture[&format!("model.layers.{layer}.{theirs}.weight")];
                let weight = match theirs {
                    "self_attn.q_b_proj" | "self_attn.q_proj" => halves(weight, 14, 6),
                    "self_attn.kv_a_proj_with_mqa" => halves(weight, 18, 10),
                    _ => weight.shallow_clone(),
                };
                set(&model, &format!("layers.{layer}.{ours}"), &weight);
            }
        }
        let ids = &fixture["input_ids"];
        let initial = model.initial_state(false).unwrap();
        let (hidden, _) = model.forward(ids, &initial, &initial, SpanInput::default()).unwrap();
        let full = max_difference(&model.head(&hidden).unwrap(), &fixture["logits_full"]);
        let prefill = ids.narrow(1, 0, 24);
        let (_, mut state) = model.forward(&prefill, &initial, &initial, SpanInput::default()).unwrap();
        let mut steps = Vec::new();
        for i in 24..40 {
            let (hidden, next) =
                model.forward(&ids.narrow(1, i, 1), &state, &initial, SpanInput::default()).unwrap();
            steps.push(model.head(&hidden).unwrap());
            state = next;
        }
        let decoded = max_difference(&Tensor::cat(&steps, 1), &fixture["logits_decode"]);
        println!("{name}: full forward {full:.1e}, 16 steps {decoded:.1e}");
        assert!(full < 1e-4 && decoded < 1e-4, "{name}: {full:e} {decoded:e}");
    }
}

const SIZES: &str = "n_heads: 2, q_lora_rank: 7, kv_lora_rank: 9, qk_nope_head_dim: 4, qk_rope_head_dim: 6, v_head_dim: 5, latent_norm: { kind: rms_norm, eps: 1.0e-6 }";

fn one_layer(window: Option<i64>, position: &str) -> Model {
    let window = window.map_or(String::new(), |window| format!("window: {window},"));
    let mixer = format!("{SIZES}, {window} position: {position}");
    let model = hymba_tests::model(
        &section(&mixer, "d_model: 12\nn_layers: 1\nvocab_size: 30\nmeta_tokens: 3", "channel_mixer: none"),
        Kind::Double,
        5,
    );
    let _guard = NoGrad::new();
    for parameter in model.parameters() {
        if parameter.plan.shape.len() == 2 && parameter.plan.weight_decay {
            let _ = parameter.tensor.shallow_clone().multiply_scalar_(12.0);
        }
    }
    model
}

fn rms(x: &Tensor, weight: &Tensor) -> Tensor {
    x / (x.square().mean_dim([-1].as_slice(), true, None) + 1e-6).sqrt() * weight
}

/// `x [time, 6]` turned by position, channel `i` with channel `i + 3`, then scaled.
fn turned(x: &Tensor, scale: f64) -> Tensor {
    let time = x.size()[0];
    let options = (Kind::Double, Device::Cpu);
    let frequencies = Tensor::from_slice(&[0, 1, 2].map(|i| 10_000_f64.powf(-2.0 * f64::from(i) / 6.0)));
    let angles = Tensor::arange(time, options).unsqueeze(1) * frequencies;
    let (a, b) = (x.narrow(1, 0, 3), x.narrow(1, 3, 3));
    Tensor::cat(&[&a * angles.cos() - &b * angles.sin(), &b * angles.cos() + &a * angles.sin()], 1) * scale
}

/// The layer as the paper writes it (equations 9 to 18), for one document with its meta tokens in front; hidden vectors
/// of the text after the final norm.
fn naive(model: &Model, ids: &[i64], window: Option<i64>, rotary: bool) -> Tensor {
    let p = |name: &str| model.parameters().get(name).unwrap().tensor.shallow_clone();
    let words = Tensor::embedding(&p("embedding.weight"), &Tensor::from_slice(ids), -1, false, false);
    let x = Tensor::cat(&[p("meta_tokens"), words], 0);
    let (time, meta) = (x.size()[0], 3);
    let h = rms(&x, &p("layers.0.norm.weight"));
    let c_q =
        rms(&h.matmul(&p("layers.0.in_proj.mla.q_a.weight").tr()), &p("layers.0.mixers.mla.q_norm.weight"));
    let q = c_q.matmul(&p("layers.0.mixers.mla.q_b.weight").tr());
    let kv_a = h.matmul(&p("layers.0.in_proj.mla.kv_a.weight").tr());
    let turn = |x: Tensor| if rotary { turned(&x, 1.0) } else { x };
    let c_kv = rms(&kv_a.narrow(1, 0, 9), &p("layers.0.mixers.mla.kv_norm.weight"));
    let k_rope = turn(kv_a.narrow(1, 9, 6));
    let kv = c_kv.matmul(&p("layers.0.mixers.mla.kv_b.weight").tr());
    let hidden: Vec<f64> = (0..time * time)
        .map(|at| {
            let (i, j) = (at / time, at % time);
            let seen = j <= i && (j < meta || window.is_none_or(|window| i - j < window));
            if seen { 0.0 } else { f64::NEG_INFINITY }
        })
        .collect();
    let hidden = Tensor::from_slice(&hidden).view([time, time]);
    let heads: Vec<Tensor> = (0..2)
        .map(|head| {
            let (q, kv) = (q.narrow(1, head * 10, 10), kv.narrow(1, head * 9, 9));
            let q = Tensor::cat(&[q.narrow(1, 0, 4), turn(q.narrow(1, 4, 6))], 1);
            let k = Tensor::cat(&[kv.narrow(1, 0, 4), k_rope.shallow_clone()], 1);
            let weights = (q.matmul(&k.tr()) / 10_f64.sqrt() + &hidden).softmax(-1, Kind::Double);
            weights.matmul(&kv.narrow(1, 4, 5))
        })
        .collect();
    let y = x + Tensor::cat(&heads, 1).matmul(&p("layers.0.out_proj.weight").tr());
    rms(&y, &p("final_norm.weight")).narrow(0, meta, time - meta)
}

fn tokens(n: i64) -> Vec<i64> {
    (0..n).map(|i| (i * i * 7 + i * 13 + 5) % 30).collect()
}

#[test]
fn any_calls_are_the_equations_with_every_gradient() {
    let ids = tokens(26);
    for (window, position) in [(None, "rope"), (Some(6), "rope"), (Some(6), "none")] {
        let model = one_layer(window, position);
        let gradients = |hidden: &Tensor| -> Vec<Tensor> {
            let weights = (Tensor::arange(26 * 12, (Kind::Double, Device::Cpu)) * 0.7).sin().view([26, 12]);
            for parameter in model.parameters() {
                parameter.tensor.shallow_clone().zero_grad();
            }
            (hidden * weights).sum(Kind::Double).backward();
            model.parameters().iter().map(|parameter| parameter.tensor.grad().copy()).collect()
        };
        let expected = naive(&model, &ids, window, position == "rope");
        let slopes = gradients(&expected);
        // Full: expanded. Single tokens: absorbed. Both in turn.
        for calls in [vec![26], vec![1; 26], vec![10, 1, 0, 1, 14]] {
            let initial = model.initial_state(false).unwrap();
            let (mut state, mut start, mut outputs) = (initial.share(), 0, Vec::new());
            for &length in &calls {
                let chunk = row(&ids[start..start + length]);
                let (hidden, next) = model.forward(&chunk, &state, &initial, SpanInput::default()).unwrap();
                outputs.push(hidden.squeeze_dim(0));
                (state, start) = (next, start + length);
            }
            let hidden = Tensor::cat(&outputs, 0);
            let error = max_difference(&hidden, &expected);
            assert!(error < 1e-10, "{window:?} {position} {calls:?}: {error:e}");
            for ((parameter, got), expected) in model.parameters().iter().zip(gradients(&hidden)).zip(&slopes)
            {
                let scale = expected.abs().max().double_value(&[]).max(1e-3);
                let error = max_difference(&got, expected) / scale;
                assert!(error < 1e-9, "{window:?} {calls:?}, gradient of {}: {error:e}", parameter.plan.name);
            }
        }
    }
}

/// YaRN's factor multiplies the whole score: it is what a temperature of the softmax does.
#[test]
fn the_attention_factor_scales_both_parts_of_the_score() {
    let _guard = NoGrad::new();
    let yarn = |factor: f64| {
        format!("{{ kind: rope_yarn, factor: 1, original_max_positions: 64, attention_factor: {factor} }}")
    };
    let (plain, scaled) = (one_layer(None, &yarn(1.0)), one_layer(None, &yarn(1.3)));
    // The same scores from queries that are larger by the square.
    let b = plain.parameters().get("layers.0.mixers.mla.q_b.weight").unwrap();
    let _ = b.tensor.shallow_clone().multiply_scalar_(1.3 * 1.3);
    for calls in [vec![20], vec![1; 20]] {
        let run = |model: &Model| {
            let initial = model.initial_state(false).unwrap();
            let (mut state, mut start, mut outputs) = (initial.share(), 0, Vec::new());
            for &length in &calls {
                let chunk = row(&tokens(20)[start..start + length]);
                let (hidden, next) = model.forward(&chunk, &state, &initial, SpanInput::default()).unwrap();
                outputs.push(hidden);
                (state, start) = (next, start + length);
            }
            Tensor::cat(&outputs, 1)
        };
        let error = max_difference(&run(&scaled), &run(&plain));
        assert!(error < 1e-11, "{calls:?}: {error:e}");
    }
}

#[test]
fn the_cache_holds_latents_and_shared_keys_only() {
    let _guard = NoGrad::new();
    for window in [None, Some(6)] {
        let model = one_layer(window, "rope");
        let initial = model.initial_state(false).unwrap();
        let (_, state) = model.forward(&row(&tokens(20)), &initial, &initial, SpanInput::default()).unwrap();
        let kept = window.unwrap_or(20);
        let sizes: BTreeMap<_, _> =
            state.layers[0][0].iter().map(|(name, tensor)| (name, tensor.size())).collect();
        let expected = BTreeMap::from([
            ("meta_latent", vec![1, 3, 9]),
            ("meta_k_rope", vec![1, 3, 6]),
            ("latent", vec![1, kept, 9]),
            ("k_rope", vec![1, kept, 6]),
            ("position", vec![1, kept]),
        ]);
        assert_eq!(sizes, expected);
        assert_eq!(state.bytes(), model.plan().state_bytes(20, Kind::Double));
        assert_eq!(state.bytes() as i64, (3 + kept) * (9 + 6) * 8 + kept * 8);
    }
}
