//! The released Hymba (`HymbaForCausalLM`, Dong et al. 2024, arXiv 2411.13676).
//!
//! Its one in-projection has the rows `q, k, v, x, z`, in a layer that reads shared keys `q, x, z`; ours with the mixers
//! `[attention, mamba]` is the same. Its window means two things: see [`WindowReading`].

use hymba_plus::{
    component_config,
    plan::{KvRole, LayerPlan, ModelPlan},
    prelude::register,
    serde_json::{Map, Value, json},
    weights::{
        ForeignConfig, Layout, Mapping, Signature, WeightFormat, out_bias, out_weight, slice_bias,
        slice_weight, weight_format,
    },
};

use super::{
    common::{
        SILENT, channel_mixer, common_keys, first_layer, map_head, map_if_there, mixer, norm_eps, only_silu,
        rms_norm, typed, vocab_size,
    },
    mamba::{dt_rank, map_state_space},
};
use crate::{
    attention::{Attention, QkNorm},
    mamba::Mamba,
    mlp::{Relu2, SwiGlu},
    rope::{Rope, RopeDynamicNtk, RopeNtk},
};

/// The official Hymba: attention and Mamba heads side by side, meta tokens, shared keys, windows.
#[component_config]
pub struct Hymba {
    /// How many tokens its `sliding_window` lets a token see.
    #[default(WindowReading::Prefill)]
    pub window_reading: WindowReading,
}

/// The official mask of a full pass lets `sliding_window + 1` tokens through (the token itself among them), its cache
/// keeps `sliding_window`. Here a window is one number, so one of the two is chosen.
#[component_config]
pub enum WindowReading {
    /// As in a full pass, which is how the weights were trained: `window = sliding_window + 1`.
    Prefill,
    /// As in decoding with its cache: `window = sliding_window`.
    Cache,
}

register!(weight_format "hymba" => Hymba);

/// Keys that the official code does not read, or computes anew, or that only say which of its kernels run.
const IDLE: [&str; 12] = [
    "attention_dropout",
    "attn_implementation",
    "calc_logits_for_entire_prompt",
    "conv_dim",
    "kv_weight_reuse",
    "num_experts",
    "num_experts_per_tok",
    "num_mamba",
    "router_aux_loss_coef",
    "seq_length",
    "use_mamba_kernels",
    "v_head_dim",
];

/// The factor of its static and dynamic NTK scaling, a constant in its code.
const NTK_FACTOR: f64 = 2.0;
/// Mixers of a layer.
const MIXERS: [&str; 2] = ["attention", "mamba"];
/// Longest document of an export when nothing bounds it: its mask is built for this length.
const LENGTH: i64 = 8192;

impl Hymba {
    /// Tokens that the reading adds to `sliding_window`.
    fn beyond(&self) -> i64 {
        i64::from(self.window_reading == WindowReading::Prefill)
    }

    /// `sliding_window` as our window; none when there is none.
    fn window(&self, config: &mut ForeignConfig) -> Option<i64> {
        let sliding = config.integer("sliding_window")?;
        let (window, reading) = match self.window_reading {
            WindowReading::Prefill => (sliding + 1, "of the full pass, one token more than its cache keeps"),
            WindowReading::Cache => (sliding, "of the cache, one token less than its full pass sees"),
        };
        if window < 1 {
            config.refuse(format!("sliding_window is {sliding}, so a token would not even see itself"));
        }
        config.note(format!("sliding_window {sliding} becomes window {window}: the reading {reading}"));
        Some(window.max(1))
    }
}

impl WeightFormat for Hymba {
    fn signature(&self) -> Signature {
        Signature { model_type: "hymba", architectures: &["HymbaForCausalLM"] }
    }

