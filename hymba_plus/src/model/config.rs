//! The `model` section of a recipe.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::slot::{channel_mixer, embedding, fusion, head, norm, sequence_mixer};
use crate::{
    component_config, define_slot, register_section,
    registry::{Component, Finding, Section},
};

/// The model: its width, its layers by a block pattern, its meta tokens, its two ends.
#[component_config]
pub struct ModelConfig {
    /// Width of the residual stream.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub d_model: i64,
    /// Number of layers.
    #[schemars(range(min = 1, max = 1000))]
    pub n_layers: usize,
    /// Size of the vocabulary; left out, it is the tokenizer's.
    #[schemars(range(min = 1, max = 67_108_864))]
    pub vocab_size: Option<i64>,
    /// Learned vectors in front of every document; every token sees them, and their state is where documents start.
    #[default(0)]
    #[schemars(range(min = 0, max = 1_048_576))]
    pub meta_tokens: i64,
    /// Standard deviation of the meta tokens' normal initialisation.
    #[default(1.0)]
    #[schemars(range(min = 0.0))]
    pub meta_init_std: f64,
    /// Longest document the model is meant for, meta tokens not counted; a longer `sequence_length` is refused.
    #[schemars(range(min = 1, max = 1_073_741_824))]
    pub max_positions: Option<i64>,
    /// Standard deviation of the normal initialisation of matrices and embeddings.
    #[default(0.02)]
    #[schemars(range(min = 0.0))]
    pub initializer_range: f64,
    /// Turns inputs (token ids, images, series) into vectors.
    pub embedding: Component<embedding>,
    /// Whether a head over the vocabulary uses the embedding's matrix.
    #[default(true)]
    pub tie_embeddings: bool,
    /// The norm before every mixer, before every channel mixer and at the end, unless a layer names its own.
    pub norm: Component<norm>,
    /// Turns the last hidden vectors into outputs.
    pub head: Component<head>,
    /// Further heads on the same trunk, by name: for prediction of several things at once.
    #[default(BTreeMap::new())]
    pub heads: BTreeMap<String, Component<head>>,
    /// How the layers follow each other.
    pub block_pattern: Component<block_pattern>,
}

impl Section for ModelConfig {
    const KEY: &'static str = "model";
}

register_section!(ModelConfig);

/// How the in-projection of a layer is stored.
#[component_config]
pub enum InProjection {
    /// One matrix whose rows are the slices of all mixers in order, as the official Hymba has it.
    Fused,
    /// One matrix for each slice.
    Separate,
}

/// How the branches of a layer come back to `d_model`.
#[component_config]
pub enum OutProjection {
    /// The branches are fused, then projected by one matrix.
    Shared,
    /// Each branch is projected by a matrix of its own, then they are fused.
    PerBranch,
    /// Not at all: the fused branches must be `d_model` wide.
    None,
}

/// One layer: a residual block of sequence mixers side by side, then one of a channel mixer.
///
/// `x = x + out_proj(fusion(mixers(in_proj(norm(x)))))`, then `x = x + channel_mixer(channel_norm(x))`. A part that is
/// `none` is left out together with its norm and its residual.
#[component_config]
pub struct LayerConfig {
    /// The mixers that read the layer's input side by side; their slices of the in-projection follow this order.
    #[schemars(length(min = 1))]
    pub mixers: Vec<Component<sequence_mixer>>,
    /// How the in-projection is stored.
    #[default(InProjection::Fused)]
    pub in_projection: InProjection,
    /// Whether the in-projection has a bias.
    #[default(false)]
    pub in_bias: bool,
    /// How the branches come back to `d_model`.
    #[default(OutProjection::Shared)]
    pub out_projection: OutProjection,
    /// Whether the out-projection has a bias.
    #[default(false)]
    pub out_bias: bool,
    /// How the branches are joined; `none` is for a single branch.
    #[default(Component::of("none"))]
    pub fusion: Component<fusion>,
    /// What follows the mixers.
    #[default(Component::of("none"))]
    pub channel_mixer: Component<channel_mixer>,
    /// The norm before the mixers; left out, it is the model's.
    pub norm: Option<Component<norm>>,
    /// The norm before the channel mixer; left out, it is the model's.
    pub channel_norm: Option<Component<norm>>,
    /// Dropout on what each residual block adds.
    #[default(0.0)]
    #[schemars(range(min = 0.0, max = 0.99))]
    pub dropout: f64,
}

/// Which layers share keys and values. The first layer of a group makes them, the others read them.
#[component_config]
pub struct KvSharing {
    /// Explicit groups of layer indices, of any length: `[[1, 2], [3, 4, 5]]`.
    pub groups: Option<Vec<Vec<usize>>>,
    /// Groups of this many successive windowed layers; a global layer ends a group.
    #[schemars(range(min = 2))]
    pub period: Option<usize>,
}

/// A pattern's answer: every layer in order, with the path of its configuration, and the groups of sharing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Expansion {
    /// Layers in order.
    pub layers: Vec<ExpandedLayer>,
    /// Groups of layers that share keys and values.
    pub kv_groups: Vec<Vec<usize>>,
}

/// One layer as the pattern made it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExpandedLayer {
    /// Dotted path below the pattern, for findings: `layer`, `layers.global`.
    pub path: String,
    /// Name of the template it came from, if templates have names.
    pub template: Option<String>,
    /// The layer.
    pub config: LayerConfig,
}

/// A block pattern: turns a few templates into a list of layers.
pub trait BlockPattern: std::fmt::Debug {
    /// The layers, `n_layers` of them. `path` is the pattern's place in the recipe.
    ///
    /// # Errors
    /// Everything that is wrong with the pattern.
    fn expand(&self, n_layers: usize, path: &str) -> Result<Expansion, Vec<Finding>>;
}

define_slot!(/** How the layers of a model follow each other. */ block_pattern: dyn BlockPattern);
