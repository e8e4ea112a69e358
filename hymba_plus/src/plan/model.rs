//! The plan of a whole model, and the rules between its layers.

use std::collections::BTreeMap;

use serde::Serialize;
use tch::Kind;

use super::{KvRole, LayerPlan, ModuleContext, ModulePlan, StatePlan, registry_finding};
use crate::{
    model::{
        config::ModelConfig,
        slot::{EmbeddingObject, HeadObject, NormObject, embedding, head, norm},
    },
    params::{Init, ParameterPlan},
    registry::{Component, Finding, Section, Slot},
};

/// A module at one end of the model.
#[derive(Debug, Clone, Serialize)]
pub struct EndPlan<S: Slot> {
    /// Its component.
    #[serde(bound = "")]
    pub component: Component<S>,
    /// Its plan.
    pub module: ModulePlan,
}

/// A model as numbers: shapes, counts, arithmetic, state, without a tensor.
#[derive(Debug, Clone, Serialize)]
pub struct ModelPlan {
    /// Width of the residual stream.
    pub d_model: i64,
    /// Size of the vocabulary; none for a model without tokens.
    pub vocab_size: Option<i64>,
    /// Meta tokens in front of every document.
    pub meta_tokens: i64,
    /// Longest document the model is meant for.
    pub max_positions: Option<i64>,
    /// Whether the head uses the embedding's matrix.
    pub tie_embeddings: bool,
    /// What turns inputs into vectors.
    pub embedding: EndPlan<embedding>,
    /// The layers.
    pub layers: Vec<LayerPlan>,
    /// The norm after the last layer.
    pub final_norm: EndPlan<norm>,
    /// The head.
    pub head: EndPlan<head>,
    /// Further heads on the same trunk, by name.
    pub heads: BTreeMap<String, EndPlan<head>>,
    /// Every parameter, in the order in which checkpoints list them.
    pub parameters: Vec<ParameterPlan>,
}

/// What a model costs at a given length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Totals {
    /// Text tokens of a document.
    pub tokens: i64,
    /// Elements of all parameters.
    pub parameters: u64,
    /// Elements that one token's pass uses: those of experts that it does not go to are left out.
    pub active_parameters: u64,
    /// Forward operations per token, the mean over the document; training takes three times as many.
    pub flops_per_token: f64,
    /// Bytes of one sequence's state after the document, with activations in two bytes.
    pub state_bytes: u64,
    /// Part of `state_bytes` that does not depend on the length.
    pub fixed_state_bytes: u64,
    /// Bytes by which the state grows at the end of the document, per token.
    pub state_bytes_per_token: u64,
    /// Bytes of weights, gradients and two Adam moments in fp32.
    pub weight_bytes: u64,
    /// Bytes of activations that the backward pass of one such document needs in fp32: an estimate.
    pub activation_bytes: u64,
}