    fn model_section(&self, config: &mut ForeignConfig) -> Value {
        common_keys(config);
        config.without_effect(&IDLE);
        only_silu(config, "hidden_act");
        config.only(
            "attn_implementation_new",
            &[json!("flex")],
            "the other masks of the class lose the meta tokens",
        );
        config.only(
            "memory_tokens_interspersed_every",
            &[json!(0)],
            "meta tokens stand at the beginning only",
        );
        let (d_model, heads) = (config.count("hidden_size"), config.count("num_attention_heads"));
        config.only(
            "attn_hidden_size",
            &[json!(-1), json!(d_model)],
            "the class projects to hidden_size whatever it is",
        );
        config.only(
            "kq_head_dim",
            &[json!(-1), json!(d_model / heads)],
            "the class cuts heads of hidden_size / num_attention_heads",
        );
        let eps = config.number_or("rms_norm_eps", 1e-6);
        let d_inner = config.count("mamba_expand") * d_model;
        let bias = config.flag_or("mamba_proj_bias", false);
        let (position, longest) = position(config);
        let mut attention = json!({
            "kind": "attention",
            "n_heads": heads,
            "n_kv_heads": config.count("num_key_value_heads"),
            "head_dim": d_model / heads,
            "v_head_dim": d_inner / heads,
            "qk_norm": qk_norm(config),
            "position": position,
        });
        let mamba = json!({
            "kind": "mamba",
            "d_inner": d_inner,
            "d_state": config.count("mamba_d_state"),
            "d_conv": config.count("mamba_d_conv"),
            "dt_rank": dt_rank(config, "mamba_dt_rank", d_model),
            "conv_bias": config.flag_or("mamba_conv_bias", true),
            "inner_norm": if config.flag_or("mamba_inner_layernorms", true) { rms_norm(eps) } else { json!("none") },
            "dt_init": "normal",
        });
        let mut pattern = json!({ "kind": "parallel" });
        let global = config.indices("global_attn_idx").unwrap_or_default();
        if let Some(window) = self.window(config) {
            attention["window"] = json!(window);
            pattern["global_layers"] = json!(global);
        }
        let n_layers = config.count("num_hidden_layers");
        let groups = sharing(config);
        if !groups.is_empty() {
            pattern["kv_sharing"] = json!({ "groups": groups });
        }
        let only = vec![json!("h"); usize::try_from(n_layers).unwrap_or_default()];
        config.only("layer_type", &[Value::Array(only)], "every layer of the class is a hybrid one");
        pattern["layer"] = json!({
            "mixers": [attention, mamba],
            "in_bias": bias,
            "out_bias": bias,
            "fusion": { "kind": "mean", "norm": rms_norm(eps) },
            "channel_mixer": feed_forward(config),
        });
        json!({
            "d_model": d_model,
            "n_layers": n_layers,
            "vocab_size": config.count("vocab_size"),
            "meta_tokens": config.integer("num_memory_tokens").unwrap_or(0).max(0),
            "max_positions": longest,
            "initializer_range": config.number_or("initializer_range", 0.02),
            "embedding": "token",
            "tie_embeddings": config.flag_or("tie_word_embeddings", false),
            "norm": rms_norm(eps),
            "head": "language",
            "block_pattern": pattern,
        })
    }

    fn config(&self, plan: &ModelPlan) -> Result<Map<String, Value>, Vec<String>> {
        self.write(plan).map_err(|reason| vec![reason])
    }

    fn mapping(&self, plan: &ModelPlan) -> Mapping {
        const EMBEDDING: &str = "model.embed_tokens.weight";
        let mut map = Mapping::new(plan);
        if plan.meta_tokens > 0 {
            map.same("meta_tokens", "model.memory_tokens");
        }
        map.same("embedding.weight", EMBEDDING);
        for layer in &plan.layers {
            map_layer(&mut map, layer);
        }
        map.same("final_norm.weight", "model.final_layernorm.weight");
        map_head(&mut map, plan, EMBEDDING);
        map
    }

    fn silent_keys(&self) -> &'static [&'static str] {
        &SILENT
    }
}

