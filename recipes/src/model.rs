//! A recipe's model as a plan: where the sections `model` and `tokenizer` meet.

use hymba_plus::{
    config::Recipe,
    model::ModelConfig,
    plan::ModelPlan,
    register_check,
    registry::{Finding, Section},
};
use training::trainer::TokenizerSection;

use crate::context::StagesSection;

register_check!("model", check);

fn check(recipe: &Recipe) -> Vec<Finding> {
    // A fragment that is there to be extended may leave the vocabulary to its recipes' tokenizers.
    let fragment = recipe.values().get(StagesSection::KEY).is_none();
    plan_model_with(recipe, fragment.then_some(1)).err().unwrap_or_default()
}

/// The plan of a recipe's model; none when it has no section `model`.
///
/// # Errors
/// Every rule that the model breaks, the vocabulary against the tokenizer's included.
pub fn plan_model(recipe: &Recipe) -> Result<Option<ModelPlan>, Vec<Finding>> {
    plan_model_with(recipe, None)
}

fn plan_model_with(recipe: &Recipe, vocabulary: Option<i64>) -> Result<Option<ModelPlan>, Vec<Finding>> {
    let Ok(Some(config)) = recipe.section::<ModelConfig>() else { return Ok(None) };
    let tokenizer = tokenizer_vocabulary(recipe)?;
    let mut findings = Vec::new();
    if let (Some(model), Some(tokenizer)) = (config.vocab_size, tokenizer)
        && model < tokenizer
    {
        findings.push(Finding {
            path: format!("{}.vocab_size", ModelConfig::KEY),
            message: format!("the model knows {model} tokens, its tokenizer has {tokenizer}"),
            rule: "`vocab_size` is at least the tokenizer's".to_owned(),
            help: Some(format!("use {tokenizer}, or leave `vocab_size` out: it is then the tokenizer's")),
        });
    }
    match ModelPlan::resolve(&config, tokenizer.or(vocabulary)) {
        Ok(plan) if findings.is_empty() => Ok(Some(plan)),
        Ok(_) => Err(findings),
        Err(more) => Err(findings.into_iter().chain(more).collect()),
    }
}

fn tokenizer_vocabulary(recipe: &Recipe) -> Result<Option<i64>, Vec<Finding>> {
    let Ok(Some(TokenizerSection(component))) = recipe.section() else { return Ok(None) };
    let at = |message: String| Finding {
        path: TokenizerSection::KEY.to_owned(),
        message,
        rule: "the tokenizer can be read".to_owned(),
        help: None,
    };
    let spec = component.make().map_err(|error| vec![at(error.to_string())])?;
    let size = spec.vocab_size(&|path| recipe.path(path)).map_err(|error| vec![at(error.to_string())])?;
    Ok(Some(size as i64))
}

/// What a stage that reads logits as a language model's asks of the model: a head over the vocabulary, and sequences no
/// longer than the model and its position encodings are made for. `length` is the key that says how long they are, and
/// its value; `path` is the stage's place in the recipe.
pub fn check_language_model(
    stage: &str,
    plan: Option<&ModelPlan>,
    path: &str,
    (key, length): (&str, u64),
) -> Vec<Finding> {
    let Some(plan) = plan else { return Vec::new() };
    let mut findings = Vec::new();
    let width = plan.head.module.output_width;
    if plan.vocab_size != Some(width) {
        let vocabulary = plan.vocab_size.map_or("unknown size".to_owned(), |size| format!("{size} tokens"));
        findings.push(Finding {
            path: format!("{}.head", ModelConfig::KEY),
            message: format!(
                "stage `{stage}` needs logits over the vocabulary of {vocabulary}, and `{}` gives {width} numbers",
                plan.head.component.kind
            ),
            rule: format!("stage `{stage}` needs a head that gives a logit for every token"),
            help: Some("use `head: language`".to_owned()),
        });
    }
    if let Some(most) = plan.longest_document()
        && length > most as u64
    {
        findings.push(Finding {
            path: format!("{path}.{key}"),
            message: format!("{length} tokens, the model is made for {most}"),
            rule: format!(
                "`{key}` is at most what `model.max_positions` and the position encoding are made for"
            ),
            help: Some(format!("use at most {most}, or raise those")),
        });
    }
    findings
}
