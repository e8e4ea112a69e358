//! The plan of one layer: mixers side by side, their projections, fusion, channel mixer.

use serde::Serialize;

use super::{KvRole, ModuleContext, ModulePlan, registry_finding};
use crate::{
    model::{
        config::{ExpandedLayer, InProjection, LayerConfig, OutProjection},
        slot::{channel_mixer, fusion, norm, sequence_mixer},
    },
    params::{Init, ParameterPlan},
    registry::{Component, Finding, Slot},
};

/// A matrix of a projection, with its bias.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MatrixPlan {
    /// Name without `.weight` and `.bias`.
    pub name: String,
    /// Rows: the output's width.
    pub rows: i64,
    /// Columns: the input's width.
    pub columns: i64,
    /// Whether there is a bias.
    pub bias: bool,
    /// How it starts; none for the model's normal initialisation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<Init>,
}

impl MatrixPlan {
    fn parameters(&self, std: f64) -> Vec<ParameterPlan> {
        let named = |suffix: &str, shape: Vec<i64>, init, weight_decay| ParameterPlan {
            name: format!("{}.{suffix}", self.name),
            shape,
            init,
            weight_decay,
            keep_float: false,
            trained: true,
        };
        let init = self.init.clone().unwrap_or(Init::Normal { std });
        let mut all = vec![named("weight", vec![self.rows, self.columns], init, true)];
        if self.bias {
            all.push(named("bias", vec![self.rows], Init::ZEROS, false));
        }
        all
    }
}

/// A mixer of a layer.
#[derive(Debug, Clone, Serialize)]
pub struct MixerPlan {
    /// Name inside the layer: the kind, with a number when the layer has several of it.
    pub name: String,
    /// Its component.
    pub component: Component<sequence_mixer>,
    /// Its plan.
    pub module: ModulePlan,
}

/// One layer.
#[derive(Debug, Clone, Serialize)]
pub struct LayerPlan {
    /// Index.
    pub index: usize,
    /// Name of the pattern's template, if it has one.
    pub template: Option<String>,
    /// Part in sharing keys and values.
    pub kv: KvRole,
    /// The layer's configuration.
    pub config: LayerConfig,
    /// The norm before the mixers; none when the layer has no mixer.
    pub norm: Option<(Component<norm>, ModulePlan)>,
    /// The in-projection: one matrix, or one for each slice.
    pub in_projection: Vec<MatrixPlan>,
    /// The mixers, `none` left out.
    pub mixers: Vec<MixerPlan>,
    /// The fusion; none when the layer has no mixer.
    pub fusion: Option<(Component<fusion>, ModulePlan)>,
    /// The out-projection: one matrix, one for each branch, or none.
    pub out_projection: Vec<MatrixPlan>,
    /// The norm before the channel mixer; none when there is no channel mixer.
    pub channel_norm: Option<(Component<norm>, ModulePlan)>,
    /// The channel mixer.
    pub channel_mixer: Option<(Component<channel_mixer>, ModulePlan)>,
}

