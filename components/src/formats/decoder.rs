//! The Transformer of the Llama family: what Llama, Mistral and Mixtral share.

use hymba_plus::{
    plan::{LayerPlan, ModelPlan},
    serde_json::{Map, Value, json},
    weights::{ForeignConfig, Mapping, out_bias, out_weight, slice_bias, slice_weight},
};

use super::{
    common::{common_keys, first_layer, map_head, mixer, norm_eps, only_silu, rms_norm, vocab_size},
    rope,
};
use crate::attention::Attention;

/// Foreign defaults in which the family's members differ.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    pub(super) theta: f64,
    pub(super) eps: f64,
    pub(super) max_positions: i64,
}

/// The `model` section around one kind of layer. `window` and `bias` are the attention's; `channel_mixer` makes the
/// channel mixer of `intermediate_size`.
pub(super) fn model_section(
    config: &mut ForeignConfig,
    defaults: Defaults,
    window: Option<i64>,
    bias: bool,
    channel_mixer: impl FnOnce(&mut ForeignConfig, i64) -> Value,
) -> Value {
    common_keys(config);
    only_silu(config, "hidden_act");
    let (d_model, heads) = (config.count("hidden_size"), config.count("num_attention_heads"));
    let kv_heads = config.count_or("num_key_value_heads", heads);
    let head_dim = config.count_or("head_dim", (d_model / heads).max(1));
    let positions = rope::read(config, defaults.theta, defaults.max_positions);
    let mut attention = json!({
        "kind": "attention",
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "head_dim": head_dim,
        "position": positions.component,
        "dropout": config.number_or("attention_dropout", 0.0),
    });
    if let Some(window) = window {
        attention["window"] = json!(window);
    }
    let d_hidden = config.count("intermediate_size");
    let channel_mixer = channel_mixer(config, d_hidden);
    let mut model = json!({
        "d_model": d_model,
        "n_layers": config.count("num_hidden_layers"),
        "vocab_size": config.count("vocab_size"),
        "initializer_range": config.number_or("initializer_range", 0.02),
        "embedding": "token",
        "tie_embeddings": config.flag_or("tie_word_embeddings", false),
        "norm": rms_norm(config.number_or("rms_norm_eps", defaults.eps)),
        "head": "language",
        "block_pattern": {
            "kind": "parallel",
            "layer": {
                "mixers": [attention],
                "in_bias": bias,
                "out_bias": bias,
                "channel_mixer": channel_mixer,
            },
        },
    });
    if let Some(longest) = positions.longest {
        model["max_positions"] = json!(longest);
    }
    model
}

/// The configuration that all members write, and the attention of the first layer.
pub(super) fn config(plan: &ModelPlan) -> Result<(Map<String, Value>, Attention), Vec<String>> {
    let mut config = Map::new();
    let write = |config: &mut Map<String, Value>| -> Result<Attention, String> {
        let attention: Attention = mixer(first_layer(plan)?, &["attention"], "attention")?;
        let heads = attention.n_heads;
        rope::write(&attention.position, plan.max_positions, config)?;
        let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
        put("vocab_size", json!(vocab_size(plan)?));
        put("hidden_size", json!(plan.d_model));
        put("num_hidden_layers", json!(plan.layers.len()));
        put("num_attention_heads", json!(heads));
        put("num_key_value_heads", json!(attention.n_kv_heads.unwrap_or(heads)));
        put("head_dim", json!(attention.head_dim.unwrap_or(plan.d_model / heads)));
        put("hidden_act", json!("silu"));
        put("rms_norm_eps", json!(norm_eps(&plan.final_norm.component)?));
        put("initializer_range", json!(plan.final_norm.module.context.initializer_range));
        put("attention_dropout", json!(attention.dropout));
        put("tie_word_embeddings", json!(plan.tie_embeddings));
        put("use_cache", json!(true));
        Ok(attention)
    };
    let attention = write(&mut config).map_err(|reason| vec![reason])?;
    Ok((config, attention))
}

/// The table, but for the channel mixers.
pub(super) fn mapping(plan: &ModelPlan, channel_mixer: impl Fn(&mut Mapping, &LayerPlan, &str)) -> Mapping {
    const EMBEDDING: &str = "model.embed_tokens.weight";
    let mut map = Mapping::new(plan);
    map.same("embedding.weight", EMBEDDING);
    for layer in &plan.layers {
        let (ours, theirs) = (format!("layers.{}", layer.index), format!("model.layers.{}", layer.index));
        map.same(format!("{ours}.norm.weight"), format!("{theirs}.input_layernorm.weight"));
        attention(&mut map, layer, &theirs);
        map.same(format!("{ours}.channel_norm.weight"), format!("{theirs}.post_attention_layernorm.weight"));
        channel_mixer(&mut map, layer, &theirs);
    }
    map.same("final_norm.weight", "model.norm.weight");
    map_head(&mut map, plan, EMBEDDING);
    map
}

/// `self_attn` of one layer.
pub(super) fn attention(map: &mut Mapping, layer: &LayerPlan, theirs: &str) {
    const MIXER: &str = "attention";
    for slice in ["q", "k", "v"] {
        let name = format!("{theirs}.self_attn.{slice}_proj");
        map.same(slice_weight(layer, MIXER, slice), format!("{name}.weight"));
        if layer.config.in_bias {
            map.same(slice_bias(layer, MIXER, slice), format!("{name}.bias"));
        }
    }
    map.same(out_weight(layer, MIXER), format!("{theirs}.self_attn.o_proj.weight"));
    if layer.config.out_bias {
        map.same(out_bias(layer, MIXER), format!("{theirs}.self_attn.o_proj.bias"));
    }
    if let Some(shape) = layer.mixers.first().and_then(|mixer| mixer.module.kv_shape.as_ref()) {
        map.derived(format!("{theirs}.self_attn.rotary_emb.inv_freq"), &[shape.head_dim / 2]);
    }
}

/// A gated feed-forward network under foreign names of its gate, up and down.
pub(super) fn swiglu(map: &mut Mapping, layer: &LayerPlan, theirs: &str) {
    for name in ["gate", "up", "down"] {
        map.same(
            format!("layers.{}.channel_mixer.{name}", layer.index),
            format!("{theirs}.{name}_proj.weight"),
        );
    }
}
