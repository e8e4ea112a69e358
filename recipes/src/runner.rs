//! Runs the stages of a recipe in order.

use hymba_plus::{
    config::Recipe,
    register_check,
    registry::{Finding, Section},
};
use training::{
    TrainError,
    data::Modality,
    profile::Profiled,
    run::{Run, RunOptions},
    run_data::RunData,
    trainer::{DataSection, TokenizerSection},
};

use crate::{
    context::{RunError, StageContext, StageError, StagesSection},
    plan_model,
    pretrain::Pretrain,
};

register_check!("stages", check);

/// Everything that stages find wrong with the recipe before anything runs.
fn check(recipe: &Recipe) -> Vec<Finding> {
    let Ok(Some(stages)) = recipe.section::<StagesSection>() else { return Vec::new() };
    // What is wrong with the model is reported by its own check.
    let plan = plan_model(recipe).ok().flatten();
    let (modality, mut findings) = modality(recipe);
    let missing = |key: &str| recipe.values().get(key).is_none();
    // Only text is tokenized; where there are no data, text is meant.
    let is_for_text = modality == Some(Modality::Text) || missing(DataSection::KEY);
    let is_needed = |key: &str| key != TokenizerSection::KEY || is_for_text;
    findings.extend(NEEDED.iter().filter(|(key, _)| missing(key) && is_needed(key)).map(needed));
    let mut has_model = false;
    for (i, component) in stages.0.iter().enumerate() {
        let Ok(stage) = component.make() else { continue };
        let path = format!("{}[{i}]", StagesSection::KEY);
        if stage.needs_model() && !has_model {
            findings.push(Finding {
                path: path.clone(),
                message: format!(
                    "stage `{}` needs a model, and no stage before it makes one",
                    component.kind
                ),
                rule: "a stage that needs a model comes after one that makes it".to_owned(),
                help: Some("put a stage such as `pretrain` before it".to_owned()),
            });
        }
        has_model |= stage.makes_model();
        if let Some(given) = modality
            && stage.reads() != given
        {
            findings.push(Finding {
                path: path.clone(),
                message: format!(
                    "stage `{}` reads {}, and the data are {given}",
                    component.kind,
                    stage.reads()
                ),
                rule: "the stages of a recipe read the kind of data that it has".to_owned(),
                help: Some("choose other `data`, or another stage".to_owned()),
            });
        }
        findings.extend(stage.check(recipe, plan.as_ref(), &path));
    }
    findings
}

/// What the data is made of, if that can be said, and what is wrong with it.
fn modality(recipe: &Recipe) -> (Option<Modality>, Vec<Finding>) {
    let Ok(Some(DataSection(data))) = recipe.section() else { return (None, Vec::new()) };
    let Ok(spec) = data.make() else { return (None, Vec::new()) };
    match spec.describe(&|path| recipe.path(path)) {
        Ok(description) => (Some(description.modality()), Vec::new()),
        Err(error) => {
            let finding = Finding {
                path: DataSection::KEY.to_owned(),
                message: error.to_string(),
                rule: "the data can be read".to_owned(),
                help: None,
            };
            (None, vec![finding])
        }
    }
}

/// Sections that a recipe with stages has, and what for.
const NEEDED: [(&str, &str); 3] =
    [("model", "the network"), ("data", "what it reads"), ("tokenizer", "how text becomes tokens")];

fn needed((key, what): &(&str, &str)) -> Finding {
    Finding {
        path: StagesSection::KEY.to_owned(),
        message: format!("there are stages, but no section `{key}`"),
        rule: format!("a recipe with stages has a section `{key}`: {what}"),
        help: Some(match *key {
            "tokenizer" => "write one, or extend a file that has one".to_owned(),
            key => format!("write one, extend a file that has one, or choose one with `--{key} NAME`"),
        }),
    }
}

/// Runs a recipe until the steps of `options.profile`, in its first stage that trains, are done.
///
/// # Errors
/// As [`run`], and when no stage trains or the window is longer than its steps.
pub fn profile(recipe: &Recipe, options: RunOptions) -> Result<Profiled, RunError> {
    match run(recipe, options) {
        Err(RunError::Stage { source, name }) => match *source {
            StageError::Train(TrainError::Profiled(profiled)) => Ok(*profiled),
            other => Err(RunError::Stage { name, source: Box::new(other) }),
        },
        Err(error) => Err(error),
        Ok(()) => Err(RunError::NothingToProfile),
    }
}

/// The tokens per sequence of a stage, if it has sequences.
pub fn sequence_length(recipe: &Recipe, stage: &str) -> Option<i64> {
    let stages: StagesSection = recipe.section().ok()??;
    let (component, _) = stages.0.iter().zip(stages.names()).find(|(_, name)| name == stage)?;
    match component.config.get("sequence_length") {
        Some(length) => length.as_i64(),
        None if component.kind == "pretrain" => Some(Pretrain::DEFAULT_LENGTH),
        None => None,
    }
}

/// Runs every stage of a recipe in one run directory, in order.
///
/// A resumed run passes over the stages that it has finished: their files are there. A stage that makes a model is not
/// passed over but brings its model back, without training when it has all its steps. A stage that was finished runs
/// again when a stage before it did something, or when the recipe is another one now (`RunOptions::force`).
///
/// # Errors
/// When the recipe cannot run, or a stage fails or is interrupted.
pub fn run(recipe: &Recipe, options: RunOptions) -> Result<(), RunError> {
    let stages: StagesSection = recipe.require("to know what to do")?;
    let plan = plan_model(recipe).map_err(|findings| recipe.diagnose(findings))?;
    let plan = plan.ok_or_else(|| {
        recipe.diagnose(vec![Finding {
            path: "model".to_owned(),
            message: "there is no section `model`".to_owned(),
            rule: "a recipe that runs has a model".to_owned(),
            help: Some("write one, extend a file that has one, or choose one with `--model NAME`".to_owned()),
        }])
    })?;
    let run = Run::open(recipe, options)?;
    let console = run.console().clone();
    console.line(&format!(
        "{}: {} parameters on {:?}, in {}",
        recipe.name(),
        hymba_plus::plan::grouped(plan.parameter_count()),
        run.device(),
        run.directory().path().display()
    ));
    let data = RunData::prepare(&run, recipe)?;
    let mut context = StageContext { recipe, run, data, plan, model: None, stage: String::new() };
    // A stage that does something makes what the stages after it have done out of date.
    let mut is_current = true;
    for (component, name) in stages.0.iter().zip(stages.names()) {
        console.line(&format!("\n== {name}"));
        context.stage.clone_from(&name);
        let mut run = || -> Result<(), StageError> {
            let stage = component.make()?;
            let was_finished = context.run.is_stage_finished(&name)?;
            if was_finished && is_current && !stage.makes_model() {
                let files = context.run.directory().path().join("stages").join(&name);
                console.line(&format!("{name}: finished before; what it wrote is in {}", files.display()));
                return Ok(());
            }
            is_current &= was_finished;
            stage.run(&mut context)
        };
        run().map_err(|source| RunError::Stage { name: name.clone(), source: Box::new(source) })?;
    }
    Ok(())
}
