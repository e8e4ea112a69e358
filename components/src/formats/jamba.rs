//! Jamba as the Hugging Face libraries store it (`JambaForCausalLM`, Lieber et al. 2024, arXiv 2403.19887): layers of
//! Mamba with norms inside, and in every period one of attention without positions.

use hymba_plus::{
    component_config,
    plan::{LayerPlan, ModelPlan},
    prelude::register,
    serde_json::{Map, Value, json},
    weights::{ForeignConfig, Mapping, Signature, WeightFormat, weight_format},
};

use super::{
    common::{
        SILENT, channel_mixer, common_keys, map_head, mixer, norm_eps, only_silu, rms_norm, typed, vocab_size,
    },
    decoder,
    mamba::{dt_rank, map_mixer},
};
use crate::{attention::Attention, mamba::Mamba, mlp::SwiGlu};

/// Jamba with dense channel mixers; layers with experts are refused.
#[component_config]
pub struct Jamba {}

register!(weight_format "jamba" => Jamba);

/// Keys that only experts read, which are refused, and one that chooses among kernels of equal results.
const IDLE: [&str; 5] = [
    "expert_layer_offset",
    "expert_layer_period",
    "num_experts_per_tok",
    "num_logits_to_keep",
    "router_aux_loss_coef",
];

impl WeightFormat for Jamba {
    fn signature(&self) -> Signature {
        Signature { model_type: "jamba", architectures: &["JambaForCausalLM"] }
    }

    fn model_section(&self, config: &mut ForeignConfig) -> Value {
        common_keys(config);
        config.without_effect(&IDLE);
        only_silu(config, "hidden_act");
        let experts = config.count_or("num_experts", 16);
        if experts != 1 {
            config.refuse(format!("num_experts is {experts}, only dense channel mixers can be read"));
        }
        let (d_model, heads) = (config.count("hidden_size"), config.count("num_attention_heads"));
        let norm = rms_norm(config.number_or("rms_norm_eps", 1e-6));
        let bias = config.flag_or("mamba_proj_bias", false);
        let channel_mixer = json!({ "kind": "swiglu", "d_hidden": config.count("intermediate_size") });
        let attention = json!({
            "kind": "attention",
            "n_heads": heads,
            "n_kv_heads": if config.is_null("num_key_value_heads") { heads } else { config.count_or("num_key_value_heads", 8) },
            "position": "none",
            "dropout": config.number_or("attention_dropout", 0.0),
        });
        let mamba = json!({
            "kind": "mamba",
            "d_inner": config.count_or("mamba_expand", 2) * d_model,
            "d_state": config.count_or("mamba_d_state", 16),
            "d_conv": config.count_or("mamba_d_conv", 4),
            "dt_rank": dt_rank(config, "mamba_dt_rank", d_model),
            "conv_bias": config.flag_or("mamba_conv_bias", true),
            "inner_norm": norm,
        });
        let period = config.count_or("attn_layer_period", 8);
        let offset = config.integer("attn_layer_offset").unwrap_or(4);
        if !(0..period).contains(&offset) {
            config.refuse(format!("attn_layer_offset is {offset}, expected 0 to {}", period - 1));
        }
        let names = (0..period).map(|i| if i == offset { "attention" } else { "mamba" });
        json!({
            "d_model": d_model,
            "n_layers": config.count("num_hidden_layers"),
            "vocab_size": config.count("vocab_size"),
            "max_positions": config.count_or("max_position_embeddings", 262_144),
            "initializer_range": config.number_or("initializer_range", 0.02),
            "embedding": "token",
            "tie_embeddings": config.flag_or("tie_word_embeddings", false),
            "norm": norm,
            "head": "language",
            "block_pattern": {
                "kind": "interleaved",
                "period": names.collect::<Vec<_>>(),
                "layers": {
                    "attention": { "mixers": [attention], "channel_mixer": channel_mixer },
                    "mamba": {
                        "mixers": [mamba],
                        "in_bias": bias,
                        "out_bias": bias,
                        "channel_mixer": channel_mixer,
                    },
                },
            },
        })
    }

    fn config(&self, plan: &ModelPlan) -> Result<Map<String, Value>, Vec<String>> {
        write(plan).map_err(|reason| vec![reason])
    }

