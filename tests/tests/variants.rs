//! Every way to put a layer together keeps the law of states, and is what its names say.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use hymba_plus::{model::Model, plan::Law, state::SpanInput};
use hymba_tests::max_difference;
use tch::{Kind, Tensor};
use torch_bridge::guards::NoGrad;

const ENDS: &str = "
d_model: 24
vocab_size: 50
embedding: token
head: language
";

/// One call against calls of 1 to 5 tokens with documents and padding in between; the largest difference.
fn split_error(model: &Model) -> f64 {
    let _guard = NoGrad::new();
    let (batch, time) = (2, 23);
    let ids =
        (Tensor::arange(batch * time, (Kind::Int64, tch::Device::Cpu)) * 7).remainder(50).view([batch, time]);
    let resets: Vec<bool> = (0..batch * time).map(|i| [2, 3, 11, 30, 45].contains(&i)).collect();
    let resets = Tensor::from_slice(&resets).view([batch, time]);
    let initial = model.initial_state(false).unwrap();
    let input = SpanInput { resets: Some(&resets), ..SpanInput::default() };
    let (expected, _) = model.forward(&ids, &initial, &initial, input).unwrap();
    let (mut state, mut outputs, mut start) = (initial.share(), Vec::new(), 0);
    for length in [1, 4, 0, 2, 5, 1, 1, 3, 5, 1] {
        // Two tokens of padding around each chunk, in front in one row and behind in the other.
        let pad = |tensor: &Tensor, value: i64| {
            let chunk = tensor.narrow(1, start, length);
            let fill = Tensor::full([1, 2], value, (chunk.kind(), chunk.device()));
            let front = Tensor::cat(&[&fill, &chunk.narrow(0, 0, 1)], 1);
            Tensor::cat(&[front, Tensor::cat(&[&chunk.narrow(0, 1, 1), &fill], 1)], 0)
        };
        let (chunk, reset) = (pad(&ids, 49), pad(&resets, 1));
        let valid = pad(&Tensor::ones([batch, time], (Kind::Bool, tch::Device::Cpu)), 0);
        let input = SpanInput { resets: Some(&reset), valid: Some(&valid), training: false };
        let (hidden, next) = model.forward(&chunk, &state, &initial, input).unwrap();
        let front = hidden.narrow(0, 0, 1).narrow(1, 2, length);
        outputs.push(Tensor::cat(&[front, hidden.narrow(0, 1, 1).narrow(1, 0, length)], 0));
        state = next;
        start += length;
    }
    max_difference(&Tensor::cat(&outputs, 1), &expected)
}

fn check(name: &str, rest: &str) {
    let model = hymba_tests::model(&format!("{ENDS}{rest}"), Kind::Double, 11);
    // Larger weights, so that a wrong state shows.
    let guard = NoGrad::new();
    for parameter in model.parameters() {
        if parameter.plan.shape.len() == 2 && parameter.plan.weight_decay {
            let _ = parameter.tensor.shallow_clone().multiply_scalar_(8.0);
        }
    }
    drop(guard);
    let error = split_error(&model);
    assert!(error < 1e-10, "{name}: calls differ by {error:e}");
    for parameter in model.parameters() {
        let (takes, trained) = (parameter.tensor.requires_grad(), parameter.plan.trained);
        assert!(takes == trained, "{name}: {} takes a gradient: {takes}", parameter.plan.name);
    }
}

