//! Slots, components and sections that only these tests have; none of them is one of the framework's.

#![allow(dead_code)] // the fields are read by the checker, not by the tests

use std::collections::BTreeMap;

use hymba_plus::{
    component_config,
    config::{Recipe, RecipePath},
    define_slot, register, register_check, register_section,
    registry::{Component, Finding, Section},
};

/// What every component of these tests can do.
pub trait Named {
    /// Its own name for itself.
    fn name(&self) -> String;
}

define_slot!(/** What a layer does with a sequence. */ layer: dyn Named);
define_slot!(/** How activations are scaled. */ scaling: dyn Named);
define_slot!(/** How parameters move. */ update_rule: dyn Named);

macro_rules! named {
    ($($config:ident),*) => { $(impl Named for $config { fn name(&self) -> String { format!("{self:?}") } })* };
}
named!(Attention, Mamba, NoLayer, Rms, LayerNorm, NoScaling, AdamW, Muon);

/// How positions enter attention.
#[component_config]
pub enum Rotation {
    /// No positions.
    None,
    /// Positions divided by a factor.
    Linear,
    /// Wavelengths stretched each by its own factor.
    Yarn,
}

/// Softmax attention.
#[component_config]
pub struct Attention {
    /// Number of query heads.
    #[schemars(range(min = 1))]
    n_heads: i64,
    /// Number of key and value heads; all if it is not given.
    #[schemars(range(min = 1))]
    n_kv_heads: Option<i64>,
    /// Width of a head.
    #[default(64)]
    #[schemars(range(min = 8, max = 256), extend("multipleOf" = 8))]
    head_dim: i64,
    /// How many tokens back a query sees; all if it is not given.
    window: Option<u32>,
    /// How positions enter.
    #[default(Rotation::None)]
    rotation: Rotation,
    /// Share of the weights that are dropped in training.
    #[default(0.0)]
    #[schemars(range(min = 0.0, max = 1.0))]
    dropout: f64,
    /// Whether projections have a bias.
    #[default(false)]
    bias: bool,
}
register!(layer "attention" | "softmax" => Attention);

/// A selective state space.
#[component_config]
pub struct Mamba {
    /// Size of the state of a channel.
    #[default(16)]
    #[schemars(range(min = 1))]
    d_state: i64,
    /// Width of the inner layer, as a multiple of the outer one.
    #[default(2.0)]
    #[schemars(extend("exclusiveMinimum" = 0))]
    expand: f64,
    /// Scaling of the inner activations.
    #[default(Component::of("rms"))]
    norm: Component<scaling>,
}
register!(layer "mamba" | "mamba1" => Mamba);

/// Nothing.
#[component_config]
pub struct NoLayer {}
register!(layer "none" => NoLayer);

/// Division by the root of the mean square.
#[component_config]
pub struct Rms {
    /// Added to the mean square.
    #[default(1e-6)]
    #[schemars(extend("exclusiveMinimum" = 0))]
    eps: f64,
}
register!(scaling "rms" => Rms);

/// Mean zero and variance one.
#[component_config]
pub struct LayerNorm {
    /// Added to the variance.
    #[default(1e-5)]
    #[schemars(extend("exclusiveMinimum" = 0))]
    eps: f64,
    /// Whether a bias is added.
    #[default(true)]
    bias: bool,
}
register!(scaling "layer_norm" => LayerNorm);

/// Nothing.
#[component_config]
pub struct NoScaling {}
register!(scaling "none" => NoScaling);

/// Adam with decoupled weight decay.
#[component_config]
pub struct AdamW {
    /// Highest learning rate.
    #[schemars(extend("exclusiveMinimum" = 0))]
    lr: f64,
    /// Decay of the first and the second moment.
    #[default([0.9, 0.95])]
    betas: [f64; 2],
    /// Share of a parameter that a step of size one takes away.
    #[default(0.1)]
    #[schemars(range(min = 0.0))]
    weight_decay: f64,
}
register!(update_rule "adamw" => AdamW);

/// Orthogonal updates.
#[component_config]
pub struct Muon {
    /// Highest learning rate.
    #[schemars(extend("exclusiveMinimum" = 0))]
    lr: f64,
    /// Share of the last update that stays.
    #[default(0.95)]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    momentum: f64,
}
register!(update_rule "muon" => Muon);

/// The network.
#[component_config]
pub struct Network {
    /// Width of the residual stream.
    #[schemars(range(min = 1))]
    d_model: i64,
    /// The layers, from the first to the last.
    #[schemars(length(min = 1))]
    layers: Vec<Component<layer>>,
    /// Scaling before each layer.
    #[default(Component::of("rms"))]
    norm: Component<scaling>,
    /// Scaling after the last layer; that of the layers if it is not given.
    final_norm: Option<Component<scaling>>,
    /// Whether the head is the embedding.
    #[default(true)]
    tie_embeddings: bool,
    /// File of words, one a line.
    #[schemars(extend("x-exists" = true))]
    words: Option<RecipePath>,
    /// Layers that differ, by number.
    #[default(BTreeMap::new())]
    overrides: BTreeMap<String, Component<layer>>,
}
impl Section for Network {
    const KEY: &'static str = "network";
}
register_section!(Network);