/// Positions, and the longest document.
fn position(config: &mut ForeignConfig) -> (Value, i64) {
    let length = config.count("max_position_embeddings");
    let theta = config.number_or("rope_theta", 10_000.0);
    let original = config.integer("orig_max_position_embeddings");
    let kind = config.text_or("rope_type", "default");
    if !config.flag_or("rope", true) {
        return (json!("none"), length);
    }
    let position = match (kind.as_str(), original) {
        ("default", _) => json!({ "kind": "rope", "theta": theta }),
        ("ntk", Some(original)) => json!({
            "kind": "rope_ntk",
            "theta": theta,
            "factor": NTK_FACTOR,
            "original_max_positions": original,
            "max_positions": length,
        }),
        ("dynamic_ntk", Some(original)) => json!({
            "kind": "rope_dynamic_ntk",
            "theta": theta,
            "factor": NTK_FACTOR,
            "original_max_positions": original,
        }),
        ("ntk" | "dynamic_ntk", None) => {
            config.refuse("orig_max_position_embeddings is missing, which its rope_type needs");
            json!("rope")
        }
        (other, _) => {
            config.refuse(format!("rope_type {other} is none of default, ntk, dynamic_ntk"));
            json!("rope")
        }
    };
    (position, length)
}

fn qk_norm(config: &mut ForeignConfig) -> &'static str {
    match config.text_or("kq_norm", "none").as_str() {
        "none" => "none",
        "rms" => "rms",
        "perhead-rms" => "per_head",
        other => {
            config.refuse(format!("kq_norm {other} is none of none, rms, perhead-rms"));
            "none"
        }
    }
}

/// Groups of layers that share keys and values.
fn sharing(config: &mut ForeignConfig) -> Vec<Vec<usize>> {
    let groups = config.groups("kv_reuse_group");
    let every = config.integer("kv_reuse_every_i_layer").unwrap_or(-1);
    if groups.is_none() && every > 0 {
        config.refuse(format!(
            "kv_reuse_every_i_layer is {every}; write the groups out as kv_reuse_group, which means the same"
        ));
    }
    // A group of one shares nothing.
    groups.unwrap_or_default().into_iter().filter(|group| group.len() > 1).collect()
}

fn feed_forward(config: &mut ForeignConfig) -> Value {
    let d_hidden = config.integer("intermediate_size").unwrap_or(0);
    let activation = config.text_or("mlp_hidden_act", "silu");
    match activation.as_str() {
        _ if d_hidden <= 0 => json!("none"),
        "silu" => json!({ "kind": "swiglu", "d_hidden": d_hidden }),
        "relu2" => json!({ "kind": "relu2", "d_hidden": d_hidden }),
        other => {
            config.refuse(format!("mlp_hidden_act {other} is none of silu, relu2"));
            json!("none")
        }
    }
}

