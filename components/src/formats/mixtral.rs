//! Mixtral as the Hugging Face libraries store it (`MixtralForCausalLM`, arXiv 2401.04088): Mistral with experts.

use hymba_plus::{
    component_config,
    plan::{LayerPlan, ModelPlan},
    prelude::register,
    serde_json::{Map, Value, json},
    weights::{ForeignConfig, Layout, Mapping, Part, Signature, WeightFormat, weight_format},
};

use super::{
    common::{SILENT as COMMON, channel_mixer, first_layer, typed},
    decoder::{self, Defaults},
    mistral::window,
};
use crate::moe::Moe;

/// Mixtral: every channel mixer is a mixture of experts, whose weights add up to 1 for each token.
#[component_config]
pub struct Mixtral {}

register!(weight_format "mixtral" => Mixtral);

/// The keys that every format is silent about, and those of experts that only training sees.
const SILENT: [&str; COMMON.len() + 3] = {
    let mut keys = ["aux_loss"; COMMON.len() + 3];
    let mut i = 0;
    while i < COMMON.len() {
        keys[i] = COMMON[i];
        i += 1;
    }
    keys[COMMON.len() + 1] = "z_loss";
    keys[COMMON.len() + 2] = "d_shared";
    keys
};

/// The class takes the balance loss of all layers together, where its means are means over layers too; here every layer
/// has its own, and they are added up.
fn share(coefficient: f64, layers: i64) -> f64 {
    coefficient / layers as f64
}

impl WeightFormat for Mixtral {
    fn signature(&self) -> Signature {
        Signature { model_type: "mixtral", architectures: &["MixtralForCausalLM"] }
    }

    fn model_section(&self, config: &mut ForeignConfig) -> Value {
        let window = window(config, None);
        let defaults = Defaults { theta: 1e6, eps: 1e-5, max_positions: 4096 * 32 };
        decoder::model_section(config, defaults, window, false, |config, d_hidden| {
            config.without_effect(&["router_jitter_noise"]);
            let coefficient = config.number_or("router_aux_loss_coef", 0.001);
            json!({
                "kind": "moe",
                "n_experts": config.count_or("num_local_experts", 8),
                "top_k": config.count_or("num_experts_per_tok", 2),
                "d_hidden": d_hidden,
                "aux_loss": share(coefficient, config.count("num_hidden_layers")),
            })
        })
    }

    fn config(&self, plan: &ModelPlan) -> Result<Map<String, Value>, Vec<String>> {
        let (mut config, attention) = decoder::config(plan)?;
        let moe = moe(plan).map_err(|reason| vec![reason])?;
        let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
        put("sliding_window", json!(attention.window));
        put("intermediate_size", json!(moe.d_hidden));
        put("num_local_experts", json!(moe.n_experts));
        put("num_experts_per_tok", json!(moe.top_k));
        put("router_aux_loss_coef", json!(moe.aux_loss * plan.layers.len() as f64));
        Ok(config)
    }

    fn mapping(&self, plan: &ModelPlan) -> Mapping {
        decoder::mapping(plan, map_experts)
    }

    fn silent_keys(&self) -> &'static [&'static str] {
        &SILENT
    }
}

fn moe(plan: &ModelPlan) -> Result<Moe, String> {
    let place = "layers[0].channel_mixer";
    let mixer = channel_mixer(first_layer(plan)?);
    typed(mixer.ok_or_else(|| format!("{place} is none, this format has `moe`"))?, "moe", place)
}

/// The router and the experts of a layer: ours in one tensor for all experts, theirs in one for each.
fn map_experts(map: &mut Mapping, layer: &LayerPlan, theirs: &str) {
    let (ours, theirs) =
        (format!("layers.{}.channel_mixer", layer.index), format!("{theirs}.block_sparse_moe"));
    map.same(format!("{ours}.router"), format!("{theirs}.gate.weight"));
    let shape = |name: &str| {
        let full = format!("{ours}.{name}");
        let (_, module) = layer.channel_mixer.as_ref()?;
        module.parameters.iter().find(|plan| plan.name == full).map(|plan| plan.shape.clone())
    };
    for (mine, yours) in [("gate", "w1"), ("down", "w2"), ("up", "w3")] {
        let Some([experts, rows, columns]) = shape(mine).and_then(|shape| <[i64; 3]>::try_from(shape).ok())
        else {
            continue;
        };
        for expert in 0..experts {
            map.shaped(
                Part::whole(format!("{ours}.{mine}")).index(expert),
                format!("{theirs}.experts.{expert}.{yours}.weight"),
                &[rows, columns],
                Layout::Same,
            );
        }
    }
}
