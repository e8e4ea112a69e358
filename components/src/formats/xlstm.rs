//! xLSTM-7B as the Hugging Face libraries store it (`xLSTMForCausalLM`, Beck et al. 2025, arXiv 2503.13427).

use hymba_plus::{
    component_config,
    plan::{LayerPlan, ModelPlan},
    prelude::register,
    serde_json::{Map, Value, json},
    weights::{ForeignConfig, Mapping, Signature, WeightFormat, out_weight, slice_weight, weight_format},
};

use super::common::{channel_mixer, common_keys, first_layer, mixer, norm_eps, rms_norm, typed, vocab_size};
use crate::{head::LanguageHead, mlp::SwiGlu, mlstm::Mlstm};

/// xLSTM-7B: layers of one mLSTM and one gated feed-forward network each, soft caps on gates and logits.
#[component_config]
pub struct Xlstm {}

register!(weight_format "xlstm" => Xlstm);

/// Keys that only the choice among kernels, their types and the length of their chunks depend on, or that the class does
/// not read.
const IDLE: [&str; 20] = [
    "add_embedding_dropout",
    "add_forward_backend_padding",
    "autocast_kernel_dtype",
    "cell_norm_eps",
    "chunk_size",
    "chunkwise_kernel",
    "force_bos_token_insert",
    "forward_backend_name",
    "head_dim",
    "igate_bias_init_range",
    "inference_state_dtype",
    "max_inference_chunksize",
    "mlstm_round_up_to_multiple_of",
    "mode",
    "norm_reduction_force_float32",
    "return_last_states",
    "sequence_kernel",
    "step_kernel",
    "add_post_blocks_norm",
    "initializer_range",
];
/// Keys of ours that only rounding sees, and widths that the plan repeats.
const SILENT: [&str; 3] = ["chunk_size", "head_dim", "v_head_dim"];
const MIXER: &str = "mlstm";
/// The cache of the class rounds the widths of queries and values up to multiples of this, its layers do not.
const MULTIPLE: i64 = 64;

impl WeightFormat for Xlstm {
    fn signature(&self) -> Signature {
        Signature { model_type: "xlstm", architectures: &["xLSTMForCausalLM"] }
    }

    fn model_section(&self, config: &mut ForeignConfig) -> Value {
        common_keys(config);
        config.without_effect(&IDLE);
        for (key, value) in [("add_out_norm", true), ("add_qk_norm", false), ("add_post_norm", false)] {
            config.only(key, &[json!(value)], "the class has no such layers");
        }
        config.only("use_bias", &[json!(false)], "the projections have no biases here");
        config.only("weight_mode", &[json!("single")], "fused matrices are not read");
        config.only("tie_word_embeddings", &[json!(false)], "the class does not tie them");
        // Width and depth have two names each.
        let width = if config.has("hidden_size") { "hidden_size" } else { "embedding_dim" };
        let d_model = config.count(width);
        config.only("embedding_dim", &[json!(d_model)], "it is the width of the layers too");
        let depth = if config.has("num_blocks") { "num_blocks" } else { "num_hidden_layers" };
        let n_layers = config.count(depth);
        config.only("num_hidden_layers", &[json!(n_layers)], "it is num_blocks by another name");
        let heads = config.count_or("num_heads", 8);
        let (qk, v) = (config.number_or("qk_dim_factor", 0.5), config.number_or("v_dim_factor", 1.0));
        let [qk, v] = [("qk_dim_factor", qk), ("v_dim_factor", v)].map(|(key, factor)| {
            let width = scaled(d_model, factor);
            if width < heads || width % heads != 0 {
                config.refuse(format!(
                    "{key} {factor} makes {width} channels, which {heads} heads cannot share"
                ));
            }
            (width / heads).max(1)
        });
        let eps = config.number_or("norm_eps", 1e-6);
        let multiple = config.count_or("ffn_round_up_to_multiple_of", 64);
        let d_hidden = d_model as f64 * config.number_or("ffn_proj_factor", 2.667);
        let d_hidden = ((d_hidden + (multiple - 1) as f64) / multiple as f64).floor() as i64 * multiple;
        let mixer = json!({
            "kind": MIXER,
            "n_heads": heads,
            "head_dim": qk,
            "v_head_dim": v,
            "gate_soft_cap": config.number_or("gate_soft_cap", 15.0),
            "norm": { "kind": "group_norm", "eps": eps },
            "eps": config.number_or("eps", 1e-6),
        });
        json!({
            "d_model": d_model,
            "n_layers": n_layers,
            "vocab_size": config.count("vocab_size"),
            "embedding": "token",
            "tie_embeddings": false,
            "norm": rms_norm(eps),
            "head": { "kind": "language", "soft_cap": config.number_or("output_logit_soft_cap", 30.0) },
            "block_pattern": {
                "kind": "parallel",
                "layer": {
                    "mixers": [mixer],
                    "channel_mixer": { "kind": "swiglu", "d_hidden": d_hidden },
                },
            },
        })
    }

