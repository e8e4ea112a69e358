//! Rotary embeddings in the words of the Hugging Face configurations, old and new.
//!
//! All of them turn channel `i` with channel `i + head_dim / 2`, as ours do, so the rows of `q` and `k` stay as they are.

use hymba_plus::{
    model::slot::position,
    registry::Component,
    serde_json::{Map, Value, json},
    weights::ForeignConfig,
};

use super::common::typed;
use crate::rope::{Rope, RopeDynamicNtk, RopeLinear, RopeLlama3, RopeYarn};

/// What the keys of a configuration say of positions.
#[derive(Debug)]
pub(super) struct Positions {
    /// Our component.
    pub(super) component: Value,
    /// Longest document, where the configuration bounds it.
    pub(super) longest: Option<i64>,
}

/// Reads `rope_parameters`, or the older `rope_theta` and `rope_scaling`, with `max_position_embeddings`.
pub(super) fn read(config: &mut ForeignConfig, default_theta: f64, default_length: i64) -> Positions {
    let length = config.count_or("max_position_embeddings", default_length);
    let theta = config.number_or("rope_theta", default_theta);
    config.only("partial_rotary_factor", &[json!(1.0)], "all channels of a head are turned here");
    let original = config.integer("original_max_position_embeddings");
    let mut found: Option<Value> = None;
    let mut bounded = true;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(mut section) = config.section(key) else { continue };
        let (component, bound) = variant(&mut section, theta, length, original);
        config.merge(section);
        match &found {
            Some(other) if *other != component => {
                config.refuse(format!("{key} says {component}, rope_scaling says {other}"));
            }
            _ => {
                found = Some(component);
                bounded = bound;
            }
        }
    }
    let component = found.unwrap_or_else(|| json!({ "kind": "rope", "theta": theta }));
    Positions { component, longest: bounded.then_some(length) }
}

/// One mapping of parameters: our component, and whether `max_position_embeddings` bounds the length.
fn variant(section: &mut ForeignConfig, theta: f64, length: i64, original: Option<i64>) -> (Value, bool) {
    let theta = section.number_or("rope_theta", theta);
    section.only("partial_rotary_factor", &[json!(1.0)], "all channels of a head are turned here");
    let older = section.text_or("type", "default");
    let kind = section.text_or("rope_type", &older);
    let mut component = Map::from_iter([("theta".to_owned(), json!(theta))]);
    let mut put = |key: &str, value: Value| component.insert(key.to_owned(), value);
    let stated = section.integer("original_max_position_embeddings");
    let trained = original.or(stated).unwrap_or(length);
    let (name, bounded) = match kind.as_str() {
        "default" => ("rope", true),
        "linear" => {
            put("factor", factor(section));
            ("rope_linear", false)
        }
        // The length that counts is `max_position_embeddings`, whatever else is stated.
        "dynamic" => {
            put("factor", factor(section));
            put("original_max_positions", json!(length));
            ("rope_dynamic_ntk", false)
        }
        "yarn" => {
            let stretch = if section.has("factor") {
                section.number_or("factor", 1.0)
            } else {
                length as f64 / trained.max(1) as f64
            };
            put("factor", json!(stretch));
            put("original_max_positions", json!(trained));
            // Zero means the default there.
            for (key, default) in [("beta_fast", 32.0), ("beta_slow", 1.0)] {
                let value = section.number_or(key, default);
                put(key, json!(if value == 0.0 { default } else { value }));
            }
            section.only("truncate", &[json!(true)], "the ramp's ends are whole channels here");
            if let Some(factor) = attention_factor(section, stretch) {
                put("attention_factor", json!(factor));
            }
            ("rope_yarn", true)
        }
        "llama3" => {
            put("factor", factor(section));
            for key in ["low_freq_factor", "high_freq_factor"] {
                let value = section.number(key);
                if value.is_none() {
                    section.refuse(format!("rope_parameters.{key} is missing"));
                }
                put(key, json!(value.unwrap_or(1.0)));
            }
            put("original_max_positions", json!(trained));
            ("rope_llama3", true)
        }
        other => {
            section.refuse(format!("rope_type {other} is not built here"));
            ("rope", true)
        }
    };
    put("kind", json!(name));
    (Value::Object(component), bounded)
}