impl ModelPlan {
    /// The plan of a `model` section. `vocab_size` is the tokenizer's, used when the section names none.
    ///
    /// # Errors
    /// Every rule that the model breaks, with the path of the key to blame.
    pub fn resolve(config: &ModelConfig, vocab_size: Option<i64>) -> Result<Self, Vec<Finding>> {
        let mut findings = Vec::new();
        let pattern_path = "model.block_pattern";
        let expansion = match config.block_pattern.make() {
            Ok(pattern) => pattern.expand(config.n_layers, pattern_path),
            Err(error) => Err(vec![registry_finding(pattern_path, &error)]),
        };
        let expansion = expansion.unwrap_or_else(|mut wrong| {
            findings.append(&mut wrong);
            crate::model::config::Expansion::default()
        });
        let context = ModuleContext {
            d_model: config.d_model,
            n_layers: config.n_layers,
            layer: None,
            meta_tokens: config.meta_tokens,
            initializer_range: config.initializer_range,
            max_positions: config.max_positions,
            vocab_size: config.vocab_size.or(vocab_size),
            tie_embeddings: config.tie_embeddings,
            embedded: None,
            kv: KvRole::Own,
        };
        if expansion.layers.len() > config.n_layers {
            let message =
                format!("the pattern made {} layers of {}", expansion.layers.len(), config.n_layers);
            findings.push(at_model(
                "block_pattern",
                message,
                "a pattern makes `n_layers` layers",
                "mend the pattern",
            ));
            return Err(findings);
        }
        let roles = kv_roles(&expansion.kv_groups, config.n_layers, &mut findings);
        let (mut layers, before) = (Vec::with_capacity(expansion.layers.len()), findings.len());
        for (index, expanded) in expansion.layers.iter().enumerate() {
            let context = ModuleContext { layer: Some(index), kv: roles[index], ..context.clone() };
            layers.push(LayerPlan::new(expanded, &context, &config.norm, pattern_path, &mut findings));
        }
        // What a layer shares is only known when the layer itself is right.
        if findings.len() == before {
            check_sharing(&expansion.kv_groups, &layers, &mut findings);
        }
        if findings.is_empty()
            && layers.iter().all(|layer| layer.mixers.is_empty() && layer.channel_mixer.is_none())
        {
            let message = "every layer is empty".to_owned();
            findings.push(at_model(
                "block_pattern",
                message,
                "some layer mixes something",
                "name a mixer in `mixers` or `channel_mixer`",
            ));
        }
        let mut ends = Ends { context: &context, findings: &mut findings };
        let embedding = ends.plan("embedding", "embedding", &config.embedding, EmbeddingObject::plan);
        let final_norm = ends.plan("final_norm", "norm", &config.norm, NormObject::plan);
        let context = ModuleContext { embedded: embedding.module.embedded, ..context.clone() };
        let mut ends = Ends { context: &context, findings: &mut findings };
        let head = ends.plan("head", "head", &config.head, HeadObject::plan);
        let heads: BTreeMap<_, _> = config
            .heads
            .iter()
            .map(|(name, component)| {
                let full = format!("heads.{name}");
                (name.clone(), ends.plan(&full, &full, component, HeadObject::plan))
            })
            .collect();
        for end in std::iter::once(&head).chain(heads.values()) {
            ends.check_tied(&embedding.module, &end.module);
        }
        // Layers made from one template fail alike: say it once.
        let mut seen = Vec::<Finding>::new();
        for finding in findings {
            if !seen.contains(&finding) {
                seen.push(finding);
            }
        }
        if !seen.is_empty() {
            return Err(seen);
        }
        let mut parameters = Vec::new();
        if config.meta_tokens > 0 {
            parameters.push(ParameterPlan {
                name: "meta_tokens".into(),
                shape: vec![config.meta_tokens, config.d_model],
                init: Init::Normal { std: config.meta_init_std },
                weight_decay: false,
                keep_float: false,
                trained: true,
            });
        }
        parameters.extend(embedding.module.all_parameters());
        parameters.extend(layers.iter().flat_map(|layer| layer.parameters(config.initializer_range)));
        parameters.extend(final_norm.module.all_parameters());
        parameters.extend(head.module.all_parameters());
        parameters.extend(heads.values().flat_map(|head| head.module.all_parameters()));
        Ok(Self {
            d_model: config.d_model,
            vocab_size: context.vocab_size,
            meta_tokens: config.meta_tokens,
            max_positions: config.max_positions,
            tie_embeddings: config.tie_embeddings,
            embedding,
            layers,
            final_norm,
            head,
            heads,
            parameters,
        })
    }

    /// Longest document that the model and its position encodings are made for, meta tokens not counted.
    pub fn longest_document(&self) -> Option<i64> {
        let modules = self.layers.iter().flat_map(LayerPlan::modules);
        let inner = modules
            .flat_map(|module| module.children.values().filter_map(|child| child.plan.longest_document));
        inner.chain(self.max_positions).min()
    }

    /// The head and the further heads.
    pub fn all_heads(&self) -> impl Iterator<Item = &EndPlan<head>> {
        std::iter::once(&self.head).chain(self.heads.values())
    }

    /// Elements of all parameters.
    pub fn parameter_count(&self) -> u64 {
        self.parameters.iter().map(ParameterPlan::count).sum()
    }

    /// Every state tensor of one sequence, with its layer and mixer.
    pub fn states(&self) -> impl Iterator<Item = (usize, &str, &StatePlan)> {
        self.layers.iter().flat_map(|layer| {
            let mixers = layer.mixers.iter();
            mixers.flat_map(|mixer| {
                mixer.module.states.iter().map(|state| (layer.index, mixer.name.as_str(), state))
            })
        })
    }

    /// Bytes of one sequence's state after `tokens` text tokens, in a model whose activations have the type `compute`.
    pub fn state_bytes(&self, tokens: i64, compute: Kind) -> u64 {
        self.states().map(|(_, _, state)| state.bytes(self.meta_tokens, tokens, compute) as u64).sum()
    }