#[test]
fn a_pure_transformer_with_grouped_queries_separate_matrices_and_biases() {
    check("transformer", "
n_layers: 2
norm: layer_norm
tie_embeddings: false
block_pattern:
  kind: parallel
  layer:
    in_projection: separate
    in_bias: true
    out_bias: true
    mixers: [{ kind: attention, n_heads: 4, n_kv_heads: 2, head_dim: 8, position: { kind: rope_linear, factor: 2 } }]
    channel_mixer: { kind: gelu, d_hidden: 32, bias: true, form: tanh }
");
}

#[test]
fn multi_query_attention_with_norms_of_queries_and_keys_and_meta_tokens() {
    for qk_norm in ["rms", "per_head"] {
        check("mqa", &format!("
n_layers: 2
norm: rms_norm
meta_tokens: 3
block_pattern:
  kind: parallel
  layer:
    mixers:
      - {{ kind: attention, n_heads: 3, n_kv_heads: 1, head_dim: 8, v_head_dim: 5, window: 4, position: {{ kind: rope_yarn, factor: 4, original_max_positions: 8 }}, qk_norm: {qk_norm} }}
    channel_mixer: {{ kind: relu2, d_hidden: 16 }}
"));
    }
}

#[test]
fn a_pure_mamba_as_in_the_paper() {
    check(
        "mamba",
        "
n_layers: 3
norm: rms_norm
block_pattern:
  kind: parallel
  layer: { mixers: [{ kind: mamba, d_state: 5, d_conv: 3, conv_bias: false }] }
",
    );
}

#[test]
fn branches_with_out_projections_of_their_own() {
    for fusion in ["{ kind: learned_beta, norm: rms_norm }", "{ kind: mean, norm: none }"] {
        check("per branch", &format!("
n_layers: 2
norm: rms_norm
meta_tokens: 2
block_pattern:
  kind: parallel
  layer:
    in_projection: separate
    out_projection: per_branch
    mixers: [{{ kind: attention, n_heads: 2, head_dim: 8, window: 5, position: none }}, {{ kind: mamba, d_state: 4 }}]
    fusion: {fusion}
    channel_mixer: {{ kind: swiglu, d_hidden: 16 }}
"));
    }
}

#[test]
fn experts_behind_attention_and_mamba2() {
    for router in [
        "router: softmax, n_experts: 4",
        "router: sigmoid, n_experts: 5, top_k: 3, n_shared_experts: 2, d_shared: 7, routed_scale: 2.5, balance_rate: 0.01",
    ] {
        check(
            "experts",
            &format!(
                "
n_layers: 2
norm: rms_norm
meta_tokens: 2
block_pattern:
  kind: parallel
  layer:
    mixers:
      - {{ kind: attention, n_heads: 2, head_dim: 8, window: 5, position: rope }}
      - {{ kind: mamba2, d_inner: 16, n_heads: 4, n_groups: 2, d_state: 5 }}
    fusion: {{ kind: mean, norm: rms_norm }}
    channel_mixer: {{ kind: moe, d_hidden: 16, {router} }}
"
            ),
        );
    }
}

#[test]
fn branches_side_by_side_and_two_mixers_of_one_kind() {
    check(
        "concat",
        "
n_layers: 2
norm: rms_norm
meta_tokens: 1
block_pattern:
  kind: parallel
  layer:
    mixers:
      - { kind: mamba, d_inner: 8, d_state: 4 }
      - { kind: mamba, d_inner: 12, d_state: 3 }
      - { kind: attention, n_heads: 2, head_dim: 8, position: rope_llama3 }
    fusion: { kind: concat, norm: rms_norm }
",
    );
}

#[test]
fn the_barebones_form_has_queries_of_inner_width_and_biases() {
    check(
        "barebones",
        "
n_layers: 3
norm: rms_norm
meta_tokens: 5
block_pattern:
  kind: parallel
  global_layers: [1]
  layer:
    in_bias: true
    out_bias: true
    mixers:
      - { kind: attention, n_heads: 4, n_kv_heads: 2, head_dim: 12, window: 6, position: rope }
      - { kind: mamba, d_inner: 48, d_conv: 3, dt_rank: 8, inner_norm: rms_norm }
    fusion: { kind: mean, norm: rms_norm }
    channel_mixer: { kind: swiglu, d_hidden: 16 }
",
    );
}

#[test]
fn interleaved_layers_by_period_and_by_ratio() {
    for order in ["period: [mamba, mamba, attention]", "ratio: { attention: 1, mamba: 2 }"] {
        let yaml = format!("
n_layers: 7
norm: rms_norm
meta_tokens: 2
block_pattern:
  kind: interleaved
  {order}
  layers:
    mamba: {{ mixers: [{{ kind: mamba, d_state: 4 }}] }}
    attention: {{ mixers: [{{ kind: attention, n_heads: 2, window: 4, position: rope }}], channel_mixer: {{ kind: swiglu, d_hidden: 16 }} }}
");
        check(order, &yaml);
        let plan = hymba_tests::plan(&format!("{ENDS}{yaml}"));
        let kinds: Vec<_> = plan.layers.iter().map(|layer| layer.mixers[0].name.clone()).collect();
        assert_eq!(kinds.iter().filter(|kind| *kind == "attention").count(), 2, "{kinds:?}");
    }
}

#[test]
fn custom_layers_with_sharing_by_groups_and_an_empty_layer() {
    let yaml = "
n_layers: 7
norm: rms_norm
meta_tokens: 2
block_pattern:
  kind: custom
  layers:
    global: { mixers: [{ kind: attention, n_heads: 2, n_kv_heads: 1, head_dim: 8, position: rope }] }
    local:
      mixers: [{ kind: attention, n_heads: 2, n_kv_heads: 1, head_dim: 8, window: 4, position: rope }, { kind: mamba, d_inner: 16 }]
      fusion: { kind: mean, norm: rms_norm }
    empty: { mixers: [none], channel_mixer: { kind: swiglu, d_hidden: 16 } }
  sequence: [{ layer: global }, { layer: local, repeat: 3 }, { layer: empty }, { layer: global }, { layer: local }]
  kv_sharing: { groups: [[1, 2, 3], [0, 5]] }
";
    // The group [0, 5] is of global layers only and reaches over none.
    check("custom", yaml);
    let plan = hymba_tests::plan(&format!("{ENDS}{yaml}"));
    let own = |layer: usize| plan.states().filter(|(l, _, state)| *l == layer && state.name == "k").count();
    assert_eq!([0, 1, 2, 3, 5, 6].map(own), [1, 1, 0, 0, 0, 1]);
    assert!(plan.layers[4].mixers.is_empty());
}

#[test]
fn sharing_by_period_follows_the_windowed_layers() {
    let plan = hymba_tests::plan(&format!(
        "{ENDS}
n_layers: 8
norm: rms_norm
block_pattern:
  kind: parallel
  global_layers: [0, 5]
  kv_sharing: {{ period: 2 }}
  layer: {{ mixers: [{{ kind: attention, n_heads: 2, window: 4, position: rope }}] }}
"
    ));
    let roles: Vec<_> = plan.layers.iter().map(|layer| serde_json::to_value(layer.kv).unwrap()).collect();
    let consumer = |producer: usize| serde_json::json!({ "consumer": { "producer": producer } });
    let (own, producer) = (serde_json::json!("own"), serde_json::json!("producer"));
    let expected = [
        own.clone(),
        producer.clone(),
        consumer(1),
        producer.clone(),
        consumer(3),
        own,
        producer,
        consumer(6),
    ];
    assert_eq!(roles, expected);
}

/// With dynamic NTK and positions beyond the trained length, splits do differ: the plan says so.
#[test]
fn what_cannot_keep_the_law_declares_it() {
    let plan = hymba_tests::plan(&format!("{ENDS}
n_layers: 1
norm: rms_norm
block_pattern:
  kind: parallel
  layer: {{ mixers: [{{ kind: attention, n_heads: 2, position: {{ kind: rope_dynamic_ntk, original_max_positions: 8 }} }}] }}
"));
    assert!(plan.exemptions().iter().any(|exemption| exemption.law == Law::SplitInvariance));
    assert!(plan.render(16).contains("exempt"));
}

#[test]
fn a_group_may_have_its_mixers_in_another_order() {
    check("order", "
n_layers: 2
norm: rms_norm
meta_tokens: 2
block_pattern:
  kind: custom
  layers:
    first:
      mixers: [{ kind: attention, n_heads: 2, head_dim: 8, window: 4, position: rope }, { kind: mamba, d_inner: 16 }]
      fusion: { kind: mean, norm: rms_norm }
    second:
      mixers: [{ kind: mamba, d_inner: 16 }, { kind: attention, n_heads: 2, head_dim: 8, window: 3, position: rope }]
      fusion: { kind: mean, norm: rms_norm }
  sequence: [{ layer: first }, { layer: second }]
  kv_sharing: { groups: [[0, 1]] }
");
}

#[test]
fn sharing_by_period_reaches_over_layers_without_keys() {
    let plan = hymba_tests::plan(&format!(
        "{ENDS}
n_layers: 6
norm: rms_norm
block_pattern:
  kind: interleaved
  period: [mamba, attention]
  kv_sharing: {{ period: 3 }}
  layers:
    mamba: {{ mixers: [{{ kind: mamba, d_state: 4 }}] }}
    attention: {{ mixers: [{{ kind: attention, n_heads: 2, window: 4, position: rope }}] }}
"
    ));
    let keeps: Vec<_> =
        plan.states().filter(|(_, _, state)| state.name == "k").map(|(layer, _, _)| layer).collect();
    assert_eq!(keeps, [1]);
}
