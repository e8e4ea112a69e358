//! Mistral as the Hugging Face libraries store it (`MistralForCausalLM`): Llama with a sliding window.

use hymba_plus::{
    component_config,
    plan::ModelPlan,
    prelude::register,
    serde_json::{Map, Value, json},
    weights::{ForeignConfig, Mapping, Signature, WeightFormat, weight_format},
};

use super::{
    common::SILENT,
    decoder::{self, Defaults},
    llama::add_swiglu,
};

/// Mistral: a token sees the last `sliding_window` tokens, itself among them, which is our `window`.
#[component_config]
pub struct Mistral {}

register!(weight_format "mistral" => Mistral);

impl WeightFormat for Mistral {
    fn signature(&self) -> Signature {
        Signature { model_type: "mistral", architectures: &["MistralForCausalLM"] }
    }

    fn model_section(&self, config: &mut ForeignConfig) -> Value {
        let window = window(config, Some(4096));
        let defaults = Defaults { theta: 10_000.0, eps: 1e-6, max_positions: 4096 * 32 };
        decoder::model_section(
            config,
            defaults,
            window,
            false,
            |_, d_hidden| json!({ "kind": "swiglu", "d_hidden": d_hidden }),
        )
    }

    fn config(&self, plan: &ModelPlan) -> Result<Map<String, Value>, Vec<String>> {
        let (mut config, attention) = decoder::config(plan)?;
        add_swiglu(plan, &mut config).map_err(|reason| vec![reason])?;
        config.insert("sliding_window".to_owned(), json!(attention.window));
        Ok(config)
    }

    fn mapping(&self, plan: &ModelPlan) -> Mapping {
        decoder::mapping(plan, |map, layer, theirs| decoder::swiglu(map, layer, &format!("{theirs}.mlp")))
    }

    fn silent_keys(&self) -> &'static [&'static str] {
        &SILENT
    }
}

/// `sliding_window`: a number, `null` for none, and the foreign default when the key is absent.
pub(super) fn window(config: &mut ForeignConfig, default: Option<i64>) -> Option<i64> {
    if config.is_null("sliding_window") || config.has("sliding_window") {
        return config.has("sliding_window").then(|| config.count("sliding_window")).or_else(|| {
            config.without_effect(&["sliding_window"]);
            None
        });
    }
    default
}