    fn config(&self, plan: &ModelPlan) -> Result<Map<String, Value>, Vec<String>> {
        write(plan).map_err(|reason| vec![reason])
    }

    fn mapping(&self, plan: &ModelPlan) -> Mapping {
        let mut map = Mapping::new(plan);
        map.same("embedding.weight", "backbone.embeddings.weight");
        for layer in &plan.layers {
            map_layer(&mut map, layer);
        }
        map.same("final_norm.weight", "backbone.out_norm.weight");
        map.same("head.weight", "lm_head.weight");
        map
    }

    fn silent_keys(&self) -> &'static [&'static str] {
        &SILENT
    }
}

fn map_layer(map: &mut Mapping, layer: &LayerPlan) {
    let (ours, theirs) = (format!("layers.{}", layer.index), format!("backbone.blocks.{}", layer.index));
    map.same(format!("{ours}.norm.weight"), format!("{theirs}.norm_mlstm.weight"));
    let inner = format!("{theirs}.mlstm_layer");
    for (slice, name) in [
        ("q", "q"),
        ("k", "k"),
        ("v", "v"),
        ("o", "ogate_preact"),
        ("i", "igate_preact"),
        ("f", "fgate_preact"),
    ] {
        map.same(slice_weight(layer, MIXER, slice), format!("{inner}.{name}.weight"));
    }
    for gate in ["i", "f"] {
        map.same(format!("{ours}.mixers.{MIXER}.{gate}_bias"), format!("{inner}.{gate}gate_preact.bias"));
    }
    map.same(format!("{ours}.mixers.{MIXER}.norm.weight"), format!("{inner}.multihead_norm.weight"));
    map.same(out_weight(layer, MIXER), format!("{inner}.out_proj.weight"));
    map.same(format!("{ours}.channel_norm.weight"), format!("{theirs}.norm_ffn.weight"));
    for (mine, yours) in [("gate", "proj_up_gate"), ("up", "proj_up"), ("down", "proj_down")] {
        map.same(format!("{ours}.channel_mixer.{mine}"), format!("{theirs}.ffn.{yours}.weight"));
    }
}

/// The width that a factor makes, cut off as the class does it.
fn scaled(d_model: i64, factor: f64) -> i64 {
    (d_model as f64 * factor) as i64
}

/// The factor that makes a width.
fn factor(width: i64, d_model: i64) -> f64 {
    let factor = width as f64 / d_model as f64;
    if scaled(d_model, factor) < width { factor.next_up() } else { factor }
}

fn write(plan: &ModelPlan) -> Result<Map<String, Value>, String> {
    let layer = first_layer(plan)?;
    let mlstm: Mlstm = mixer(layer, &[MIXER], MIXER)?;
    let v_head_dim = mlstm.v_head_dim.unwrap_or(plan.d_model / mlstm.n_heads);
    let (qk, v) = (mlstm.n_heads * mlstm.head_dim.unwrap_or(v_head_dim / 2), mlstm.n_heads * v_head_dim);
    for (what, width) in [("queries", qk), ("values", v)] {
        if width % MULTIPLE != 0 {
            return Err(format!(
                "{what} are {width} channels wide; the cache of the class works for multiples of {MULTIPLE} only"
            ));
        }
    }
    let gate_soft_cap = mlstm.gate_soft_cap.ok_or("the gates have no soft cap, the class always has")?;
    let head: LanguageHead = typed(&plan.head.component, "language", "the head")?;
    let soft_cap = head.soft_cap.ok_or("the head has no soft cap, the class always has")?;
    let place = "layers[0].channel_mixer";
    let swiglu = channel_mixer(layer).ok_or_else(|| format!("{place} is none, this format has `swiglu`"))?;
    let swiglu: SwiGlu = typed(swiglu, "swiglu", place)?;
    let mut config = Map::new();
    let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
    put("vocab_size", json!(vocab_size(plan)?));
    put("hidden_size", json!(plan.d_model));
    put("embedding_dim", json!(plan.d_model));
    put("num_hidden_layers", json!(plan.layers.len()));
    put("num_blocks", json!(plan.layers.len()));
    put("num_heads", json!(mlstm.n_heads));
    put("qk_dim_factor", json!(factor(qk, plan.d_model)));
    put("v_dim_factor", json!(factor(v, plan.d_model)));
    put("ffn_proj_factor", json!(factor(swiglu.d_hidden, plan.d_model)));
    put("ffn_round_up_to_multiple_of", json!(1));
    put("gate_soft_cap", json!(gate_soft_cap));
    put("output_logit_soft_cap", json!(soft_cap));
    put("eps", json!(mlstm.eps));
    put("norm_eps", json!(norm_eps(&plan.final_norm.component)?));
    put("add_out_norm", json!(true));
    put("use_bias", json!(false));
    put("weight_mode", json!("single"));
    put("mode", json!("inference"));
    // Its default would round in the middle of a layer.
    put("autocast_kernel_dtype", json!("float32"));
    put("tie_word_embeddings", json!(false));
    put("use_cache", json!(true));
    Ok(config)
}
