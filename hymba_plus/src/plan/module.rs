//! What one component asks for: slices of the layer's projection, parameters, state, arithmetic. Pure data.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Axis, Embedded, Exemption, Growth, Law, StateKind, StatePlan};
use crate::{
    model::{
        ModelConfig,
        slot::{norm, position},
    },
    params::{Init, ParameterPlan},
    registry::{Component, Finding, RegistryError, Section, Slot},
};

/// A slice of the layer's in-projection: rows of one matrix, or a matrix of its own.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InputSlice {
    /// Name, by which the mixer reads it.
    pub name: String,
    /// Width.
    pub rows: i64,
    /// Whether it is the layer's normed input as it is, outside the projection.
    pub raw: bool,
    /// How its rows start; none for the model's normal initialisation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<Init>,
}

/// A layer's part in sharing keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KvRole {
    /// It makes and keeps its own.
    Own,
    /// It makes its own and hands them to the later layers of its group.
    Producer,
    /// It reads those of layer `producer` and has none.
    Consumer {
        /// Index of the layer that made them.
        producer: usize,
    },
}

/// The shape of keys and values, for the rules of sharing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KvShape {
    /// Heads of keys and values.
    pub n_kv_heads: i64,
    /// Width of a key, per head.
    pub head_dim: i64,
    /// Width of a value, per head.
    pub v_head_dim: i64,
    /// Text keys a token sees, itself among them; none when it sees all.
    pub window: Option<i64>,
    /// The position encoding, kind and configuration: queries are turned as the keys were.
    pub position: serde_json::Value,
}

/// Multiply-adds count as two operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Flops {
    /// Per token, whatever the context.
    pub per_token: f64,
    /// Per token and visible key.
    pub per_key: f64,
    /// Text keys a token sees at most; none when it sees all.
    pub window: Option<i64>,
}

impl Flops {
    /// Forward operations per token, as the mean over a document of `tokens` tokens after `meta` meta tokens.
    pub fn at(&self, meta: i64, tokens: i64) -> f64 {
        let (meta, tokens) = (meta as f64, (tokens as f64).max(1.0));
        let window = self.window.map_or(tokens, |window| (window as f64).min(tokens));
        // The first `window` tokens see 1, 2, ..., window text keys; the others see `window`.
        let text = (window * (window + 1.0) / 2.0 + (tokens - window) * window) / tokens;
        self.per_token + self.per_key * (meta + text)
    }
}

/// Where in the model a module stands, and what of the model it may depend on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModuleContext {
    /// Width of the residual stream.
    pub d_model: i64,
    /// Layers of the model.
    pub n_layers: usize,
    /// Index of the module's layer; none outside the layers.
    pub layer: Option<usize>,
    /// Meta tokens in front of every document.
    pub meta_tokens: i64,
    /// Standard deviation of the model's normal initialisation.
    pub initializer_range: f64,
    /// Longest document the model is meant for, meta tokens not counted; none when it is not stated.
    pub max_positions: Option<i64>,
    /// Size of the vocabulary; none for a model without tokens. See [`ModulePlan::vocabulary`].
    pub vocab_size: Option<i64>,
    /// Whether heads use the embedding's matrix. See [`ModulePlan::tied`].
    pub tie_embeddings: bool,
    /// For heads: what the embedding makes of an input, when that is always the same.
    pub embedded: Option<Embedded>,
    /// The layer's part in sharing keys and values.
    pub kv: KvRole,
}

/// A module inside a module (a norm, a position encoding), planned under the parent's name.
#[derive(Debug, Clone, Serialize)]
pub struct ChildPlan {
    /// Slot of the child.
    pub slot: &'static str,
    /// Kind of the child.
    pub kind: String,
    /// Configuration without `kind`.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// Its own plan.
    pub plan: ModulePlan,
}

