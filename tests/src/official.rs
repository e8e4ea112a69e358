//! The released Hymba: its configuration as a model section, its parameter names as ours.

use std::{collections::BTreeMap, path::PathBuf};

use hymba_plus::model::Model;
use serde_json::Value;
use tch::Tensor;

/// Folder of the fixtures made with the official code.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/hymba-official")
}

/// The model section that says the same as an official `config.json`; `window` is the number of text keys.
///
/// # Panics
/// When the file is not such a configuration.
pub fn model_section(name: &str, window: i64) -> String {
    let text =
        std::fs::read_to_string(folder().join(format!("{name}.config.json"))).expect("the fixture is there");
    let config: Value = serde_json::from_str(&text).expect("the fixture is JSON");
    let int = |key: &str| config[key].as_i64().unwrap_or_else(|| panic!("{key}"));
    let d_inner = int("hidden_size") * int("mamba_expand");
    let qk_norm = if config["kq_norm"] == "perhead-rms" { "per_head" } else { "none" };
    let position = match config["rope_type"].as_str() {
        Some("ntk") => format!(
            "{{ kind: rope_ntk, max_positions: {}, original_max_positions: {} }}",
            int("max_position_embeddings"),
            int("orig_max_position_embeddings")
        ),
        _ => "rope".to_owned(),
    };
    format!(
        "
d_model: {d_model}
n_layers: {n_layers}
vocab_size: {vocab_size}
meta_tokens: {meta}
embedding: token
norm: {{ kind: rms_norm, eps: 1.0e-6 }}
head: language
block_pattern:
  kind: parallel
  global_layers: {global}
  kv_sharing: {{ groups: {groups} }}
  layer:
    mixers:
      - kind: attention
        n_heads: {n_heads}
        n_kv_heads: {n_kv_heads}
        head_dim: {head_dim}
        v_head_dim: {v_head_dim}
        window: {window}
        qk_norm: {qk_norm}
        position: {position}
      - kind: mamba
        d_inner: {d_inner}
        d_state: {d_state}
        d_conv: {d_conv}
        dt_rank: {dt_rank}
        inner_norm: {{ kind: rms_norm, eps: 1.0e-6 }}
        dt_init: normal
    fusion: {{ kind: mean, norm: {{ kind: rms_norm, eps: 1.0e-6 }} }}
    channel_mixer: {{ kind: swiglu, d_hidden: {d_hidden} }}
",
        d_model = int("hidden_size"),
        n_layers = int("num_hidden_layers"),
        vocab_size = int("vocab_size"),
        meta = int("num_memory_tokens"),
        global = config["global_attn_idx"],
        groups = config["kv_reuse_group"],
        n_heads = int("num_attention_heads"),
        n_kv_heads = int("num_key_value_heads"),
        head_dim = int("hidden_size") / int("num_attention_heads"),
        v_head_dim = d_inner / int("num_attention_heads"),
        d_state = int("mamba_d_state"),
        d_conv = int("mamba_d_conv"),
        dt_rank = int("mamba_dt_rank"),
        d_hidden = int("intermediate_size"),
    )
}

/// Our name of an official parameter.
///
/// # Panics
/// When the name is unknown.
pub fn our_name(official: &str) -> String {
    let ends = [
        ("model.memory_tokens", "meta_tokens"),
        ("model.embed_tokens.weight", "embedding.weight"),
        ("model.final_layernorm.weight", "final_norm.weight"),
    ];
    if let Some((_, ours)) = ends.iter().find(|(name, _)| *name == official) {
        return (*ours).to_owned();
    }
    let rest = official.strip_prefix("model.layers.").unwrap_or_else(|| panic!("{official}"));
    let (layer, rest) = rest.split_once('.').unwrap_or_else(|| panic!("{official}"));
    let inner = [
        ("input_layernorm.weight", "norm.weight"),
        ("pre_moe_layernorm.weight", "channel_norm.weight"),
        ("mamba.in_proj.weight", "in_proj.weight"),
        ("mamba.out_proj.weight", "out_proj.weight"),
        ("mamba.conv1d.weight", "mixers.mamba.conv.weight"),
        ("mamba.conv1d.bias", "mixers.mamba.conv.bias"),
        ("mamba.x_proj.0.weight", "mixers.mamba.x_proj.weight"),
        ("mamba.dt_proj.0.weight", "mixers.mamba.dt_proj.weight"),
        ("mamba.dt_proj.0.bias", "mixers.mamba.dt_proj.bias"),
        ("mamba.A_log.0", "mixers.mamba.A_log"),
        ("mamba.D.0", "mixers.mamba.D"),
        ("mamba.dt_layernorm.weight", "mixers.mamba.dt_norm.weight"),
        ("mamba.B_layernorm.weight", "mixers.mamba.b_norm.weight"),
        ("mamba.C_layernorm.weight", "mixers.mamba.c_norm.weight"),
        ("mamba.pre_avg_layernorm1.weight", "fusion.norm_0.weight"),
        ("mamba.pre_avg_layernorm2.weight", "fusion.norm_1.weight"),
        ("mamba.self_attn.q_norm.weight", "mixers.attention.q_norm"),
        ("mamba.self_attn.k_norm.weight", "mixers.attention.k_norm"),
        ("moe.experts.0.gate_proj.weight", "channel_mixer.gate"),
        ("moe.experts.0.up_proj.weight", "channel_mixer.up"),
        ("moe.experts.0.down_proj.weight", "channel_mixer.down"),
    ];
    let (_, ours) = inner.iter().find(|(name, _)| *name == rest).unwrap_or_else(|| panic!("{official}"));
    format!("layers.{layer}.{ours}")
}

/// Copies official weights into a model; every parameter of the model must be among them.
///
/// # Panics
/// When one is missing or does not fit.
pub fn load(model: &Model, weights: &BTreeMap<String, Tensor>) {
    let mut missing: Vec<_> =
        model.parameters().iter().map(|parameter| parameter.plan.name.clone()).collect();
    for (official, values) in weights {
        let name = our_name(official);
        // Consumers of shared keys keep a k_norm in the official code that nothing reads.
        let Some(parameter) = model.parameters().get(&name) else {
            assert!(name.ends_with("k_norm"), "{name} is not a parameter of the model");
            continue;
        };
        model
            .parameters()
            .set(&name, &values.reshape(parameter.plan.shape.as_slice()))
            .expect("the shape fits");
        missing.retain(|other| *other != name);
    }
    assert!(missing.is_empty(), "the official weights lack {missing:?}");
}