impl LayerPlan {
    /// Plans a layer; `model_norm` stands where the layer names no norm. Findings go to `findings`.
    pub(super) fn new(
        expanded: &ExpandedLayer,
        context: &ModuleContext,
        model_norm: &Component<norm>,
        pattern_path: &str,
        findings: &mut Vec<Finding>,
    ) -> Self {
        let index = context.layer.unwrap_or_default();
        let (config, path) = (&expanded.config, format!("{pattern_path}.{}", expanded.path));
        let mut layer = Self {
            index,
            template: expanded.template.clone(),
            kv: context.kv,
            config: config.clone(),
            norm: None,
            in_projection: Vec::new(),
            mixers: plan_mixers(config, context, &path, findings),
            fusion: None,
            out_projection: Vec::new(),
            channel_norm: None,
            channel_mixer: None,
        };
        let mut planner = Planner { context, prefix: format!("layers.{index}"), path: &path, findings };
        let d_model = context.d_model;
        if !layer.mixers.is_empty() {
            let own = config.norm.as_ref();
            layer.norm = Some(planner.module(
                "norm",
                own.unwrap_or(model_norm),
                d_model,
                super::super::model::slot::NormObject::plan,
            ));
            layer.in_projection = planner.in_projection(config, &layer.mixers);
            let widths: Vec<_> = layer.mixers.iter().map(|mixer| mixer.module.output_width).collect();
            planner.out_and_fusion(&mut layer, &widths);
        }
        if !config.channel_mixer.is_none() {
            let own = config.channel_norm.as_ref();
            layer.channel_norm = Some(planner.module(
                "channel_norm",
                own.unwrap_or(model_norm),
                d_model,
                super::super::model::slot::NormObject::plan,
            ));
            layer.channel_mixer = Some(planner.module(
                "channel_mixer",
                &config.channel_mixer,
                d_model,
                super::super::model::slot::ChannelMixerObject::plan,
            ));
        }
        layer
    }

    /// Every module of the layer, in the order of the pass.
    pub fn modules(&self) -> impl Iterator<Item = &ModulePlan> {
        let first = self.norm.iter().map(|(_, module)| module);
        let mixers = self.mixers.iter().map(|mixer| &mixer.module);
        let fusion = self.fusion.iter().map(|(_, module)| module);
        let channel_norm = self.channel_norm.iter().map(|(_, module)| module);
        let channel_mixer = self.channel_mixer.iter().map(|(_, module)| module);
        first.chain(mixers).chain(fusion).chain(channel_norm).chain(channel_mixer)
    }

    /// Parameters of the layer, in order.
    pub fn parameters(&self, std: f64) -> Vec<ParameterPlan> {
        let modules = self.modules().flat_map(ModulePlan::all_parameters);
        let matrices = self.in_projection.iter().chain(&self.out_projection).flat_map(|m| m.parameters(std));
        modules.chain(matrices).collect()
    }

    /// Forward operations per token of a document of `tokens` tokens.
    pub fn flops_per_token(&self, meta: i64, tokens: i64) -> f64 {
        let matrices = self.in_projection.iter().chain(&self.out_projection);
        let projections: f64 = matrices.map(|m| 2.0 * m.rows as f64 * m.columns as f64).sum();
        projections + self.modules().map(|module| module.flops.at(meta, tokens)).sum::<f64>()
    }
}

fn plan_mixers(
    config: &LayerConfig,
    context: &ModuleContext,
    path: &str,
    findings: &mut Vec<Finding>,
) -> Vec<MixerPlan> {
    let mut mixers: Vec<MixerPlan> = Vec::new();
    for (i, component) in config.mixers.iter().enumerate().filter(|(_, component)| !component.is_none()) {
        let before = config.mixers[..i].iter().filter(|other| other.kind == component.kind).count();
        let name =
            if before == 0 { component.kind.clone() } else { format!("{}_{}", component.kind, before + 1) };
        let full = format!("layers.{}.mixers.{name}", context.layer.unwrap_or_default());
        let mut module =
            ModulePlan::new(context.clone(), &full, &format!("{path}.mixers[{i}]"), context.d_model);
        match component.make() {
            Ok(spec) => module.run(|module| spec.plan(module)),
            Err(error) => findings.push(registry_finding(&module.path, &error)),
        }
        findings.append(&mut module.take_findings());
        mixers.push(MixerPlan { name, component: component.clone(), module });
    }
    mixers
}

struct Planner<'a> {
    context: &'a ModuleContext,
    prefix: String,
    path: &'a str,
    findings: &'a mut Vec<Finding>,
}