    fn mapping(&self, plan: &ModelPlan) -> Mapping {
        const EMBEDDING: &str = "model.embed_tokens.weight";
        let mut map = Mapping::new(plan);
        map.same("embedding.weight", EMBEDDING);
        for layer in &plan.layers {
            let (ours, theirs) = (format!("layers.{}", layer.index), format!("model.layers.{}", layer.index));
            map.same(format!("{ours}.norm.weight"), format!("{theirs}.input_layernorm.weight"));
            if has(layer, "attention") {
                decoder::attention(&mut map, layer, &theirs);
            } else {
                map_mixer(&mut map, layer, &format!("{theirs}.mamba"));
                for name in ["dt", "b", "c"] {
                    let norm = format!("{ours}.mixers.mamba.{name}_norm.weight");
                    map.same(norm, format!("{theirs}.mamba.{name}_layernorm.weight"));
                }
            }
            map.same(format!("{ours}.channel_norm.weight"), format!("{theirs}.pre_ff_layernorm.weight"));
            decoder::swiglu(&mut map, layer, &format!("{theirs}.feed_forward"));
        }
        map.same("final_norm.weight", "model.final_layernorm.weight");
        map_head(&mut map, plan, EMBEDDING);
        map
    }

    fn silent_keys(&self) -> &'static [&'static str] {
        &SILENT
    }
}

fn has(layer: &LayerPlan, kind: &str) -> bool {
    layer.mixers.iter().any(|mixer| mixer.component.kind == kind)
}

/// Period and offset of the layers with attention: of several answers the shortest period.
fn period(plan: &ModelPlan) -> Result<(usize, usize), String> {
    let n = plan.layers.len();
    let layers: Vec<usize> =
        plan.layers.iter().filter(|layer| has(layer, "attention")).map(|layer| layer.index).collect();
    let (period, offset) = match layers[..] {
        [] => (n + 1, n),
        [only] => ((only + 1).max(n - only), only),
        [first, second, ..] => (second - first, first),
    };
    if (0..n).all(|layer| (layer % period == offset) == layers.contains(&layer)) {
        return Ok((period, offset));
    }
    Err(format!(
        "layers {layers:?} have attention, this format has one such layer at the same place of every period"
    ))
}

fn write(plan: &ModelPlan) -> Result<Map<String, Value>, String> {
    let layer = |kind: &str| plan.layers.iter().find(|layer| has(layer, kind));
    let mamba_layer = layer("mamba").ok_or("no layer has the mixer `mamba`")?;
    let mamba: Mamba = mixer(mamba_layer, &["mamba"], "mamba")?;
    let d_inner = mamba.inner(plan.d_model);
    if d_inner % plan.d_model != 0 {
        return Err(format!("mamba has {d_inner} inner channels, not a multiple of {}", plan.d_model));
    }
    let place = format!("layers[{}].channel_mixer", mamba_layer.index);
    let swiglu =
        channel_mixer(mamba_layer).ok_or_else(|| format!("{place} is none, this format has `swiglu`"))?;
    let swiglu: SwiGlu = typed(swiglu, "swiglu", &place)?;
    // A model without attention has its numbers all the same.
    let attention: Option<Attention> =
        layer("attention").map(|layer| mixer(layer, &["attention"], "attention")).transpose()?;
    let (heads, kv_heads, dropout) = attention.map_or((1, 1, 0.0), |attention| {
        (attention.n_heads, attention.n_kv_heads.unwrap_or(attention.n_heads), attention.dropout)
    });
    let (period, offset) = period(plan)?;
    let mut config = Map::new();
    let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
    put("vocab_size", json!(vocab_size(plan)?));
    put("hidden_size", json!(plan.d_model));
    put("intermediate_size", json!(swiglu.d_hidden));
    put("num_hidden_layers", json!(plan.layers.len()));
    put("num_attention_heads", json!(heads));
    put("num_key_value_heads", json!(kv_heads));
    put("attention_dropout", json!(dropout));
    put("attn_layer_period", json!(period));
    put("attn_layer_offset", json!(offset));
    put("num_experts", json!(1));
    put("num_experts_per_tok", json!(1));
    put("mamba_expand", json!(d_inner / plan.d_model));
    put("mamba_d_state", json!(mamba.d_state));
    put("mamba_d_conv", json!(mamba.d_conv));
    put("mamba_dt_rank", json!(mamba.rank(plan.d_model)));
    put("mamba_conv_bias", json!(mamba.conv_bias));
    put("mamba_proj_bias", json!(mamba_layer.config.in_bias));
    put("hidden_act", json!("silu"));
    put("rms_norm_eps", json!(norm_eps(&plan.final_norm.component)?));
    put("initializer_range", json!(plan.final_norm.module.context.initializer_range));
    put("tie_word_embeddings", json!(plan.tie_embeddings));
    put("use_cache", json!(true));
    if let Some(longest) = plan.max_positions {
        put("max_position_embeddings", json!(longest));
    }
    Ok(config)
}
