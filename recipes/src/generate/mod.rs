//! The stage `generate`: continues prompts with the model as it is.

mod text;

use std::fmt::Write as _;

use hymba_plus::{
    component_config,
    config::Recipe,
    generate::{Beams, GenerateOptions, Sampling},
    plan::ModelPlan,
    prelude::register,
    registry::Finding,
};

use training::{
    tokenizer::chat::Chat,
    trainer::{GraphPolicy, TokenizerSection},
};

pub use text::{GeneratedText, Prompt, TextEvent, TextOptions, generate_text, prompt_tokens};

use crate::{
    context::{Stage, StageContext, StageError, stage},
    model::check_language_model,
};

/// Continues prompts and prints the texts; they are kept in the run directory as `stages/NAME/samples.txt`, and with
/// everything about them as `samples.jsonl`.
#[component_config]
pub struct Generate {
    /// The texts to continue, each as the beginning of a document; an empty one leaves the beginning to the model. Left
    /// out, one empty text, or none when there are `chats`.
    #[schemars(length(min = 1))]
    pub prompts: Option<Vec<String>>,
    /// Chats to answer, each a list of messages; the chat template of the tokenizer makes texts of them.
    #[default(Vec::new())]
    pub chats: Vec<Vec<ChatMessage>>,
    /// Most new tokens of each.
    #[default(200)]
    #[schemars(range(min = 1))]
    pub max_new_tokens: usize,
    /// New tokens before which no stop token is chosen.
    #[default(0)]
    pub min_new_tokens: usize,
    /// Texts that end a sequence; what stands from there on is not kept.
    #[default(Vec::new())]
    pub stop: Vec<String>,
    /// Sequences for each prompt: differently drawn ones, or the best that beam search found.
    #[default(1)]
    #[schemars(range(min = 1))]
    pub num_return_sequences: usize,
    /// Log-probabilities of the new tokens, and of so many of the likeliest tokens beside each, in `samples.jsonl`: the
    /// model's own, before penalties, temperature and filters.
    pub logprobs: Option<usize>,
    /// Sequences (or beams) at a time; it changes speed and memory, not the texts.
    #[default(16)]
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// Tokens of a prompt that one pass reads; left out, all at once.
    #[schemars(range(min = 1))]
    pub prefill_chunk: Option<usize>,
    /// How tokens are chosen.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// Beam search.
    #[serde(flatten)]
    pub beams: Beams,
}

register!(stage "generate" => Generate);

/// What one side of a chat says.
#[component_config]
pub struct ChatMessage {
    /// Who: `system`, `user` or `assistant`.
    pub role: String,
    /// What.
    pub content: String,
}

impl Generate {
    fn options(&self, seed: u64) -> TextOptions {
        TextOptions {
            generate: GenerateOptions {
                max_new_tokens: self.max_new_tokens,
                min_new_tokens: self.min_new_tokens,
                stop_tokens: Vec::new(),
                sampling: self.sampling.clone(),
                beams: self.beams.clone(),
                num_return_sequences: self.num_return_sequences,
                seed,
                logprobs: self.logprobs,
                cuda_graph: true,
                prefill_chunk: self.prefill_chunk,
            },
            stop: self.stop.clone(),
            batch_size: self.batch_size,
        }
    }

    /// Texts, then chats.
    fn all_prompts(&self) -> Vec<Prompt> {
        let texts = match &self.prompts {
            Some(prompts) => prompts.clone(),
            None if self.chats.is_empty() => vec![String::new()],
            None => Vec::new(),
        };
        let chat = |messages: &Vec<ChatMessage>| {
            let messages = messages.iter().map(|message| (message.role.as_str(), message.content.as_str()));
            Prompt::Chat(Chat::of_texts(messages))
        };
        texts.into_iter().map(Prompt::Text).chain(self.chats.iter().map(chat)).collect()
    }

    /// Whether the recipe's tokenizer can make texts of the chats: a stage that stands after hours of training must not
    /// fail on that.
    fn check_chats(&self, recipe: &Recipe, path: &str) -> Option<Finding> {
        let Ok(Some(TokenizerSection(component))) = recipe.section() else { return None };
        let finding = |message: String| Finding {
            path: format!("{path}.chats"),
            message,
            rule: "chats need a tokenizer with a chat template that takes them".to_owned(),
            help: Some(
                "use a `kind: file` tokenizer with a `tokenizer_config.json` that has one, or `prompts`"
                    .to_owned(),
            ),
        };
        let spec = component.make().ok()?; // what is wrong with it is reported at its place
        if spec.needs_training() {
            return Some(finding(format!("a tokenizer `{}` has no chat template", component.kind)));
        }
        let tokenizer = spec.build(&[], &|path| recipe.path(path)).ok()?;
        let wrong = self.all_prompts().iter().find_map(|prompt| prompt.tokens(&tokenizer).err());
        wrong.map(|error| finding(error.to_string()))
    }
}

impl Stage for Generate {
    fn check(&self, recipe: &Recipe, plan: Option<&ModelPlan>, path: &str) -> Vec<Finding> {
        let length = ("max_new_tokens", self.max_new_tokens as u64);
        let mut findings = check_language_model("generate", plan, path, length);
        if let Err(error) = self.options(0).generate.check() {
            findings.push(Finding {
                path: format!("{path}.{}", error.name),
                message: error.to_string(),
                rule: "settings of generation fit each other".to_owned(),
                help: None,
            });
        }
        if !self.chats.is_empty() {
            findings.extend(self.check_chats(recipe, path));
        }
        findings
    }

    fn run(&self, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let stage = context.stage.clone();
        context.run.start_stage(&stage)?;
        let (model, tokenizer) = (context.trained_model()?, &context.data.text()?.tokenizer);
        let prompts = self.all_prompts();
        let tokens: Vec<Vec<i64>> =
            prompts.iter().map(|prompt| prompt.tokens(tokenizer)).collect::<Result<_, _>>()?;
        let mut options = self.options(context.run.seed());
        options.generate.cuda_graph = context.run.trainer().cuda_graph != GraphPolicy::Off;
        let texts = generate_text(model, tokenizer, &tokens, &options, |_| true)?;
        let (mut samples, mut lines) = (String::new(), String::new());
        for new in &texts {
            let prompt = prompts[new.sequence.prompt].text(tokenizer)?;
            let end = if new.is_cut() { ", as many as the model is made for" } else { "" };
            let how = match new.sequence.score {
                Some(score) => format!("score {score:.4}"),
                None => format!("seed {}", new.sequence.seed),
            };
            let (tokens, text) = (new.sequence.tokens.len(), &new.text);
            let sample = format!("--- prompt {prompt:?}, {how}, {tokens} tokens{end}\n{prompt}{text}\n");
            context.run.console().line(&sample);
            samples.push_str(&sample);
            let mut line = new.to_json(tokenizer)?;
            line["prompt"] = prompt.into();
            let _ = writeln!(lines, "{line}"); // a String takes everything
        }
        context.run.directory().write_stage_file(&stage, "samples.txt", samples.as_bytes())?;
        context.run.directory().write_stage_file(&stage, "samples.jsonl", lines.as_bytes())?;
        context.run.finish_stage(&stage)?;
        Ok(())
    }
}