    /// Costs for documents of `tokens` text tokens.
    pub fn totals(&self, tokens: i64) -> Totals {
        let layers: f64 =
            self.layers.iter().map(|layer| layer.flops_per_token(self.meta_tokens, tokens)).sum();
        let ends = self.embedding.module.flops.per_token
            + self.final_norm.module.flops.per_token
            + self.all_heads().map(|head| head.module.flops.per_token).sum::<f64>();
        let states = || self.states().map(|(_, _, state)| state);
        let saved: i64 =
            self.layers.iter().flat_map(LayerPlan::modules).map(|module| module.saved_per_token).sum();
        let outputs: i64 = self.all_heads().map(|head| head.module.output_width).sum();
        let saved = saved + self.layers.len() as i64 * 4 * self.d_model + 2 * outputs;
        let parameters = self.parameter_count();
        let idle = self.layers.iter().flat_map(LayerPlan::modules).map(|module| module.idle_parameters).sum();
        Totals {
            tokens,
            parameters,
            active_parameters: parameters.saturating_sub(idle),
            flops_per_token: layers + ends,
            state_bytes: self.state_bytes(tokens, ACTIVATIONS),
            fixed_state_bytes: fixed_bytes(states(), self.meta_tokens, tokens),
            state_bytes_per_token: bytes_per_token(
                states().filter(|state| state.growth.limit().is_none_or(|limit| tokens < limit)),
            ),
            weight_bytes: parameters * 16,
            activation_bytes: (saved * tokens * 4) as u64,
        }
    }
}

/// The type of activations in which the plan counts the bytes of states.
pub(crate) const ACTIVATIONS: Kind = Kind::BFloat16;

/// Bytes of states after `text` tokens that further tokens do not add to.
pub(crate) fn fixed_bytes<'a>(states: impl Iterator<Item = &'a StatePlan>, meta: i64, text: i64) -> u64 {
    let fixed = |state: &StatePlan| state.growth.fixed(meta).min(state.growth.entries(meta, text));
    states.map(|state| (state.entry_bytes(ACTIVATIONS) * fixed(state)) as u64).sum()
}

/// Bytes by which states grow with a token while they grow, in the mean.
pub(crate) fn bytes_per_token<'a>(states: impl Iterator<Item = &'a StatePlan>) -> u64 {
    states.map(|state| state.entry_bytes(ACTIVATIONS) as f64 * state.growth.rate()).sum::<f64>().ceil() as u64
}

/// Plans the modules at the two ends of the model.
struct Ends<'a> {
    context: &'a ModuleContext,
    findings: &'a mut Vec<Finding>,
}

impl Ends<'_> {
    /// Plans a module under `name`, configured at `model.KEY`.
    fn plan<S: Slot>(
        &mut self,
        name: &str,
        key: &str,
        component: &Component<S>,
        plan: impl FnOnce(&S::Object, &mut ModulePlan) -> Result<(), Finding>,
    ) -> EndPlan<S> {
        let path = format!("{}.{key}", ModelConfig::KEY);
        let mut module = ModulePlan::new(self.context.clone(), name, &path, self.context.d_model);
        match component.make() {
            Ok(spec) => module.run(|module| plan(&spec, module)),
            Err(error) => self.findings.push(registry_finding(&module.path, &error)),
        }
        self.findings.append(&mut module.take_findings());
        EndPlan { component: component.clone(), module }
    }

    /// A tied head needs an embedding whose matrix has the head's shape.
    fn check_tied(&mut self, embedding: &ModulePlan, head: &ModulePlan) {
        let Some(rows) = head.tied_rows else { return };
        let name = format!("{}.weight", embedding.name);
        let matrix = embedding.parameters.iter().find(|parameter| parameter.name == name);
        if matrix.is_some_and(|matrix| matrix.shape == [rows, self.context.d_model]) {
            return;
        }
        let message = match matrix {
            Some(matrix) => format!(
                "`{}` would use the embedding's matrix {:?} as its own {:?}",
                head.path,
                matrix.shape,
                [rows, self.context.d_model]
            ),
            None => format!("`{}` would use the embedding's matrix, and the embedding has none", head.path),
        };
        self.findings.push(at_model(
            "tie_embeddings",
            message,
            "a tied head has the shape of the embedding's matrix",
            "set `model.tie_embeddings: false`",
        ));
    }
}

fn at_model(key: &str, message: String, rule: &str, help: &str) -> Finding {
    let path = format!("{}.{key}", ModelConfig::KEY);
    Finding { path, message, rule: rule.to_owned(), help: Some(help.to_owned()) }
}

const SHARING: &str = "block_pattern.kv_sharing";

