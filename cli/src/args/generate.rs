//! `hymba generate`: what can be said.

use std::{ops::RangeInclusive, path::PathBuf};

use clap::{ArgGroup, Args};
use hymba_plus::generate::{Beams, EarlyStopping, GenerateOptions, Sampling};
use recipes::TextOptions;
use training::{checkpoint::Which, trainer::DeviceChoice};

/// Shown below the options.
pub(super) const EXAMPLES: &str = "\
Examples:
  hymba generate runs/quickstart --prompt 'pub fn '
  hymba generate runs/quickstart --prompt 'impl ' --checkpoint best --device cpu
  hymba generate runs/quickstart --prompt 'ROMEO:' --temperature 0.8 --top-k 40 --seed 3
  hymba generate runs/quickstart --prompt 'fn ' --num-beams 4 --no-repeat-ngram 3 --stop $'\\n\\n'
  hymba generate runs/quickstart --prompts prompts.jsonl --json --logprobs 3 > texts.jsonl
  hymba generate runs/chat --system 'Be brief.' --user 'What is a state?'
  hymba generate runs/chat --chat messages.json --tools tools.json
  echo -n 'To be' | hymba generate runs/shakespeare --prompt -";

/// `hymba generate`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("input"))]
pub struct Generate {
    /// Folder of a run
    pub run: PathBuf,

    /// A text to continue; `-` reads it from standard input; may be given often
    #[arg(long, value_name = "TEXT", group = "input", help_heading = "What to continue")]
    pub prompt: Vec<String>,
    /// Prompts from a file: on each line a JSON text, an object with `prompt`, or a chat; `-` reads standard input
    #[arg(long, value_name = "FILE", group = "input", help_heading = "What to continue")]
    pub prompts: Option<PathBuf>,
    /// A chat to answer: a JSON list of messages, or an object with `messages` and `tools`; `-` reads standard input
    #[arg(long, value_name = "FILE", group = "input", help_heading = "What to continue")]
    pub chat: Option<PathBuf>,
    /// A chat of one message to answer
    #[arg(long, value_name = "TEXT", group = "input", help_heading = "What to continue")]
    pub user: Option<String>,
    /// What the system says before it
    #[arg(long, value_name = "TEXT", requires = "user", help_heading = "What to continue")]
    pub system: Option<String>,
    /// Tools for a chat: a JSON list of their schemas
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompts"], help_heading = "What to continue")]
    pub tools: Option<PathBuf>,
    /// A chat template (Jinja) in the place of the tokenizer's
    #[arg(long, value_name = "FILE", conflicts_with = "prompt", help_heading = "What to continue")]
    pub chat_template: Option<PathBuf>,

    /// Most new tokens
    #[arg(long, value_name = "N", default_value_t = 200, help_heading = "Length")]
    pub max_new_tokens: usize,
    /// New tokens before which no stop token is chosen
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Length")]
    pub min_new_tokens: usize,
    /// A text that ends a sequence, and is not given; may be given often
    #[arg(long, value_name = "TEXT", help_heading = "Length")]
    pub stop: Vec<String>,

    /// Divides the logits; 0 takes the likeliest token always [default: 1]
    #[arg(long, value_name = "T", value_parser = temperature, allow_negative_numbers = true, help_heading = "Choice")]
    pub temperature: Option<f64>,
    /// Only the likeliest tokens, this many
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Choice")]
    pub top_k: Option<u64>,
    /// Only the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", value_parser = probability, allow_negative_numbers = true, help_heading = "Choice")]
    pub top_p: Option<f64>,
    /// Only tokens with at least this share of the likeliest token's probability
    #[arg(long, value_name = "P", value_parser = share, allow_negative_numbers = true, help_heading = "Choice")]
    pub min_p: Option<f64>,
    /// Above 1, tokens of the prompt and of the text so far become less likely
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive, allow_negative_numbers = true, help_heading = "Choice")]
    pub repetition_penalty: f64,
    /// Taken off the logit of a new token once for each time it has come
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = finite, allow_negative_numbers = true, help_heading = "Choice")]
    pub frequency_penalty: f64,
    /// Taken off the logit of every new token that has come at all
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = finite, allow_negative_numbers = true, help_heading = "Choice")]
    pub presence_penalty: f64,
    /// No run of so many tokens comes twice, the prompt included
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Choice")]
    pub no_repeat_ngram: Option<u64>,
    /// Seed of the first sequence; the others have the next ones
    #[arg(long, default_value_t = 0, help_heading = "Choice")]
    pub seed: u64,
    /// Sequences for each prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Choice")]
    pub num_return_sequences: u64,

    /// Beginnings that a beam search follows at a time; 1 draws instead
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Beam search")]
    pub num_beams: u64,
    /// A text's log-probability is divided by its number of tokens to this power
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = finite, allow_negative_numbers = true, help_heading = "Beam search", requires = "num_beams")]
    pub length_penalty: f64,
    /// When the search ends: true (enough texts are complete), false (no better one at this length), never (at any)
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "false",
        help_heading = "Beam search",
        requires = "num_beams"
    )]
    pub early_stopping: EarlyStopping,

    /// A JSON object on a line for each sequence, instead of its text
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// With --json: the model's log-probabilities of the new tokens, and of so many likely tokens beside each
    #[arg(long, value_name = "N", requires = "json", help_heading = "Output")]
    pub logprobs: Option<usize>,

    /// Where to compute: auto (the first GPU if there is one), cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Computation")]
    pub device: DeviceChoice,
    /// Threads within an operator on the CPU; left out, those of the run
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Computation")]
    pub threads: Option<u64>,
    /// Sequences (or beams) at a time; it changes speed and memory, not the texts
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Computation")]
    pub batch_size: u64,
    /// Tokens of a prompt that one pass reads; left out, all at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Computation")]
    pub prefill_chunk: Option<u64>,
    /// On a GPU, give every operation of a step to the device by itself, without recording steps as CUDA graphs
    #[arg(long, help_heading = "Computation")]
    pub no_cuda_graph: bool,
    /// Which weights: last, best (lowest validation loss of the kept ones), or the step of a checkpoint
    #[arg(long, value_name = "WHICH", default_value = "last", value_parser = checkpoint, help_heading = "Computation")]
    pub checkpoint: Which,
}

