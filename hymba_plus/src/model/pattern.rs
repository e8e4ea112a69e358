//! The block patterns: `parallel`, `interleaved`, `custom`.
//!
//! No pattern adds attention or a window that the recipe does not name: a pure Transformer is pure.

use std::collections::BTreeMap;

use super::{
    config::{BlockPattern, ExpandedLayer, Expansion, KvSharing, LayerConfig, block_pattern},
    slot::sequence_mixer,
};
use crate::{
    component_config, register,
    registry::{Component, Finding, Registry, Slot},
};

/// Every layer alike: its mixers stand side by side and read the same input (Hymba's hybrid heads).
#[component_config]
pub struct Parallel {
    /// The layer.
    pub layer: LayerConfig,
    /// Layers whose mixers see every token: their `window` is taken away.
    #[default(Vec::new())]
    pub global_layers: Vec<usize>,
    /// Which layers share keys and values.
    pub kv_sharing: Option<KvSharing>,
}

/// Named layers in a period that repeats, or in a ratio that is spread evenly.
#[component_config]
pub struct Interleaved {
    /// The layers by name.
    pub layers: BTreeMap<String, LayerConfig>,
    /// The order, repeated until all layers are filled: `[mamba, mamba, attention]`.
    pub period: Option<Vec<String>>,
    /// Parts of each layer, spread as evenly as whole layers allow: `{ mamba: 5, attention: 1 }`.
    pub ratio: Option<BTreeMap<String, usize>>,
    /// Layers whose mixers see every token: their `window` is taken away.
    #[default(Vec::new())]
    pub global_layers: Vec<usize>,
    /// Which layers share keys and values.
    pub kv_sharing: Option<KvSharing>,
}

/// Named layers in the order that is written, with repeats.
#[component_config]
pub struct Custom {
    /// The layers by name.
    pub layers: BTreeMap<String, LayerConfig>,
    /// The order; together as many layers as `n_layers`.
    #[schemars(length(min = 1))]
    pub sequence: Vec<Run>,
    /// Which layers share keys and values.
    pub kv_sharing: Option<KvSharing>,
}

/// One layer of a custom pattern, or several alike.
#[component_config]
pub struct Run {
    /// Name of the layer.
    pub layer: String,
    /// How often it follows itself.
    #[default(1)]
    #[schemars(range(min = 1, max = 1000))]
    pub repeat: usize,
}

register!(block_pattern "parallel" => Parallel);
register!(block_pattern "interleaved" => Interleaved);
register!(block_pattern "custom" => Custom);

impl BlockPattern for Parallel {
    fn expand(&self, n_layers: usize, path: &str) -> Result<Expansion, Vec<Finding>> {
        let layer = |_| ExpandedLayer { path: "layer".into(), template: None, config: self.layer.clone() };
        finish(
            (0..n_layers).map(layer).collect(),
            &self.global_layers,
            self.kv_sharing.as_ref(),
            path,
            Vec::new(),
        )
    }
}

impl BlockPattern for Interleaved {
    fn expand(&self, n_layers: usize, path: &str) -> Result<Expansion, Vec<Finding>> {
        let (order, key) = match (&self.period, &self.ratio) {
            (Some(period), None) => (period.iter().cycle().take(n_layers).cloned().collect(), "period"),
            (None, Some(ratio)) => {
                if let Some((name, part)) = ratio.iter().find(|&(_, &part)| !(1..=1000).contains(&part)) {
                    let message = format!("`{name}` has {part} parts");
                    return Err(vec![finding(path, "ratio", &message, "every part is 1 to 1000")]);
                }
                (spread(ratio, n_layers), "ratio")
            }
            _ => {
                let message = if self.period.is_some() {
                    "both `period` and `ratio` are given"
                } else {
                    "neither `period` nor `ratio` is given"
                };
                return Err(vec![finding(
                    path,
                    "",
                    message,
                    "an interleaved pattern has either a `period` or a `ratio`",
                )]);
            }
        };
        let mut findings = Vec::new();
        let layers = named(&self.layers, &order, &format!("{path}.{key}"), &mut findings);
        if layers.is_empty() && findings.is_empty() {
            findings.push(finding(path, key, "it names no layer", "at least one layer"));
        }
        finish(layers, &self.global_layers, self.kv_sharing.as_ref(), path, findings)
    }
}

impl BlockPattern for Custom {
    fn expand(&self, n_layers: usize, path: &str) -> Result<Expansion, Vec<Finding>> {
        let mut findings = Vec::new();
        let total = self.sequence.iter().fold(0, |total: usize, run| total.saturating_add(run.repeat));
        if total != n_layers {
            let message = format!("the sequence has {total} layers, `n_layers` is {n_layers}");
            let mut finding =
                finding(path, "sequence", &message, "the repeats of `sequence` add up to `n_layers`");
            finding.help = Some(format!("set `model.n_layers: {total}`, or change a repeat"));
            return Err(vec![finding]);
        }
        let order: Vec<_> =
            self.sequence.iter().flat_map(|run| std::iter::repeat_n(run.layer.clone(), run.repeat)).collect();
        let layers = named(&self.layers, &order, &format!("{path}.sequence"), &mut findings);
        finish(layers, &[], self.kv_sharing.as_ref(), path, findings)
    }
}

/// Layer names by the largest-remainder rule: after `k` layers every name has had its share of `k`, to within one.
fn spread(ratio: &BTreeMap<String, usize>, n_layers: usize) -> Vec<String> {
    let total: usize = ratio.values().sum();
    let mut given: BTreeMap<&String, usize> = ratio.keys().map(|name| (name, 0)).collect();
    let mut order = Vec::with_capacity(n_layers);
    for k in 1..=n_layers {
        let owed = |name: &String, count: usize| (ratio[name] * k) as i64 - (count * total) as i64;
        // Ties go to the larger part, then to the name: deterministic, and a rare layer comes late in its period.
        let Some(name) = given
            .iter()
            .max_by_key(|&(&name, &count)| (owed(name, count), ratio[name], std::cmp::Reverse(name)))
            .map(|(&name, _)| name)
        else {
            break;
        };
        *given.entry(name).or_default() += 1;
        order.push(name.clone());
    }
    order
}

