//! Llama 1 to 3 as the Hugging Face libraries store it (`LlamaForCausalLM`).

use hymba_plus::{
    component_config,
    plan::ModelPlan,
    prelude::register,
    serde_json::{Map, Value, json},
    weights::{ForeignConfig, Mapping, Signature, WeightFormat, weight_format},
};

use super::{
    common::{SILENT, channel_mixer, first_layer, typed},
    decoder::{self, Defaults},
};
use crate::mlp::SwiGlu;

/// Llama: grouped-query attention with rotary positions of every scaling but LongRoPE, SwiGLU, RMS norms.
#[component_config]
pub struct Llama {}

register!(weight_format "llama" => Llama);

impl WeightFormat for Llama {
    fn signature(&self) -> Signature {
        Signature { model_type: "llama", architectures: &["LlamaForCausalLM"] }
    }

    fn model_section(&self, config: &mut ForeignConfig) -> Value {
        let bias = config.flag_or("attention_bias", false);
        let defaults = Defaults { theta: 10_000.0, eps: 1e-6, max_positions: 2048 };
        decoder::model_section(config, defaults, None, bias, |config, d_hidden| {
            config.only("mlp_bias", &[json!(false)], "the feed-forward network has no biases here");
            json!({ "kind": "swiglu", "d_hidden": d_hidden })
        })
    }

    fn config(&self, plan: &ModelPlan) -> Result<Map<String, Value>, Vec<String>> {
        let (mut config, _) = decoder::config(plan)?;
        add_swiglu(plan, &mut config).map_err(|reason| vec![reason])?;
        let bias = plan.layers.first().is_some_and(|layer| layer.config.in_bias);
        config.insert("attention_bias".to_owned(), json!(bias));
        config.insert("mlp_bias".to_owned(), json!(false));
        Ok(config)
    }

    fn mapping(&self, plan: &ModelPlan) -> Mapping {
        decoder::mapping(plan, |map, layer, theirs| decoder::swiglu(map, layer, &format!("{theirs}.mlp")))
    }

    fn silent_keys(&self) -> &'static [&'static str] {
        &SILENT
    }
}

/// `intermediate_size` of a model whose channel mixers are SwiGLU.
pub(super) fn add_swiglu(plan: &ModelPlan, config: &mut Map<String, Value>) -> Result<(), String> {
    let layer = first_layer(plan)?;
    let mixer = channel_mixer(layer).ok_or("layers[0] has no channel mixer, this format has `swiglu`")?;
    let mixer: SwiGlu = typed(mixer, "swiglu", "layers[0].channel_mixer")?;
    config.insert("intermediate_size".to_owned(), json!(mixer.d_hidden));
    Ok(())
}