/// The role of each layer, from groups that are checked for order, range and overlap.
fn kv_roles(groups: &[Vec<usize>], n_layers: usize, findings: &mut Vec<Finding>) -> Vec<KvRole> {
    let mut roles = vec![KvRole::Own; n_layers];
    for (i, group) in groups.iter().enumerate() {
        let key = format!("{SHARING}.groups[{i}]");
        let mut refuse =
            |message: String, rule: &str, help: &str| findings.push(at_model(&key, message, rule, help));
        if let Some(layer) = group.iter().find(|&&layer| layer >= n_layers) {
            let message =
                format!("there is no layer {layer}: layers are 0 to {}", n_layers.saturating_sub(1));
            refuse(message, "a layer index is below `n_layers`", "take the layer out, or add layers");
            continue;
        }
        if group.len() < 2 {
            refuse(
                format!("a group of {} layer shares nothing", group.len()),
                "a group has at least two layers",
                "remove it",
            );
            continue;
        }
        let turns_back = group.iter().zip(&group[1..]).find(|(before, after)| after <= before);
        if let Some((before, after)) = turns_back {
            let message = format!(
                "layer {after} comes after layer {before}: a layer can only read what an earlier one made"
            );
            let mut sorted = group.clone();
            sorted.sort_unstable();
            sorted.dedup();
            refuse(
                message,
                "groups point backward: indices grow",
                &if sorted.len() > 1 { format!("write {sorted:?}") } else { "remove the group".to_owned() },
            );
            continue;
        }
        if let Some(&layer) = group.iter().find(|&&layer| roles[layer] != KvRole::Own) {
            refuse(
                format!("layer {layer} is in two groups"),
                "a layer is in one group at most",
                "take it out of one of them",
            );
            continue;
        }
        roles[group[0]] = KvRole::Producer;
        for &layer in &group[1..] {
            roles[layer] = KvRole::Consumer { producer: group[0] };
        }
    }
    roles
}

/// The rules between producers and consumers that need the layers' plans.
fn check_sharing(groups: &[Vec<usize>], layers: &[LayerPlan], findings: &mut Vec<Finding>) {
    let shapes = |layer: &LayerPlan| -> Vec<super::KvShape> {
        layer.mixers.iter().filter_map(|mixer| mixer.module.kv_shape.clone()).collect()
    };
    for (i, group) in groups.iter().enumerate() {
        if group.len() < 2 || group.iter().any(|&layer| layer >= layers.len()) {
            continue;
        }
        let key = format!("{SHARING}.groups[{i}]");
        let mut refuse =
            |message: String, rule: &str, help: &str| findings.push(at_model(&key, message, rule, help));
        let (first, last) = (group[0], group[group.len() - 1]);
        if let Some(layer) = group.iter().find(|&&layer| shapes(&layers[layer]).is_empty()) {
            let message = format!("layer {layer} has no mixer with keys and values");
            refuse(message, "every layer of a group has attention", "take it out of the group");
            continue;
        }
        let is_global = |layer: usize| shapes(&layers[layer]).iter().any(|shape| shape.window.is_none());
        if let Some(over) = (first..last).find(|layer| !group.contains(layer) && is_global(*layer)) {
            let message =
                format!("the group reaches from layer {first} to layer {last}, over the global layer {over}");
            refuse(message, "a group does not reach over a global layer", "split the group there");
        }
        let made = shapes(&layers[first]);
        for &layer in &group[1..] {
            let (mine, theirs) = (shapes(&layers[layer]).len(), made.len());
            if mine != theirs {
                let message = format!(
                    "layer {layer} has {mine} mixers with keys and values, its producer {first} has {theirs}"
                );
                refuse(
                    message,
                    "the layers of a group have equally many attentions",
                    "make the two layers alike",
                );
                continue;
            }
            for (mine, theirs) in shapes(&layers[layer]).iter().zip(&made) {
                let narrow = |shape: &super::KvShape| (shape.n_kv_heads, shape.head_dim, shape.v_head_dim);
                if narrow(mine) != narrow(theirs) {
                    let message = format!(
                        "layer {layer} wants (n_kv_heads, head_dim, v_head_dim) = {:?}, its producer {first} makes {:?}",
                        narrow(mine),
                        narrow(theirs)
                    );
                    refuse(
                        message,
                        "a consumer's keys and values have its producer's shape",
                        "make the two layers alike",
                    );
                }
                if mine.position != theirs.position {
                    let message = format!(
                        "layer {layer} turns its queries by {}, its producer {first} its keys by {}",
                        mine.position, theirs.position
                    );
                    refuse(message, "a consumer has its producer's position encoding", "make the two alike");
                }
                let too_wide = match (mine.window, theirs.window) {
                    (None, Some(_)) => true,
                    (Some(mine), Some(theirs)) => mine > theirs,
                    (_, None) => false,
                };
                if too_wide {
                    let text = |window: Option<i64>| {
                        window.map_or("no window".to_owned(), |w| format!("window {w}"))
                    };
                    let message = format!(
                        "layer {layer} has {}, its producer {first} has {}",
                        text(mine.window),
                        text(theirs.window)
                    );
                    refuse(
                        message,
                        "a consumer's window is at most its producer's",
                        "keys beyond the producer's window are gone",
                    );
                }
            }
        }
    }
}
