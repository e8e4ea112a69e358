//! Mamba-1 as the Hugging Face libraries store it (`MambaForCausalLM`).

use hymba_plus::{
    component_config,
    plan::{LayerPlan, ModelPlan},
    prelude::register,
    serde_json::{Map, Value, json},
    weights::{
        ForeignConfig, Layout, Mapping, Signature, WeightFormat, out_bias, out_weight, slice_bias,
        slice_weight, weight_format,
    },
};

use super::common::{
    SILENT, common_keys, first_layer, map_head, map_if_there, mixer, norm_eps, only_silu, rms_norm,
    vocab_size,
};
use crate::mamba::Mamba as Mixer;

/// Mamba: layers of one selective state-space mixer each.
#[component_config]
pub struct Mamba {}

register!(weight_format "mamba" => Mamba);

/// Keys that only the first values, the choice among kernels or the rounding of 16-bit runs depend on; the last seven are
/// leftovers in the released conversions, which the class does not read.
const IDLE: [&str; 13] = [
    "intermediate_size",
    "rescale_prenorm_residual",
    "residual_in_fp32",
    "time_step_floor",
    "time_step_init_scheme",
    "time_step_scale",
    "d_inner",
    "d_model",
    "fused_add_norm",
    "n_layer",
    "pad_vocab_size_multiple",
    "rms_norm",
    "ssm_cfg",
];

impl WeightFormat for Mamba {
    fn signature(&self) -> Signature {
        Signature { model_type: "mamba", architectures: &["MambaForCausalLM"] }
    }

    fn model_section(&self, config: &mut ForeignConfig) -> Value {
        common_keys(config);
        config.without_effect(&IDLE);
        only_silu(config, "hidden_act");
        let d_model = config.count("hidden_size");
        let bias = config.flag_or("use_bias", false);
        let mixer = json!({
            "kind": "mamba",
            "d_inner": config.count_or("expand", 2) * d_model,
            "d_state": config.count_or("state_size", 16),
            "d_conv": config.count_or("conv_kernel", 4),
            "dt_rank": dt_rank(config, "time_step_rank", d_model),
            "conv_bias": config.flag_or("use_conv_bias", true),
            "dt_min": config.number_or("time_step_min", 0.001),
            "dt_max": config.number_or("time_step_max", 0.1),
        });
        json!({
            "d_model": d_model,
            "n_layers": config.count("num_hidden_layers"),
            "vocab_size": config.count("vocab_size"),
            "initializer_range": config.number_or("initializer_range", 0.1),
            "embedding": "token",
            "tie_embeddings": config.flag_or("tie_word_embeddings", true),
            "norm": rms_norm(config.number_or("layer_norm_epsilon", 1e-5)),
            "head": "language",
            "block_pattern": {
                "kind": "parallel",
                "layer": { "mixers": [mixer], "in_bias": bias, "out_bias": bias },
            },
        })
    }

    fn config(&self, plan: &ModelPlan) -> Result<Map<String, Value>, Vec<String>> {
        let write = || -> Result<Map<String, Value>, String> {
            let layer = first_layer(plan)?;
            let mamba: Mixer = mixer(layer, &["mamba"], "mamba")?;
            let d_inner = mamba.inner(plan.d_model);
            if d_inner % plan.d_model != 0 {
                return Err(format!(
                    "layers[0].mixers.mamba has {d_inner} inner channels, not a multiple of {}",
                    plan.d_model
                ));
            }
            let mut config = Map::new();
            let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
            put("vocab_size", json!(vocab_size(plan)?));
            put("hidden_size", json!(plan.d_model));
            put("num_hidden_layers", json!(plan.layers.len()));
            put("layer_norm_epsilon", json!(norm_eps(&plan.final_norm.component)?));
            put("expand", json!(d_inner / plan.d_model));
            put("intermediate_size", json!(d_inner));
            put("state_size", json!(mamba.d_state));
            put("conv_kernel", json!(mamba.d_conv));
            put("time_step_rank", json!(mamba.rank(plan.d_model)));
            put("time_step_min", json!(mamba.dt_min));
            put("time_step_max", json!(mamba.dt_max));
            put("use_bias", json!(layer.config.in_bias));
            put("use_conv_bias", json!(mamba.conv_bias));
            put("hidden_act", json!("silu"));
            put("initializer_range", json!(plan.final_norm.module.context.initializer_range));
            put("residual_in_fp32", json!(true));
            put("tie_word_embeddings", json!(plan.tie_embeddings));
            put("use_cache", json!(true));
            Ok(config)
        };
        write().map_err(|reason| vec![reason])
    }