impl Hymba {
    fn write(&self, plan: &ModelPlan) -> Result<Map<String, Value>, String> {
        let layer = first_layer(plan)?;
        let attention: Attention = mixer(layer, &MIXERS, "attention")?;
        let mamba: Mamba = mixer(layer, &MIXERS, "mamba")?;
        let mut config = Map::new();
        let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
        let (d_inner, heads) = (mamba.inner(plan.d_model), attention.n_heads);
        if d_inner % plan.d_model != 0 || d_inner % heads != 0 {
            return Err(format!(
                "mamba has {d_inner} inner channels, not a multiple of d_model {} and of {heads} heads",
                plan.d_model
            ));
        }
        put(
            "auto_map",
            json!({
                "AutoConfig": "configuration_hymba.HymbaConfig",
                "AutoModelForCausalLM": "modeling_hymba.HymbaForCausalLM",
            }),
        );
        put("vocab_size", json!(vocab_size(plan)?));
        put("hidden_size", json!(plan.d_model));
        put("num_hidden_layers", json!(plan.layers.len()));
        put("num_attention_heads", json!(heads));
        put("num_key_value_heads", json!(attention.n_kv_heads.unwrap_or(heads)));
        put("num_memory_tokens", json!(plan.meta_tokens));
        put("rms_norm_eps", json!(norm_eps(&plan.final_norm.component)?));
        put("initializer_range", json!(plan.final_norm.module.context.initializer_range));
        put("tie_word_embeddings", json!(plan.tie_embeddings));
        put("mamba_d_state", json!(mamba.d_state));
        put("mamba_d_conv", json!(mamba.d_conv));
        put("mamba_expand", json!(d_inner / plan.d_model));
        put("mamba_dt_rank", json!(mamba.rank(plan.d_model)));
        put("mamba_conv_bias", json!(mamba.conv_bias));
        put("mamba_proj_bias", json!(layer.config.in_bias));
        put("mamba_inner_layernorms", json!(!mamba.inner_norm.is_none()));
        put("v_head_dim", json!(d_inner / heads));
        put(
            "kq_norm",
            json!(match attention.qk_norm {
                QkNorm::None => "none",
                QkNorm::Rms => "rms",
                QkNorm::PerHead => "perhead-rms",
            }),
        );
        let (d_hidden, activation) = match channel_mixer(layer) {
            None => (0, "silu"),
            Some(component) if component.kind == "relu2" => {
                (typed::<Relu2, _>(component, "relu2", "layers[0].channel_mixer")?.d_hidden, "relu2")
            }
            Some(component) => {
                (typed::<SwiGlu, _>(component, "swiglu", "layers[0].channel_mixer")?.d_hidden, "silu")
            }
        };
        put("intermediate_size", json!(d_hidden));
        put("mlp_hidden_act", json!(activation));
        let windows: Vec<Option<i64>> = windows(plan);
        let global = (0..windows.len()).filter(|&layer| windows[layer].is_none());
        put("global_attn_idx", json!(global.collect::<Vec<_>>()));
        let window = windows.iter().flatten().next();
        put("sliding_window", json!(window.map(|window| window - self.beyond())));
        let groups = groups(plan);
        put("kv_reuse_group", if groups.is_empty() { Value::Null } else { json!(groups) });
        write_position(&attention, plan.max_positions, &mut put)?;
        let channels = (0..plan.layers.len()).map(|layer| (layer.to_string(), json!(d_inner)));
        put("conv_dim", Value::Object(channels.collect()));
        put("layer_type", json!(vec!["h"; plan.layers.len()]));
        for (key, value) in [
            ("attention_dropout", json!(0.0)),
            ("attn_hidden_size", json!(-1)),
            ("attn_implementation", json!("flex")),
            ("attn_implementation_new", json!("flex")),
            ("calc_logits_for_entire_prompt", json!(false)),
            ("hidden_act", json!("silu")),
            ("kq_head_dim", json!(-1)),
            ("kv_reuse_every_i_layer", json!(-1)),
            ("kv_weight_reuse", json!(false)),
            ("memory_tokens_interspersed_every", json!(0)),
            ("num_experts", json!(1)),
            ("num_experts_per_tok", json!(1)),
            ("num_mamba", json!(1)),
            ("output_router_logits", json!(false)),
            ("router_aux_loss_coef", json!(0.001)),
            ("use_cache", json!(false)),
            ("use_mamba_kernels", json!(true)),
        ] {
            put(key, value);
        }
        Ok(config)
    }
}

/// The window of each layer's attention.
fn windows(plan: &ModelPlan) -> Vec<Option<i64>> {
    let window = |layer: &LayerPlan| layer.mixers.first().and_then(|mixer| mixer.module.flops.window);
    plan.layers.iter().map(window).collect()
}

/// Layers that share keys, the one that makes them first.
fn groups(plan: &ModelPlan) -> Vec<Vec<usize>> {
    let producers = plan.layers.iter().filter(|layer| layer.kv == KvRole::Producer);
    let group = |producer: &LayerPlan| {
        let reads = |layer: &&LayerPlan| layer.kv == KvRole::Consumer { producer: producer.index };
        let consumers = plan.layers.iter().filter(reads).map(|layer| layer.index);
        std::iter::once(producer.index).chain(consumers).collect()
    };
    producers.map(group).collect()
}

fn write_position(
    attention: &Attention,
    longest: Option<i64>,
    put: &mut impl FnMut(&str, Value) -> Option<Value>,
) -> Result<(), String> {
    const PLACE: &str = "the attention's position";
    let component = &attention.position;
    let mut length = longest.unwrap_or(LENGTH);
    let (kind, theta, original) = match component.kind.as_str() {
        "none" => ("default", 10_000.0, length),
        "rope" => ("default", typed::<Rope, _>(component, "rope", PLACE)?.theta, length),
        "rope_ntk" => {
            let rope: RopeNtk = typed(component, "rope_ntk", PLACE)?;
            length = rope.max_positions;
            ("ntk", rope.theta, rope.original_max_positions)
        }
        "rope_dynamic_ntk" => {
            let rope: RopeDynamicNtk = typed(component, "rope_dynamic_ntk", PLACE)?;
            ("dynamic_ntk", rope.theta, rope.original_max_positions)
        }
        other => return Err(format!("{PLACE} is `{other}`, for which this format has no words")),
    };
    put("rope", json!(component.kind != "none"));
    put("rope_type", json!(kind));
    put("rope_theta", json!(theta));
    put("max_position_embeddings", json!(length));
    put("orig_max_position_embeddings", json!(original));
    put("seq_length", json!(length));
    Ok(())
}

