//! What the formats of the Hugging Face libraries have in common.

use hymba_plus::{
    model::slot::{channel_mixer, norm},
    plan::{LayerPlan, ModelPlan},
    registry::{Component, Slot, parse_config},
    serde::de::DeserializeOwned,
    serde_json::{Value, json},
    weights::{ForeignConfig, Mapping},
};

use crate::norm::RmsNorm;

/// Keys of every configuration that say nothing of what a language model computes: provenance, token ids, what a call
/// returns, settings of generation and of other tasks that older versions stored beside them.
const IDLE: [&str; 66] = [
    "_attn_implementation_autoset",
    "_name_or_path",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "is_decoder",
    "keys_to_ignore_at_inference",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "transformers.js_config",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_mamba_kernels",
    "use_mambapy",
    "use_associative_scan",
    "vocab_file",
    "output_router_logits",
];

/// Keys of our components that only training or the first values see, and widths that a plan repeats.
pub(super) const SILENT: [&str; 10] = [
    "dropout",
    "dt_init",
    "dt_min",
    "dt_max",
    "d_inner",
    "expand",
    "dt_rank",
    "head_dim",
    "n_kv_heads",
    "v_head_dim",
];

/// Reads the keys that every configuration may have.
pub(super) fn common_keys(config: &mut ForeignConfig) {
    config.without_effect(&IDLE);
    for key in ["add_cross_attention", "is_encoder_decoder"] {
        config.only(key, &[json!(false)], "only models of one stack of layers are built here");
    }
    if config.has("quantization_config") {
        config.value("quantization_config");
        config.refuse(
            "quantization_config: quantised weights are not read; use the weights before quantisation",
        );
    }
}

/// `silu` under a key that names an activation.
pub(super) fn only_silu(config: &mut ForeignConfig, key: &str) {
    config.only(key, &[json!("silu"), json!("swish")], "the layers here have no other");
}

/// A root-mean-square norm.
pub(super) fn rms_norm(eps: f64) -> Value {
    json!({ "kind": "rms_norm", "eps": eps })
}

/// A component of ours read as its type, or why it is not of that kind.
pub(super) fn typed<C: DeserializeOwned, S: Slot>(
    component: &Component<S>,
    kind: &str,
    place: &str,
) -> Result<C, String> {
    if component.kind != kind {
        return Err(format!("{place} is `{}`, this format has `{kind}`", component.kind));
    }
    parse_config(Value::Object(component.config.clone())).map_err(|error| format!("{place}: {error}"))
}

/// Size of the vocabulary; a model without one is no language model.
pub(super) fn vocab_size(plan: &ModelPlan) -> Result<i64, String> {
    plan.vocab_size.ok_or_else(|| "the model has no vocabulary".to_owned())
}

/// The model's norm, as the format's one number.
pub(super) fn norm_eps(norm: &Component<norm>) -> Result<f64, String> {
    typed::<RmsNorm, _>(norm, "rms_norm", "the model's norm").map(|norm| norm.eps)
}

/// The first layer, whose settings a format without settings of single layers takes for all.
pub(super) fn first_layer(plan: &ModelPlan) -> Result<&LayerPlan, String> {
    plan.layers.first().ok_or_else(|| "there is no layer".to_owned())
}

/// The configuration of the mixer of that kind in a layer that has exactly the mixers `kinds`, in order.
pub(super) fn mixer<C: DeserializeOwned>(layer: &LayerPlan, kinds: &[&str], kind: &str) -> Result<C, String> {
    let found: Vec<&str> = layer.mixers.iter().map(|mixer| mixer.component.kind.as_str()).collect();
    let place = format!("layers[{}]", layer.index);
    if found != kinds {
        return Err(format!("{place} has the mixers {found:?}, a layer of this format has {kinds:?}"));
    }
    let mixer = layer.mixers.iter().find(|mixer| mixer.component.kind == kind);
    let mixer = mixer.ok_or_else(|| format!("{place} has no mixer `{kind}`"))?;
    typed(&mixer.component, kind, &format!("{place}.mixers.{kind}"))
}

/// The channel mixer of a layer, if it has one.
pub(super) fn channel_mixer(layer: &LayerPlan) -> Option<&Component<channel_mixer>> {
    layer.channel_mixer.as_ref().map(|(component, _)| component)
}

/// The head: a matrix of its own, or a copy of the embedding's that files may hold all the same.
pub(super) fn map_head(map: &mut Mapping, plan: &ModelPlan, embedding: &str) {
    if plan.tie_embeddings {
        map.copy_of(embedding, "lm_head.weight");
    } else {
        map.same("head.weight", "lm_head.weight");
    }
}

/// Maps a parameter if the model has it.
pub(super) fn map_if_there(map: &mut Mapping, ours: &str, theirs: &str) {
    if map.has(ours) {
        map.same(ours, theirs);
    }
}