    fn mapping(&self, plan: &ModelPlan) -> Mapping {
        backbone(plan, map_mixer)
    }

    fn silent_keys(&self) -> &'static [&'static str] {
        &SILENT
    }
}

/// The names of `backbone`, its norms and its head; `mixer` maps a layer's mixer to what stands under the given name.
pub(super) fn backbone(plan: &ModelPlan, mixer: fn(&mut Mapping, &LayerPlan, &str)) -> Mapping {
    const EMBEDDING: &str = "backbone.embeddings.weight";
    let mut map = Mapping::new(plan);
    map.same("embedding.weight", EMBEDDING);
    for layer in &plan.layers {
        let theirs = format!("backbone.layers.{}", layer.index);
        map.same(format!("layers.{}.norm.weight", layer.index), format!("{theirs}.norm.weight"));
        mixer(&mut map, layer, &format!("{theirs}.mixer"));
    }
    map.same("final_norm.weight", "backbone.norm_f.weight");
    map_head(&mut map, plan, EMBEDDING);
    map
}

/// A rank that may be `auto`: a sixteenth of the width, rounded up.
pub(super) fn dt_rank(config: &mut ForeignConfig, key: &str, d_model: i64) -> i64 {
    let auto = (d_model + 15) / 16;
    let is_auto = config.value(key).is_none_or(|value| value == json!("auto"));
    if is_auto { auto } else { config.count(key) }
}

/// A Mamba mixer by the names of its paper's code.
pub(super) fn map_mixer(map: &mut Mapping, layer: &LayerPlan, theirs: &str) {
    const MIXER: &str = "mamba";
    map.stacked(
        ["x", "z"].map(|slice| slice_weight(layer, MIXER, slice)),
        format!("{theirs}.in_proj.weight"),
    );
    if layer.config.in_bias {
        map.stacked(
            ["x", "z"].map(|slice| slice_bias(layer, MIXER, slice)),
            format!("{theirs}.in_proj.bias"),
        );
    }
    map_state_space(map, layer, theirs, "");
    map.same(out_weight(layer, MIXER), format!("{theirs}.out_proj.weight"));
    if layer.config.out_bias {
        map.same(out_bias(layer, MIXER), format!("{theirs}.out_proj.bias"));
    }
}

/// The mixer's own parameters; `index` is `.0` where the foreign class keeps them in lists of one.
pub(super) fn map_state_space(map: &mut Mapping, layer: &LayerPlan, theirs: &str, index: &str) {
    let ours = format!("layers.{}.mixers.mamba", layer.index);
    if let Some(&[channels, width]) = map.shape(&format!("{ours}.conv.weight")) {
        let name = format!("{theirs}.conv1d.weight");
        map.shaped(format!("{ours}.conv.weight"), name, &[channels, 1, width], Layout::Same);
    }
    map_if_there(map, &format!("{ours}.conv.bias"), &format!("{theirs}.conv1d.bias"));
    for (mine, yours) in [
        ("x_proj.weight", format!("x_proj{index}.weight")),
        ("dt_proj.weight", format!("dt_proj{index}.weight")),
        ("dt_proj.bias", format!("dt_proj{index}.bias")),
        ("A_log", format!("A_log{index}")),
        ("D", format!("D{index}")),
    ] {
        map.same(format!("{ours}.{mine}"), format!("{theirs}.{yours}"));
    }
}
