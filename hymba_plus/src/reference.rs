//! The reference page: every component with its fields, and what it comes to at one width.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::{
    conformance,
    model::slot::{
        ChannelMixerObject, EmbeddingObject, FusionObject, HeadObject, MixerObject, NormObject,
        PositionObject, channel_mixer, embedding, fusion, head, norm, position, sequence_mixer,
    },
    plan::{ACTIVATIONS, Growth, KvRole, ModuleContext, ModulePlan, StateKind, bytes, grouped},
    registry::{Component, Entry, FieldDefault, Finding, Registry, Slot},
};

/// Width at which the page shows what a component comes to.
const WIDTH: i64 = 1024;
/// Vocabulary of that example.
const VOCABULARY: i64 = 32_000;
/// Width of a head, for what works on heads.
const HEAD: i64 = 64;

/// All components of a registry, or those of one slot, as Markdown.
pub fn markdown(registry: &Registry, only: Option<&str>) -> String {
    let mut page = String::from(
        "# Components\n\nWritten by `hymba components --markdown`; a test keeps it current. Shapes, parameters and \
         costs are those of the example configuration ",
    );
    let _ = writeln!(
        page,
        "at `d_model` {WIDTH}, 16 meta tokens and a vocabulary of {}; operations are forward, per token, without the \
         layer's projections; activations in a state count two bytes.\n",
        grouped(VOCABULARY.unsigned_abs())
    );
    let slots = Registry::slots();
    let slots = || slots.iter().filter(|info| only.is_none_or(|only| info.name == only));
    for info in slots() {
        let kinds: Vec<String> = registry
            .in_slot(info.name)
            .map(|entry| format!("[`{0}`](#{1}-{0})", entry.kind, info.name))
            .collect();
        let _ = writeln!(page, "- **{}**: {}", info.name, kinds.join(", "));
    }
    for info in slots() {
        let _ = writeln!(page, "\n## {}\n\n{}", info.name, info.doc.trim());
        for entry in registry.in_slot(info.name) {
            component(entry, &mut page);
        }
    }
    page
}

fn component(entry: &Entry, page: &mut String) {
    let _ = writeln!(page, "\n### {} {}\n", entry.slot, entry.kind);
    let schema = entry.schema();
    let doc = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    let _ = writeln!(page, "{}", doc.trim());
    if !entry.aliases.is_empty() {
        let _ = writeln!(page, "\nAlso written: `{}`.", entry.aliases.join("`, `"));
    }
    let fields = entry.fields();
    if !fields.is_empty() {
        page.push_str("\n| field | type | default | |\n|---|---|---|---|\n");
    }
    for field in fields {
        let default = match field.default {
            FieldDefault::Required => "required".to_owned(),
            FieldDefault::Optional => "-".to_owned(),
            FieldDefault::Value(value) => format!("`{}`", short(&value)),
        };
        let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} |",
            field.name,
            cell(&field.kind),
            cell(&default),
            cell(&field.doc)
        );
    }
    if let Some((config, plan)) = example(entry) {
        costs(entry, &config, &plan, page);
    }
}