/// The plan of one module. A component's `plan` fills it in; nothing is allocated.
#[derive(Debug, Clone, Serialize)]
pub struct ModulePlan {
    /// Where the module stands.
    pub context: ModuleContext,
    /// Prefix of its parameters: `layers.3.mixers.attention`.
    pub name: String,
    /// Dotted path of its configuration in the recipe, for findings.
    #[serde(skip)]
    pub path: String,
    /// Width of its input: `d_model`, or a branch's width for a fusion's norm.
    pub input_width: i64,
    /// Width of its output.
    pub output_width: i64,
    /// Slices of the layer's in-projection, in the order of the rows.
    pub inputs: Vec<InputSlice>,
    /// Its own parameters.
    pub parameters: Vec<ParameterPlan>,
    /// Its state.
    pub states: Vec<StatePlan>,
    /// Its arithmetic, without the layer's projections.
    pub flops: Flops,
    /// Values per token that a backward pass needs, roughly.
    pub saved_per_token: i64,
    /// Elements of its parameters that the pass of one token does not use: experts that it does not go to.
    pub idle_parameters: u64,
    /// Keys and values it can share.
    pub kv_shape: Option<KvShape>,
    /// Rows of the embedding's matrix that a tied head uses; none when it uses no such matrix.
    pub tied_rows: Option<i64>,
    /// What a position encoding multiplies queries and keys by, each; 1 unless it says so.
    pub attention_factor: f64,
    /// Dimensions of what an embedding takes; none when they do not matter.
    pub input_axes: Vec<Axis>,
    /// Dimensions of what a head gives; none when they do not matter.
    pub output_axes: Vec<Axis>,
    /// What an embedding makes of an input, when that is always the same.
    pub embedded: Option<Embedded>,
    /// Longest document it is made for, meta tokens not counted; none when any will do.
    pub longest_document: Option<i64>,
    /// Laws that it cannot keep; see [`exempt`](Self::exempt).
    pub exemptions: Vec<Exemption>,
    /// Modules inside it.
    pub children: BTreeMap<String, ChildPlan>,
    #[serde(skip)]
    findings: Vec<Finding>,
}

impl ModulePlan {
    /// An empty plan; the output is as wide as the input until [`output`](Self::output) says otherwise.
    pub fn new(context: ModuleContext, name: &str, path: &str, input_width: i64) -> Self {
        Self {
            context,
            name: name.to_owned(),
            path: path.to_owned(),
            input_width,
            output_width: input_width,
            inputs: Vec::new(),
            parameters: Vec::new(),
            states: Vec::new(),
            flops: Flops::default(),
            saved_per_token: 0,
            idle_parameters: 0,
            kv_shape: None,
            tied_rows: None,
            attention_factor: 1.0,
            input_axes: Vec::new(),
            output_axes: Vec::new(),
            embedded: None,
            longest_document: None,
            exemptions: Vec::new(),
            children: BTreeMap::new(),
            findings: Vec::new(),
        }
    }

    /// Asks for a slice of the layer's in-projection.
    pub fn input(&mut self, name: &str, rows: i64) {
        self.inputs.push(InputSlice { name: name.to_owned(), rows, raw: false, init: None });
        self.saved_per_token += rows;
    }

    /// Asks for a slice whose rows of the in-projection start in their own way.
    pub fn input_with(&mut self, name: &str, rows: i64, init: Init) {
        self.inputs.push(InputSlice { name: name.to_owned(), rows, raw: false, init: Some(init) });
        self.saved_per_token += rows;
    }

    /// Asks for the layer's normed input itself, `d_model` wide: for a mixer that owns its inner maps.
    pub fn raw_input(&mut self, name: &str) {
        self.inputs.push(InputSlice {
            name: name.to_owned(),
            rows: self.context.d_model,
            raw: true,
            init: None,
        });
    }

    /// Size of the vocabulary.
    ///
    /// # Errors
    /// A finding when neither the model nor a tokenizer names it.
    pub fn vocabulary(&self) -> Result<i64, Finding> {
        self.context.vocab_size.ok_or_else(|| Finding {
            path: format!("{}.vocab_size", ModelConfig::KEY),
            message: "the size of the vocabulary is not known".to_owned(),
            rule: "`vocab_size` is given, or a `tokenizer` that knows it".to_owned(),
            help: Some("add `model.vocab_size` or a `tokenizer` section".to_owned()),
        })
    }