fn named(
    templates: &BTreeMap<String, LayerConfig>,
    order: &[String],
    path: &str,
    findings: &mut Vec<Finding>,
) -> Vec<ExpandedLayer> {
    let mut layers = Vec::new();
    for name in order {
        match templates.get(name) {
            Some(config) => layers.push(ExpandedLayer {
                path: format!("layers.{name}"),
                template: Some(name.clone()),
                config: config.clone(),
            }),
            None if findings.iter().any(|finding| finding.message.contains(&format!("`{name}`"))) => {}
            None => {
                let known: Vec<_> = templates.keys().map(String::as_str).collect();
                let message = format!("there is no layer named `{name}`");
                let mut finding = finding(path, "", &message, "every name is a key of `layers`");
                finding.help = Some(format!("`layers` has: {}", known.join(", ")));
                findings.push(finding);
            }
        }
    }
    layers
}

fn finish(
    mut layers: Vec<ExpandedLayer>,
    global_layers: &[usize],
    kv_sharing: Option<&KvSharing>,
    path: &str,
    mut findings: Vec<Finding>,
) -> Result<Expansion, Vec<Finding>> {
    for (i, &index) in global_layers.iter().enumerate() {
        let key = format!("global_layers[{i}]");
        let n = layers.len();
        let Some(layer) = layers.get_mut(index) else {
            let message = format!("there is no layer {index}: layers are 0 to {}", n.saturating_sub(1));
            findings.push(finding(path, &key, &message, "a layer index is below `n_layers`"));
            continue;
        };
        if global_layers[..i].contains(&index) {
            let message = format!("layer {index} stands twice");
            findings.push(finding(path, &key, &message, "each global layer stands once"));
            continue;
        }
        if sight(layer) != Sight::Window {
            let message = format!("layer {index} has no mixer with a window to take away");
            findings.push(finding(
                path,
                &key,
                &message,
                "a global layer is one whose `window` is taken away",
            ));
        }
        for mixer in &mut layer.config.mixers {
            if mixer.config.contains_key(WINDOW) {
                mixer.config.insert(WINDOW.to_owned(), serde_json::Value::Null);
            }
        }
    }
    let kv_groups = kv_sharing.map_or_else(Vec::new, |sharing| groups(sharing, &layers, path, &mut findings));
    if findings.is_empty() { Ok(Expansion { layers, kv_groups }) } else { Err(findings) }
}

fn groups(
    sharing: &KvSharing,
    layers: &[ExpandedLayer],
    path: &str,
    findings: &mut Vec<Finding>,
) -> Vec<Vec<usize>> {
    match (&sharing.groups, sharing.period) {
        (Some(groups), None) => groups.clone(),
        (None, Some(period)) => {
            let groups = by_period(layers, period);
            if groups.is_empty() {
                let message = "no two windowed layers follow each other without a global one between them";
                let rule = "`period` groups layers with a window";
                findings.push(finding(path, "kv_sharing.period", message, rule));
            }
            groups
        }
        _ => {
            let rule = "`kv_sharing` has either `groups` or `period`";
            findings.push(finding(path, "kv_sharing", "give one of `groups` and `period`", rule));
            Vec::new()
        }
    }
}

/// The key by which a mixer says how many tokens a token sees; a mixer that has it sees all when it is left out.
pub(crate) const WINDOW: &str = "window";

/// How far a layer's mixers look back at keys.
#[derive(PartialEq, Eq)]
enum Sight {
    /// They have no keys.
    NoKeys,
    /// Some mixer sees a window.
    Window,
    /// Some mixer sees everything, none a window.
    Global,
}

fn sight(layer: &ExpandedLayer) -> Sight {
    let has_keys = |mixer: &Component<sequence_mixer>| {
        let entry =
            Registry::global().ok().and_then(|registry| registry.get(sequence_mixer::NAME, &mixer.kind));
        entry.is_some_and(|entry| {
            entry.schema().get("properties").and_then(|properties| properties.get(WINDOW)).is_some()
        })
    };
    let with_keys: Vec<_> = layer.config.mixers.iter().filter(|mixer| has_keys(mixer)).collect();
    if with_keys.is_empty() {
        return Sight::NoKeys;
    }
    let windowed =
        with_keys.iter().any(|mixer| mixer.config.get(WINDOW).is_some_and(|window| !window.is_null()));
    if windowed { Sight::Window } else { Sight::Global }
}

/// Successive windowed layers in groups of `period`; layers without keys may stand between them, a global layer ends
/// a group, and a group of one layer shares nothing.
fn by_period(layers: &[ExpandedLayer], period: usize) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = vec![Vec::new()];
    for (index, layer) in layers.iter().enumerate() {
        match sight(layer) {
            Sight::NoKeys => {}
            Sight::Global => groups.push(Vec::new()),
            Sight::Window => match groups.last_mut() {
                Some(group) if group.len() < period => group.push(index),
                _ => groups.push(vec![index]),
            },
        }
    }
    groups.retain(|group| group.len() > 1);
    groups
}

fn finding(path: &str, key: &str, message: &str, rule: &str) -> Finding {
    let path = if key.is_empty() { path.to_owned() } else { format!("{path}.{key}") };
    Finding { path, message: message.to_owned(), rule: rule.to_owned(), help: None }
}
