//! Runs the stages of a recipe in order.

use hymba_plus::{
    config::Recipe,
    register_check,
    registry::{Finding, Section},
};
use training::{
    run::{Run, RunOptions},
    text_data::TextData,
};

use crate::{
    context::{RunError, StageContext, StageError, StagesSection},
    plan_model,
};

register_check!("stages", check);

/// Everything that stages find wrong with the recipe before anything runs.
fn check(recipe: &Recipe) -> Vec<Finding> {
    let Ok(Some(stages)) = recipe.section::<StagesSection>() else { return Vec::new() };
    // What is wrong with the model is reported by its own check.
    let plan = plan_model(recipe).ok().flatten();
    let each = stages.0.iter().enumerate().flat_map(|(i, component)| match component.make() {
        Ok(stage) => stage.check(recipe, plan.as_ref(), &format!("{}[{i}]", StagesSection::KEY)),
        Err(_) => Vec::new(),
    });
    each.collect()
}

/// Runs every stage of a recipe in one run directory; a resumed run passes over nothing it has not finished.
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
    let data = TextData::prepare(&run, recipe)?;
    let mut context = StageContext { recipe, run, data, plan, model: None, stage: String::new() };
    for (component, name) in stages.0.iter().zip(stages.names()) {
        console.line(&format!("\n== {name}"));
        context.stage.clone_from(&name);
        let result = component.make().map_err(StageError::from).and_then(|stage| stage.run(&mut context));
        result.map_err(|source| RunError::Stage { name, source })?;
    }
    Ok(())
}
