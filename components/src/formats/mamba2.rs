//! Mamba-2 as the Hugging Face libraries store it (`Mamba2ForCausalLM`).

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

use super::{
    common::{common_keys, first_layer, map_if_there, mixer, norm_eps, only_silu, rms_norm, vocab_size},
    mamba::backbone,
};
use crate::mamba2::Mamba2 as Mixer;

/// Mamba-2: layers of one state-space mixer each, with a norm after its gate.
#[component_config]
pub struct Mamba2 {}

register!(weight_format "mamba2" => Mamba2);

/// Keys that only the first values, the choice among kernels or the rounding of 16-bit runs depend on; the last four are
/// leftovers in the released conversions, which the class does not read.
const IDLE: [&str; 9] = [
    "chunk_size",
    "rescale_prenorm_residual",
    "residual_in_fp32",
    "time_step_floor",
    "time_step_init_scheme",
    "intermediate_size",
    "norm_before_gate",
    "rms_norm",
    "time_step_scale",
];
/// Keys of ours that only training or rounding sees, and widths that the plan repeats.
const SILENT: [&str; 7] = ["chunk_size", "d_inner", "dt_max", "dt_min", "expand", "head_dim", "n_heads"];
const MIXER: &str = "mamba2";

impl WeightFormat for Mamba2 {
    fn signature(&self) -> Signature {
        Signature { model_type: "mamba2", architectures: &["Mamba2ForCausalLM"] }
    }

    fn model_section(&self, config: &mut ForeignConfig) -> Value {
        common_keys(config);
        // The rank is a leftover of the first Mamba: a step here is a row of the in-projection.
        config.without_effect(&["time_step_rank"]);
        config.without_effect(&IDLE);
        only_silu(config, "hidden_act");
        let d_model = config.count("hidden_size");
        let bias = config.flag_or("use_bias", false);
        let eps = config.number_or("layer_norm_epsilon", 1e-5);
        let mut mixer = json!({
            "kind": MIXER,
            "d_inner": config.count_or("expand", 2) * d_model,
            "n_heads": config.count_or("num_heads", 128),
            "head_dim": config.count_or("head_dim", 64),
            "d_state": config.count_or("state_size", 128),
            "n_groups": config.count_or("n_groups", 8),
            "d_conv": config.count_or("conv_kernel", 4),
            "conv_bias": config.flag_or("use_conv_bias", true),
            "dt_min": config.number_or("time_step_min", 0.001),
            "dt_max": config.number_or("time_step_max", 0.1),
            "norm_eps": eps,
        });
        match config.numbers("time_step_limit").as_deref() {
            None => {}
            Some(&[min, max]) => {
                if min > 0.0 || max.is_finite() {
                    config.note(
                        "time_step_limit holds in every pass; the class forgets it where it decodes a token at a time",
                    );
                }
                if min > 0.0 {
                    mixer["dt_limit_min"] = json!(min);
                }
                if max.is_finite() {
                    mixer["dt_limit_max"] = json!(max);
                }
            }
            Some(list) => config.refuse(format!("time_step_limit has {} numbers, expected 2", list.len())),
        }
        json!({
            "d_model": d_model,
            "n_layers": config.count("num_hidden_layers"),
            "vocab_size": config.count("vocab_size"),
            "initializer_range": config.number_or("initializer_range", 0.1),
            "embedding": "token",
            "tie_embeddings": config.flag_or("tie_word_embeddings", false),
            "norm": rms_norm(eps),
            "head": "language",
            "block_pattern": {
                "kind": "parallel",
                "layer": { "mixers": [mixer], "in_bias": bias, "out_bias": bias },
            },
        })
    }

    fn config(&self, plan: &ModelPlan) -> Result<Map<String, Value>, Vec<String>> {
        write(plan).map_err(|reason| vec![reason])
    }

    fn mapping(&self, plan: &ModelPlan) -> Mapping {
        backbone(plan, map_mixer)
    }