impl Generate {
    /// What was said, as the library takes it.
    pub fn options(&self) -> TextOptions {
        TextOptions {
            generate: GenerateOptions {
                cuda_graph: !self.no_cuda_graph,
                max_new_tokens: self.max_new_tokens,
                min_new_tokens: self.min_new_tokens,
                stop_tokens: Vec::new(),
                sampling: Sampling {
                    temperature: self.temperature.unwrap_or(1.0),
                    top_k: self.top_k.map(|k| k as usize),
                    top_p: self.top_p,
                    min_p: self.min_p,
                    repetition_penalty: self.repetition_penalty,
                    frequency_penalty: self.frequency_penalty,
                    presence_penalty: self.presence_penalty,
                    no_repeat_ngram: self.no_repeat_ngram.map(|n| n as usize),
                },
                beams: Beams {
                    num_beams: self.num_beams as usize,
                    length_penalty: self.length_penalty,
                    early_stopping: self.early_stopping,
                },
                num_return_sequences: self.num_return_sequences as usize,
                seed: self.seed,
                logprobs: self.logprobs,
                prefill_chunk: self.prefill_chunk.map(|n| n as usize),
            },
            stop: self.stop.clone(),
            batch_size: self.batch_size as usize,
        }
    }
}

/// Which weights: a word or a step.
pub(super) fn checkpoint(text: &str) -> Result<Which, String> {
    match text {
        "last" => Ok(Which::Last),
        "best" => Ok(Which::Best),
        _ => text.parse().map(Which::Step).map_err(|_| "expected last, best or a step".to_owned()),
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    number_in(text, 0.0..=f64::MAX, "a number, 0 or more")
}

fn probability(text: &str) -> Result<f64, String> {
    number_in(text, f64::MIN_POSITIVE..=1.0, "a number above 0, at most 1")
}

fn share(text: &str) -> Result<f64, String> {
    number_in(text, 0.0..=1.0, "a number from 0 to 1")
}

fn positive(text: &str) -> Result<f64, String> {
    number_in(text, f64::MIN_POSITIVE..=f64::MAX, "a number above 0")
}

fn finite(text: &str) -> Result<f64, String> {
    number_in(text, f64::MIN..=f64::MAX, "a number")
}

fn number_in(text: &str, range: RangeInclusive<f64>, expected: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("expected {expected}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Arguments, Command};

    fn generate(words: &[&str]) -> Result<Generate, clap::Error> {
        let words = ["hymba", "generate", "runs/a"].iter().chain(words);
        Arguments::try_parse_from(words).map(|arguments| match arguments.command {
            Command::Generate(generate) => *generate,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn which_weights_and_where() {
        let plain = generate(&[]).unwrap();
        assert_eq!((plain.checkpoint, plain.device), (Which::Last, DeviceChoice::Auto));
        let told = generate(&["--checkpoint", "best", "--device", "cuda:1"]).unwrap();
        assert_eq!((told.checkpoint, told.device), (Which::Best, DeviceChoice::Cuda(1)));
        assert_eq!(generate(&["--checkpoint", "00000012"]).unwrap().checkpoint, Which::Step(12));
    }

    #[test]
    fn nothing_said_is_the_librarys_default() {
        assert_eq!(generate(&[]).unwrap().options(), TextOptions::default());
    }

    #[test]
    fn numbers_out_of_range_are_mistakes_of_the_command_line() {
        for words in [
            ["--temperature", "-1"],
            ["--temperature", "nan"],
            ["--temperature", "inf"],
            ["--top-p", "0"],
            ["--top-p", "1.1"],
            ["--top-k", "0"],
            ["--min-p", "-0.1"],
            ["--repetition-penalty", "0"],
            ["--frequency-penalty", "nan"],
            ["--no-repeat-ngram", "0"],
            ["--num-beams", "0"],
            ["--num-return-sequences", "0"],
            ["--prefill-chunk", "0"],
            ["--early-stopping", "maybe"],
            ["--checkpoint", "newest"],
            ["--device", "gpu"],
            ["--threads", "0"],
            ["--logprobs", "3"],
        ] {
            assert_eq!(generate(&words).unwrap_err().exit_code(), 2, "{words:?}");
        }
        assert!(generate(&["--temperature", "0", "--top-p", "1"]).is_ok());
        assert!(generate(&["--presence-penalty", "-0.5", "--json", "--logprobs", "0"]).is_ok());
        for words in [
            ["--prompt", "a", "--prompts", "b"],
            ["--prompt", "a", "--user", "b"],
            ["--chat", "a", "--user", "b"],
            ["--prompt", "a", "--tools", "b"],
        ] {
            assert_eq!(generate(&words).unwrap_err().exit_code(), 2, "{words:?}");
        }
        assert_eq!(generate(&["--system", "a"]).unwrap_err().exit_code(), 2);
        assert!(generate(&["--system", "a", "--user", "b", "--tools", "c"]).is_ok());
    }
}
