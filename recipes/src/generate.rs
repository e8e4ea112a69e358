//! The stage `generate`: continues prompts with the model as it is.

use std::io::Write;

use hymba_plus::{
    component_config,
    config::Recipe,
    generate::{GenerateOptions, Sampling, generate},
    model::Model,
    plan::ModelPlan,
    prelude::register,
    registry::Finding,
};
use training::tokenizer::Tokenizer;

use crate::{
    context::{Stage, StageContext, StageError, stage},
    model::check_language_model,
};

/// Continues prompts and prints the texts; they are kept in the run directory as `stages/NAME/samples.txt`.
#[component_config]
pub struct Generate {
    /// The texts to continue, each as the beginning of a document; an empty one leaves the beginning to the model.
    #[default(vec![String::new()])]
    #[schemars(length(min = 1))]
    pub prompts: Vec<String>,
    /// Most new tokens of each.
    #[default(200)]
    #[schemars(range(min = 1))]
    pub max_new_tokens: usize,
    /// Divides the logits; 0 takes the likeliest token always.
    #[default(0.8)]
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// Only the likeliest tokens, this many; left out, all.
    #[schemars(range(min = 1))]
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together have this probability; left out, all.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub top_p: Option<f64>,
}

register!(stage "generate" => Generate);

impl Stage for Generate {
    fn check(&self, _recipe: &Recipe, plan: Option<&ModelPlan>, path: &str) -> Vec<Finding> {
        let length = ("max_new_tokens", self.max_new_tokens as u64);
        check_language_model("generate", plan, path, length)
    }

    fn run(&self, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let stage = context.stage.clone();
        context.run.start_stage(&stage)?;
        let sampling = Sampling { temperature: self.temperature, top_k: self.top_k, top_p: self.top_p };
        let mut samples = String::new();
        for (i, prompt) in self.prompts.iter().enumerate() {
            let seed = context.run.seed().wrapping_add(i as u64);
            let mut text = String::new();
            let (model, tokenizer) = (context.trained_model()?, &context.data.tokenizer);
            let new =
                continue_text(model, tokenizer, prompt, self.max_new_tokens, &sampling, seed, |part| {
                    text.push_str(part);
                    true
                })?;
            let end = if new.is_cut { ", as many as the model is made for" } else { "" };
            let sample =
                format!("--- prompt {prompt:?}, seed {seed}, {} tokens{end}\n{prompt}{text}\n", new.tokens);
            context.run.console().line(&sample);
            samples.push_str(&sample);
        }
        context.run.directory().write_stage_file(&stage, "samples.txt", samples.as_bytes())?;
        context.run.finish_stage(&stage)?;
        Ok(())
    }
}

/// What came of continuing a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Continuation {
    /// New tokens.
    pub tokens: usize,
    /// Whether it ended because the model is made for no longer text.
    pub is_cut: bool,
}

/// Continues one text; `on_text` hears of complete characters as they come and says whether to go on.
fn continue_text(
    model: &Model,
    tokenizer: &Tokenizer,
    prompt: &str,
    max_new_tokens: usize,
    sampling: &Sampling,
    seed: u64,
    mut on_text: impl FnMut(&str) -> bool,
) -> Result<Continuation, StageError> {
    // As in training, a document begins with the end-of-text token.
    let mut ids = vec![i64::from(tokenizer.eos())];
    ids.extend(tokenizer.encode(prompt)?.into_iter().map(i64::from));
    let room = match model.plan().longest_document() {
        Some(most) if ids.len() as u64 > most as u64 => {
            let message = format!(
                "the prompt has {} tokens with its beginning, and the model is made for {most}: use a shorter one",
                ids.len()
            );
            return Err(StageError::Other(message));
        }
        // The last new token is not read by the model.
        Some(most) => usize::try_from(most).map_or(usize::MAX, |most| most - ids.len() + 1),
        None => usize::MAX,
    };
    let options = GenerateOptions {
        max_new_tokens: max_new_tokens.min(room),
        stop_tokens: vec![i64::from(tokenizer.eos())],
        sampling: sampling.clone(),
        seed,
    };
    let mut stream = tokenizer.stream();
    let mut failure = None;
    let output = generate(model, &[ids], &options, |_, token| match stream.push(token as u32) {
        Ok(text) => text.is_empty() || on_text(&text),
        Err(error) => {
            failure = Some(error);
            false
        }
    })?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    let rest = stream.finish()?;
    if !rest.is_empty() {
        on_text(&rest);
    }
    let tokens = output.first().map_or(0, Vec::len);
    Ok(Continuation { tokens, is_cut: tokens == room && room < max_new_tokens })
}

/// Continues a text and writes it to `out` as it comes, prompt first; a reader that goes away ends it quietly.
///
/// # Errors
/// When the model or the tokenizer fails.
pub fn print_continuation(
    model: &Model,
    tokenizer: &Tokenizer,
    prompt: &str,
    max_new_tokens: usize,
    sampling: &Sampling,
    seed: u64,
    out: &mut impl Write,
) -> Result<Continuation, StageError> {
    let mut write = |text: &str| out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok();
    if !write(prompt) {
        return Ok(Continuation { tokens: 0, is_cut: false });
    }
    let new = continue_text(model, tokenizer, prompt, max_new_tokens, sampling, seed, &mut write)?;
    write("\n");
    Ok(new)
}