impl Planner<'_> {
    fn module<S: Slot>(
        &mut self,
        name: &str,
        component: &Component<S>,
        width: i64,
        plan: impl FnOnce(&S::Object, &mut ModulePlan) -> Result<(), Finding>,
    ) -> (Component<S>, ModulePlan) {
        let (full, path) = (format!("{}.{name}", self.prefix), format!("{}.{name}", self.path));
        let mut module = ModulePlan::new(self.context.clone(), &full, &path, width);
        match component.make() {
            Ok(spec) => module.run(|module| plan(&spec, module)),
            Err(error) => self.findings.push(registry_finding(&path, &error)),
        }
        self.findings.append(&mut module.take_findings());
        (component.clone(), module)
    }

    fn in_projection(&self, config: &LayerConfig, mixers: &[MixerPlan]) -> Vec<MatrixPlan> {
        let (columns, bias) = (self.context.d_model, config.in_bias);
        let slices =
            mixers.iter().flat_map(|mixer| mixer.module.inputs.iter().map(|slice| (&mixer.name, slice)));
        let slices: Vec<_> = slices.filter(|(_, slice)| !slice.raw).collect();
        if slices.is_empty() {
            return Vec::new();
        }
        let slices = slices.into_iter();
        match config.in_projection {
            InProjection::Fused => {
                let usual = Init::Normal { std: self.context.initializer_range };
                let blocks: Vec<_> = slices
                    .map(|(_, slice)| (slice.rows, slice.init.clone().unwrap_or_else(|| usual.clone())))
                    .collect();
                let rows = blocks.iter().map(|(rows, _)| rows).sum();
                let init = blocks.iter().any(|(_, init)| *init != usual).then_some(Init::Rows { blocks });
                vec![MatrixPlan { name: format!("{}.in_proj", self.prefix), rows, columns, bias, init }]
            }
            InProjection::Separate => slices
                .map(|(mixer, slice)| {
                    let name = format!("{}.in_proj.{mixer}.{}", self.prefix, slice.name);
                    MatrixPlan { name, rows: slice.rows, columns, bias, init: slice.init.clone() }
                })
                .collect(),
        }
    }

    fn out_and_fusion(&mut self, layer: &mut LayerPlan, widths: &[i64]) {
        let (config, rows, bias) = (&layer.config, self.context.d_model, layer.config.out_bias);
        let (fusion, out): (_, Vec<_>) = match config.out_projection {
            OutProjection::Shared => {
                let fusion = self.fusion(&config.fusion, widths);
                let columns = fusion.1.output_width;
                let name = format!("{}.out_proj", self.prefix);
                let matrix = MatrixPlan { name, rows, columns, bias, init: None };
                (fusion, vec![matrix])
            }
            OutProjection::PerBranch => {
                let matrices = layer.mixers.iter().zip(widths).map(|(mixer, &columns)| {
                    let name = format!("{}.out_proj.{}", self.prefix, mixer.name);
                    MatrixPlan { name, rows, columns, bias, init: None }
                });
                let matrices: Vec<_> = matrices.collect();
                (self.fusion(&config.fusion, &vec![rows; widths.len()]), matrices)
            }
            OutProjection::None => (self.fusion(&config.fusion, widths), Vec::new()),
        };
        let width = fusion.1.output_width;
        if config.out_projection != OutProjection::Shared && width != rows {
            let message = format!("the fused branches are {width} wide, `d_model` is {rows}");
            let rule = "without a shared out-projection the fusion's output is `d_model` wide";
            let mut finding = fusion.1.finding("", message, rule);
            finding.path = format!("{}.out_projection", self.path);
            finding.help = Some("use `out_projection: shared`".to_owned());
            self.findings.push(finding);
        }
        layer.fusion = Some(fusion);
        layer.out_projection = out;
    }

    /// A fusion sees the widths of its branches as input slices, in order.
    fn fusion(&mut self, component: &Component<fusion>, widths: &[i64]) -> (Component<fusion>, ModulePlan) {
        self.module("fusion", component, widths.first().copied().unwrap_or_default(), |spec, plan| {
            for (i, &width) in widths.iter().enumerate() {
                plan.input(&i.to_string(), width);
            }
            spec.plan(plan)
        })
    }
}