fn map_layer(map: &mut Mapping, layer: &LayerPlan) {
    let (ours, theirs) = (format!("layers.{}", layer.index), format!("model.layers.{}", layer.index));
    let inner = format!("{theirs}.mamba");
    map.same(format!("{ours}.norm.weight"), format!("{theirs}.input_layernorm.weight"));
    let slices = || {
        layer
            .mixers
            .iter()
            .flat_map(|mixer| mixer.module.inputs.iter().map(|input| (&mixer.name, &input.name)))
    };
    map.stacked(
        slices().map(|(mixer, slice)| slice_weight(layer, mixer, slice)),
        format!("{inner}.in_proj.weight"),
    );
    if layer.config.in_bias {
        map.stacked(
            slices().map(|(mixer, slice)| slice_bias(layer, mixer, slice)),
            format!("{inner}.in_proj.bias"),
        );
    }
    map_norms_of_heads(map, layer, &inner);
    map_state_space(map, layer, &inner, ".0");
    for (mine, yours) in [("dt_norm", "dt_layernorm"), ("b_norm", "B_layernorm"), ("c_norm", "C_layernorm")] {
        let mine = format!("{ours}.mixers.mamba.{mine}.weight");
        map_if_there(map, &mine, &format!("{inner}.{yours}.weight"));
    }
    map.same(format!("{ours}.fusion.norm_0.weight"), format!("{inner}.pre_avg_layernorm1.weight"));
    map.same(format!("{ours}.fusion.norm_1.weight"), format!("{inner}.pre_avg_layernorm2.weight"));
    map.same(out_weight(layer, MIXERS[0]), format!("{inner}.out_proj.weight"));
    if layer.config.out_bias {
        map.same(out_bias(layer, MIXERS[0]), format!("{inner}.out_proj.bias"));
    }
    if layer.channel_mixer.is_some() {
        map.same(format!("{ours}.channel_norm.weight"), format!("{theirs}.pre_moe_layernorm.weight"));
        for name in ["gate", "up", "down"] {
            let (mine, yours) = (
                format!("{ours}.channel_mixer.{name}"),
                format!("{theirs}.moe.experts.0.{name}_proj.weight"),
            );
            map_if_there(map, &mine, &yours);
        }
    }
}

/// Norms of queries and keys: `[head_dim]`, or `[1, heads, 1, head_dim]` there and `[heads, head_dim]` here. A layer that
/// reads shared keys has a norm for keys that it never uses.
fn map_norms_of_heads(map: &mut Mapping, layer: &LayerPlan, theirs: &str) {
    let Some(module) = layer.mixers.first().map(|mixer| &mixer.module) else { return };
    let Some(shape) = &module.kv_shape else { return };
    let of = |name: &str| module.parameters.iter().find(|parameter| parameter.name.ends_with(name));
    let Some(queries) = of("q_norm") else { return };
    let foreign = |size: &[i64]| match *size {
        [heads, dim] => vec![1, heads, 1, dim],
        _ => size.to_vec(),
    };
    let names = ["q_norm", "k_norm"].map(|name| format!("{theirs}.self_attn.{name}.weight"));
    let [q_name, k_name] = names;
    map.shaped(queries.name.clone(), q_name, &foreign(&queries.shape), Layout::Same);
    match of("k_norm") {
        Some(keys) => map.shaped(keys.name.clone(), k_name, &foreign(&keys.shape), Layout::Same),
        None if queries.shape.len() == 2 => map.idle(k_name, &[1, shape.n_kv_heads, 1, shape.head_dim], 1.0),
        None => map.idle(k_name, &[shape.head_dim], 1.0),
    }
}