    fn silent_keys(&self) -> &'static [&'static str] {
        &SILENT
    }
}

fn map_mixer(map: &mut Mapping, layer: &LayerPlan, theirs: &str) {
    let ours = format!("layers.{}.mixers.{MIXER}", layer.index);
    let slices = ["z", "xbc", "dt"];
    map.stacked(slices.map(|slice| slice_weight(layer, MIXER, slice)), format!("{theirs}.in_proj.weight"));
    if layer.config.in_bias {
        map.stacked(slices.map(|slice| slice_bias(layer, MIXER, slice)), format!("{theirs}.in_proj.bias"));
    }
    if let Some([channels, width]) = shape(layer, "conv.weight") {
        let name = format!("{theirs}.conv1d.weight");
        map.shaped(format!("{ours}.conv.weight"), name, &[*channels, 1, *width], Layout::Same);
    }
    map_if_there(map, &format!("{ours}.conv.bias"), &format!("{theirs}.conv1d.bias"));
    for name in ["dt_bias", "A_log", "D", "norm.weight"] {
        map.same(format!("{ours}.{name}"), format!("{theirs}.{name}"));
    }
    map.same(out_weight(layer, MIXER), format!("{theirs}.out_proj.weight"));
    if layer.config.out_bias {
        map.same(out_bias(layer, MIXER), format!("{theirs}.out_proj.bias"));
    }
}

/// The shape of a parameter of the layer's mixer.
fn shape<'a>(layer: &'a LayerPlan, name: &str) -> Option<&'a [i64]> {
    let mixer = layer.mixers.iter().find(|mixer| mixer.component.kind == MIXER)?;
    let full = format!("{}.{name}", mixer.module.name);
    mixer.module.parameters.iter().find(|plan| plan.name == full).map(|plan| plan.shape.as_slice())
}

fn write(plan: &ModelPlan) -> Result<Map<String, Value>, String> {
    let layer = first_layer(plan)?;
    let mamba: Mixer = mixer(layer, &[MIXER], MIXER)?;
    let (Some([heads]), Some(inner)) =
        (shape(layer, "A_log"), layer.mixers.first().map(|mixer| mixer.module.output_width))
    else {
        return Err(format!("layers[0].mixers.{MIXER} has no heads"));
    };
    if inner % plan.d_model != 0 {
        return Err(format!(
            "layers[0].mixers.{MIXER} has {inner} inner channels, not a multiple of {}",
            plan.d_model
        ));
    }
    let mut config = Map::new();
    let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
    put("vocab_size", json!(vocab_size(plan)?));
    put("hidden_size", json!(plan.d_model));
    put("num_hidden_layers", json!(plan.layers.len()));
    put("layer_norm_epsilon", json!(norm_eps(&plan.final_norm.component)?));
    put("expand", json!(inner / plan.d_model));
    put("num_heads", json!(heads));
    put("head_dim", json!(inner / heads));
    put("state_size", json!(mamba.d_state));
    put("n_groups", json!(mamba.n_groups));
    put("conv_kernel", json!(mamba.d_conv));
    put("time_step_min", json!(mamba.dt_min));
    put("time_step_max", json!(mamba.dt_max));
    if mamba.dt_limit_min > 0.0 || mamba.dt_limit_max.is_some() {
        let infinity = json!({ "__float__": "Infinity" });
        let max = mamba.dt_limit_max.map_or(infinity, |max| json!(max));
        put("time_step_limit", json!([mamba.dt_limit_min, max]));
    }
    put("use_bias", json!(layer.config.in_bias));
    put("use_conv_bias", json!(mamba.conv_bias));
    put("hidden_act", json!("silu"));
    put("initializer_range", json!(plan.final_norm.module.context.initializer_range));
    put("residual_in_fp32", json!(true));
    put("tie_word_embeddings", json!(plan.tie_embeddings));
    put("use_cache", json!(true));
    Ok(config)
}
