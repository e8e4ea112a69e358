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

use crate::context::{Stage, StageContext, StageError, stage};

/// Continues prompts and prints the texts; they are kept in the run directory as `stages/NAME/samples.txt`.
#[component_config]
pub struct Generate {
    /// The texts to continue; an empty one starts a new document.
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
    #[schemars(range(min = 0.0, max = 1.0))]
    pub top_p: Option<f64>,
}

register!(stage "generate" => Generate);

impl Stage for Generate {
    fn check(&self, _recipe: &Recipe, plan: Option<&ModelPlan>, path: &str) -> Vec<Finding> {
        let Some(most) = plan.and_then(|plan| plan.max_positions) else { return Vec::new() };
        if self.max_new_tokens as i64 <= most {
            return Vec::new();
        }
        vec![Finding {
            path: format!("{path}.max_new_tokens"),
            message: format!("{} tokens, the model is meant for {most}", self.max_new_tokens),
            rule: "`max_new_tokens` is at most `model.max_positions`".to_owned(),
            help: Some(format!("use at most {most}")),
        }]
    }

    fn run(&self, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let stage = context.stage.clone();
        context.run.start_stage(&stage)?;
        let sampling = Sampling { temperature: self.temperature, top_k: self.top_k, top_p: self.top_p };
        let mut samples = String::new();
        for (i, prompt) in self.prompts.iter().enumerate() {
            let seed = context.run.seed().wrapping_add(i as u64);
            let mut text = String::new();
            let tokenizer = &context.data.tokenizer;
            let count = continue_text(
                context.trained_model()?,
                tokenizer,
                prompt,
                self.max_new_tokens,
                &sampling,
                seed,
                |part| {
                    text.push_str(part);
                    true
                },
            )?;
            let sample = format!("--- prompt {prompt:?}, seed {seed}, {count} tokens\n{prompt}{text}\n");
            context.run.console().line(&sample);
            samples.push_str(&sample);
        }
        let path = context
            .run
            .directory()
            .stage_files(&stage)
            .map_err(training::TrainError::from)?
            .join("samples.txt");
        std::fs::write(&path, samples).map_err(|source| StageError::Io { path, source })?;
        context.run.finish_stage(&stage)?;
        Ok(())
    }
}

/// Continues one text; `on_text` hears of complete characters as they come and says whether to go on. Returns the
/// number of new tokens.
fn continue_text(
    model: &Model,
    tokenizer: &Tokenizer,
    prompt: &str,
    max_new_tokens: usize,
    sampling: &Sampling,
    seed: u64,
    mut on_text: impl FnMut(&str) -> bool,
) -> Result<usize, StageError> {
    // Documents begin after an end-of-text token, so a text that is not continued from the middle does, too.
    let mut ids = vec![i64::from(tokenizer.eos())];
    ids.extend(tokenizer.encode(prompt)?.into_iter().map(i64::from));
    if ids.len() > 1 {
        ids.remove(0);
    }
    let options = GenerateOptions {
        max_new_tokens,
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
    Ok(output.first().map_or(0, Vec::len))
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
) -> Result<usize, StageError> {
    let mut write = |text: &str| out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok();
    if !write(prompt) {
        return Ok(0);
    }
    let count = continue_text(model, tokenizer, prompt, max_new_tokens, sampling, seed, &mut write)?;
    write("\n");
    Ok(count)
}
