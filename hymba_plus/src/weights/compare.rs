//! Whether two plans are of models that compute the same.

use serde_json::{Map, Value};

use crate::{
    model::{
        config::{LayerConfig, OutProjection},
        slot::{channel_mixer, fusion, norm, sequence_mixer},
    },
    plan::{LayerPlan, ModelPlan, ModulePlan},
    registry::{Component, Registry, Slot},
};

/// Key under which a description holds the numbers that a configuration came to.
const PLANNED: &str = "planned";

/// How `theirs` would compute otherwise than `ours`, one line each; keys named in `silent` do not count.
pub(super) fn differences(ours: &ModelPlan, theirs: &ModelPlan, silent: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let (ours, theirs) = (describe(ours, silent), describe(theirs, silent));
    compare("", &ours, &theirs, &mut found);
    found
}

/// All of a model that its outputs depend on, besides the values of its parameters.
fn describe(plan: &ModelPlan, silent: &[&str]) -> Value {
    let layers = plan.layers.iter().map(|layer| describe_layer(layer, silent));
    let mut model = Map::new();
    model.insert("d_model".into(), plan.d_model.into());
    model.insert("vocab_size".into(), plan.vocab_size.into());
    model.insert("meta_tokens".into(), plan.meta_tokens.into());
    model.insert("tie_embeddings".into(), plan.tie_embeddings.into());
    model.insert("embedding".into(), filled(&plan.embedding.component, silent));
    model.insert("norm".into(), filled(&plan.final_norm.component, silent));
    model.insert("head".into(), filled(&plan.head.component, silent));
    let heads = plan.heads.iter().map(|(name, head)| (name.clone(), filled(&head.component, silent)));
    model.insert("heads".into(), Value::Object(heads.collect()));
    model.insert("layers".into(), Value::Array(layers.collect()));
    Value::Object(model)
}

fn describe_layer(plan: &LayerPlan, silent: &[&str]) -> Value {
    let LayerConfig { in_bias, out_bias, out_projection, .. } = plan.config;
    let mut layer = Map::new();
    let mut put = |key: &str, value: Value| layer.insert(key.to_owned(), value);
    if let Some((norm, _)) = &plan.norm {
        put("norm", filled::<norm>(norm, silent));
    }
    let mixers = plan.mixers.iter().map(|mixer| {
        let mut value = filled::<sequence_mixer>(&mixer.component, silent);
        if let Value::Object(object) = &mut value {
            object.insert(PLANNED.into(), planned(&mixer.module));
        }
        value
    });
    put("mixers", Value::Array(mixers.collect()));
    put("kv_sharing", serde_json::to_value(plan.kv).unwrap_or_default());
    put("in_bias", in_bias.into());
    put("out_bias", out_bias.into());
    // With one branch and nothing to fuse, a shared matrix and the branch's own are the same.
    let one = plan.mixers.len() == 1 && plan.config.fusion.is_none();
    let projection = if one && out_projection == OutProjection::PerBranch {
        OutProjection::Shared
    } else {
        out_projection
    };
    put("out_projection", serde_json::to_value(projection).unwrap_or_default());
    if let Some((fusion, _)) = &plan.fusion {
        put("fusion", filled::<fusion>(fusion, silent));
    }
    if let Some((norm, _)) = &plan.channel_norm {
        put("channel_norm", filled::<norm>(norm, silent));
    }
    if let Some((mixer, module)) = &plan.channel_mixer {
        let mut value = filled::<channel_mixer>(mixer, silent);
        if let Value::Object(object) = &mut value {
            object.insert(PLANNED.into(), planned(module));
        }
        put("channel_mixer", value);
    }
    Value::Object(layer)
}

/// The numbers that a module's configuration came to: widths that are written here and left out there are equal in them.
fn planned(module: &ModulePlan) -> Value {
    let prefix = format!("{}.", module.name);
    let shapes = module.all_parameters().into_iter().map(|parameter| {
        let name = parameter.name.strip_prefix(&prefix).unwrap_or(&parameter.name).to_owned();
        (name, Value::from(parameter.shape))
    });
    let states = serde_json::to_value(&module.states).unwrap_or_default();
    let inputs = serde_json::to_value(&module.inputs).unwrap_or_default();
    let mut planned = Map::new();
    planned.insert("inputs".into(), inputs);
    planned.insert("output_width".into(), module.output_width.into());
    planned.insert("parameters".into(), Value::Object(shapes.collect()));
    planned.insert("states".into(), states);
    planned.insert("window".into(), module.flops.window.into());
    Value::Object(planned)
}

/// A component with every default filled in, those inside it too, without the silent keys.
fn filled<S: Slot>(component: &Component<S>, silent: &[&str]) -> Value {
    fill(S::NAME, &component.kind, &component.config, silent)
}

fn fill(slot: &str, kind: &str, config: &Map<String, Value>, silent: &[&str]) -> Value {
    let entry = Registry::global().ok().and_then(|registry| registry.get(slot, kind));
    let Some(entry) = entry else { return Value::Object(config.clone()) };
    let Ok(Value::Object(mut filled)) = entry.normalise(Value::Object(config.clone())) else {
        return Value::Object(Map::from_iter([("kind".to_owned(), Value::from(entry.kind))]));
    };
    filled.retain(|key, _| !silent.contains(&key.as_str()));
    let schema = entry.schema();
    for (key, value) in &mut filled {
        let Some(inner) = slot_of(schema.get("properties").and_then(|properties| properties.get(key))) else {
            continue;
        };
        match value {
            Value::String(kind) => *value = fill(&inner, kind, &Map::new(), silent),
            Value::Object(object) => {
                let mut object = object.clone();
                if let Some(Value::String(kind)) = object.remove("kind") {
                    *value = fill(&inner, &kind, &object, silent);
                }
            }
            _ => {}
        }
    }
    filled.insert("kind".into(), entry.kind.into());
    Value::Object(filled)
}

/// The slot of a component that stands in a field, if one does.
fn slot_of(property: Option<&Value>) -> Option<String> {
    let slot = |value: &Value| value.get("x-slot").and_then(Value::as_str).map(str::to_owned);
    let property = property?;
    slot(property).or_else(|| {
        ["anyOf", "oneOf"].iter().find_map(|key| property.get(key)?.as_array()?.iter().find_map(slot))
    })
}

fn compare(path: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) if ours.get("kind") == theirs.get("kind") => {
            let keys: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
            let inner = |key: &str, found: &mut Vec<String>| {
                let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                let absent = Value::Null;
                let (ours, theirs) = (ours.get(key).unwrap_or(&absent), theirs.get(key).unwrap_or(&absent));
                compare(&path, ours, theirs, found);
            };
            let before = found.len();
            keys.iter().filter(|key| **key != PLANNED).for_each(|key| inner(key, found));
            // What the keys came to says nothing new where a key differs already.
            if found.len() == before {
                inner(PLANNED, found);
            }
        }
        (Value::Array(ours), Value::Array(theirs)) if ours.len() == theirs.len() => {
            for (i, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                compare(&format!("{path}[{i}]"), ours, theirs, found);
            }
        }
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => {}
        _ if ours != theirs => {
            found.push(format!("{path} is {}, there it would be {}", short(ours), short(theirs)));
        }
        _ => {}
    }
}

/// A value for a message: a component by its kind.
fn short(value: &Value) -> String {
    value.get("kind").and_then(Value::as_str).map_or_else(|| value.to_string(), str::to_owned)
}
