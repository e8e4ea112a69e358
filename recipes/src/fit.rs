//! Whether data, model and stage fit each other, told by the dimensions that a plan names.

use hymba_plus::{
    config::Recipe,
    model::ModelConfig,
    plan::{Axis, ModelPlan},
    registry::{Finding, Section},
};
use training::{data::Description, trainer::DataSection};

/// What the recipe's data gives, if that can be said; what is wrong with it is reported by its own check.
pub fn description(recipe: &Recipe) -> Option<Description> {
    let DataSection(data) = recipe.section().ok()??;
    data.make().ok()?.describe(&|path| recipe.path(path)).ok()
}

/// Collects what does not fit.
pub(crate) struct Fit<'a> {
    stage: &'a str,
    plan: &'a ModelPlan,
    findings: Vec<Finding>,
}

impl<'a> Fit<'a> {
    pub(crate) fn new(stage: &'a str, plan: &'a ModelPlan) -> Self {
        Self { stage, plan, findings: Vec::new() }
    }

    /// The embedding takes inputs with `size` places along that dimension.
    pub(crate) fn input(&mut self, name: &str, size: i64, what: &str) {
        let module = &self.plan.embedding.module;
        let component = &self.plan.embedding.component.kind;
        self.compare(("embedding", component, "takes"), module.input_axis(name), name, Some(size), what);
    }

    /// The head gives outputs with that dimension, and with `size` places along it if that is given; the dimension.
    pub(crate) fn output(&mut self, name: &str, size: Option<i64>, what: &str) -> Option<&'a Axis> {
        let module = &self.plan.head.module;
        let axis = module.output_axis(name);
        self.compare(("head", &self.plan.head.component.kind, "gives"), axis, name, size, what);
        axis
    }

    fn compare(
        &mut self,
        (slot, kind, verb): (&str, &str, &str),
        axis: Option<&Axis>,
        name: &str,
        size: Option<i64>,
        what: &str,
    ) {
        let stage = self.stage;
        let (message, help) = match (axis, size) {
            (None, _) => (
                format!("stage `{stage}` needs {what}, and `{kind}` {verb} no dimension `{name}`"),
                format!("use an {slot} that has one; `hymba components {slot}` lists them"),
            ),
            (Some(axis), Some(size)) if axis.size != size => (
                format!("`{kind}` {verb} {} along `{name}`, and there are {size} {what}", axis.size),
                format!("make the {slot} for {size}, or change the data"),
            ),
            _ => return,
        };
        let help = if slot == "head" { help.replacen("use an", "use a", 1) } else { help };
        self.push(slot, message, format!("data, model and stage `{stage}` agree on the {what}"), help);
    }

    /// The tokens of an input are as many as the model is made for.
    pub(crate) fn tokens(&mut self) {
        if let (Some(embedded), Some(most)) =
            (self.plan.embedding.module.embedded, self.plan.longest_document())
            && embedded.tokens > most
        {
            let message = format!("an input makes {} tokens, the model is made for {most}", embedded.tokens);
            let rule = "inputs have at most the tokens that `model.max_positions` and the position encoding are made for";
            self.push("embedding", message, rule.to_owned(), "use larger patches, or raise those".to_owned());
        }
    }

    /// Adds a finding at a key of the model.
    pub(crate) fn push(&mut self, key: &str, message: String, rule: String, help: String) {
        let path = format!("{}.{key}", ModelConfig::KEY);
        self.findings.push(Finding { path, message, rule, help: Some(help) });
    }

    pub(crate) fn findings(self) -> Vec<Finding> {
        self.findings
    }
}