/// A default as a recipe would write it.
fn short(value: &Value) -> String {
    match value {
        Value::Object(keys) if keys.len() == 1 => keys.get("kind").map_or_else(|| value.to_string(), short),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What the example configuration comes to.
fn costs(entry: &Entry, config: &Map<String, Value>, plan: &ModulePlan, page: &mut String) {
    let yaml: Vec<String> = config.iter().map(|(key, value)| format!("{key}: {}", short(value))).collect();
    let kind = entry.kind;
    let example =
        if yaml.is_empty() { kind.to_owned() } else { format!("{{ kind: {kind}, {} }}", yaml.join(", ")) };
    let _ = writeln!(page, "\nExample `{example}`:");
    page.push('\n');
    if !plan.inputs.is_empty() && entry.slot == sequence_mixer::NAME {
        let slices: Vec<String> = plan
            .inputs
            .iter()
            .map(|slice| {
                let raw = if slice.raw { ", the layer's input itself" } else { "" };
                format!("`{}` {}{raw}", slice.name, slice.rows)
            })
            .collect();
        let _ = writeln!(page, "- slices of the in-projection: {}", slices.join(", "));
    }
    let _ = writeln!(page, "- output: {} wide", plan.output_width);
    let parameters = plan.all_parameters();
    if !parameters.is_empty() {
        let prefix = format!("{}.", plan.name);
        let list: Vec<String> = parameters
            .iter()
            .map(|parameter| {
                let name = parameter.name.strip_prefix(&prefix).unwrap_or(&parameter.name);
                format!("`{name}` {:?}", parameter.shape)
            })
            .collect();
        let total: u64 = parameters.iter().map(crate::params::ParameterPlan::count).sum();
        let _ = writeln!(page, "- parameters: {}; {} in all", list.join(", "), grouped(total));
    }
    let mut flops = Vec::new();
    if plan.flops.per_token > 0.0 {
        flops.push(grouped(plan.flops.per_token as u64));
    }
    if plan.flops.per_key > 0.0 {
        flops.push(format!("{} for each key that a token sees", grouped(plan.flops.per_key as u64)));
    }
    if !flops.is_empty() {
        let _ = writeln!(page, "- operations: {}", flops.join(" and "));
    }
    for state in &plan.states {
        let kind = match state.kind {
            StateKind::Compute => "the activations' type".to_owned(),
            StateKind::Float => "float32".to_owned(),
            other => format!("{other:?}").to_lowercase(),
        };
        let size = bytes(state.entry_bytes(ACTIVATIONS).unsigned_abs());
        let growth = match state.growth {
            Growth::Fixed => String::new(),
            Growth::Prefix => " for each meta token".to_owned(),
            Growth::Window(window) => format!(" for each of the last {window} tokens"),
            Growth::Unbounded => " for each token".to_owned(),
            Growth::Groups(groups) => format!(" for each {} older tokens", groups.size),
            Growth::Ungrouped(groups) => format!(" for each of the newest {} tokens", groups.recent),
        };
        let _ = writeln!(page, "- state `{}` {:?} in {kind}: {size}{growth}", state.name, state.shape);
    }
    for exemption in plan.all_exemptions() {
        let _ = writeln!(page, "- exempt: {exemption}");
    }
}

/// A configuration that works, and its plan: the component's first case of the conformance suite, or its defaults with
/// 8 for every number that must be given.
fn example(entry: &Entry) -> Option<(Map<String, Value>, ModulePlan)> {
    let cases = conformance::cases().unwrap_or_default();
    let case = cases.into_iter().find(|case| case.slot == entry.slot && case.kind == entry.kind);
    let config = case.map_or_else(|| least(entry), |case| case.config);
    let plan = plan(entry, &config)?;
    Some((config, plan))
}

fn least(entry: &Entry) -> Map<String, Value> {
    let required = entry.fields().into_iter().filter(|field| field.default == FieldDefault::Required);
    let value = |kind: &str| match kind {
        "integer" => json!(8),
        "number" => json!(1.0),
        _ => json!("none"),
    };
    required.map(|field| (field.name, value(&field.kind))).collect()
}

fn plan(entry: &Entry, config: &Map<String, Value>) -> Option<ModulePlan> {
    fn of<S: Slot>(
        entry: &Entry,
        config: &Map<String, Value>,
        width: i64,
        run: impl FnOnce(&S::Object, &mut ModulePlan) -> Result<(), Finding>,
    ) -> Option<ModulePlan> {
        let context = ModuleContext {
            d_model: WIDTH,
            n_layers: 2,
            layer: Some(0),
            meta_tokens: 16,
            initializer_range: 0.02,
            max_positions: None,
            vocab_size: Some(VOCABULARY),
            tie_embeddings: false,
            embedded: None,
            kv: KvRole::Own,
        };
        let mut plan = ModulePlan::new(context, entry.kind, entry.kind, width);
        let object = Component::<S>::new(entry.kind, config.clone()).make().ok()?;
        plan.run(|plan| run(&object, plan));
        plan.take_findings().is_empty().then_some(plan)
    }
    match entry.slot {
        slot if slot == sequence_mixer::NAME => of::<sequence_mixer>(entry, config, WIDTH, MixerObject::plan),
        slot if slot == channel_mixer::NAME => {
            of::<channel_mixer>(entry, config, WIDTH, ChannelMixerObject::plan)
        }
        slot if slot == norm::NAME => of::<norm>(entry, config, WIDTH, NormObject::plan),
        slot if slot == position::NAME => of::<position>(entry, config, HEAD, PositionObject::plan),
        slot if slot == fusion::NAME => of::<fusion>(entry, config, WIDTH, |object, plan| {
            plan.input("0", WIDTH);
            plan.input("1", WIDTH);
            FusionObject::plan(object, plan)
        }),
        slot if slot == embedding::NAME => of::<embedding>(entry, config, WIDTH, EmbeddingObject::plan),
        slot if slot == head::NAME => of::<head>(entry, config, WIDTH, HeadObject::plan),
        _ => None,
    }
}