/// How the learning rate falls.
#[component_config]
pub enum Decay {
    /// Half a cosine.
    Cosine,
    /// A straight line.
    Linear,
    /// Not at all.
    Constant,
}

/// The learning rate over the steps.
#[component_config]
pub struct Schedule {
    /// Steps from zero to the highest rate.
    #[default(100)]
    warmup: u64,
    /// How it falls afterwards.
    #[default(Decay::Cosine)]
    decay: Decay,
}

/// Training.
#[component_config]
pub struct Training {
    /// Number of updates.
    #[schemars(range(min = 1))]
    steps: u32,
    /// How parameters move.
    update: Component<update_rule>,
    /// The learning rate over the steps.
    #[default(Schedule { warmup: 100, decay: Decay::Cosine })]
    schedule: Schedule,
    /// Where it runs.
    #[default("auto".to_owned())]
    #[schemars(length(min = 1))]
    device: String,
    /// Largest norm of the gradient; none if it is not given.
    #[schemars(extend("exclusiveMinimum" = 0))]
    clip: Option<f64>,
    /// Folder for what comes out.
    #[default(RecipePath::new("runs"))]
    output: RecipePath,
    /// Words to find the run by.
    #[default(Vec::new())]
    #[schemars(length(max = 3))]
    tags: Vec<String>,
    /// Lines on the screen, one in so many steps.
    #[default(10)]
    #[schemars(range(min = 1))]
    log_every: u8,
}
impl Section for Training {
    const KEY: &'static str = "training";
}
register_section!(Training);

/// Two shares that make a whole.
#[derive(Debug, Clone, Copy, PartialEq, hymba_plus::serde::Serialize, hymba_plus::serde::Deserialize)]
#[serde(crate = "hymba_plus::serde", try_from = "[f64; 2]", into = "[f64; 2]")]
pub struct Shares(f64, f64);

impl TryFrom<[f64; 2]> for Shares {
    type Error = String;
    fn try_from([a, b]: [f64; 2]) -> Result<Self, String> {
        if (a + b - 1.0).abs() < 1e-9 {
            Ok(Self(a, b))
        } else {
            Err(format!("the shares {a} and {b} make {}, not 1", a + b))
        }
    }
}

impl From<Shares> for [f64; 2] {
    fn from(shares: Shares) -> Self {
        [shares.0, shares.1]
    }
}

/// One part of the texts.
#[component_config]
pub struct Part {
    /// File of texts.
    path: RecipePath,
    /// How often it is drawn.
    #[default(1.0)]
    #[schemars(range(min = 0.0))]
    weight: f64,
}

/// The texts.
#[component_config]
pub struct Corpus {
    /// Parts that are mixed.
    #[schemars(length(min = 1))]
    parts: Vec<Part>,
    /// Shares for training and for validation.
    #[default(Shares(0.9, 0.1))]
    #[schemars(with = "[f64; 2]")]
    split: Shares,
    /// Whether texts are shuffled: `true`, `false`, or the size of the buffer that is shuffled.
    #[default(Shuffle::Yes(true))]
    shuffle: Shuffle,
}
impl Section for Corpus {
    const KEY: &'static str = "corpus";
}
register_section!(Corpus);

/// Whether, or how far, texts are shuffled.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    hymba_plus::serde::Serialize,
    hymba_plus::serde::Deserialize,
    hymba_plus::schemars::JsonSchema,
)]
#[serde(crate = "hymba_plus::serde", untagged)]
#[schemars(crate = "hymba_plus::schemars")]
pub enum Shuffle {
    /// All or nothing.
    Yes(bool),
    /// Within a buffer.
    Within(u32),
}

/// Layers that follow each other; a section that is a list.
#[derive(
    Debug,
    Clone,
    PartialEq,
    hymba_plus::serde::Serialize,
    hymba_plus::serde::Deserialize,
    hymba_plus::schemars::JsonSchema,
)]
#[serde(crate = "hymba_plus::serde", transparent)]
#[schemars(crate = "hymba_plus::schemars")]
pub struct Pipeline(Vec<Component<layer>>);
impl Section for Pipeline {
    const KEY: &'static str = "pipeline";
}
register_section!(Pipeline);

/// Heads must divide the width.
fn heads_fit(recipe: &Recipe) -> Vec<Finding> {
    let Ok(Some(network)) = recipe.section::<Network>() else { return Vec::new() };
    let mut findings = Vec::new();
    for (index, layer) in network.layers.iter().enumerate() {
        let heads = layer.config.get("n_heads").and_then(hymba_plus::serde_json::Value::as_i64);
        if let Some(heads) = heads.filter(|heads| network.d_model % heads != 0) {
            let nearest = (1..heads).rev().find(|heads| network.d_model % heads == 0).unwrap_or(1);
            findings.push(Finding {
                path: format!("network.layers[{index}].n_heads"),
                message: format!("{heads} heads do not divide a width of {}", network.d_model),
                rule: "d_model is a multiple of n_heads".into(),
                help: Some(format!("the nearest number of heads that does is {nearest}")),
            });
        }
    }
    findings
}
register_check!("heads", heads_fit);