fn factor(section: &mut ForeignConfig) -> Value {
    let factor = section.number("factor");
    if factor.is_none() {
        section.refuse("rope_parameters.factor is missing");
    }
    json!(factor.unwrap_or(1.0))
}

/// YaRN's scale of queries and keys where it is stated, directly or by two multipliers; none where it is the paper's.
fn attention_factor(section: &mut ForeignConfig, stretch: f64) -> Option<f64> {
    let stated = section.number("attention_factor");
    let multipliers = (section.number("mscale"), section.number("mscale_all_dim"));
    let scale = |multiplier: f64| if stretch <= 1.0 { 1.0 } else { 0.1 * multiplier * stretch.ln() + 1.0 };
    stated.or(match multipliers {
        (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => Some(scale(mscale) / scale(all)),
        _ => None,
    })
}

/// Writes a position component as old and as new libraries read it, with `max_position_embeddings`.
pub(super) fn write(
    component: &Component<position>,
    longest: Option<i64>,
    config: &mut Map<String, Value>,
) -> Result<(), String> {
    const PLACE: &str = "the attention's position";
    const UNBOUNDED: i64 = 1 << 20; // when nothing bounds a document, and nothing there reads the number but checks
    let mut length = longest.unwrap_or(UNBOUNDED);
    let mut scaling = Map::new();
    let mut put = |key: &str, value: Value| scaling.insert(key.to_owned(), value);
    let theta = match component.kind.as_str() {
        "rope" => typed::<Rope, _>(component, "rope", PLACE)?.theta,
        "rope_linear" => {
            let rope: RopeLinear = typed(component, "rope_linear", PLACE)?;
            put("rope_type", json!("linear"));
            put("factor", json!(rope.factor));
            rope.theta
        }
        "rope_dynamic_ntk" => {
            let rope: RopeDynamicNtk = typed(component, "rope_dynamic_ntk", PLACE)?;
            put("rope_type", json!("dynamic"));
            put("factor", json!(rope.factor));
            length = rope.original_max_positions;
            rope.theta
        }
        "rope_yarn" => {
            let rope: RopeYarn = typed(component, "rope_yarn", PLACE)?;
            put("rope_type", json!("yarn"));
            put("factor", json!(rope.factor));
            put("original_max_position_embeddings", json!(rope.original_max_positions));
            put("beta_fast", json!(rope.beta_fast));
            put("beta_slow", json!(rope.beta_slow));
            if let Some(factor) = rope.attention_factor {
                put("attention_factor", json!(factor));
            }
            rope.theta
        }
        "rope_llama3" => {
            let rope: RopeLlama3 = typed(component, "rope_llama3", PLACE)?;
            put("rope_type", json!("llama3"));
            put("factor", json!(rope.factor));
            put("low_freq_factor", json!(rope.low_freq_factor));
            put("high_freq_factor", json!(rope.high_freq_factor));
            put("original_max_position_embeddings", json!(rope.original_max_positions));
            rope.theta
        }
        other => return Err(format!("{PLACE} is `{other}`, for which this format has no words")),
    };
    let older = if scaling.is_empty() { Value::Null } else { Value::Object(scaling.clone()) };
    let mut newer = scaling;
    newer.entry("rope_type").or_insert_with(|| json!("default"));
    newer.insert("rope_theta".to_owned(), json!(theta));
    config.insert("max_position_embeddings".to_owned(), json!(length));
    config.insert("rope_theta".to_owned(), json!(theta));
    config.insert("rope_scaling".to_owned(), older);
    config.insert("rope_parameters".to_owned(), Value::Object(newer));
    Ok(())
}