    /// For a head: whether it uses the embedding's matrix `[rows, d_model]` instead of one of its own.
    pub fn tied(&mut self, rows: i64) -> bool {
        if self.context.tie_embeddings {
            self.tied_rows = Some(rows);
        }
        self.context.tie_embeddings
    }

    /// Declares the width of the output.
    pub fn output(&mut self, width: i64) {
        self.output_width = width;
        self.saved_per_token += width;
    }

    /// Declares a parameter with weight decay, in the model's type; the result can be changed in place.
    pub fn parameter(&mut self, name: &str, shape: &[i64], init: Init) -> ParameterHandle<'_> {
        let name = format!("{}.{name}", self.name);
        let plan = ParameterPlan {
            name,
            shape: shape.to_vec(),
            init,
            weight_decay: true,
            keep_float: false,
            trained: true,
        };
        self.parameters.push(plan);
        ParameterHandle { plan: self.parameters.last_mut().unwrap_or_else(|| unreachable!("just pushed")) }
    }

    /// Declares a matrix `[rows, columns]` with the model's normal initialisation, applied to every token.
    pub fn linear(&mut self, name: &str, rows: i64, columns: i64) -> ParameterHandle<'_> {
        self.flops.per_token += 2.0 * rows as f64 * columns as f64;
        let std = self.context.initializer_range;
        self.parameter(name, &[rows, columns], Init::Normal { std })
    }

    /// Declares a state of fixed size; `shape` leaves the batch out.
    pub fn state(&mut self, name: &str, shape: &[i64], kind: StateKind) {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        self.states.push(StatePlan { name, shape, growing: None, growth: Growth::Fixed, kind });
    }

    /// Declares a state that grows with the sequence: `shape` leaves out batch and growing dimension, which becomes
    /// dimension `growing` of the tensor.
    pub fn growing_state(
        &mut self,
        name: &str,
        shape: &[i64],
        growing: usize,
        growth: Growth,
        kind: StateKind,
    ) {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        self.states.push(StatePlan { name, shape, growing: Some(growing), growth, kind });
    }

    /// Adds forward operations per token.
    pub fn flops_per_token(&mut self, flops: i64) {
        self.flops.per_token += flops as f64;
    }

    /// Declares that it cannot keep a law; `hymba plan` and the conformance suite print it with its reason.
    pub fn exempt(&mut self, law: Law, reason: &str) {
        self.exemptions.push(Exemption { law, within: None, reason: reason.to_owned() });
    }

    /// Declares that it keeps a law within a relative error only, which the conformance suite checks and prints.
    pub fn exempt_within(&mut self, law: Law, error: f64, reason: &str) {
        self.exemptions.push(Exemption { law, within: Some(error), reason: reason.to_owned() });
    }

    /// Its own exemptions and those of the modules inside it.
    pub fn all_exemptions(&self) -> Vec<Exemption> {
        let own = self.exemptions.iter().cloned();
        own.chain(self.children.values().flat_map(|child| child.plan.all_exemptions())).collect()
    }

    /// Adds a norm over `width` channels under `name`.
    pub fn norm(&mut self, name: &str, component: &Component<norm>, width: i64) {
        self.child(name, component, width, super::super::model::slot::NormObject::plan);
    }

    /// Adds a position encoding of heads of `head_dim` channels under `name`.
    pub fn position(&mut self, name: &str, component: &Component<position>, head_dim: i64) {
        self.child(name, component, head_dim, super::super::model::slot::PositionObject::plan);
    }

    /// Adds a module of any slot under `name`, with an input of `width` channels.
    pub fn child<S: Slot>(
        &mut self,
        name: &str,
        component: &Component<S>,
        width: i64,
        plan: impl FnOnce(&S::Object, &mut Self) -> Result<(), Finding>,
    ) {
        let (full_name, path) = (format!("{}.{name}", self.name), format!("{}.{name}", self.path));
        let mut child = Self::new(self.context.clone(), &full_name, &path, width);
        match component.make() {
            Ok(spec) => child.run(|child| plan(&spec, child)),
            Err(error) => child.findings.push(registry_finding(&path, &error)),
        }
        self.findings.append(&mut child.findings);
        self.flops.per_token += child.flops.per_token;
        self.saved_per_token += child.saved_per_token;
        let (kind, config) = (component.kind.clone(), component.config.clone());
        self.children.insert(name.to_owned(), ChildPlan { slot: S::NAME, kind, config, plan: child });
    }

    /// A finding about a key of this module's configuration, to return from `plan` as an `Err`, or to
    /// [`refuse`](Self::refuse) and go on looking.
    pub fn finding(&self, key: &str, message: impl Into<String>, rule: impl Into<String>) -> Finding {
        let path = if key.is_empty() { self.path.clone() } else { format!("{}.{key}", self.path) };
        Finding { path, message: message.into(), rule: rule.into(), help: None }
    }

    /// Notes a finding and goes on, so that one pass shows them all.
    pub fn refuse(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// `total / parts`, or a finding on `key` that names the nearest values that would divide.
    ///
    /// # Errors
    /// When `parts` does not divide `total`.
    pub fn divide(&self, total: i64, parts: i64, key: &str, what: &str) -> Result<i64, Finding> {
        if parts > 0 && total % parts == 0 {
            return Ok(total / parts);
        }
        let quotient = total as f64 / parts as f64;
        let mut finding = self.finding(
            key,
            format!("{what}: {total} / {parts} = {quotient:.2} is not a whole number"),
            format!("`{key}` must divide {total}"),
        );
        let below = (1..parts.min(total + 1)).rev().find(|d| total % d == 0);
        let above = (parts.saturating_add(1)..=total).find(|d| total % d == 0);
        let near: Vec<_> = [below, above].into_iter().flatten().map(|d| d.to_string()).collect();
        finding.help = Some(format!("the nearest that divide it: {}", near.join(", ")));
        Err(finding)
    }

    /// Runs a component's `plan` on this module and keeps what it refuses.
    pub fn run(&mut self, plan: impl FnOnce(&mut Self) -> Result<(), Finding>) {
        if let Err(finding) = plan(self) {
            self.findings.push(finding);
        }
    }

    /// Takes the findings out.
    pub fn take_findings(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.findings)
    }

    /// Parameters of this module and the modules inside it, in order.
    pub fn all_parameters(&self) -> Vec<ParameterPlan> {
        let own = self.parameters.iter().cloned();
        own.chain(self.children.values().flat_map(|child| child.plan.all_parameters())).collect()
    }
}

/// A finding for a component that the registry refused.
pub(crate) fn registry_finding(path: &str, error: &RegistryError) -> Finding {
    Finding {
        path: path.to_owned(),
        message: error.to_string(),
        rule: "a component must be registered in this binary, and its keys must fit it".to_owned(),
        help: Some("`hymba components` lists what this binary has".to_owned()),
    }
}

/// A parameter that was just declared, to change what is not as usual.
#[derive(Debug)]
pub struct ParameterHandle<'a> {
    plan: &'a mut ParameterPlan,
}

impl ParameterHandle<'_> {
    /// Weight decay leaves it alone.
    #[allow(clippy::return_self_not_must_use)]
    pub fn without_weight_decay(self) -> Self {
        self.plan.weight_decay = false;
        self
    }

    /// It stays in 32-bit floats whatever the model's type.
    #[allow(clippy::return_self_not_must_use)]
    pub fn keep_float(self) -> Self {
        self.plan.keep_float = true;
        self
    }

    /// It is a buffer: saved like every parameter, changed by its module alone, never by a gradient or an optimizer.
    #[allow(clippy::return_self_not_must_use)]
    pub fn not_trained(self) -> Self {
        self.plan.trained = false;
        self.without_weight_decay()
    }
}
